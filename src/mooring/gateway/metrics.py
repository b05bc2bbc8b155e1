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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from ..errors import HubError
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


class Figures(NamedTuple):
    """What a node has to say about itself."""

    hubs: tuple[Hub, ...]
    ports: list[PortFigures]
    commits: Mapping[str, int]  # of the event log, by hub
    state: Mapping[str, int]  # "commits", and units of work "written" and "read"


class NodeCollector(Collector):
    """Asks the node for its figures when scraped."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self._started = time.time()

    def collect(self) -> Iterator[Metric]:
        """Every family, in a fixed order."""
        figures = self._figures()
        info = GaugeMetricFamily("mooring_info", "Constant 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily(
            "mooring_start_time_seconds", "When the hub started, unix time.", self._started
        )
        yield from _connections(figures.ports)
        yield from _sessions(figures.hubs)
        yield from _events(figures.hubs)
        yield from _operations(figures.hubs)
        yield from _storage(figures)
        errors = CounterMetricFamily(
            "mooring_errors", "Refusals and other errors by Azure's name.", labels=["error"]
        )
        for name, count in HubError.made.items():
            errors.add_metric([name], count)
        yield errors

    def describe(self) -> list[Metric]:
        """Nothing: figures exist only once the hub runs."""
        return []


def _connections(ports: Iterable[PortFigures]) -> Iterator[Metric]:
    now = GaugeMetricFamily("mooring_connections", "Open connections.", labels=["port"])
    accepted = CounterMetricFamily(
        "mooring_connections_accepted", "Connections accepted.", labels=["port"]
    )
    refused = CounterMetricFamily(
        "mooring_connections_refused",
        "Connections ended before a session, by reason.",
        labels=["port", "reason"],
    )
    for figures in ports:
        now.add_metric([figures.port], figures.open)
        accepted.add_metric([figures.port], figures.accepted)
        for reason, count in figures.refused.items():
            refused.add_metric([figures.port, reason], count)
    yield from (now, accepted, refused)


def _sessions(hubs: Iterable[Hub]) -> Iterator[Metric]:
    sessions = GaugeMetricFamily(
        "mooring_sessions", "Sessions of devices and back ends.", labels=["hub", "protocol"]
    )
    devices = GaugeMetricFamily(
        "mooring_devices_connected", "Devices with a session.", labels=["hub"]
    )
    for hub in hubs:
        by_protocol = Counter(session.protocol for session in hub.sessions)
        for protocol, count in by_protocol.items():
            sessions.add_metric([hub.name, protocol], count)
        devices.add_metric([hub.name], hub.sessions.connected_count)
    yield from (sessions, devices)


def _events(hubs: Iterable[Hub]) -> Iterator[Metric]:
    labels = ["hub", "partition"]
    accepted = CounterMetricFamily(
        "mooring_events_accepted", "Device-to-cloud messages made durable.", labels=labels
    )
    written = CounterMetricFamily(
        "mooring_events_accepted_bytes", "Their size as stored.", labels=labels
    )
    kept = GaugeMetricFamily("mooring_events_kept", "Events not yet retired.", labels=labels)
    for hub in hubs:
        for number in range(hub.events.partition_count):
            info, where = hub.events.info(number), [hub.name, str(number)]
            accepted.add_metric(where, info.last_sequence_number + 1)
            written.add_metric(where, max(0, info.last_offset - FIRST_OFFSET))
            held = info.last_sequence_number - info.first_sequence_number + 1
            kept.add_metric(where, 0 if info.is_empty else held)
    yield from (accepted, written, kept)


def _operations(hubs: Iterable[Hub]) -> Iterator[Metric]:
    methods = CounterMetricFamily(
        "mooring_methods_invoked", "Direct methods that back ends called.", labels=["hub"]
    )
    twins = CounterMetricFamily(
        "mooring_twin_operations",
        "Twins read, changed by back ends, and reported by devices.",
        labels=["hub", "operation"],
    )
    messages = CounterMetricFamily(
        "mooring_commands",
        "Cloud-to-device messages sent, and what became of them.",
        labels=["hub", "outcome"],
    )
    for hub in hubs:
        methods.add_metric([hub.name], hub.methods.invoked)
        for operation, count in hub.twins.counts.items():
            twins.add_metric([hub.name, operation], count)
        for outcome, count in hub.commands.counts.items():
            messages.add_metric([hub.name, outcome.lower()], count)
    yield from (methods, twins, messages)


def _storage(figures: Figures) -> Iterator[Metric]:
    commits = CounterMetricFamily(
        "mooring_event_commits", "Commits of the event log.", labels=["hub"]
    )
    for hub, count in figures.commits.items():
        commits.add_metric([hub], count)
    state = CounterMetricFamily("mooring_state_commits", "Commits of the state.")
    state.add_metric([], figures.state.get("commits", 0))
    units = CounterMetricFamily(
        "mooring_state_units", "Units of work on the state.", labels=["kind"]
    )
    for kind in ("written", "read"):
        units.add_metric([kind], figures.state.get(kind, 0))
    yield from (commits, state, units)


class MetricsApp:
    """The application; `not_ready` names what keeps the hub from serving, nothing if it serves."""

    def __init__(
        self,
        figures: Callable[[], Figures],
        not_ready: Callable[[], list[str]],
    ) -> None:
        self._not_ready = not_ready
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(NodeCollector(figures))

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
