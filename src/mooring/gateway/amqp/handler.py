"""What stands behind a link, and what it may use of its connection."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from mooring.wire.amqp.engine_events import Disposed
from mooring.wire.amqp.link import Delivery, Link

if TYPE_CHECKING:
    from mooring.gateway.amqp.connection import Connection
    from mooring.hub.hub import Hub


class Handler(Protocol):
    """One link's side of the domain. All calls come on the event loop, none after `closed`."""

    def delivered(self, delivery: Delivery) -> None:
        """A message came; the handler gives it back with `Link.settle`."""

    def credited(self) -> None:
        """There is room to send: credit, session window or socket."""

    def disposed(self, event: Disposed) -> None:
        """The client judged what was sent to it."""

    def closed(self) -> None:
        """The link is gone: let go of locks, tasks and subscriptions."""


class Opening(NamedTuple):
    """A link that a client asks for, found in the table and allowed by its credentials."""

    connection: "Connection"
    hub: "Hub"
    link: Link
    captures: dict[str, str]
    address: str
