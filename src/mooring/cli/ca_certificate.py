"""`mooring ca-certificate`: the file that clients must trust."""

from pathlib import Path

from ..config import CA_NAME
from .control import Refused
from .options import DEFAULT_DATA, Data


def ca_path(data: Path) -> Path:
    """The hub's CA certificate. Raises Refused where no hub was ever started."""
    path = (data / CA_NAME).absolute()
    try:
        there = path.is_file()
    except PermissionError:
        raise Refused(f"{data} belongs to another user; run this as that user") from None
    if not there:
        raise Refused(
            f"{data} holds no CA certificate yet; the first start makes it: "
            f"mooring serve --data {data}"
        )
    return path


def ca_certificate(data: Data = DEFAULT_DATA) -> None:
    """Print the path of the PEM file that clients must trust."""
    print(ca_path(data))
