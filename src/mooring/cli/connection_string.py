"""`mooring connection-string`: what an SDK is given to reach the hub, alone on standard output."""

from typing import Annotated, Any

import typer

from .control import Control, Refused
from .options import DEFAULT_DATA, DEFAULT_POLICY, Data, HubName


def connection_string(
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="A shared access policy's. [iothubowner]")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="ID", help="A device's.")] = None,
    module: Annotated[
        str | None, typer.Option(metavar="ID", help="A module's, with --device.")
    ] = None,
    events: Annotated[
        bool, typer.Option("--events", help="For azure-eventhub, to read telemetry.")
    ] = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="With --events: without TLS, over the hub's --amqp-plain-port."
        ),
    ] = False,
    secondary: Annotated[bool, typer.Option("--secondary", help="With the secondary key.")] = False,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Print a connection string: of a policy (default), a device, a module or the events."""
    if module is not None and device is None:
        raise Refused("--module ID goes with --device ID")
    if device is not None and (policy is not None or events):
        raise Refused("--device goes with neither --policy nor --events")
    if plain and not events:
        raise Refused("--plain goes with --events")
    control = Control(data, hub)
    slot = "secondaryKey" if secondary else "primaryKey"
    status = control.control("GET", "status")
    host = status["hub"]["name"]
    if device is not None:
        print(_of_identity(control, host, device, module, slot))
        return
    key = control.control("GET", "policies", DEFAULT_POLICY if policy is None else policy)
    credential = f"SharedAccessKeyName={key['name']};SharedAccessKey={key[slot]}"
    if not events:
        print(f"HostName={host};{credential}")
        return
    path = f"EntityPath={status['hub']['eventsPath']}"
    if not plain:
        print(f"Endpoint=sb://{host}/;{credential};{path}")
        return
    port = _plain_port(status)
    print(f"Endpoint=sb://localhost:{port}/;{credential};{path};UseDevelopmentEmulator=true")


def _of_identity(control: Control, host: str, device: str, module: str | None, slot: str) -> str:
    key = identity_key(control, device, module, slot)
    who = f"HostName={host};DeviceId={device}" + ("" if module is None else f";ModuleId={module}")
    return f"{who};SharedAccessKey={key}" if key else f"{who};x509=true"


def identity_key(control: Control, device: str, module: str | None, slot: str) -> str:
    """A device's or module's key; "" if it proves itself by certificate. Raises Refused."""
    path = ("devices", device) if module is None else ("devices", device, "modules", module)
    auth = control.service("GET", *path)["authentication"]
    if auth.get("type") in ("selfSigned", "certificateAuthority"):
        return ""
    key = (auth.get("symmetricKey") or {}).get(slot)
    if not key:
        raise Refused(f"{module or device} has no key: its authentication is {auth.get('type')}")
    return str(key)


def _plain_port(status: Any) -> int:
    for each in status["listening"]:
        if each["protocol"] == "amqp-plain":
            return int(each["port"])
    raise Refused(
        "the hub does not listen without TLS; start it with: mooring serve --amqp-plain-port 5672"
    )
