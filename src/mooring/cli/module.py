"""`mooring module …`: the modules of devices."""

from typing import Annotated

import typer

from .control import Control
from .identity import (
    AuthOption,
    PrimaryKeyOption,
    RegenerateOption,
    SecondaryKeyOption,
    ThumbprintOption,
    authentication,
    regenerate,
    row,
    show,
    updated_authentication,
)
from .options import DEFAULT_DATA, AsJson, Data, DeviceId, HubName
from .output import print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="Create, list, show, change and delete modules.")

ModuleId = Annotated[str, typer.Argument(metavar="MODULE", help="The module's id.")]


@app.command("create")
def create(
    device_id: DeviceId,
    module_id: ModuleId,
    auth: AuthOption = None,
    thumbprint: ThumbprintOption = None,
    primary_key: PrimaryKeyOption = None,
    secondary_key: SecondaryKeyOption = None,
    managed_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who looks after it.")
    ] = None,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Register a module of a device."""
    document = Control(data, hub).service(
        "PUT",
        "devices",
        device_id,
        "modules",
        module_id,
        body={
            "deviceId": device_id,
            "moduleId": module_id,
            "managedBy": managed_by,
            "authentication": authentication(auth, thumbprint, primary_key, secondary_key),
        },
    )
    show(document, as_json)


@app.command("list")
def list_(
    device_id: DeviceId, as_json: AsJson = False, hub: HubName = None, data: Data = DEFAULT_DATA
) -> None:
    """List a device's modules."""
    documents = Control(data, hub).service("GET", "devices", device_id, "modules")
    if as_json:
        print_json(documents)
        return
    print_table(
        ("MODULE", "AUTHENTICATION", "CONNECTION", "LAST ACTIVITY"),
        ([each["moduleId"], *row(each)] for each in documents),
        empty=f"{device_id} has no module; make one with: mooring module create {device_id} ID",
    )


@app.command("show")
def show_(
    device_id: DeviceId,
    module_id: ModuleId,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show one module; with --json its keys too."""
    show(
        Control(data, hub).service("GET", "devices", device_id, "modules", module_id),
        as_json,
    )


@app.command("update")
def update(
    device_id: DeviceId,
    module_id: ModuleId,
    auth: AuthOption = None,
    thumbprint: ThumbprintOption = None,
    primary_key: PrimaryKeyOption = None,
    secondary_key: SecondaryKeyOption = None,
    regenerate_key: RegenerateOption = None,
    swap_keys: Annotated[
        bool, typer.Option("--swap-keys", help="Swap primary and secondary key or thumbprint.")
    ] = False,
    managed_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who looks after it.")
    ] = None,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Change what is given and leave the rest."""
    control = Control(data, hub)
    if regenerate_key:
        regenerate(control, regenerate_key, device_id, module_id)
    path = ("devices", device_id, "modules", module_id)
    document = control.service("GET", *path)
    changed = dict(document)
    changed["authentication"] = updated_authentication(
        document["authentication"], auth, thumbprint, primary_key, secondary_key, swap_keys
    )
    if managed_by is not None:
        changed["managedBy"] = managed_by
    if changed != document:
        document = control.service("PUT", *path, body=changed, if_match=document["etag"])
    show(document, as_json)


@app.command("delete")
def delete(
    device_id: DeviceId, module_id: ModuleId, hub: HubName = None, data: Data = DEFAULT_DATA
) -> None:
    """Delete a module with its twin and queue; its session ends at once."""
    Control(data, hub).service("DELETE", "devices", device_id, "modules", module_id, if_match="*")
    say(f"deleted {device_id}/{module_id}")
