"""What stands around the hub in these dialogues: accounts, tokens, a back end that reads events.

Rules. Nothing here talks to mooring's own code: the hub is known only by its ports, its commands
and its log, as it is to a client. Secrets that a test makes are remembered, so that the log can
be searched for them at the end.
"""

import base64
import hashlib
import hmac
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from azure.eventhub import EventData, EventHubConsumerClient, PartitionContext

PATIENCE = 20.0  # seconds until a dialogue that has stopped counts as failed

# Keys, tokens and signatures that were used; none of them may turn up in the hub's log.
SECRETS: set[str] = set()


def fresh(prefix: str) -> str:
    """An id that no other test has."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


def sign(scope: str, key: str, *, policy: str = "", expires: float | None = None) -> str:
    """A SAS token for `scope` (`{host}/devices/{id}`), good for ten minutes unless said."""
    expiry = int(expires if expires is not None else time.time() + 600)
    resource = quote(scope, safe="")
    digest = hmac.digest(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256)
    signature = quote(base64.b64encode(digest).decode(), safe="")
    SECRETS.update((key, signature, base64.b64encode(digest).decode()))
    named = f"&skn={policy}" if policy else ""
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{named}"


def random_key() -> str:
    """A good key that no identity has."""
    return base64.b64encode(uuid.uuid4().bytes + uuid.uuid4().bytes).decode()


def parts(connection_string: str) -> dict[str, str]:
    """`HostName=…;SharedAccessKey=…` as a dict."""
    return dict(part.split("=", 1) for part in connection_string.split(";") if part)


@dataclass(frozen=True)
class Account:
    """A device or module that the hub knows, with its credentials."""

    host: str
    device_id: str
    primary: str
    secondary: str
    generation_id: str
    module_id: str = ""

    @property
    def scope(self) -> str:
        module = f"/modules/{self.module_id}" if self.module_id else ""
        return f"{self.host}/devices/{self.device_id}{module}"

    @property
    def connection_string(self) -> str:
        module = f";ModuleId={self.module_id}" if self.module_id else ""
        return (
            f"HostName={self.host};DeviceId={self.device_id}{module};SharedAccessKey={self.primary}"
        )

    @property
    def client_id(self) -> str:
        return f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id

    @property
    def user_name(self) -> str:
        return f"{self.host}/{self.client_id}/?api-version=2021-04-12"

    def token(self, *, expires: float | None = None) -> str:
        return sign(self.scope, self.primary, expires=expires)


class Inbox:
    """What a client's handler was called with, to be taken out in order."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()

    def __call__(self, item: Any = None) -> None:
        self._queue.put(item)

    def take(self) -> Any:
        """The next one; fails if none comes."""
        try:
            return self._queue.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("nothing came") from None

    def take_until(self, wanted: Callable[[Any], bool]) -> Any:
        """The next one that is wanted."""
        while not wanted(item := self.take()):
            pass
        return item

    @property
    def is_empty(self) -> bool:
        return self._queue.empty()


class EventTap:
    """A back end that reads all partitions from their beginning and keeps events by device."""

    def __init__(self, connection_string: str, ca: str) -> None:
        self._client = EventHubConsumerClient.from_connection_string(
            connection_string,
            consumer_group="$Default",
            connection_verify=ca,
            retry_total=30,
            retry_mode="fixed",
            retry_backoff_factor=0.3,
            load_balancing_interval=1,
        )
        self._arrived = threading.Condition()
        self._events: dict[str, list[EventData]] = {}
        self._partitions: dict[str, str] = {}
        self._seen: set[tuple[str, int]] = set()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        self._client.receive_batch(
            on_event_batch=self._keep_all, starting_position="-1", on_error=lambda *_: None
        )

    def _keep_all(self, context: PartitionContext, batch: list[EventData]) -> None:
        for event in batch:
            self._keep(context, event)

    def _keep(self, context: PartitionContext, event: EventData) -> None:
        place = (context.partition_id, event.sequence_number)
        with self._arrived:
            if place in self._seen:  # read again after a restart of the hub
                return
            self._seen.add(place)
            sender = stamp(event, "iothub-connection-device-id")
            self._events.setdefault(sender, []).append(event)
            self._partitions[sender] = context.partition_id
            self._arrived.notify_all()

    def of(self, device_id: str, count: int = 1) -> list[EventData]:
        """The first `count` events that this device sent; fails if fewer come."""
        with self._arrived:
            self._arrived.wait_for(
                lambda: len(self._events.get(device_id, ())) >= count, timeout=PATIENCE
            )
            events = self._events.get(device_id, [])
            assert len(events) >= count, f"{len(events)} of {count} events of {device_id} came"
            return events[:count]

    def partition_of(self, device_id: str) -> str:
        """Where the events of this device, which have come already, are kept."""
        with self._arrived:
            return self._partitions[device_id]

    def has(self, device_id: str) -> bool:
        with self._arrived:
            return device_id in self._events

    def close(self) -> None:
        self._client.close()
        self._thread.join(PATIENCE)


def stamp(event: EventData, name: str) -> Any:
    """A system property or annotation of an event, as text where it is text."""
    value = event.system_properties[name.encode()]
    return value.decode() if isinstance(value, bytes) else value


def properties(event: EventData) -> dict[str, Any]:
    """The application properties of an event, as text."""

    def text(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    return {text(key): text(value) for key, value in (event.properties or {}).items()}


def eventually(holds: Callable[[], Any], what: str) -> Any:
    """Ask again until it holds; what is asked must come true by itself."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if result := holds():
            return result
        time.sleep(0.05)
    raise AssertionError(f"did not happen: {what}")
