"""`mooring sas-token`: a shared access signature, for clients that bring no SDK to make one."""

import time
from typing import Annotated

import typer

from ..wire import sas
from .connection_string import identity_key
from .control import Control, Refused
from .options import DEFAULT_DATA, DEFAULT_POLICY, Data, HubName


def sas_token(
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Signed by a policy. [iothubowner]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="ID", help="Signed by a device's key, for the device.")
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar="ID", help="Signed by a module's key, with --device.")
    ] = None,
    ttl: Annotated[
        int, typer.Option(min=1, max=10**8, metavar="SECONDS", help="How long it is good for.")
    ] = 3600,
    secondary: Annotated[
        bool, typer.Option("--secondary", help="Signed by the secondary key.")
    ] = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Print a SAS token: of a policy (default), a device or a module."""
    if module is not None and device is None:
        raise Refused("--module ID goes with --device ID")
    if device is not None and policy is not None:
        raise Refused("--device does not go with --policy")
    control = Control(data, hub)
    slot = "secondaryKey" if secondary else "primaryKey"
    resource = str(control.control("GET", "status")["hub"]["name"])
    name = ""
    if device is not None:
        key = identity_key(control, device, module, slot)
        if not key:
            raise Refused(f"{module or device} proves itself by certificate and has no key")
        resource += f"/devices/{device}" + ("" if module is None else f"/modules/{module}")
    else:
        found = control.control("GET", "policies", DEFAULT_POLICY if policy is None else policy)
        name, key = found["name"], found[slot]
    print(sas.generate(key, resource, int(time.time()) + ttl, policy=name))
