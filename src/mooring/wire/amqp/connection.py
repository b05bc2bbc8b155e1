"""The AMQP 1.0 connection engine: bytes in, events out, bytes out. No sockets and no clock.

    connection = Connection(Settings(container_id="…"))
    connection.receive_data(data)
    while (event := connection.next_event()) is not None: …
    transport.write(connection.data_to_send())

States, and what may come in each (`_LEGAL` is the table that decides):

    HEADER ──SASL header──▶ SASL ──init──▶ SASL_WAIT ──outcome ok──▶ HEADER (AMQP only)
    HEADER ──AMQP header──▶ OPENING ──open──▶ OPENED ──our close──▶ CLOSING ──close──▶ CLOSED

Invariants:

- Nothing that a peer sends raises: a violation is answered with a close that names the condition,
  and ends in `Closed`, always the last event.
- Until `open`, a frame is at most PREAUTH_FRAME_SIZE long; after it, at most what we announced.
- Open and begin are answered by the engine at once, since peers send everything up to attach
  without waiting. Attach is answered by the user.
- Sessions, links, handles, bytes under reassembly and the size of a performative have limits,
  which the user may widen when the peer has proved who it is.
- While the user decides about SASL, what the peer sent ahead waits undecoded; the user should
  stop reading then.
- Frames and heartbeats count as signs of life; `tick` compares with the user's clock.
"""

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mooring.wire.amqp import conditions
from mooring.wire.amqp.engine_events import (
    Begun,
    Closed,
    Event,
    Opened,
    SaslAnswered,
    SaslRequested,
)
from mooring.wire.amqp.frames import (
    AMQP_HEADER,
    EMPTY_FRAME,
    MIN_MAX_FRAME_SIZE,
    SASL_HEADER,
    TYPE_AMQP,
    TYPE_SASL,
    Frame,
    FrameDecoder,
    encode_frame,
)
from mooring.wire.amqp.performatives import (
    SASL_OK,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Open,
    SaslChallenge,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    SaslResponse,
    Transfer,
    decode_performative,
    encode_composite,
)
from mooring.wire.amqp.session import Session
from mooring.wire.errors import WireError

PREAUTH_FRAME_SIZE: Final = 16 * 1024  # a SASL PLAIN password may be a token of several KB
MIN_IDLE_TIME_OUT: Final = 1000  # ms; below it a peer asks for a flood of heartbeats


@dataclass(slots=True)
class Limits:
    """What a peer may use up; may be changed at any time."""

    channel_max: int = 1023  # C# multiplexes 995 devices with a session each
    handle_max: int = 8191
    max_sessions: int = 1024
    max_links: int = 8192
    max_reassembly: int = 4 * 1024 * 1024  # bytes of deliveries not complete, all links together
    max_performative: int = 16 * 1024  # bytes of one without its payload; links keep theirs


@dataclass(slots=True)
class Settings:
    """How we present ourselves. `mechanisms` empty: no SASL layer is offered."""

    container_id: str
    mechanisms: tuple[str, ...] = ()
    max_frame_size: int = 65536
    idle_time_out: int = 240_000  # ms
    limits: Limits = field(default_factory=Limits)
    properties: dict[Any, Any] | None = None


class State(enum.Enum):
    HEADER = enum.auto()
    SASL = enum.auto()  # server: awaits init or response; client: mechanisms or outcome
    SASL_WAIT = enum.auto()
    OPENING = enum.auto()
    OPENED = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


_LEGAL: Final[dict[State, tuple[type, ...]]] = {
    State.SASL: (SaslInit, SaslResponse, SaslMechanisms, SaslChallenge, SaslOutcome),
    State.OPENING: (Open, Close),
    State.OPENED: (Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close),
    State.CLOSING: (Open, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close),
}


