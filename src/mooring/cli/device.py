"""`mooring device …`: the registry's devices."""

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

app = typer.Typer(no_args_is_help=True, help="Create, list, show, change and delete devices.")


@app.command("create")
def create(
    device_id: DeviceId,
    auth: AuthOption = None,
    thumbprint: ThumbprintOption = None,
    primary_key: PrimaryKeyOption = None,
    secondary_key: SecondaryKeyOption = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Refuse it for now.")] = False,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why it has that status.")
    ] = None,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Register a device; nothing connects without an entry."""
    document = Control(data, hub).service(
        "PUT",
        "devices",
        device_id,
        body={
            "deviceId": device_id,
            "status": "disabled" if disabled else "enabled",
            "statusReason": reason,
            "authentication": authentication(auth, thumbprint, primary_key, secondary_key),
        },
    )
    show(document, as_json)


@app.command("list")
def list_(
    top: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="At most so many.")] = 1000,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """List devices by id."""
    documents = Control(data, hub).service("GET", "devices", params={"top": str(top)})
    if as_json:
        print_json(documents)
        return
    print_table(
        ("DEVICE", "STATUS", "AUTHENTICATION", "CONNECTION", "LAST ACTIVITY"),
        ([each["deviceId"], each.get("status"), *row(each)] for each in documents),
        empty="there is no device yet; make one with: mooring device create ID",
    )


@app.command("show")
def show_(
    device_id: DeviceId, as_json: AsJson = False, hub: HubName = None, data: Data = DEFAULT_DATA
) -> None:
    """Show one device; with --json its keys too."""
    show(Control(data, hub).service("GET", "devices", device_id), as_json)


@app.command("update")
def update(
    device_id: DeviceId,
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Disabling ends its session at once."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why it has that status.")
    ] = None,
    auth: AuthOption = None,
    thumbprint: ThumbprintOption = None,
    primary_key: PrimaryKeyOption = None,
    secondary_key: SecondaryKeyOption = None,
    regenerate_key: RegenerateOption = None,
    swap_keys: Annotated[
        bool, typer.Option("--swap-keys", help="Swap primary and secondary key or thumbprint.")
    ] = False,
    as_json: AsJson = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Change what is given and leave the rest."""
    control = Control(data, hub)
    if regenerate_key:
        regenerate(control, regenerate_key, device_id)
    document = control.service("GET", "devices", device_id)
    changed = dict(document)
    changed["authentication"] = updated_authentication(
        document["authentication"], auth, thumbprint, primary_key, secondary_key, swap_keys
    )
    if enabled is not None:
        changed["status"] = "enabled" if enabled else "disabled"
    if reason is not None:
        changed["statusReason"] = reason
    if changed != document:
        document = control.service(
            "PUT", "devices", device_id, body=changed, if_match=document["etag"]
        )
    show(document, as_json)


@app.command("delete")
def delete(device_id: DeviceId, hub: HubName = None, data: Data = DEFAULT_DATA) -> None:
    """Delete a device with its modules, twin and queue; its session ends at once."""
    Control(data, hub).service("DELETE", "devices", device_id, if_match="*")
    say(f"deleted {device_id}")
