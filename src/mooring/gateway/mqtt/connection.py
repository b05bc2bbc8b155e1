"""One MQTT connection: bytes to packets and back, and when it may read, must end, has ended.

Rules:

- The first packet is a CONNECT, within the time for it; there is no second one.
- The transport is read only while there is no reason on hold (`hold`).
- One timer a connection, and none restarted by traffic: it looks how long ago the last bytes came.
- `close` runs once, whoever calls it; after it nothing is handled any more.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import structlog

from mooring.errors import HubError, InvalidOperation, MooringError, ServiceUnavailable
from mooring.wire import mqtt

from .admission import admit, claimed, return_code
from .hold import CONNECTING, WRITING
from .session import Session

if TYPE_CHECKING:
    from .endpoint import MqttEndpoint

log = structlog.get_logger(__name__)


class Connection(asyncio.Protocol):
    """The asyncio protocol of one client."""

    __slots__ = (
        "_decoder",
        "_endpoint",
        "_holds",
        "_loop",
        "_task",
        "_timer",
        "_transport",
        "closed",
        "heard",
        "patience",
        "peer",
        "session",
        "write",
    )

    def __init__(self, endpoint: "MqttEndpoint") -> None:
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._decoder = mqtt.Decoder(mqtt.CONNECT_LIMIT)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._holds = 0
        self.heard = 0.0
        self.patience = endpoint.first_packet_time
        self.session: Session | None = None
        self.closed = False
        self.peer = ""

    # What the transport calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self.peer = _address(transport.get_extra_info("peername"))
        self.heard = self._loop.time()
        self._timer = self._loop.call_later(self.patience, self._look)

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        session = self.session
        try:
            packets = self._decoder.feed(data)
        except mqtt.MalformedPacket as error:
            self._malformed(error)
            return
        if session is not None:
            self.heard = self._loop.time()
            session.handle(packets)
        elif packets:
            self._begin(packets[0])

    def eof_received(self) -> None:
        """Whoever sends no more cannot acknowledge either: the transport closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection was lost: {exc}" if exc else "the client closed the connection")
        self._transport = None

    def pause_writing(self) -> None:
        self.hold(WRITING)
        if self.session is not None:
            self.session.pause_writing()

    def resume_writing(self) -> None:
        self.release(WRITING)
        if self.session is not None:
            self.session.resume_writing()

    # What the session calls ----------------------------------------------------------------------

    def hold(self, reason: int) -> bool:
        """Read no more until this reason, and any other, is released; False if it is on already."""
        if self._holds & reason:
            return False
        if not self._holds and self._transport is not None and not self.closed:
            self._transport.pause_reading()
        self._holds |= reason
        return True

    def release(self, reason: int) -> None:
        """This reason is over."""
        if not self._holds & reason:
            return
        self._holds &= ~reason
        if not self._holds:
            self.heard = self._loop.time()  # what it sent meanwhile was not listened to
            if self._transport is not None and not self.closed:
                self._transport.resume_reading()

    def close(self, reason: str, *, graceful: bool = False) -> None:
        """End the session and, once what is written has gone out, the connection.

        `graceful` is the client's own DISCONNECT: its will is discarded."""
        self._end(reason, graceful=graceful)
        if self._transport is not None:
            self._transport.close()

    # CONNECT -------------------------------------------------------------------------------------

    def _begin(self, packet: mqtt.Packet) -> None:
        if not isinstance(packet, mqtt.Connect):
            self.close("the first packet is not a CONNECT")
        elif packet.level != mqtt.PROTOCOL_LEVEL:
            self.write(mqtt.encode_connack(mqtt.REFUSED_PROTOCOL))
            self.close("the client speaks another version than MQTT 3.1.1")
        elif self._task is None:
            self.hold(CONNECTING)
            self._task = self._loop.create_task(self._connect(packet))

    async def _connect(self, packet: mqtt.Connect) -> None:
        assert self._transport is not None
        endpoint = self._endpoint
        try:
            admission = await admit(endpoint.hubs, packet, self._transport.get_extra_info("sni"))
            store = endpoint.subscriptions(admission.hub)
            kept: dict[str, int] | None = None
            if admission.clean:
                await store.discard(admission.ref)
            else:
                kept = await store.resume(admission.ref, admission.principal.generation_id)
        except HubError as error:
            self._refuse(packet, error)
            return
        except MooringError as error:
            self._refuse(packet, ServiceUnavailable(reason=str(error)))
            return
        except Exception as error:
            # Whatever it is, the client is told to come back; it is not its fault.
            log.exception("mqtt_connect_failed", client=claimed(packet), peer=self.peer)
            self._refuse(packet, ServiceUnavailable(reason=f"unexpected {type(error).__name__}"))
            return
        self._task = None
        if self.closed:
            return
        keep_alive = admission.keep_alive * 1.5 or endpoint.max_keep_alive
        self.patience = min(keep_alive, endpoint.max_keep_alive)
        session = Session(self, endpoint, admission, kept)
        self.session = session
        session.open()
        self._rearm()
        self._proceed(session)

    def _proceed(self, session: Session) -> None:
        """Handle what came behind the CONNECT, then read on."""
        if self.closed:
            return
        try:
            packets = self._decoder.proceed(mqtt.SESSION_LIMIT)
        except mqtt.MalformedPacket as error:
            self._malformed(error)
            return
        session.handle(packets)
        self.release(CONNECTING)

    def _refuse(self, packet: mqtt.Connect, error: HubError) -> None:
        self._task = None
        if self.closed:
            return
        code = return_code(error)
        log.warning(
            "mqtt_connect_refused",
            client=claimed(packet),
            peer=self.peer,
            return_code=code,
            error=error.name,
            reason=error.reason,
            tracking_id=error.tracking_id,
        )
        self.write(mqtt.encode_connack(code))
        self.close("refused")

    # Ends ----------------------------------------------------------------------------------------

    def _malformed(self, error: mqtt.MalformedPacket) -> None:
        if self.session is not None:
            self.session.handle(error.before)
            self.session.end(InvalidOperation(reason=f"malformed packet: {error}"))
        elif error.before:
            # Whatever it was, a CONNECT among it would have stopped the decoder.
            self._begin(error.before[0])
        self.close(f"malformed packet: {error}")

    def _look(self) -> None:
        """The timer: close if the client has been silent for too long, else look again."""
        if self._holds:
            self.heard = self._loop.time()
        silent = self._loop.time() - self.heard
        if silent < self.patience:
            self._timer = self._loop.call_later(self.patience - silent, self._look)
        elif self.session is None:
            self.close("no CONNECT within the time for it")
        else:
            self.close("nothing was heard within one and a half times the keep-alive")

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed:
            self.heard = self._loop.time()
            self._timer = self._loop.call_later(self.patience, self._look)

    def _end(self, reason: str, *, graceful: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self.session is not None:
            self.session.ended(reason, graceful=graceful)
        elif reason != "refused":
            log.info("mqtt_connection_closed", peer=self.peer, reason=reason)


def _address(peername: Any) -> str:
    if isinstance(peername, tuple) and len(peername) >= 2:
        return f"{peername[0]}:{peername[1]}"
    return str(peername or "")
