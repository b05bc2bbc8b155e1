"""`mooring status` and `mooring version`."""

from .. import __version__
from .control import Control
from .options import DEFAULT_DATA, AsJson, Data, HubName
from .output import print_fields, print_json


def status(as_json: AsJson = False, hub: HubName = None, data: Data = DEFAULT_DATA) -> None:
    """Show what the running hub listens on and carries."""
    answer = Control(data, hub).control("GET", "status")
    if as_json:
        print_json(answer)
        return
    print_fields(
        {
            "version": answer["version"],
            "hub": answer["hub"]["name"],
            "also known as": answer["hub"]["aliases"],
            "other hubs": answer["otherHubs"],
            "devices": answer["hub"]["devices"],
            "connected": answer["hub"]["connected"],
            "partitions": answer["hub"]["partitions"],
            "listening": [
                f"{each['protocol']} {each['address']}:{each['port']}"
                for each in answer["listening"]
            ],
            "running for": f"{answer['uptimeSeconds']} s",
            "process": answer["pid"],
        }
    )


def version() -> None:
    """Print the version."""
    print(__version__)
