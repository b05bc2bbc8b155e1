"""Accepts TLS connections within limits and keeps track of them until they are closed.

Rules: one wake-up accepts a bounded number; a listener above its limits refuses strangers and
leaves those who are connected alone; when the process is out of descriptors accepting pauses
instead of spinning; refusals are counted always and logged sparingly, since a flood of bad
connections must not become a flood of log lines.
"""

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from OpenSSL import SSL

from mooring.gateway.tls.binding import bind
from mooring.gateway.tls.limits import ListenerLimits
from mooring.gateway.tls.native import receiver
from mooring.gateway.tls.transport import TlsTransport

_log = structlog.get_logger(__name__)

_ACCEPTS_PER_TURN = 64
_ACCEPT_PAUSE = 0.5  # seconds without accepting after the system ran out of something
_PAUSE_LOG_EVERY = 60.0
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LOGGED_PER_WINDOW = 10
_LOG_WINDOW = 10.0
_MAX_REASONS = 64

ProtocolFactory = Callable[[], asyncio.Protocol]
ContextSource = SSL.Context | Callable[[], SSL.Context]


async def serve_tls(
    protocol_factory: ProtocolFactory,
    context: ContextSource,
    *,
    host: str = "",
    port: int,
    purpose: str,
    setting: str = "",
    limits: ListenerLimits | None = None,
) -> "Listener":
    """Listen on every address of `host` ("" means all) and serve each client a new protocol.

    `context` may be a callable, asked at each accept, so that a renewed certificate holds for
    the next client. `purpose` ("MQTT") is for logs, `setting` ("--mqtt-port") for the
    ConfigError raised when the port cannot be bound.
    """
    limits = limits or ListenerLimits()
    sockets = bind(host, port, purpose=purpose, setting=setting, backlog=limits.backlog)
    return Listener(protocol_factory, context, sockets, purpose=purpose, limits=limits)


