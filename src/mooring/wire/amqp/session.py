"""One AMQP session: windows, handles, delivery ids and settlement.

Rules that hold here:

- Delivery ids are ours, one after the other from 0; window arithmetic wraps at 2^32.
- A transfer that finds the peer's window shut waits in `backlog`, and while anything waits there
  no further message is taken (`sendable` is 0): the backlog is one message long at most.
- `unsettled` holds what we sent and nobody settled, at most MAX_UNSETTLED of it.
- The incoming window is refreshed when half of it is used. Its size is no promise of memory: what
  bounds that is each link's credit and message size, and the connection's reassembly limit.
- The peer's next id is believed from its flow frames: azure-eventhub counts deliveries where it
  should count transfers.
"""

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from mooring.wire.amqp import conditions
from mooring.wire.amqp.engine_events import Disposed, Ended
from mooring.wire.amqp.frames import encode_frame
from mooring.wire.amqp.link import Link, LinkState, Outgoing
from mooring.wire.amqp.performatives import (
    MAX_UINT,
    RECEIVER,
    Attach,
    Begin,
    DeliveryState,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Transfer,
    encode_composite,
)

if TYPE_CHECKING:
    from mooring.wire.amqp.connection import Connection

INCOMING_WINDOW: Final = 2048
OUTGOING_WINDOW: Final = 65535
MAX_UNSETTLED: Final = 2048


