"""What the AMQP engine tells its user: one small value for each thing that the peer did."""

from typing import TYPE_CHECKING, NamedTuple

from mooring.wire.amqp.performatives import DeliveryState, Error, Open

if TYPE_CHECKING:
    from mooring.wire.amqp.link import Delivery, Link, Outgoing
    from mooring.wire.amqp.session import Session


class SaslRequested(NamedTuple):
    """The peer chose a mechanism; nothing more is read until `sasl_outcome` or `sasl_challenge`."""

    mechanism: str
    response: bytes
    hostname: str | None

    def __repr__(self) -> str:  # the response holds a token
        return f"SaslRequested(mechanism={self.mechanism!r}, hostname={self.hostname!r})"


class SaslAnswered(NamedTuple):
    """The peer's answer to a challenge."""

    response: bytes

    def __repr__(self) -> str:
        return "SaslAnswered()"


class Opened(NamedTuple):
    """The connection is open both ways; refuse it with `Connection.close(error)`."""

    open: Open


class Begun(NamedTuple):
    session: "Session"


class Attached(NamedTuple):
    """The peer attached. Unless we attached first, answer with `accept` or `refuse`."""

    link: "Link"


class Delivered(NamedTuple):
    """A whole message came in; give the delivery back with `Link.settle`, settled or not."""

    delivery: "Delivery"


class Credited(NamedTuple):
    """A sending link may send (again), or should drain."""

    link: "Link"


class Disposed(NamedTuple):
    """The peer judged deliveries of ours. If not `settled`, it waits for `Link.confirm`."""

    link: "Link"
    deliveries: "list[Outgoing]"
    state: DeliveryState | None
    settled: bool


class Detached(NamedTuple):
    """A link is gone, by the peer (`error` is its reason) or for a fault of the peer's."""

    link: "Link"
    error: Error | None


class Ended(NamedTuple):
    """A session is gone with all its links, for which no Detached follows."""

    session: "Session"
    links: "list[Link]"
    error: Error | None


class Closed(NamedTuple):
    """The last event: send what is left and drop the socket. All sessions and links are gone."""

    error: Error | None
    by_peer: bool


Event = (
    SaslRequested
    | SaslAnswered
    | Opened
    | Begun
    | Attached
    | Delivered
    | Credited
    | Disposed
    | Detached
    | Ended
    | Closed
)