class _Violation(Exception):
    """The peer broke a rule that costs it the connection."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.error = Error(condition, description)


class Connection:
    """One end of an AMQP connection: a server, or after `connect` a client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.state = State.HEADER
        self.peer: Open | None = None
        self.peer_max_frame_size = MIN_MAX_FRAME_SIZE
        self.link_count = 0
        self.reassembling = 0
        self._client: Open | None = None
        self._sasl_init: SaslInit | None = None
        self._sasl_done = False
        self._challenged = False
        self._decoder = FrameDecoder(PREAUTH_FRAME_SIZE)
        self._sessions: dict[int, Session] = {}  # by the peer's channel
        self._ended: set[int] = set()  # channels of the peer's that carried a session once
        self._begun: dict[int, Session] = {}  # client: by our channel, until the peer answers
        self._events: deque[Event] = deque()
        self._out: list[bytes] = []
        self.write = self._out.append  # bound once: the sending path calls it for every frame
        self._opened = False  # our open is out
        self._heard = self._spoke = True
        self._last_heard = 0.0

    # ---- bytes in and out -------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer; then call `next_event` until it returns None."""
        if self.state is not State.CLOSED:
            self._decoder.feed(data)

    def data_to_send(self) -> bytes:
        """What is to be written now; each byte is returned once."""
        if not self._out:
            return b""
        self._spoke = True
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return data

    @property
    def buffered(self) -> int:
        """How many bytes of the peer's wait undecoded."""
        return self._decoder.buffered

    def next_event(self) -> Event | None:
        """What happened next, or None when more bytes (or a decision on SASL) are needed."""
        while not self._events:
            try:
                if not self._advance():
                    return None
            except _Violation as violation:
                self._fail(violation.error)
            except WireError as error:
                in_frames = self.state in (State.OPENED, State.OPENING, State.CLOSING)
                condition = conditions.DECODE_ERROR if in_frames else conditions.FRAMING_ERROR
                self._fail(Error(condition, str(error)))
        return self._events.popleft()

    def emit(self, event: Event) -> None:
        self._events.append(event)

    def _advance(self) -> bool:
        """Consume a header or a frame; False if there is none."""
        if self.state in (State.CLOSED, State.SASL_WAIT):
            return False
        if self.state is State.HEADER or (self._client and self._decoder.starts_header()):
            header = self._decoder.header()
            if header is None:
                return False
            self._heard = True
            self._on_header(header)
            return True
        frame = self._decoder.frame()
        if frame is None:
            return False
        self._heard = True
        if self.state is State.SASL:
            self._on_sasl(frame)
        else:
            self._on_frame(frame)
        return True

    # ---- headers and SASL -------------------------------------------------------------------

    def _on_header(self, header: bytes) -> None:
        if self._client is not None:
            self._on_header_as_client(header)
        elif header == SASL_HEADER and self.settings.mechanisms and not self._sasl_done:
            self.state = State.SASL
            self.write(SASL_HEADER)
            self._send_sasl(SaslMechanisms(self.settings.mechanisms))
        elif header == AMQP_HEADER:
            self.state = State.OPENING
            self.write(AMQP_HEADER)
        else:
            # The specification's answer to an unknown version: the header that we do speak.
            self.write(SASL_HEADER if self.settings.mechanisms else AMQP_HEADER)
            self._closed(Error(conditions.FRAMING_ERROR, "unsupported protocol header"))

    def _on_sasl(self, frame: Frame) -> None:
        if frame.type != TYPE_SASL:
            raise WireError("frame of another layer inside the SASL layer")
        performative, _ = decode_performative(frame.body, sasl=True)
        if self._client is not None:
            self._on_sasl_as_client(performative)
        elif isinstance(performative, SaslInit) and not self._challenged:
            if performative.mechanism not in self.settings.mechanisms:
                self._send_sasl(SaslOutcome(1))
                self._closed(
                    Error(conditions.NOT_IMPLEMENTED, "peer chose a mechanism not offered")
                )
                return
            self.state = State.SASL_WAIT
            self.emit(
                SaslRequested(
                    performative.mechanism,
                    performative.initial_response or b"",
                    performative.hostname,
                )
            )
        elif isinstance(performative, SaslResponse) and self._challenged:
            self.state = State.SASL_WAIT
            self.emit(SaslAnswered(performative.response))
        else:
            raise WireError("SASL frame out of order")

    def sasl_challenge(self, challenge: bytes) -> None:
        """Ask the peer for more; its answer is a SaslAnswered."""
        if self.state is State.SASL_WAIT:
            self._challenged = True
            self.state = State.SASL
            self._send_sasl(SaslChallenge(challenge))

    def sasl_outcome(self, code: int) -> None:
        """Decide: after SASL_OK the peer goes on, after any other code all is over."""
        if self.state is not State.SASL_WAIT:
            return
        self._send_sasl(SaslOutcome(code))
        if code == SASL_OK:
            self._sasl_done = True
            self.state = State.HEADER
        else:
            self._closed(Error(conditions.NOT_ALLOWED, "SASL authentication failed"))

    def _send_sasl(self, performative: Any) -> None:
        self.write(encode_frame(0, encode_composite(performative), TYPE_SASL))

    # ---- the client's part ------------------------------------------------------------------

    def connect(self, *, hostname: str | None = None, sasl: SaslInit | None = None) -> None:
        """Become the client: start with SASL if given, then open to `hostname`."""
        self._client = Open(
            self.settings.container_id,
            hostname,
            self.settings.max_frame_size,
            self.limits.channel_max,
            self.settings.idle_time_out,
        )
        self._sasl_init = sasl
        self.write(AMQP_HEADER if sasl is None else SASL_HEADER)

    def _on_header_as_client(self, header: bytes) -> None:
        if self.state is not State.HEADER:
            raise WireError("protocol header out of order")
        if header == SASL_HEADER and self._sasl_init is not None and not self._sasl_done:
            self.state = State.SASL
        elif header == AMQP_HEADER and self._client is not None:
            self.state = State.OPENING
            self._send_open(self._client)
        else:
            self._closed(Error(conditions.FRAMING_ERROR, "unsupported protocol header"))

    def _on_sasl_as_client(self, performative: Any) -> None:
        if isinstance(performative, SaslMechanisms) and self._sasl_init is not None:
            self._send_sasl(self._sasl_init)
        elif isinstance(performative, SaslOutcome):
            if performative.code == SASL_OK:
                self._sasl_done = True
                self.state = State.HEADER
                self.write(AMQP_HEADER)
            else:
                self._closed(Error(conditions.NOT_ALLOWED, "SASL authentication failed"))
        else:
            raise WireError("SASL frame out of order")

    def begin(self) -> Session:
        """Begin a session of our own; attach to it without waiting."""
        taken = {s.channel for s in self._sessions.values()} | self._begun.keys()
        channel = next(number for number in range(len(taken) + 1) if number not in taken)
        session = Session(self, channel)
        self._begun[channel] = session
        session.send_begin()
        return session

    # ---- frames -----------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        if frame.type != TYPE_AMQP:
            raise WireError("SASL frame outside the SASL layer")
        if not frame.body:
            return
        performative, end = decode_performative(frame.body)
        if end > self.limits.max_performative:
            raise _Violation(conditions.RESOURCE_LIMIT_EXCEEDED, "performative is too long")
        kind = type(performative)
        if kind not in _LEGAL[self.state]:
            raise _Violation(
                conditions.NOT_ALLOWED, f"{kind.__name__.lower()} is not legal in this state"
            )
        if kind is Close:
            self._on_close(performative)
        elif self.state is State.CLOSING:
            pass  # sent before the peer saw our close
        elif kind is Open:
            self._on_open(performative)
        elif kind is Begin:
            self._on_begin(performative, frame.channel)
        else:
            self._on_session_frame(performative, frame, end)

    def _on_open(self, peer: Open) -> None:
        if not self._opened:
            self._send_open(
                Open(
                    self.settings.container_id,
                    None,
                    self.settings.max_frame_size,
                    self.limits.channel_max,
                    self.settings.idle_time_out,
                    properties=self.settings.properties,
                )
            )
        self.state = State.OPENED
        self.peer = peer
        if peer.max_frame_size < MIN_MAX_FRAME_SIZE:
            raise _Violation(conditions.INVALID_FIELD, "max-frame-size is below 512")
        if peer.idle_time_out and peer.idle_time_out < MIN_IDLE_TIME_OUT:
            raise _Violation(
                conditions.INVALID_FIELD, f"idle-time-out is below {MIN_IDLE_TIME_OUT} ms"
            )
        self.peer_max_frame_size = peer.max_frame_size
        self.emit(Opened(peer))

    def _send_open(self, open: Open) -> None:
        self._opened = True
        self._decoder.max_frame_size = self.settings.max_frame_size
        self.write(encode_frame(0, encode_composite(open)))

    def _on_begin(self, begin: Begin, channel: int) -> None:
        if channel in self._sessions:
            raise _Violation(conditions.NOT_ALLOWED, "channel carries a session already")
        if begin.remote_channel is not None:
            session = self._begun.pop(begin.remote_channel, None)
            if session is None:
                raise _Violation(conditions.NOT_ALLOWED, "begin answers no begin of ours")
            session.on_begin(begin, channel)
        else:
            if channel > self.limits.channel_max:
                raise _Violation(conditions.FRAMING_ERROR, "channel is above channel-max")
            if len(self._sessions) >= self.limits.max_sessions:
                raise _Violation(conditions.RESOURCE_LIMIT_EXCEEDED, "too many sessions")
            session = Session(self, channel)
            session.on_begin(begin, channel)
            session.send_begin()
        self._sessions[channel] = session
        self._ended.discard(channel)
        self.emit(Begun(session))

    def _on_session_frame(self, performative: Any, frame: Frame, end: int) -> None:
        session = self._sessions.get(frame.channel)
        if session is None:
            if frame.channel in self._ended:
                return  # azure-eventhub detaches its links after it has ended their session
            raise _Violation(conditions.NOT_ALLOWED, "frame on a channel without a session")
        kind = type(performative)
        if kind is End:
            session.on_end(performative)
        elif session.ending:
            pass  # sent before the peer saw our end
        elif kind is Transfer:
            session.on_transfer(performative, frame.body[end:])
        elif kind is Disposition:
            session.on_disposition(performative)
        elif kind is Flow:
            session.on_flow(performative)
        elif kind is Attach:
            session.on_attach(performative)
        else:
            session.on_detach(performative)

    def forget(self, session: Session) -> None:
        """The session has ended on both sides."""
        if session.remote_channel is not None:
            self._sessions.pop(session.remote_channel, None)
            self._ended.add(session.remote_channel)

    @property
    def sessions(self) -> Sequence[Session]:
        return list(self._sessions.values())

    def reassemble(self, size: int) -> None:
        """Account for a part of a delivery that is to be kept."""
        self.reassembling += size
        if self.reassembling > self.limits.max_reassembly:
            raise _Violation(conditions.RESOURCE_LIMIT_EXCEEDED, "too much under reassembly")

    # ---- the end ----------------------------------------------------------------------------

    def close(self, error: Error | None = None) -> None:
        """Say close and await the peer's; the user should give it a few seconds only."""
        if self.state is State.CLOSED or self.state is State.CLOSING:
            return
        if not self._opened:
            self._closed(error)
            return
        self._lose_sessions()
        self.state = State.CLOSING
        self.write(encode_frame(0, encode_composite(Close(error))))

    def _on_close(self, close: Close) -> None:
        if self.state is not State.CLOSING:
            if not self._opened:  # close must follow open
                self._send_open(Open(self.settings.container_id))
            self.write(encode_frame(0, encode_composite(Close())))
        self._closed(close.error, by_peer=True)

    def _fail(self, error: Error) -> None:
        """The peer broke the rules: close, and do not wait for its answer."""
        if self.state not in (State.CLOSING, State.CLOSED):
            if self.state is State.OPENING and not self._opened:
                self._send_open(Open(self.settings.container_id))
            if self._opened:
                self.write(encode_frame(0, encode_composite(Close(error))))
        self._closed(error)

    def _closed(self, error: Error | None, *, by_peer: bool = False) -> None:
        if self.state is State.CLOSED:
            return
        self._lose_sessions()
        self.state = State.CLOSED
        self.emit(Closed(error, by_peer))

    def _lose_sessions(self) -> None:
        for session in [*self._sessions.values(), *self._begun.values()]:
            session.lose()
        self._sessions.clear()
        self._begun.clear()

    # ---- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Compare with the clock (seconds, any origin) and return when to call again.

        Writes a heartbeat if the peer asked for signs of life and nothing was sent lately; closes
        if the peer was silent for longer than our idle-time-out.
        """
        if self._heard:
            self._heard = False
            self._last_heard = now
        idle = self.settings.idle_time_out / 1000
        if idle and now - self._last_heard >= idle:
            self._fail(Error(conditions.RESOURCE_LIMIT_EXCEEDED, "idle time-out"))
        due = self._last_heard + (idle or 60.0)
        if self.peer is not None and self.peer.idle_time_out and self.state is State.OPENED:
            # Silent for a whole quarter: the gap between two signs is half the time-out at most.
            if not self._spoke:
                self.write(EMPTY_FRAME)
            due = min(due, now + self.peer.idle_time_out / 4000)
        self._spoke = False
        return due
