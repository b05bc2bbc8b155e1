"""What all AMQP connections of a server share, and the factory that makes one for a transport."""

from typing import TYPE_CHECKING, Final

from mooring.gateway.amqp.connection import Connection
from mooring.gateway.amqp.readers import Readers

if TYPE_CHECKING:
    from mooring.hub.hubs import Hubs

AUTHENTICATION_TIME: Final = 30.0
"""Seconds that a connection may live without a valid token."""

REDIRECT_PORT: Final = 5671
"""Where clients look for the Event Hubs-compatible endpoint; some drop any other port."""


class AmqpEndpoint:
    """Calling it makes the protocol of one connection: `loop.create_server(endpoint, …)`.

    It serves any asyncio transport: TLS, plain TCP on the loopback, a WebSocket's byte stream."""

    def __init__(
        self,
        hubs: "Hubs",
        *,
        authentication_time: float = AUTHENTICATION_TIME,
        redirect_port: int = REDIRECT_PORT,
        idle_time_out: float = 240.0,
    ) -> None:
        """Times are in seconds."""
        self.hubs = hubs
        self.authentication_time = authentication_time
        self.redirect_port = redirect_port
        self.idle_time_out = idle_time_out
        self.readers = Readers()

    def __call__(self) -> Connection:
        return Connection(self)
