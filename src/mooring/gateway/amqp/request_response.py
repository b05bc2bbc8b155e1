"""Request and response over a pair of links, as `$cbs` and `$management` do it.

Rules:

- A request comes on the link that the client sends on; its answer leaves on a link that the client
  receives on, of the same node and session: the one whose target is the request's reply-to, else
  the one attached last.
- The request is settled before the answer leaves: the C SDK takes the other order for a failure
  (device-protocols reference §3.3).
- The answer's correlation id is the request's message id with its AMQP type.
- Requests of a session are answered one after another. Reading stops while some wait; answers for
  which the client has given no credit are bounded too.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import structlog

from mooring.errors import MooringError, ServerError, hub_error
from mooring.gateway.amqp.handler import Opening
from mooring.gateway.amqp.refusals import amqp_error
from mooring.wire.amqp import conditions
from mooring.wire.amqp.engine_events import Disposed
from mooring.wire.amqp.link import Delivery, Link, LinkState
from mooring.wire.amqp.messages import ABSENT, Message, Properties, decode_message
from mooring.wire.amqp.performatives import SENDER, Accepted, Error, Rejected
from mooring.wire.amqp.types import Int, Symbol
from mooring.wire.errors import WireError

log = structlog.get_logger(__name__)

REQUEST_CREDIT: Final = 64
MAX_QUEUED: Final = 4  # requests that wait before reading stops
MAX_WAITING: Final = 128


class Reply(NamedTuple):
    """A node's answer. `condition` goes along with a failure."""

    status: int
    description: str
    body: Any = ABSENT
    condition: str = ""


Answer = Callable[[Message], Awaitable[Reply]]


class Node:
    """One node in one session: the links of both directions share it."""

    def __init__(self, opening: Opening, answer: Answer, *, forget: Callable[[], object]) -> None:
        """`forget` is called when the last link has gone: who comes then needs a new node."""
        self._connection = opening.connection
        self._answer = answer
        self._forget = forget
        self._replies: list[Link] = []  # in the order of their attaching
        self._requests: deque[Delivery] = deque()
        self._waiting: dict[Link, deque[bytes]] = {}
        self._task: asyncio.Task[None] | None = None
        self._links = 0

    def join(self, link: Link) -> "NodeLink":
        """Add a link of either direction."""
        self._links += 1
        if link.role is SENDER:
            self._replies.append(link)
            self._waiting[link] = deque()
        return NodeLink(self, link)

    def leave(self, link: Link) -> None:
        """A link has gone; with the last one, so have the requests."""
        self._links -= 1
        if link in self._replies:
            self._replies.remove(link)
            del self._waiting[link]
        if self._links:
            return
        self._forget()
        if self._task is not None:
            self._task.cancel()
            self._connection.release(self)  # a task that never began has no end that would

    def request(self, delivery: Delivery) -> None:
        self._requests.append(delivery)
        if len(self._requests) >= MAX_QUEUED:
            self._connection.hold(self)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._requests:
                await self._handle(self._requests.popleft())
                self._connection.flush()
        finally:
            self._task = None
            self._requests.clear()
            self._connection.release(self)

    async def _handle(self, delivery: Delivery) -> None:
        try:
            message = decode_message(delivery.payload)
        except WireError as error:
            rejected = Rejected(Error(conditions.DECODE_ERROR, str(error)))
            delivery.link.settle([delivery], rejected)
            return
        reply_to = message.properties.reply_to
        target = self._reply_link(reply_to)
        if target is None:
            rejected = Rejected(
                Error(conditions.NOT_ALLOWED, "there is no link to answer on in this session")
            )
            delivery.link.settle([delivery], rejected)
            return
        try:
            reply = await self._answer(message)
        except MooringError as error:
            reply = failure(error)
        except Exception as error:
            log.exception("amqp_request_failed")
            reply = failure(ServerError(reason=f"unexpected {type(error).__name__}"))
        delivery.link.settle([delivery], Accepted())
        target = self._reply_link(reply_to)
        if target is not None:
            self._send(target, _encode(reply, message.properties.message_id))

    def _reply_link(self, reply_to: str | None) -> Link | None:
        for link in self._replies:
            peer = link.attach.target if link.attach is not None else None
            if reply_to and getattr(peer, "address", None) == reply_to:
                return link
        return self._replies[-1] if self._replies else None

    def _send(self, link: Link, payload: bytes) -> None:
        waiting = self._waiting[link]
        if len(waiting) >= MAX_WAITING:
            link.detach(
                Error(conditions.RESOURCE_LIMIT_EXCEEDED, "too many answers wait for credit")
            )
            return
        waiting.append(payload)
        self.credited(link)

    def credited(self, link: Link) -> None:
        waiting = self._waiting.get(link)
        while waiting and link.state is LinkState.ATTACHED and link.send(waiting[0]) is not None:
            waiting.popleft()
        if not waiting and link.drain:
            link.drained()


class NodeLink:
    """The handler of one link of a node."""

    def __init__(self, node: Node, link: Link) -> None:
        self._node = node
        self._link = link

    def delivered(self, delivery: Delivery) -> None:
        self._node.request(delivery)

    def credited(self) -> None:
        self._node.credited(self._link)

    def disposed(self, event: Disposed) -> None:
        if not event.settled:
            event.link.confirm(event.deliveries, event.state)

    def closed(self) -> None:
        self._node.leave(self._link)


def failure(error: MooringError) -> Reply:
    """The answer to a request that failed; says why in the log."""
    refusal = hub_error(error)
    log.warning(
        "amqp_request_refused",
        error=refusal.name,
        reason=refusal.reason,
        tracking_id=refusal.tracking_id,
    )
    return Reply(
        refusal.status,
        amqp_error(refusal).description or refusal.message,
        condition=refusal.condition,
    )


def _encode(reply: Reply, message_id: Any) -> bytes:
    properties: dict[Any, Any] = {
        "status-code": Int(reply.status),
        "status-description": reply.description,
    }
    if reply.condition:
        properties["error-condition"] = Symbol(reply.condition)
    return Message(
        properties=Properties(correlation_id=message_id),
        application_properties=properties,
        value=reply.body,
    ).encode()
