"""Hosts an ASGI application on any stream transport with uvicorn's HTTP/1.1 protocol class.

No uvicorn server, loop or signal handling: an HttpServer is the protocol factory that a TLS
listener, a plain loopback port or the private Unix socket calls for each connection.

Rules: whatever a stranger can send is bounded before the application sees it: header bytes (h11
stops where httptools would go on buffering), the time for headers and for a body, body bytes
counted as they arrive, requests at a time. Refusals have the same shape as the application's own.
`scope["state"]` holds `local` (true on the Unix socket only) and `peer_chain` (DER, leaf first).

uvicorn's protocol classes are no stable API: the version is pinned, and what is used of them
stands in this file alone.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import time
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import h11
import structlog
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from mooring.errors import (
    ConfigError,
    GenericBadRequest,
    GenericRequestEntityTooLarge,
    HubError,
    ServiceUnavailable,
)

from .errors import body_of, headers_of

_log = structlog.get_logger(__name__)

# uvicorn's own words are about defects only; a refused request is logged here, once. The explicit
# level also keeps uvicorn from formatting a trace line for every connection.
_uvicorn_log = logging.getLogger("mooring.gateway.http.uvicorn")
_uvicorn_log.setLevel(logging.ERROR)

_SENDABLE = (h11.IDLE, h11.SEND_RESPONSE)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one server, in bytes and seconds."""

    header_bytes: int = 32 * 1024
    header_time: float = 10.0  # from a request's first byte to the end of its headers
    body_bytes: int = 8 * 1024 * 1024  # a hundred devices with twins of the largest size
    body_time: float = 60.0  # from the end of the headers to the end of the body
    idle_time: int = 120  # between two requests of one connection
    requests: int = 1_000  # in flight at a time, all connections together


