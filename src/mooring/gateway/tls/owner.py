"""What a connection tells whoever accepted it; the listener is the only one so far."""

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mooring.gateway.tls.transport import TlsTransport


class Owner(Protocol):
    """Who accepted the connection and is told how it goes."""

    def secured(self, transport: "TlsTransport") -> asyncio.Protocol | None:
        """The handshake is done: the protocol to serve it, or None to refuse it."""

    def heard(self, transport: "TlsTransport") -> None:
        """The first application bytes arrived."""

    def refused(self, transport: "TlsTransport", reason: str) -> None:
        """The transport ends the connection for this reason, before or after the handshake."""

    def released(self, transport: "TlsTransport") -> None:
        """The socket is closed and the transport is out of use."""
