"""Readers that compete for partitions: owner levels, and processors that share the work."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from azure.eventhub import CheckpointStore
from azure.eventhub.aio import CheckpointStore as AioCheckpointStore

from .cloud import Account, EventTap, eventually, fresh
from .flavours import Flavour
from .readers import Reader
from .standing import Hub

OpenReader = Callable[..., Reader]


@pytest.fixture(params=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reader(kind: str, hub: Hub) -> Iterator[OpenReader]:
    """Opens consumers in a consumer group of the test's own; they are closed at the end."""
    group = hub.consumer_group(fresh("group"))
    opened: list[Reader] = []

    def open_reader(**options: Any) -> Reader:
        text = hub.events_string()
        opened.append(Reader(kind, text, str(hub.ca), group=group, **options))
        return opened[-1]

    yield open_reader
    for one in opened:
        one.close()


async def test_the_higher_owner_level_takes_the_partition(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    client = aio.device(device)
    await client.send_message("hello")
    events.of(device.device_id)
    partition = events.partition_of(device.device_id)

    low = reader(partition_id=partition, owner_level=1)
    assert low.take_from(device.device_id).text == "hello"
    high = reader(partition_id=partition, owner_level=2)
    assert high.take_from(device.device_id).text == "hello"

    stolen = await asyncio.to_thread(low.errors.take)
    assert "stolen" in str(stolen).lower()
    await client.send_message("for the owner")
    assert high.take_from(device.device_id).text == "for the owner"
    assert high.errors.is_empty


async def test_while_a_partition_is_owned_others_are_refused(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    client = aio.device(device)
    await client.send_message("hello")
    events.of(device.device_id)
    partition = events.partition_of(device.device_id)
    owner = reader(partition_id=partition, owner_level=5)
    assert owner.take_from(device.device_id).text == "hello"

    lower = reader(partition_id=partition, owner_level=4)
    assert "stolen" in str(await asyncio.to_thread(lower.errors.take)).lower()
    unowned = reader(partition_id=partition)
    assert "stolen" in str(await asyncio.to_thread(unowned.errors.take)).lower()
    assert lower.received.is_empty
    assert unowned.received.is_empty

    await client.send_message("still mine")
    assert owner.take_from(device.device_id).text == "still mine"
    assert owner.errors.is_empty


async def test_an_owner_ends_readers_without_one(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    client = aio.device(device)
    await client.send_message("hello")
    events.of(device.device_id)
    partition = events.partition_of(device.device_id)
    unowned = [reader(partition_id=partition) for _ in range(2)]
    for one in unowned:
        assert one.take_from(device.device_id).text == "hello"

    owner = reader(partition_id=partition, owner_level=0)
    assert owner.take_from(device.device_id).text == "hello"
    for one in unowned:
        await asyncio.to_thread(one.errors.take)


class SharedStore(CheckpointStore):
    """Ownership and checkpoints of several processors, in memory, each change under an ETag."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owned: dict[str, dict[str, Any]] = {}
        self._checkpoints: dict[str, dict[str, Any]] = {}

    def list_ownership(self, *_: Any, **__: Any) -> Iterable[dict[str, Any]]:
        with self._lock:
            return [dict(ownership) for ownership in self._owned.values()]

    def claim_ownership(
        self, ownership_list: Iterable[dict[str, Any]], **_: Any
    ) -> Iterable[dict[str, Any]]:
        claimed = []
        with self._lock:
            for wanted in ownership_list:
                held = self._owned.get(wanted["partition_id"])
                if held is None or held["etag"] == wanted.get("etag"):
                    granted = wanted | {
                        "etag": str(uuid.uuid4()),
                        "last_modified_time": time.time(),
                    }
                    self._owned[wanted["partition_id"]] = granted
                    claimed.append(dict(granted))
        return claimed

    def update_checkpoint(self, checkpoint: dict[str, Any], **_: Any) -> None:
        with self._lock:
            self._checkpoints[checkpoint["partition_id"]] = dict(checkpoint)

    def list_checkpoints(self, *_: Any, **__: Any) -> Iterable[dict[str, Any]]:
        with self._lock:
            return [dict(checkpoint) for checkpoint in self._checkpoints.values()]

    def owners(self) -> dict[str, int]:
        """How many partitions each living owner has."""
        counts: dict[str, int] = {}
        for ownership in self.list_ownership():
            if owner := ownership["owner_id"]:
                counts[owner] = counts.get(owner, 0) + 1
        return counts


class AioSharedStore(AioCheckpointStore):
    """The same store for processors with coroutines."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    async def list_ownership(self, *arguments: Any, **_: Any) -> Iterable[dict[str, Any]]:
        return self._store.list_ownership(*arguments)

    async def claim_ownership(
        self, ownership_list: Iterable[dict[str, Any]], **_: Any
    ) -> Iterable[dict[str, Any]]:
        return self._store.claim_ownership(ownership_list)

    async def update_checkpoint(self, checkpoint: dict[str, Any], **_: Any) -> None:
        self._store.update_checkpoint(checkpoint)

    async def list_checkpoints(self, *arguments: Any, **_: Any) -> Iterable[dict[str, Any]]:
        return self._store.list_checkpoints(*arguments)


async def test_two_processors_share_the_partitions(
    aio: Flavour,
    new_device: Callable[[], Account],
    events: EventTap,
    reader: OpenReader,
    kind: str,
) -> None:
    devices = [new_device() for _ in range(8)]
    clients = [aio.device(device) for device in devices]
    names = {device.device_id for device in devices}
    store = SharedStore()

    async def send_all(text: str, count: int) -> None:
        await asyncio.gather(*(client.send_message(text) for client in clients))
        for device in devices:
            await asyncio.to_thread(events.of, device.device_id, count)

    def processor() -> Reader:
        return reader(
            client_options={
                "checkpoint_store": store if kind == "sync" else AioSharedStore(store),
                "load_balancing_interval": 0.5,
                "partition_ownership_expiration_interval": 5,
                "retry_total": 0,
            },
            checkpoint=True,
        )

    def collect(readers: list[Reader], text: str) -> None:
        """Take from the readers until each device's `text` was processed by one of them."""
        missing = set(names)

        def none_missing() -> bool:
            for one in readers:
                while not one.received.is_empty:
                    item = one.received.take()
                    if item.device in missing and item.text == text:
                        missing.discard(item.device)
            return not missing

        eventually(none_missing, f"all of {text!r} are processed")

    await send_all("alone", 1)
    first = processor()
    eventually(lambda: [*store.owners().values()] == [4], "one processor owns all")
    await asyncio.to_thread(collect, [first], "alone")

    second = processor()
    eventually(lambda: [*store.owners().values()] == [2, 2], "two processors own half each")
    await send_all("shared", 2)
    await asyncio.to_thread(collect, [first, second], "shared")

    await asyncio.to_thread(first.close)
    eventually(lambda: [*store.owners().values()] == [4], "the other takes over")
    await send_all("taken over", 3)
    await asyncio.to_thread(collect, [second], "taken over")
