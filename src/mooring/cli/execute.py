"""`mooring exec -- COMMAND`: run a client so that it trusts the hub.

Which variable a client reads depends on its TLS library (service-apis reference §13.3): OpenSSL
and Python's ssl read SSL_CERT_FILE, requests reads REQUESTS_CA_BUNDLE, and both *replace* their
usual roots by it, so the file holds the public roots too; Node adds NODE_EXTRA_CA_CERTS.
"""

import os
import signal
import ssl
from pathlib import Path
from typing import Annotated

import typer

from .ca_certificate import ca_path
from .control import Refused
from .options import DEFAULT_DATA, Data

BUNDLE_NAME = "ca-bundle.pem"


def execute(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND…", help="What to run.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Run a command that trusts the hub's CA beside the public ones."""
    bundle = write_bundle(data)
    trust = dict.fromkeys(
        ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), str(bundle)
    )
    # Python ignores these two, and what it starts would go on ignoring them.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, {**os.environ, **trust})  # noqa: S606 - that is its job
    except FileNotFoundError:
        raise Refused(f"{command[0]}: no such command") from None
    except OSError as error:
        raise Refused(f"{command[0]}: cannot be run: {error.strerror}") from None


def write_bundle(data: Path) -> Path:
    """The public roots and the hub's CA in one file; returns its path. Raises Refused."""
    pem = _public_roots() + "\n" + ca_path(data).read_text()
    path = (data / BUNDLE_NAME).absolute()
    try:
        if path.read_text() == pem:
            return path
    except OSError:
        pass
    fresh = path.with_name(f"{BUNDLE_NAME}.{os.getpid()}")
    try:
        fresh.write_text(pem)
        fresh.replace(path)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from None
    return path


def _public_roots() -> str:
    try:
        import certifi
    except ImportError:
        system = ssl.get_default_verify_paths().cafile
        return Path(system).read_text() if system else ""
    return certifi.contents()
