"""`mooring serve`: run a hub in the foreground until SIGTERM or SIGINT."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__, config
from .options import DEFAULT_DATA, Data

if TYPE_CHECKING:
    from ..node import Node

PortOption = str | None


def _port(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="PORT", help=f"{what}; 0 for any free port, off for none.")


def serve(
    data: Data = DEFAULT_DATA,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar=config.CONFIG_ENV,
            metavar="FILE",
            help="Configuration file. [DIR/mooring.toml, if there is one]",
        ),
    ] = None,
    mqtt_port: Annotated[PortOption, _port("--mqtt-port", "MQTT over TLS [8883]")] = None,
    amqp_port: Annotated[PortOption, _port("--amqp-port", "AMQP over TLS [5671]")] = None,
    https_port: Annotated[PortOption, _port("--https-port", "HTTPS [443]")] = None,
    amqp_plain_port: Annotated[
        PortOption, _port("--amqp-plain-port", "AMQP without TLS, loopback only [off]")
    ] = None,
    metrics_port: Annotated[
        PortOption, _port("--metrics-port", "Metrics and health, loopback only [9464]")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="ADDRESS", help="Address to listen on; may repeat. [all]"),
    ] = None,
    hub_name: Annotated[
        str | None,
        typer.Option("--hub-name", metavar="NAME", help="Host name of the hub. [localhost]"),
    ] = None,
    production: Annotated[
        bool | None,
        typer.Option("--production/--no-production", help="Refuse settings for developers."),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option("--log-format", metavar="FORMAT", help="auto, console or json.")
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
    ] = None,
) -> None:
    """Run a hub; prints where it listens and, once it does, a line `ready`."""
    settings = config.load(
        data,
        file=config_file,
        environ=os.environ,
        flags={
            "listen.mqtt_port": mqtt_port,
            "listen.amqp_port": amqp_port,
            "listen.https_port": https_port,
            "listen.amqp_plain_port": amqp_plain_port,
            "listen.metrics_port": metrics_port,
            "listen.hosts": host or None,
            "hub.name": hub_name,
            "production": production,
            "log.format": log_format,
            "log.level": log_level,
        },
    )
    # Imported here: the other commands start quicker without the whole server.
    from .. import log, node

    log.set_up(settings.log)
    node.run(settings, data, _announce)


def _announce(node: "Node") -> None:
    """Where it listens, what to do next, and the line that scripts wait for."""
    print(f"mooring {__version__}, data in {node.data}")
    for each in node.listening:
        address = f"[{each.address}]" if ":" in each.address else each.address
        print(f"  {each.protocol:<11} {address}:{each.port}")
    print(f"Clients must trust    {node.ca}")
    if node.is_first_start:
        print(
            f"  or run them with    mooring exec --data {node.data} -- COMMAND\n"
            f"Make a device         mooring device create ID --data {node.data}\n"
            f"Connection strings    mooring connection-string --device ID --data {node.data}\n"
            f"  for back ends       mooring connection-string --data {node.data}\n"
            f"  to read telemetry   mooring connection-string --events --data {node.data}"
        )
    print("ready", flush=True)
