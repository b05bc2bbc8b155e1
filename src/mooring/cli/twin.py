"""`mooring twin …`: read and change twins."""

import json
from typing import Annotated, Any

import typer

from .control import Control, Refused
from .options import DEFAULT_DATA, AsJson, Data, DeviceId, HubName
from .output import print_json

app = typer.Typer(no_args_is_help=True, help="Show and change twins.")

ModuleOption = Annotated[
    str | None, typer.Option("--module", metavar="ID", help="The module's twin instead.")
]


@app.command("show")
def show(
    device_id: DeviceId,
    module: ModuleOption = None,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Print a twin, which is JSON with or without --json."""
    print_json(Control(data, hub).service("GET", *_path(device_id, module)))


@app.command("update")
def update(
    device_id: DeviceId,
    module: ModuleOption = None,
    desired: Annotated[
        str | None, typer.Option(metavar="JSON", help="Merged into the desired properties.")
    ] = None,
    tags: Annotated[str | None, typer.Option(metavar="JSON", help="Merged into the tags.")] = None,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Merge into a twin; null removes a key."""
    patch: dict[str, Any] = {}
    if desired is not None:
        patch["properties"] = {"desired": _object("--desired", desired)}
    if tags is not None:
        patch["tags"] = _object("--tags", tags)
    if not patch:
        raise Refused("give --desired JSON, --tags JSON or both")
    print_json(Control(data, hub).service("PATCH", *_path(device_id, module), body=patch))


def _path(device_id: str, module: str | None) -> tuple[str, ...]:
    if module is None:
        return ("twins", device_id)
    return ("twins", device_id, "modules", module)


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Refused(f"{option} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(f"{option} must be a JSON object, as in '{{\"interval\": 10}}'")
    return value
