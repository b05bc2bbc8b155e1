"""Prometheus metrics and health, as an ASGI application for a loopback port.

    GET /metrics    counters and gauges in Prometheus' text format
    GET /healthz    200 while the process serves at all
    GET /readyz     200 while it serves clients; 503 and the reasons while it starts, stops or
                    cannot write

Rules. Nothing is counted twice: parts keep plain integers on their hot paths, or know the figure
anyway (a partition's next sequence number is the count of its events), and the collector asks
them when it is scraped. Label values are bounded: hub, port, protocol, error code, never a device.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from ..hub.events import FIRST_OFFSET
from ..hub.hub import Hub

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class PortFigures(NamedTuple):
    """What one port has to say: connections open now, accepted ever, refused by reason."""

    port: str
    open: int
    accepted: int
    refused: Counter[str]


class HubCollector(Collector):
    """Asks the hubs and ports for their figures when scraped."""

    def __init__(
        self, hubs: Callable[[], Iterable[Hub]], ports: Callable[[], Iterable[PortFigures]]
    ) -> None:
        self._hubs = hubs
        self._ports = ports
        self._started = time.time()

    def collect(self) -> Iterator[Metric]:
        """Every family, in a fixed order."""
        info = GaugeMetricFamily("mooring_info", "Constant 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily(
            "mooring_start_time_seconds", "When the hub started, unix time.", self._started
        )
        yield from self._connections()
        yield from self._sessions()
        yield from self._events()

    def describe(self) -> list[Metric]:
        """Nothing: figures exist only once the hub runs."""
        return []

    def _connections(self) -> Iterator[Metric]:
        now = GaugeMetricFamily("mooring_connections", "Open connections.", labels=["port"])
        accepted = CounterMetricFamily(
            "mooring_connections_accepted", "Connections accepted.", labels=["port"]
        )
        refused = CounterMetricFamily(
            "mooring_connections_refused",
            "Connections ended before a session, by reason.",
            labels=["port", "reason"],
        )
        for figures in self._ports():
            now.add_metric([figures.port], figures.open)
            accepted.add_metric([figures.port], figures.accepted)
            for reason, count in figures.refused.items():
                refused.add_metric([figures.port, reason], count)
        yield from (now, accepted, refused)

    def _sessions(self) -> Iterator[Metric]:
        sessions = GaugeMetricFamily(
            "mooring_sessions", "Sessions of devices and back ends.", labels=["hub", "protocol"]
        )
        devices = GaugeMetricFamily(
            "mooring_devices_connected", "Devices with a session.", labels=["hub"]
        )
        for hub in self._hubs():
            by_protocol = Counter(session.protocol for session in hub.sessions)
            for protocol, count in by_protocol.items():
                sessions.add_metric([hub.name, protocol], count)
            devices.add_metric([hub.name], hub.sessions.connected_count)
        yield from (sessions, devices)

    def _events(self) -> Iterator[Metric]:
        labels = ["hub", "partition"]
        accepted = CounterMetricFamily(
            "mooring_events_accepted", "Device-to-cloud messages made durable.", labels=labels
        )
        written = CounterMetricFamily(
            "mooring_events_accepted_bytes", "Their size as stored.", labels=labels
        )
        kept = GaugeMetricFamily("mooring_events_kept", "Events not yet retired.", labels=labels)
        for hub in self._hubs():
            for number in range(hub.events.partition_count):
                info, where = hub.events.info(number), [hub.name, str(number)]
                accepted.add_metric(where, info.last_sequence_number + 1)
                written.add_metric(where, max(0, info.last_offset - FIRST_OFFSET))
                held = info.last_sequence_number - info.first_sequence_number + 1
                kept.add_metric(where, 0 if info.is_empty else held)
        yield from (accepted, written, kept)


class MetricsApp:
    """The application; `not_ready` names what keeps the hub from serving, nothing if it serves."""

    def __init__(
        self,
        hubs: Callable[[], Iterable[Hub]],
        ports: Callable[[], Iterable[PortFigures]],
        not_ready: Callable[[], list[str]],
    ) -> None:
        self._not_ready = not_ready
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(HubCollector(hubs, ports))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body, kind = self._answer(scope["method"], scope["path"])
        length = str(len(body)).encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": body})

    def _answer(self, method: str, path: str) -> tuple[int, bytes, str]:
        plain = "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            return 405, b"only GET\n", plain
        match path.rstrip("/"):
            case "/metrics":
                return 200, generate_latest(self._registry), CONTENT_TYPE_LATEST
            case "/healthz":
                return 200, b"ok\n", plain
            case "/readyz":
                reasons = self._not_ready()
                text = "".join(f"{reason}\n" for reason in reasons) or "ready\n"
                return (503 if reasons else 200), text.encode(), plain
        return 404, b"there are /metrics, /healthz and /readyz\n", plain
