"""One node: builds storage, hubs and ports from a configuration, runs them, and takes them down.

The only module that knows every driver. Order of life:

    open    lock the data directory, bind all ports, certificates, storage, hubs, then accept
    close   stop accepting, answer requests, stop reading, finish commits, end sessions,
            flush connections, close storage, unlock

Ports are bound before anything is written, so that a start which cannot succeed leaves no trace;
what fails half-way is taken down in the same order as a shutdown. A first SIGTERM or SIGINT closes
cleanly, a second one ends the process at once, which loses nothing that was acknowledged.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import structlog
from OpenSSL import SSL

from . import __version__
from .config import CA_NAME, SOCKET_NAME, Config
from .errors import ConfigError, MooringError
from .gateway.amqp import AmqpEndpoint
from .gateway.control import Control, Listening
from .gateway.http.app import build_app
from .gateway.http.server import HttpServer, UnixListener, serve_unix
from .gateway.metrics import Figures, MetricsApp, PortFigures
from .gateway.mqtt import MqttEndpoint
from .gateway.tls import Listener, ListenerLimits, TransportLimits, bind, server_context
from .hub.hub import Hub
from .hub.hubs import Hubs
from .hub.settings import HubSettings
from .pki.local import LocalAuthority, local_names, open_local_authority
from .storage.events import SqliteEventLog
from .storage.folder import DataFolder
from .storage.state import SqliteState

log = structlog.get_logger(__name__)

TLS_FOLDER = "tls"
FIRST_HUB = "localhost"
"""What the first hub's files are called, so that it may change its host name."""

CLOSE_TIMEOUT = 5.0  # seconds that clients have to read our last words at shutdown
RENEWAL_INTERVAL = 86_400.0

LOOPBACK = ("127.0.0.1", "::1")
_PLAIN_BACKLOG = 128

Factory = Callable[[], asyncio.Protocol]


class _Port(NamedTuple):
    """One kind of port: how it is called in logs, messages and settings."""

    protocol: str
    purpose: str
    flag: str
    setting: Literal["mqtt_port", "amqp_port", "https_port", "amqp_plain_port", "metrics_port"]
    loopback: bool = False


_PORTS = (
    _Port("mqtt", "MQTT", "--mqtt-port", "mqtt_port"),
    _Port("amqp", "AMQP", "--amqp-port", "amqp_port"),
    _Port("https", "HTTPS", "--https-port", "https_port"),
    _Port("amqp-plain", "AMQP without TLS", "--amqp-plain-port", "amqp_plain_port", True),
    _Port("metrics", "metrics and health", "--metrics-port", "metrics_port", True),
)
_PURPOSES = {kind.protocol: kind.purpose for kind in _PORTS}


class CannotListen(MooringError):
    """Some ports cannot be had; the message has a line for each, with what to do."""


