"""One AMQP link end: attach and detach, credit, sending and settling.

States of a link, from our end (the invariants hold between calls):

    ATTACHING ──accept──▶ ATTACHED ──detach──▶ DETACHING ──peer's detach──▶ DETACHED
        └─────refuse────────────────────────────▲ peer's detach is answered at once ──▶ DETACHED

- Transfers leave only while ATTACHED, within the peer's credit and the session's window.
- While DETACHING, everything but the peer's detach is dropped and the handle stays taken.
- A delivery that came in holds one credit until it is given back with `settle`, whether or not
  the peer sent it settled: unprocessed messages never outnumber `credit_target`.
- Calls on a link that is not in the right state do nothing: the peer may have been faster.
"""

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mooring.wire.amqp import conditions
from mooring.wire.amqp.engine_events import Attached, Credited, Delivered, Detached
from mooring.wire.amqp.frames import encode_frame
from mooring.wire.amqp.performatives import (
    MAX_UINT,
    RECEIVER,
    SENDER,
    SETTLE_FIRST,
    SETTLE_SETTLED,
    Attach,
    DeliveryState,
    Detach,
    Error,
    Flow,
    Source,
    Target,
    Transfer,
    encode_composite,
)
from mooring.wire.amqp.types import Described

if TYPE_CHECKING:
    from mooring.wire.amqp.session import Session

# A transfer frame up to its payload. Every field has a fixed width, so that one `pack` writes it:
# size, doff, type, channel; descriptor, list8 and the handle's constructor; handle; delivery id;
# a tag of 4 bytes; and a tail of message format 0, settled, more and five fields that say nothing.
_TRANSFER = struct.Struct(">IBBH7sIBI2sI8s")
_HEAD: Final = b"\x00\x53\x14\xc0\x19\x0b\x70"
_TAG: Final = b"\xa0\x04"
_TAIL_SETTLED: Final = b"\x43\x41\x42\x40\x40\x42\x42\x42"


class LinkState(enum.Enum):
    ATTACHING = enum.auto()
    ATTACHED = enum.auto()
    DETACHING = enum.auto()
    DETACHED = enum.auto()


class Delivery(NamedTuple):
    """A message that came in. `payload` is the encoded message, `settled` as the peer sent it."""

    link: "Link"
    id: int
    tag: bytes
    format: int
    settled: bool
    payload: bytes


class Outgoing(NamedTuple):
    """A message that went out unsettled."""

    link: "Link"
    id: int
    tag: bytes


class _Partial:
    """A delivery of which more transfers are to come."""

    __slots__ = ("body", "first", "settled")

    def __init__(self, first: Transfer) -> None:
        self.first = first
        self.body = bytearray()
        self.settled = False


