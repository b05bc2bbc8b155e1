"""What all MQTT connections of a server share, and the factory that makes one for a transport."""

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from mooring.hub.subscriptions import Subscriptions

from .connection import Connection

if TYPE_CHECKING:
    from mooring.hub.hub import Hub
    from mooring.hub.hubs import Hubs
    from mooring.hub.identity import Ref

MAX_KEEP_ALIVE: Final = 1767
"""Seconds of silence after which any client counts as gone (29.45 minutes)."""

FIRST_PACKET_TIME: Final = 30.0
"""Seconds in which a CONNECT must have come."""

_REMEMBERED: Final = 20_000


class MqttEndpoint:
    """Calling it makes the protocol of one connection: `loop.create_server(endpoint, …)`."""

    def __init__(
        self,
        hubs: "Hubs",
        *,
        max_keep_alive: float = MAX_KEEP_ALIVE,
        first_packet_time: float = FIRST_PACKET_TIME,
        session_expiry: float = 86_400.0,
    ) -> None:
        """Times are in seconds."""
        self.hubs = hubs
        self.max_keep_alive = max_keep_alive
        self.first_packet_time = first_packet_time
        self._session_expiry = session_expiry
        self._subscriptions: dict[str, Subscriptions] = {}
        # (hub, identity) -> {sequence number: packet id} of what a client was sent and did not
        # acknowledge before its connection went; in memory, as a restart may forget packet ids.
        self._unacknowledged: OrderedDict[tuple[str, Ref], dict[int, int]] = OrderedDict()

    def __call__(self) -> Connection:
        return Connection(self)

    def subscriptions(self, hub: "Hub") -> Subscriptions:
        """The store of a hub's persistent sessions."""
        store = self._subscriptions.get(hub.name)
        if store is None:
            store = Subscriptions(hub.state, hub.presence, expiry=self._session_expiry, now=hub.now)
            self._subscriptions[hub.name] = store
        return store

    def leave_unacknowledged(self, hub: "Hub", ref: "Ref", sent: dict[int, int]) -> None:
        """Keep the packet ids of a session that ended, for when the client is back."""
        self._unacknowledged.pop((hub.name, ref), None)
        if sent:
            self._unacknowledged[hub.name, ref] = sent
            if len(self._unacknowledged) > _REMEMBERED:
                self._unacknowledged.popitem(last=False)

    def take_unacknowledged(self, hub: "Hub", ref: "Ref") -> dict[int, int]:
        """What `leave_unacknowledged` kept, once."""
        return self._unacknowledged.pop((hub.name, ref), {})