class Node:
    """One node; `open` it, and `close` what was opened."""

    def __init__(self, config: Config, data: Path) -> None:
        self.config = config
        self.data = data.absolute()
        self.is_first_start = not (self.data / TLS_FOLDER).exists()
        self.listening: list[Listening] = []
        self._stack = AsyncExitStack()
        self._sockets: dict[str, list[socket.socket]] = {}
        self._listeners: dict[str, Listener] = {}
        self._doors: list[asyncio.Server | UnixListener] = []  # without TLS
        self._servers: list[HttpServer] = []
        self._hubs: list[Hub] = []
        self._logs: list[SqliteEventLog] = []
        self._state: SqliteState | None = None
        self._phase: Literal["starting", "serving", "stopping"] = "starting"

    @property
    def ca(self) -> Path:
        """The PEM file that clients must trust."""
        return self.data / CA_NAME

    async def open(self) -> None:
        """Serve. Raises MooringError, with everything taken down, if that cannot be."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        self._phase = "serving"
        log.info(
            "serving",
            version=__version__,
            data=str(self.data),
            hubs=[hub.name for hub in self._hubs],
            listening=[f"{each.protocol} {each.address}:{each.port}" for each in self.listening],
        )

    async def close(self) -> None:
        """Stop accepting, finish commits, end sessions, close."""
        self._phase = "stopping"
        log.info("stopping")
        await self._stack.aclose()
        log.info("stopped")

    # Opening --------------------------------------------------------------------------------

    async def _open(self) -> None:
        folder = DataFolder.open(self.data)
        self._stack.callback(folder.close)
        self._stack.callback(self._close_sockets)
        self._bind()
        authority = await asyncio.to_thread(self._certificates)
        hubs = await self._open_hubs(folder)
        self._stack.push_async_callback(self._finish_commits)
        self._stack.push_async_callback(self._finish_requests)
        self._stack.callback(self._stop_accepting)
        await self._accept(hubs, self._context(authority))
        self._background(self._renew_certificates(authority))

    def _bind(self) -> None:
        """Take all ports, or say what is wrong with each that cannot be had."""
        refusals: list[str] = []
        for kind in _PORTS:
            port = getattr(self.config.listen, kind.setting)
            if port == "off":
                continue
            hosts = LOOPBACK if kind.loopback else (self.config.listen.hosts or ("",))
            try:
                self._sockets[kind.protocol] = _bind_all(hosts, port, kind)
            except MooringError as error:
                refusals.append(str(error))
                continue
            for sock in self._sockets[kind.protocol]:
                address, number = sock.getsockname()[:2]
                self.listening.append(Listening(kind.protocol, address, number))
        if refusals:
            raise CannotListen("\n".join(refusals))

    def _certificates(self) -> LocalAuthority:
        hub = self.config.hub
        names = dict.fromkeys((hub.name, *hub.aliases, *hub.others, *local_names()))
        authority = open_local_authority(self.data / TLS_FOLDER, tuple(names))
        if not self.ca.is_symlink():
            self.ca.unlink(missing_ok=True)
            self.ca.symlink_to(authority.ca.relative_to(self.data))
        return authority

    def _context(self, authority: LocalAuthority) -> SSL.Context:
        tls = self.config.tls
        return server_context(
            [(chain.certificates, chain.key) for chain in authority.chains],
            min_version=tls.min_version,
            legacy_ciphers=tls.legacy_ciphers,
        )

    async def _open_hubs(self, folder: DataFolder) -> Hubs:
        settings, names = self.config, self.config.hub
        fsync = settings.storage.fsync
        if not fsync:
            log.warning("fsync_is_off", advice="a power cut loses acknowledged messages")
        state = self._state = await SqliteState.open(folder, fsync=fsync)
        self._stack.push_async_callback(state.close)
        aliases = {*local_names(), *names.aliases, "localhost"} - {names.name}
        for name, known_as, files in (
            (names.name, aliases, FIRST_HUB),
            *((other, (), other.lower()) for other in names.others),
        ):
            events = await SqliteEventLog.open(
                folder,
                files,
                partitions=settings.events.partitions,
                retention_seconds=settings.events.retention_days * 86_400,
                retention_bytes=settings.events.retention_bytes,
                fsync=fsync,
            )
            self._stack.push_async_callback(events.close)
            self._logs.append(events)
            self._hubs.append(
                await Hub.open(
                    name,
                    state.for_hub(files),
                    events,
                    _hub_settings(settings),
                    aliases=known_as,
                    consumer_groups=settings.events.consumer_groups,
                )
            )
        # Last opened, first closed: sessions end while state and events still take writes.
        self._stack.push_async_callback(self._flush_connections)
        for hub in self._hubs:
            self._stack.push_async_callback(hub.close)
        return Hubs(self._hubs)

    async def _accept(self, hubs: Hubs, context: SSL.Context) -> None:
        """Give each bound port its protocol; from here on clients are served."""
        mqtt = MqttEndpoint(
            hubs,
            max_keep_alive=self.config.mqtt.max_keep_alive,
            first_packet_time=self.config.mqtt.first_packet_time,
            session_expiry=self.config.mqtt.session_expiry,
        )
        amqp = AmqpEndpoint(
            hubs,
            authentication_time=self.config.amqp.authentication_time,
            idle_time_out=self.config.amqp.idle_timeout,
            redirect_port=self._port("amqp"),
        )
        app = build_app(hubs)
        https = self._http(app)
        factories: dict[str, Factory] = {"mqtt": mqtt, "amqp": amqp, "https": https}
        limits = self._limits()
        for protocol, factory in factories.items():
            if sockets := self._sockets.pop(protocol, []):
                self._listeners[protocol] = Listener(
                    factory, context, sockets, purpose=_PURPOSES[protocol], limits=limits
                )
        metrics = self._http(MetricsApp(self.figures, self.not_ready))
        for protocol, plain in (("amqp-plain", amqp), ("metrics", metrics)):
            for sock in self._sockets.pop(protocol, []):
                loop = asyncio.get_running_loop()
                self._doors.append(await loop.create_server(plain, sock=sock))
        control = self._http(Control(hubs, lambda: self.listening, app), local=True)
        self._doors.append(await serve_unix(control, self.data / SOCKET_NAME))

    def _http(self, app: Any, *, local: bool = False) -> HttpServer:
        server = HttpServer(app, local=local)
        self._servers.append(server)
        return server

    def _port(self, protocol: str) -> int:
        return next((each.port for each in self.listening if each.protocol == protocol), 0)

    def _limits(self) -> ListenerLimits:
        tls = self.config.tls
        return ListenerLimits(
            connections=tls.max_connections,
            pending=tls.max_pending,
            per_source=tls.max_connections_per_address or None,
            transport=TransportLimits(
                handshake_timeout=tls.handshake_timeout,
                first_byte_timeout=tls.first_byte_timeout,
                close_timeout=CLOSE_TIMEOUT,
            ),
        )

    # While it runs --------------------------------------------------------------------------

    def not_ready(self) -> list[str]:
        """What keeps it from serving clients; nothing if it serves them."""
        if self._phase != "serving":
            return [self._phase]
        reasons = ["the state cannot be written"] if self._state and self._state.is_failing else []
        reasons += [
            f"the events of {hub.name} cannot be written"
            for hub, events in zip(self._hubs, self._logs, strict=True)
            if events.is_failing
        ]
        return reasons

    def figures(self) -> Figures:
        """What the metrics are made of."""
        return Figures(
            hubs=tuple(self._hubs),
            ports=[
                PortFigures(name, each.open_count, each.accepted, each.refusals)
                for name, each in self._listeners.items()
            ],
            commits={
                hub.name: each.commits for hub, each in zip(self._hubs, self._logs, strict=True)
            },
            state=self._state.figures if self._state else {},
        )

    async def _renew_certificates(self, authority: LocalAuthority) -> None:
        """Once a day, in case the server's certificates come near their end."""
        while True:
            await asyncio.sleep(RENEWAL_INTERVAL)
            before = _stamps(authority)
            try:
                authority = await asyncio.to_thread(self._certificates)
                if _stamps(authority) != before:
                    context = self._context(authority)
                    for listener in self._listeners.values():
                        listener.set_context(context)
            except (MooringError, OSError) as error:
                log.error("certificates_not_renewed", reason=str(error))

    # Closing --------------------------------------------------------------------------------

    def _stop_accepting(self) -> None:
        for door in (*self._listeners.values(), *self._doors):
            door.close()

    async def _finish_requests(self) -> None:
        """Answer what was asked; who waits for longer (a method's answer) is cut off."""
        await asyncio.gather(*(server.close(CLOSE_TIMEOUT) for server in self._servers))

    async def _finish_commits(self) -> None:
        """Let those whose telemetry is being stored hear of it, or they will send it again."""
        for listener in self._listeners.values():
            listener.pause_connections()
        await asyncio.gather(*(events.flush() for events in self._logs))

    async def _flush_connections(self) -> None:
        """Let clients read our last words, and cut off those that do not."""
        for listener in self._listeners.values():
            listener.close_connections()
        waiting = [each.wait_closed() for each in self._listeners.values()]
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*waiting)
        except TimeoutError:
            for listener in self._listeners.values():
                listener.abort_connections()

    def _close_sockets(self) -> None:
        for sockets in self._sockets.values():
            for sock in sockets:
                sock.close()
        self._sockets.clear()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._stack.push_async_callback(_cancel, task)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _stamps(authority: LocalAuthority) -> list[int]:
    return [chain.certificates.stat().st_mtime_ns for chain in authority.chains]