class Listener:
    """The listening sockets of one purpose and every connection they brought."""

    def __init__(
        self,
        protocol_factory: ProtocolFactory,
        context: ContextSource,
        sockets: list[socket.socket],
        *,
        purpose: str,
        limits: ListenerLimits,
    ) -> None:
        """Start accepting on `sockets` (bound, listening, non-blocking)."""
        self.purpose = purpose
        self.limits = limits
        self.accepted = 0
        self.refusals: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._factory = protocol_factory
        self._receive = receiver()
        self._context = context
        self._sockets = sockets
        self._socknames = [sock.getsockname() for sock in sockets]
        self._transports: set[TlsTransport] = set()
        self._pending: dict[TlsTransport, None] = {}  # in order of arrival
        self._sources: Counter[str] = Counter()
        self._closed = asyncio.Event()
        self._closing = False
        self._resume: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0
        self._log_window = 0.0
        self._logged = 0
        for sock in sockets:
            self._loop.add_reader(sock.fileno(), self._accept_ready, sock)

    @property
    def sockname(self) -> Any:
        """Where it listens: (address, port, …) of the first socket, also after close()."""
        return self._socknames[0]

    @property
    def socknames(self) -> list[Any]:
        return list(self._socknames)

    @property
    def port(self) -> int:
        return int(self._socknames[0][1])

    @property
    def open_count(self) -> int:
        """Connections that hold a socket, in whatever state."""
        return len(self._transports)

    @property
    def pending_count(self) -> int:
        """Connections that have not sent a first byte over TLS."""
        return len(self._pending)

    def __iter__(self) -> Iterator[TlsTransport]:
        return iter(tuple(self._transports))

    def set_context(self, context: ContextSource) -> None:
        """Use another context for the clients to come; those connected keep theirs."""
        self._context = context

    # Accepting --------------------------------------------------------------------------------

    def _accept_ready(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._closing:
                return
            try:
                sock, peername = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._pause(error)
                    return
                continue  # the client has gone again
            self.accepted += 1
            self._admit(sock, peername)

    def _admit(self, sock: socket.socket, peername: Any) -> None:
        reason = self._over_limit(peername)
        if reason:
            sock.close()
            self._count(reason, peername)
            return
        try:
            sock.setblocking(False)
            context = self._context if isinstance(self._context, SSL.Context) else self._context()
            transport = TlsTransport(
                self._loop,
                sock,
                peername,
                context,
                self,
                self.limits.transport,
                self._receive,
            )
        except Exception:
            sock.close()
            _log.exception("connection_not_served", purpose=self.purpose)
            return
        if self.limits.per_source is not None:
            self._sources[peername[0]] += 1
        self._transports.add(transport)
        self._pending[transport] = None
        if len(self._pending) > self.limits.pending:
            oldest = next(iter(self._pending))
            self.refused(oldest, "too many clients before their first byte")
            oldest.abort()

    def _over_limit(self, peername: Any) -> str:
        limits = self.limits
        if len(self._transports) >= limits.connections:
            return "too many connections"
        if limits.per_source is not None and self._sources[peername[0]] >= limits.per_source:
            return "too many connections from one address"
        return ""

    def _pause(self, error: OSError) -> None:
        now = self._loop.time()
        if now >= self._quiet_until:
            # Every closed connection lets one more in before the next pause: log once a minute.
            self._quiet_until = now + _PAUSE_LOG_EVERY
            _log.error(
                "accepting_paused",
                purpose=self.purpose,
                reason=error.strerror,
                open=len(self._transports),
                advice="raise the limit of open files (ulimit -n, LimitNOFILE=)",
            )
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
        if self._resume is not None:
            self._resume.cancel()
        self._resume = self._loop.call_later(_ACCEPT_PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._resume = None
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept_ready, sock)

    # Told by the transports -------------------------------------------------------------------

    def secured(self, transport: TlsTransport) -> asyncio.Protocol | None:
        """A handshake is done: the protocol that serves it."""
        return None if self._closing else self._factory()

    def heard(self, transport: TlsTransport) -> None:
        """A client sent its first byte: it is no stranger to the transport any more."""
        self._pending.pop(transport, None)

    def refused(self, transport: TlsTransport, reason: str) -> None:
        """A connection is ended for this reason."""
        self._count(reason, transport.get_extra_info("peername"))

    def released(self, transport: TlsTransport) -> None:
        """A connection has given back its socket."""
        self._transports.discard(transport)
        self._pending.pop(transport, None)
        if self.limits.per_source is not None:
            source = transport.get_extra_info("peername")[0]
            self._sources[source] -= 1
            if self._sources[source] <= 0:
                del self._sources[source]
        if self._closing and not self._transports:
            self._closed.set()

    def _count(self, reason: str, peername: Any) -> None:
        # The words come from OpenSSL and from here, but a bound costs nothing.
        known = reason in self.refusals or len(self.refusals) < _MAX_REASONS
        self.refusals[reason if known else "other"] += 1
        now = self._loop.time()
        if now - self._log_window > _LOG_WINDOW:
            if self._logged > _LOGGED_PER_WINDOW:
                _log.warning(
                    "connections_refused",
                    purpose=self.purpose,
                    not_logged=self._logged - _LOGGED_PER_WINDOW,
                )
            self._log_window = now
            self._logged = 0
        self._logged += 1
        if self._logged <= _LOGGED_PER_WINDOW:
            _log.info(
                "connection_refused",
                purpose=self.purpose,
                peer=peername[0] if peername else None,
                reason=reason,
            )

    # Closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop accepting; established connections go on. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        # A handshake that is under way has no session to lose.
        for transport in tuple(self._pending):
            transport.abort()
        if not self._transports:
            self._closed.set()

    def pause_connections(self) -> None:
        """Read no more, but for those whose protocol asks for it."""
        for transport in self:
            transport.pause_reading()

    def close_connections(self) -> None:
        """Close every connection: flushed, and cut off after the limits' `close_timeout`."""
        for transport in tuple(self._transports):
            transport.close()

    def abort_connections(self) -> None:
        """Close every connection at once."""
        for transport in tuple(self._transports):
            transport.abort()

    async def wait_closed(self) -> None:
        """Wait until close() was called and the last connection has given back its socket."""
        await self._closed.wait()