class HttpServer:
    """A protocol factory: call it once for each connection.

    `local` marks the private Unix socket. `websocket` is a uvicorn-style protocol class that is
    handed the byte stream at a WebSocket upgrade; without one, upgrades are ignored.
    """

    def __init__(
        self,
        app: Any,
        *,
        local: bool = False,
        limits: HttpLimits | None = None,
        websocket: type[asyncio.Protocol] | None = None,
    ) -> None:
        """Host `app`, an ASGI 3 application without lifespan."""
        self.limits = limits or HttpLimits()
        self.local = local
        self.closing = False
        self._state = _DatedState()
        self._config = Config(
            cast(Any, _Bounded(app, self.limits)),
            http=H11Protocol,
            ws=websocket or "none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            # The address that a stranger's header claims must never become the peer's.
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=self.limits.idle_time,
            h11_max_incomplete_event_size=self.limits.header_bytes,
        )
        self._config.load()

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _HttpProtocol(self, self._config, self._state)

    @property
    def connection_count(self) -> int:
        return len(self._state.connections)

    async def close(self, timeout: float = 5.0) -> None:
        """Close idle connections now, the others after their response or `timeout` seconds."""
        self.closing = True
        for connection in tuple(self._state.connections):
            with contextlib.suppress(h11.LocalProtocolError):
                cast(_HttpProtocol, connection).shutdown()
        if self._state.tasks:
            _, late = await asyncio.wait(tuple(self._state.tasks), timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        for connection in tuple(self._state.connections):
            cast(_HttpProtocol, connection).transport.close()


class _DatedState(ServerState):
    """uvicorn's shared state, with the Date header made when asked for instead of by a ticker."""

    def __init__(self) -> None:
        self._second = 0
        self._headers: list[tuple[bytes, bytes]] = []
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._headers = [(b"date", formatdate(now, usegmt=True).encode("ascii"))]
        return self._headers

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """ServerState sets an empty list; ours is never stored."""


class _Parser(h11.Connection):
    """h11's connection, remembering why it refused: uvicorn drops the reason."""

    refusal: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:
        try:
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise


class _HttpProtocol(H11Protocol):
    """One connection, with deadlines for headers and body and refusals in our shape."""

    def __init__(self, server: HttpServer, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self.logger = _uvicorn_log
        self.conn: _Parser = _Parser(h11.SERVER, server.limits.header_bytes)
        self._server = server
        self._deadline: asyncio.TimerHandle | None = None
        self._in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {
            "local": self._server.local,
            "peer_chain": transport.get_extra_info("peer_chain") or (),
        }
        if self._server.closing:
            transport.close()
            return
        self._set_deadline(self._server.limits.header_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self.conn.their_state is h11.IDLE:
            self._set_deadline(self._server.limits.header_time)
        super().data_received(data)
        if self._deadline is None:
            return
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY:
            if not self._in_body:
                self._set_deadline(self._server.limits.body_time, in_body=True)
        elif theirs is not h11.IDLE:
            self._clear_deadline()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Finish the response of a client that has shut its sending side; then close."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return None
        cycle.keep_alive = False
        return True

    def _set_deadline(self, seconds: float, *, in_body: bool = False) -> None:
        self._clear_deadline()
        self._in_body = in_body
        self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _clear_deadline(self) -> None:
        self._in_body = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._in_body:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the body took too long")
        elif self.conn.trailing_data[0]:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the headers took too long")
        else:
            # Nothing was asked: an answer would be taken for that of the next request.
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what h11 refuses to parse."""
        refusal = self.conn.refusal
        status = refusal.error_status_hint if refusal is not None else 400
        self._refuse(HTTPStatus(status), str(refusal) if refusal is not None else msg)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._clear_deadline()
        if self.cycle is not None and not self.cycle.response_complete:
            # The application may be in the middle of its work; its answer has no place now.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        error = GenericBadRequest(status.phrase, reason=reason)
        _log.info(
            "http_request_refused",
            tracking_id=error.tracking_id,
            status=int(status),
            reason=reason[:200],
            peer=self.client[0] if self.client else None,
        )
        if self.conn.our_state in _SENDABLE:
            body = body_of(error)
            head = h11.Response(
                status_code=status,
                headers=_headers(error, body, self._server_date()),
                reason=status.phrase.encode("ascii"),
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _server_date(self) -> list[tuple[bytes, bytes]]:
        return self.server_state.default_headers


class _Bounded:
    """ASGI middleware: bodies of a bounded size, a bounded number of requests at a time."""

    def __init__(self, app: Any, limits: HttpLimits) -> None:
        self._app = app
        self._limits = limits
        self._in_flight = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._limits
        if self._in_flight >= limits.requests:
            reason = f"{limits.requests} requests are in flight"
            await _answer(scope, send, ServiceUnavailable("Try again later.", reason=reason))
            return
        if _content_length(scope["headers"]) > limits.body_bytes:
            await _answer(scope, send, self._too_large())
            return
        self._in_flight += 1
        try:
            await self._run(scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        taken = 0
        started = False

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limits.body_bytes:
                raise self._too_large()
            return message

        async def watched(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if taken > self._limits.body_bytes:
                    # Whatever the application answers, the rest is not going to be read.
                    headers = [*message.get("headers", ()), (b"connection", b"close")]
                    message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except GenericRequestEntityTooLarge as error:
            if started:
                raise
            await _answer(scope, send, error)

    def _too_large(self) -> GenericRequestEntityTooLarge:
        return GenericRequestEntityTooLarge(
            f"The body is larger than {self._limits.body_bytes} bytes."
        )


async def _answer(scope: Any, send: Any, error: HubError) -> None:
    _log.info(
        "http_request_refused",
        tracking_id=error.tracking_id,
        error=error.name,
        reason=error.reason,
        method=scope["method"],
        peer=scope["client"][0] if scope["client"] else None,
    )
    body = body_of(error)
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": _headers(error, body, []),
        }
    )
    await send({"type": "http.response.body", "body": body})


def _headers(
    error: HubError, body: bytes, more: list[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """A refusal's headers. The connection closes with it: what follows was not asked for."""
    named = [(name.encode(), value.encode()) for name, value in headers_of(error).items()]
    return [
        *more,
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *named,
    ]


def _content_length(headers: list[tuple[bytes, bytes]]) -> int:
    # h11 has made sure that there is at most one value and that it is a number.
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


# The private Unix socket ----------------------------------------------------------------------


class UnixListener:
    """A listening Unix socket that only its owner may connect to."""

    def __init__(self, server: asyncio.Server, path: Path, inode: int) -> None:
        self.path = path
        self._server = server
        self._inode = inode

    def close(self) -> None:
        """Stop accepting and remove the path, unless another process has taken it over."""
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


async def serve_unix(factory: HttpServer, path: Path, *, backlog: int = 64) -> UnixListener:
    """Listen on `path` with mode 0600.

    A socket that a dead process left is replaced. Raises ConfigError when a living one answers
    there, when the path is something else than a socket, or when it cannot be bound.
    """
    sock, inode = _bind_private(path)
    try:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(factory, sock=sock, backlog=backlog)
    except BaseException:
        sock.close()
        raise
    return UnixListener(server, path, inode)


def _bind_private(path: Path) -> tuple[socket.socket, int]:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        # Nobody can connect before listen(), so the mode holds for the first client too.
        path.chmod(0o600)
        return sock, path.stat().st_ino
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot make the control socket {path}: {error.strerror or error}. Its path may "
            f"have about 100 bytes; choose a shorter data folder if it is longer."
        ) from error


def _remove_stale(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is in the way of the control socket: move it elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"cannot probe the control socket {path}: {error}") from error
    raise ConfigError(f"another hub answers on {path}: stop it, or choose another data folder")