def _bind_all(hosts: Sequence[str], port: int, kind: _Port) -> list[socket.socket]:
    """Sockets on all `hosts`, with one port for all of them if the system chooses it."""
    bound: list[socket.socket] = []
    try:
        for host in hosts:
            chosen = bound[0].getsockname()[1] if bound and port == 0 else port
            try:
                bound += bind(host, chosen, purpose=kind.purpose, setting=kind.flag)
            except ConfigError:
                # Loopback without IPv6 is loopback still.
                if not (kind.loopback and bound):
                    raise
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def _hub_settings(config: Config) -> HubSettings:
    return HubSettings(
        partition_count=config.events.partitions,
        c2d_default_ttl=config.c2d.default_ttl,
        c2d_max_delivery_count=config.c2d.max_delivery_count,
        c2d_queue_depth=config.c2d.max_queue_depth,
        feedback_ttl=config.feedback.ttl,
        feedback_lock=config.feedback.lock_duration,
        feedback_max_delivery_count=config.feedback.max_delivery_count,
        feedback_batch_interval=config.feedback.batch_interval,
    )


# The process ------------------------------------------------------------------------------------


def run(config: Config, data: Path, started: Callable[[Node], None]) -> None:
    """Run a node until SIGTERM or SIGINT; `started` is called once it serves.

    Raises MooringError if it cannot start."""
    _raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, data, started))


async def _serve(config: Config, data: Path, started: Callable[[Node], None]) -> None:
    ending = asyncio.Event()
    opening: asyncio.Task[None] | None = None

    def on_signal(number: int) -> None:
        if ending.is_set():
            log.warning("ended_by_force", signal=signal.Signals(number).name)
            os._exit(128 + number)
        ending.set()
        if opening is not None:
            opening.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    node = Node(config, data)
    opening = asyncio.create_task(node.open())
    try:
        await opening
    except asyncio.CancelledError:
        if not ending.is_set():
            raise
        return
    finally:
        opening = None
    try:
        started(node)
        await ending.wait()
    finally:
        await node.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _raise_file_limit() -> None:
    """A connection is a descriptor, and the usual soft limit is 1024 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS says more than it grants
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
