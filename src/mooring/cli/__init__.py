"""The `mooring` command: one file a noun; all but `serve` and `exec` act on a running hub.

Rules. What a script may want goes to standard output alone; errors go to standard error and say
what to do next. Nothing here opens the database: the running hub is reached through the private
Unix socket in its data directory, so that the commands go on working when SAS is switched off.
"""

import sys

import typer

from ..errors import MooringError
from . import (
    ca_certificate,
    connection_string,
    consumer_group,
    device,
    execute,
    module,
    policy,
    sas_token,
    serve,
    status,
    twin,
)
from .output import complain

app = typer.Typer(
    name="mooring",
    help="An IoT hub that you run yourself and that speaks Azure IoT Hub's own protocols.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("connection-string")(connection_string.connection_string)
app.command("sas-token")(sas_token.sas_token)
app.command("ca-certificate")(ca_certificate.ca_certificate)
app.command("exec", context_settings={"allow_interspersed_args": False})(execute.execute)
app.command("status")(status.status)
app.command("version")(status.version)
app.add_typer(device.app, name="device")
app.add_typer(module.app, name="module")
app.add_typer(twin.app, name="twin")
app.add_typer(policy.app, name="policy")
app.add_typer(consumer_group.app, name="consumer-group")


def main() -> None:
    """Run the command line; exit status 1 is a refusal or failure, 2 a usage error."""
    try:
        app()
    except MooringError as error:
        complain(str(error))
        sys.exit(1)