class Session:
    """Our end of a session on `channel`, the number that we send on.

    States: BEGINNING (we began, the peer has not answered), MAPPED, ENDING (we ended and drop all
    until the peer's end); an ended session is forgotten by its connection.
    """

    def __init__(self, connection: "Connection", channel: int) -> None:
        self.connection = connection
        self.channel = channel
        self.remote_channel: int | None = None
        self.ending = False
        self.links: dict[tuple[str, bool], Link] = {}  # by name and our role
        self.unsettled: dict[int, Outgoing] = {}
        self.backlog: deque[bytes] = deque()
        self._backlog_link: Link | None = None
        self.next_delivery_id = 0
        self.next_outgoing_id = 0
        self.next_incoming_id = 0
        self.incoming_window = INCOMING_WINDOW
        self.remote_incoming_window = 0
        self.remote_handle_max = MAX_UINT
        self._handles: dict[int, Link] = {}  # by the peer's handle
        self._own: dict[int, Link] = {}  # by our handle
        self._free: list[int] = []

    def __repr__(self) -> str:
        return f"<Session channel {self.channel}>"

    # ---- begin and end ----------------------------------------------------------------------

    def send_begin(self) -> None:
        self.send(
            Begin(
                remote_channel=self.remote_channel,
                next_outgoing_id=self.next_outgoing_id,
                incoming_window=self.incoming_window,
                outgoing_window=OUTGOING_WINDOW,
                handle_max=self.connection.limits.handle_max,
            )
        )

    def on_begin(self, begin: Begin, channel: int) -> None:
        self.remote_channel = channel
        self.next_incoming_id = begin.next_outgoing_id
        self.remote_incoming_window = begin.incoming_window
        self.remote_handle_max = begin.handle_max

    def end(self, error: Error | None = None) -> None:
        """End the session; no event follows."""
        if not self.ending:
            self.ending = True
            self._lose_links()
            self.send(End(error))

    def on_end(self, end: End) -> None:
        self.connection.forget(self)
        if not self.ending:
            self.ending = True
            links = self._lose_links()
            self.send(End())
            self.emit(Ended(self, links, end.error))

    def lose(self) -> None:
        """The connection is gone."""
        self.ending = True
        self._lose_links()

    def _fault(self, condition: str, description: str) -> None:
        """The peer broke the session's rules: end it, and tell the user too."""
        error = Error(condition, description)
        links = list(self._own.values())
        self.end(error)
        self.emit(Ended(self, links, error))

    def _lose_links(self) -> list[Link]:
        links = list(self._own.values())
        for link in links:
            link.lose()
        self.backlog.clear()
        self.unsettled.clear()
        return links

    # ---- links ------------------------------------------------------------------------------

    def attach(self, attach: Attach) -> Link:
        """Attach a link of our own; its `handle` is set here."""
        link = self._new_link(attach.name, attach.role)
        link.begin_attach(attach._replace(handle=link.handle))
        return link

    def _new_link(self, name: str, role: bool) -> Link:
        handle = self._free.pop() if self._free else len(self._own)
        link = Link(self, name, handle, role)
        self._own[handle] = link
        self.links[name, role] = link
        self.connection.link_count += 1
        return link

    def forget(self, link: Link) -> None:
        """The link sends no more: its name is free; once DETACHED, its handles are, too."""
        if self.links.get((link.name, link.role)) is link:
            del self.links[link.name, link.role]
        if self._backlog_link is link:  # the rest of a delivery dies with its link
            self.backlog.clear()
            self._backlog_link = None
        if link.settled is False and self.unsettled:
            mine = [key for key, outgoing in self.unsettled.items() if outgoing.link is link]
            for key in mine:
                del self.unsettled[key]
        if link.state is LinkState.DETACHED and self._own.pop(link.handle, None) is not None:
            self._free.append(link.handle)
            self.connection.link_count -= 1
            if link.remote_handle is not None:
                self._handles.pop(link.remote_handle, None)

    def on_attach(self, attach: Attach) -> None:
        if attach.handle in self._handles:
            self._fault(conditions.HANDLE_IN_USE, f"handle {attach.handle} is in use")
            return
        if attach.handle > self.connection.limits.handle_max:
            self._fault(conditions.NOT_ALLOWED, "handle is above handle-max")
            return
        key = (attach.name, not attach.role)
        link = self.links.get(key)
        if link is not None and link.initiated and link.remote_handle is None:
            self._handles[attach.handle] = link
            link.on_attach(attach)
            return
        if link is not None:
            link.steal()
        if (
            self.connection.link_count >= self.connection.limits.max_links
            or len(self._own) > self.remote_handle_max
        ):
            self._fault(conditions.RESOURCE_LIMIT_EXCEEDED, "too many links")
            return
        link = self._new_link(attach.name, not attach.role)
        self._handles[attach.handle] = link
        link.on_attach(attach)

    def on_detach(self, detach: Detach) -> None:
        link = self._handles.get(detach.handle)
        if link is None:
            self._fault(conditions.UNATTACHED_HANDLE, "detach of a handle that is not attached")
            return
        link.on_detach(detach)

    # ---- flow and transfers -----------------------------------------------------------------

    def sendable(self, settled: bool) -> int:
        """How many messages the session takes now."""
        if self.backlog:
            return 0
        if settled:
            return self.remote_incoming_window
        return min(self.remote_incoming_window, MAX_UNSETTLED - len(self.unsettled))

    def count_transfers(self, frames: int, next_delivery_id: int) -> None:
        """Account for transfer frames, one delivery each, that were written already."""
        self.next_delivery_id = next_delivery_id
        self.next_outgoing_id = (self.next_outgoing_id + frames) & MAX_UINT
        self.remote_incoming_window -= frames

    def send_transfers(self, link: Link, frames: list[bytes]) -> None:
        """Send the frames of one delivery, as many as fit now."""
        self.backlog.extend(frames)
        self._backlog_link = link
        self._send_backlog()

    def _send_backlog(self) -> None:
        while self.backlog and self.remote_incoming_window > 0:
            self.connection.write(self.backlog.popleft())
            self.next_outgoing_id = (self.next_outgoing_id + 1) & MAX_UINT
            self.remote_incoming_window -= 1

    def send_flow(self, **link: Any) -> None:
        self.incoming_window = INCOMING_WINDOW
        self.send(
            Flow(
                next_incoming_id=self.next_incoming_id,
                incoming_window=self.incoming_window,
                next_outgoing_id=self.next_outgoing_id,
                outgoing_window=OUTGOING_WINDOW,
                **link,
            )
        )

    def on_flow(self, flow: Flow) -> None:
        self.next_incoming_id = flow.next_outgoing_id
        # What is still on its way to the peer takes of the window that it tells (§2.5.6); a window
        # may be any unsigned number, the greatest one included.
        under_way = (self.next_outgoing_id - (flow.next_incoming_id or 0)) & MAX_UINT
        was_shut = self.sendable(True) <= 0
        self.remote_incoming_window = max(0, flow.incoming_window - under_way)
        self._send_backlog()
        link = None
        if flow.handle is not None:
            link = self._handles.get(flow.handle)
            if link is None:
                self._fault(conditions.UNATTACHED_HANDLE, "flow on a handle that is not attached")
                return
            link.on_flow(flow)
        elif flow.echo:
            self.send_flow()
        if was_shut and self.sendable(True) > 0:
            self._wake(besides=link)

    def _wake(self, besides: Link | None = None) -> None:
        """Tell the links that wait for the session that they may send."""
        for link in list(self.links.values()):
            if link is not besides:
                link.wake()

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        self.incoming_window -= 1
        self.next_incoming_id = (self.next_incoming_id + 1) & MAX_UINT
        if self.incoming_window < 0:
            self._fault(conditions.WINDOW_VIOLATION, "transfer beyond the session's window")
            return
        link = self._handles.get(transfer.handle)
        if link is None:
            self._fault(conditions.UNATTACHED_HANDLE, "transfer on a handle that is not attached")
            return
        if link.role is not RECEIVER:
            self._fault(conditions.ERRANT_LINK, "transfer on a link that we send on")
            return
        link.on_transfer(transfer, payload)
        if self.incoming_window <= INCOMING_WINDOW // 2 and not self.ending:
            self.send_flow()

    # ---- settlement -------------------------------------------------------------------------

    def dispose(self, role: bool, ids: list[int], state: DeliveryState | None) -> None:
        """Send settled dispositions for these deliveries, ids in a row in one frame."""
        start = 0
        for index in range(1, len(ids) + 1):
            if index == len(ids) or ids[index] != ids[index - 1] + 1:
                self.send(
                    Disposition(role, ids[start], ids[index - 1], True, state, batchable=False)
                )
                start = index

    def on_disposition(self, disposition: Disposition) -> None:
        if disposition.role is not RECEIVER or not self.unsettled:
            return  # a sender's word on what we have settled already
        first = disposition.first
        last = first if disposition.last is None else disposition.last
        length = (last - first) & MAX_UINT
        if length >= 1 << 31:
            self._fault(conditions.INVALID_FIELD, "disposition's range runs backwards")
            return
        if length < len(self.unsettled):
            ids = [(first + step) & MAX_UINT for step in range(length + 1)]
            found = [self.unsettled[key] for key in ids if key in self.unsettled]
        else:
            found = [
                outgoing
                for key, outgoing in self.unsettled.items()
                if (key - first) & MAX_UINT <= length
            ]
        if not disposition.settled and disposition.state is None:
            return
        was_full = self.sendable(False) <= 0
        by_link: dict[Link, list[Outgoing]] = {}
        for outgoing in found:
            by_link.setdefault(outgoing.link, []).append(outgoing)
            if disposition.settled:
                del self.unsettled[outgoing.id]
        for link, deliveries in by_link.items():
            self.emit(Disposed(link, deliveries, disposition.state, disposition.settled))
        if was_full and self.sendable(False) > 0:
            self._wake()

    # ---- to the connection ------------------------------------------------------------------

    def send(self, performative: Any) -> None:
        self.connection.write(encode_frame(self.channel, encode_composite(performative)))

    def emit(self, event: Any) -> None:
        self.connection.emit(event)
