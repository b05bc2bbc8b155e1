"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ..config import DATA_ENV

DEFAULT_DATA = Path("data")
DEFAULT_POLICY = "iothubowner"

Data = Annotated[
    Path,
    typer.Option("--data", envvar=DATA_ENV, help="The hub's data directory.", metavar="DIR"),
]
HubName = Annotated[
    str | None,
    typer.Option("--hub", help="Host name of the hub, if there are several.", metavar="NAME"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
DeviceId = Annotated[str, typer.Argument(metavar="ID", help="The device's id.")]