class Link:
    """Our end of a link. `role` is ours; `attach` is what the peer attached with.

    `handler` is the user's own, untouched here.
    """

    def __init__(self, session: "Session", name: str, handle: int, role: bool) -> None:
        self.session = session
        self.name = name
        self.handle = handle
        self.role = role
        self.state = LinkState.ATTACHING
        self.attach: Attach | None = None
        self.remote_handle: int | None = None
        self.handler: Any = None
        self.initiated = False  # we attached first
        self.settled = False  # sender: what we send is settled
        self.credit = 0  # sender: what the peer granted; receiver: what we granted
        self.credit_target = 0
        self.drain = False
        self.delivery_count = 0
        self.max_message_size = 0  # receiver: what we take
        self.outstanding = 0  # receiver: deliveries not given back
        self._partial: _Partial | None = None

    def __repr__(self) -> str:
        end = "sender" if self.role is SENDER else "receiver"
        return f"<Link {self.name!r} {end} {self.state.name}>"

    # ---- attach and detach ------------------------------------------------------------------

    def accept(
        self,
        *,
        source: Source | None,
        target: Target | Described | None,
        settled: bool = False,
        max_message_size: int = 0,
        credit: int = 0,
        offered: Sequence[str] = (),
        properties: dict[Any, Any] | None = None,
    ) -> bool:
        """Complete the peer's attach; `credit` is kept granted to a sending peer.

        With `settled` all that we send is settled, whatever the peer asked for, which a sender may
        say in its attach (AMQP 1.0 part 2, §2.7.3); without, the peer's wish decides. False if the
        link is gone already. Nothing but null for both ends is a refusal: see `refuse`.
        """
        if self.state is not LinkState.ATTACHING or self.attach is None:
            return False
        theirs = self.attach
        self.state = LinkState.ATTACHED
        mode = theirs.snd_settle_mode
        if self.role is SENDER:
            self.settled = settled or mode == SETTLE_SETTLED
            mode = SETTLE_SETTLED if self.settled else 0
        self.max_message_size = max_message_size
        self._send_attach(
            Attach(
                name=self.name,
                handle=self.handle,
                role=self.role,
                snd_settle_mode=mode,
                rcv_settle_mode=theirs.rcv_settle_mode if self.role is SENDER else SETTLE_FIRST,
                source=source,
                target=target,
                initial_delivery_count=0 if self.role is SENDER else None,
                max_message_size=max_message_size or None,
                offered_capabilities=tuple(offered),
                properties=properties,
            )
        )
        if self.role is RECEIVER and credit:
            self.keep_credit(credit)
        return True

    def refuse(self, error: Error) -> None:
        """Complete the attach with neither source nor target, then detach with `error`."""
        if self.accept(source=None, target=None):
            self.detach(error)

    def detach(self, error: Error | None = None, *, closed: bool = True) -> None:
        """End the link; frames that the peer sent meanwhile are dropped."""
        if self.state is not LinkState.ATTACHED:
            return
        self.state = LinkState.DETACHING
        self._release()
        self.session.send(Detach(self.handle, closed, error))

    def begin_attach(self, attach: Attach) -> None:
        """Attach from our side; the peer's answer is an Attached event."""
        self.initiated = True
        self.settled = attach.snd_settle_mode == SETTLE_SETTLED
        self.max_message_size = attach.max_message_size or 0
        self._send_attach(attach)

    def on_attach(self, attach: Attach) -> None:
        self.attach = attach
        self.remote_handle = attach.handle
        if self.role is RECEIVER:
            self.delivery_count = attach.initial_delivery_count or 0
        if self.initiated:
            self.state = LinkState.ATTACHED
        self.session.emit(Attached(self))

    def on_detach(self, detach: Detach) -> None:
        """The peer's detach, which frees the handle."""
        was, self.state = self.state, LinkState.DETACHED
        self._release()
        if was is LinkState.DETACHING:
            return
        if was is LinkState.ATTACHING and not self.initiated:
            self._send_attach(Attach(self.name, self.handle, self.role, initial_delivery_count=0))
        self.session.send(Detach(self.handle, detach.closed))
        self.session.emit(Detached(self, detach.error))

    def steal(self) -> None:
        """The peer attached another link of this name and role: this one is over."""
        if self.state is LinkState.ATTACHING and not self.initiated:
            self.accept(source=None, target=None)
        self._fault(conditions.LINK_STOLEN, "a link of the same name was attached")

    def wake(self) -> None:
        """The session takes messages again."""
        if self.role is SENDER and self.sendable > 0:
            self.session.emit(Credited(self))

    def lose(self) -> None:
        """The session is gone."""
        self.state = LinkState.DETACHED
        self._release()

    def _fault(self, condition: str, description: str) -> None:
        """The peer broke the link's rules: detach, and tell the user too."""
        error = Error(condition, description)
        self.detach(error)
        self.session.emit(Detached(self, error))

    def _send_attach(self, attach: Attach) -> None:
        self.session.send(attach)

    def _release(self) -> None:
        self.credit = 0
        if self._partial is not None:
            self.session.connection.reassembling -= len(self._partial.body)
            self._partial = None
        self.session.forget(self)

    # ---- sending ----------------------------------------------------------------------------

    @property
    def sendable(self) -> int:
        """How many messages may be sent now: credit, session window and unsettled limit."""
        if self.state is not LinkState.ATTACHED:
            return 0
        return min(self.credit, self.session.sendable(self.settled))

    def send_settled(self, payloads: Sequence[bytes], prefix: bytes = b"") -> int:
        """Send encoded messages settled, each behind `prefix`; returns how many there was room for.

        The hot path of an Event Hubs reader: one `pack` and two list entries a message.
        """
        count = min(len(payloads), self.sendable)
        session = self.session
        write = session.connection.write
        limit = session.connection.peer_max_frame_size
        channel, handle = session.channel, self.handle
        extra = _TRANSFER.size + len(prefix)
        delivery_id = session.next_delivery_id
        sent = pending = 0
        for payload in payloads[:count]:
            size = extra + len(payload)
            if size > limit:
                session.count_transfers(pending, delivery_id)
                self._count(pending)
                pending = 0
                if session.sendable(True) <= 0:
                    break
                self._send_fragments(prefix + payload, delivery_id.to_bytes(4, "big"), True, 0)
                delivery_id = session.next_delivery_id
                sent += 1
                if session.sendable(True) < count - sent:
                    break
                continue
            write(
                _TRANSFER.pack(
                    size,
                    2,
                    0,
                    channel,
                    _HEAD,
                    handle,
                    0x70,
                    delivery_id,
                    _TAG,
                    delivery_id,
                    _TAIL_SETTLED,
                )
            )
            if prefix:
                write(prefix)
            write(payload)
            delivery_id = (delivery_id + 1) & MAX_UINT
            sent += 1
            pending += 1
        session.count_transfers(pending, delivery_id)
        self._count(pending)
        return sent

    def send(
        self, payload: bytes, tag: bytes = b"", *, settled: bool | None = None, format: int = 0
    ) -> Outgoing | None:
        """Send one encoded message; None if there is no room for it (see `sendable`).

        An empty tag stands for one made of the delivery id; others must be unique while unsettled.
        """
        settled = self.settled if settled is None else settled
        if self.state is not LinkState.ATTACHED or self.credit <= 0:
            return None
        if self.session.sendable(settled) <= 0:
            return None
        delivery_id = self.session.next_delivery_id
        outgoing = Outgoing(self, delivery_id, tag or delivery_id.to_bytes(4, "big"))
        if not settled:
            self.session.unsettled[delivery_id] = outgoing
        self._send_fragments(payload, outgoing.tag, settled, format)
        return outgoing

    def _send_fragments(self, payload: bytes, tag: bytes, settled: bool, format: int) -> None:
        session = self.session
        delivery_id = session.next_delivery_id
        transfer = Transfer(
            handle=self.handle,
            delivery_id=delivery_id,
            delivery_tag=tag,
            message_format=format,
            settled=settled,
        )
        last = encode_composite(transfer)
        room = session.connection.peer_max_frame_size - 8 - len(last)
        frames = []
        if len(payload) > room:
            more = encode_composite(transfer._replace(more=True))
            while len(payload) > room:
                frames.append(encode_frame(session.channel, more + payload[:room]))
                payload = payload[room:]
        frames.append(encode_frame(session.channel, last + payload))
        session.next_delivery_id = (delivery_id + 1) & MAX_UINT
        self._count(1)
        session.send_transfers(self, frames)

    def _count(self, sent: int) -> None:
        self.delivery_count = (self.delivery_count + sent) & MAX_UINT
        self.credit -= sent

    def drained(self) -> None:
        """There is nothing to send: give back the credit of a draining peer."""
        if self.drain and self.state is LinkState.ATTACHED and not self.session.backlog:
            self._count(self.credit)
            self.drain = False
            self.send_flow(drain=True)

    def confirm(self, deliveries: Iterable[Outgoing], state: DeliveryState | None) -> None:
        """Settle what the peer judged without settling (rcv-settle-mode second)."""
        if self.state is LinkState.ATTACHED:
            ids = [delivery.id for delivery in deliveries]
            for delivery_id in ids:
                self.session.unsettled.pop(delivery_id, None)
            self.session.dispose(SENDER, ids, state)

    # ---- receiving --------------------------------------------------------------------------

    def keep_credit(self, target: int) -> None:
        """Keep the peer supplied with credit: `target` less what is outstanding."""
        self.credit_target = target
        self._replenish(force=True)

    def settle(self, deliveries: Sequence[Delivery], state: DeliveryState | None) -> None:
        """Give deliveries back; those that came unsettled are settled with `state`."""
        if self.state is not LinkState.ATTACHED:
            return
        self.outstanding -= len(deliveries)
        ids = [delivery.id for delivery in deliveries if not delivery.settled]
        self.session.dispose(RECEIVER, ids, state)
        self._replenish()

    def _replenish(self, *, force: bool = False) -> None:
        due = self.credit_target - self.outstanding
        low = self.credit <= self.credit_target // 2 and due > self.credit
        if self.state is LinkState.ATTACHED and (force or low):
            self.credit = max(due, 0)
            self.send_flow()

    def flow(self, credit: int, *, drain: bool = False, echo: bool = False) -> None:
        """Grant exactly this credit now, as a receiver that asks on demand."""
        if self.state is LinkState.ATTACHED:
            self.credit = credit
            self.drain = drain
            self.send_flow(drain=drain, echo=echo)

    def send_flow(self, *, drain: bool = False, echo: bool = False) -> None:
        self.session.send_flow(
            handle=self.handle,
            delivery_count=self.delivery_count,
            link_credit=self.credit,
            drain=drain,
            echo=echo,
        )

    def on_flow(self, flow: Flow) -> None:
        if self.state is not LinkState.ATTACHED:
            return
        if self.role is SENDER:
            if flow.link_credit is not None:
                # What is still on its way to the peer takes of the credit that it tells (§2.6.7);
                # credit, too, may be any unsigned number.
                under_way = (self.delivery_count - (flow.delivery_count or 0)) & MAX_UINT
                self.credit = max(0, flow.link_credit - under_way)
            self.drain = flow.drain
            if self.sendable > 0 or self.drain:
                self.session.emit(Credited(self))
        elif flow.delivery_count is not None and self._partial is None:
            advanced = (flow.delivery_count - self.delivery_count) & MAX_UINT
            if 0 < advanced <= self.credit:  # the peer drained
                self.credit -= advanced
                self.delivery_count = flow.delivery_count
        if flow.echo:
            self.send_flow(drain=self.drain)

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        if self.state is not LinkState.ATTACHED:
            return
        connection = self.session.connection
        partial = self._partial
        if partial is None:
            if transfer.delivery_id is None:
                self._fault(conditions.INVALID_FIELD, "first transfer has no delivery-id")
                return
            if self.credit <= 0:
                self._fault(conditions.TRANSFER_LIMIT_EXCEEDED, "transfer without credit")
                return
            self.credit -= 1
            self.delivery_count = (self.delivery_count + 1) & MAX_UINT
            partial = self._partial = _Partial(transfer)
        elif transfer.delivery_id not in (None, partial.first.delivery_id):
            self._fault(conditions.NOT_ALLOWED, "a delivery began before the one before it ended")
            return
        partial.settled = partial.settled or bool(transfer.settled)
        if transfer.aborted:
            connection.reassembling -= len(partial.body)
            self._partial = None
            self._replenish()
            return
        size = len(partial.body) + len(payload)
        if self.max_message_size and size > self.max_message_size:
            self._fault(
                conditions.MESSAGE_SIZE_EXCEEDED,
                f"message is larger than {self.max_message_size} bytes",
            )
            return
        if transfer.more:
            partial.body += payload
            connection.reassemble(len(payload))
            return
        connection.reassembling -= len(partial.body)
        self._partial = None
        if partial.body:
            partial.body += payload
            payload = bytes(partial.body)
        self.outstanding += 1
        first = partial.first
        self.session.emit(
            Delivered(
                Delivery(
                    self,
                    first.delivery_id or 0,
                    first.delivery_tag or b"",
                    first.message_format or 0,
                    partial.settled,
                    payload,
                )
            )
        )
