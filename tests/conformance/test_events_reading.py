"""The Event Hubs-compatible endpoint as azure-eventhub reads it."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import uamqp
from azure.eventhub import EventHubConsumerClient
from azure.eventhub.aio import EventHubConsumerClient as AioConsumerClient
from uamqp.authentication import SASLPlain

from .cloud import Account, EventTap, fresh, parts
from .flavours import Flavour
from .readers import Reader
from .service_http import authorization
from .standing import Hub

OpenReader = Callable[..., Reader]


@pytest.fixture(params=["sync", "aio"])
def reader(request: pytest.FixtureRequest, hub: Hub) -> Iterator[OpenReader]:
    """Opens consumers of one flavour; they are closed at the end."""
    opened: list[Reader] = []

    def open_reader(**options: Any) -> Reader:
        opened.append(Reader(request.param, hub.events_string(), str(hub.ca), **options))
        return opened[-1]

    yield open_reader
    for one in opened:
        one.close()


async def send(aio: Flavour, device: Account, *bodies: str) -> None:
    client = aio.device(device)
    for body in bodies:
        await client.send_message(body)


async def test_properties_of_the_hub_and_its_partitions(
    aio: Flavour, device: Account, events: EventTap, hub: Hub
) -> None:
    await send(aio, device, "one", "two")
    last = events.of(device.device_id, 2)[-1]
    partition = events.partition_of(device.device_id)
    text = hub.events_string()

    with EventHubConsumerClient.from_connection_string(
        text, "$Default", connection_verify=str(hub.ca)
    ) as client:
        about = client.get_eventhub_properties()
        assert about["eventhub_name"] == parts(text)["EntityPath"] == "localhost"
        assert about["partition_ids"] == client.get_partition_ids() == ["0", "1", "2", "3"]
        assert about["created_at"] < datetime.now(UTC)
        first = client.get_partition_properties(partition)
    async with AioConsumerClient.from_connection_string(
        text, "$Default", connection_verify=str(hub.ca)
    ) as client:
        assert await client.get_eventhub_properties() == about
        second = await client.get_partition_properties(partition)

    for seen in (first, second):
        assert seen["id"] == partition
        assert seen["eventhub_name"] == "localhost"
        assert seen["is_empty"] is False
        assert seen["beginning_sequence_number"] == 0
        assert seen["last_enqueued_sequence_number"] == last.sequence_number
        assert seen["last_enqueued_offset"] == last.offset
        assert seen["last_enqueued_time_utc"] == last.enqueued_time


async def test_starting_positions(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    await send(aio, device, "0", "1", "2", "3", "4")
    sent = events.of(device.device_id, 5)
    partition = events.partition_of(device.device_id)
    middle = sent[2]

    def first_from(position: Any, *, inclusive: bool) -> str:
        opened = reader(
            partition_id=partition,
            starting_position=position,
            starting_position_inclusive=inclusive,
        )
        text = opened.take_from(device.device_id).text
        opened.close()  # five may read a partition of a group at a time
        return text

    at = middle.enqueued_time
    later = next(event for event in sent if event.enqueued_time > at).body_as_str()
    not_earlier = next(event for event in sent if event.enqueued_time >= at).body_as_str()
    expected: list[tuple[Any, bool, str]] = [
        ("-1", False, "0"),
        (middle.offset, False, "3"),
        (middle.offset, True, "2"),
        (middle.sequence_number, False, "3"),
        (middle.sequence_number, True, "2"),
        (at, False, later),
        (at, True, not_earlier),
    ]
    with ThreadPoolExecutor(3) as side_by_side:
        got = side_by_side.map(lambda case: first_from(case[0], inclusive=case[1]), expected)
        assert [*got] == [text for _, _, text in expected]


async def test_from_the_start_means_from_the_first_event(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    await send(aio, device, "at least one")
    events.of(device.device_id)
    opened = reader(partition_id=events.partition_of(device.device_id))
    assert [opened.received.take().event.sequence_number for _ in range(1)] == [0]


async def test_only_new_events(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    await send(aio, device, "old", "old", "old")
    events.of(device.device_id, 3)
    opened = reader(partition_id=events.partition_of(device.device_id), starting_position="@latest")
    client = aio.clients[0]
    while opened.received.is_empty:  # it is not said when the link stands
        await client.send_message("new")
        await asyncio.sleep(0.5)  # the blocking client collects until nothing comes for 0.2 s
    assert opened.take_from(device.device_id).text == "new"


async def test_all_partitions_each_device_in_order(
    aio: Flavour, new_device: Callable[[], Account], reader: OpenReader
) -> None:
    devices = [new_device() for _ in range(10)]
    await asyncio.gather(*(send(aio, device, *"abcde") for device in devices))

    opened = reader()
    seen: dict[str, list[str]] = {device.device_id: [] for device in devices}
    partitions: dict[str, set[str]] = {device.device_id: set() for device in devices}
    while any(len(bodies) < 5 for bodies in seen.values()):
        item = opened.received.take()
        if item.device in seen:
            seen[item.device].append(item.text)
            partitions[item.device].add(item.partition)
    assert all(bodies == [*"abcde"] for bodies in seen.values())
    assert all(len(used) == 1 for used in partitions.values())
    assert len(set().union(*partitions.values())) > 1


async def test_more_events_than_credit(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    client = aio.device(device)
    await client.connect()
    await asyncio.gather(*(client.send_message(str(number)) for number in range(300)))
    first = events.of(device.device_id, 300)[0]

    opened = reader(
        partition_id=events.partition_of(device.device_id),
        starting_position=first.sequence_number,
        starting_position_inclusive=True,
        prefetch=7,
    )
    numbers = [opened.take_from(device.device_id).event.sequence_number for _ in range(300)]
    assert numbers == [event.sequence_number for event in events.of(device.device_id, 300)]


async def test_large_events(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    client = aio.device(device)
    bodies = [bytes([number]) * 255 * 1024 for number in range(4)]
    for body in bodies:
        await client.send_message(body)
    first = events.of(device.device_id, 4)[0]
    opened = reader(
        partition_id=events.partition_of(device.device_id),
        starting_position=first.sequence_number,
        starting_position_inclusive=True,
    )
    for body in bodies:
        assert b"".join(opened.take_from(device.device_id).event.body) == body


async def test_last_enqueued_event_properties(
    aio: Flavour, device: Account, events: EventTap, reader: OpenReader
) -> None:
    await send(aio, device, "0", "1", "2")
    first, *_, last = events.of(device.device_id, 3)
    opened = reader(
        partition_id=events.partition_of(device.device_id),
        starting_position=first.sequence_number,
        starting_position_inclusive=True,
        track_last_enqueued_event_properties=True,
    )
    known = opened.take_from(device.device_id).last_enqueued
    assert known is not None
    assert known["sequence_number"] >= last.sequence_number
    assert int(known["offset"]) >= int(last.offset)
    assert known["enqueued_time"] >= last.enqueued_time
    assert known["retrieval_time"] is not None


async def test_consumer_groups_read_side_by_side(
    aio: Flavour, device: Account, hub: Hub, reader: OpenReader
) -> None:
    group = hub.consumer_group(fresh("group"))
    await send(aio, device, "for both")
    assert reader().take_from(device.device_id).text == "for both"
    assert reader(group=group).take_from(device.device_id).text == "for both"


async def test_batches(aio: Flavour, device: Account, events: EventTap, hub: Hub) -> None:
    await send(aio, device, *"abcdef")
    first = events.of(device.device_id, 6)[0]
    got: list[str] = []
    async with AioConsumerClient.from_connection_string(
        hub.events_string(), "$Default", connection_verify=str(hub.ca)
    ) as client:
        enough = asyncio.Event()

        async def on_batch(context: Any, batch: list[Any]) -> None:
            got.extend(
                event.body_as_str()
                for event in batch
                if event.partition_key == device.device_id.encode()
            )
            if len(got) >= 6:
                enough.set()

        receiving = asyncio.ensure_future(
            client.receive_batch(
                on_event_batch=on_batch,
                partition_id=events.partition_of(device.device_id),
                starting_position=first.sequence_number,
                starting_position_inclusive=True,
            )
        )
        await enough.wait()
        receiving.cancel()
    assert got == [*"abcdef"]


async def test_the_emulator_convention(aio: Flavour, device: Account, hub: Hub) -> None:
    await send(aio, device, "over plain TCP")
    for kind in ("sync", "aio"):
        opened = Reader(kind, hub.events_string(plain=True), str(hub.ca))
        try:
            assert opened.take_from(device.device_id).text == "over plain TCP"
        finally:
            opened.close()


def test_the_hub_redirects_to_the_events(hub: Hub) -> None:
    """`az iot hub monitor-events` finds the Event Hubs-compatible endpoint this way."""
    auth = SASLPlain(
        "localhost", "iothubowner@sas.root.localhost", authorization(hub), verify=str(hub.ca)
    )
    client = uamqp.ReceiveClient(
        "amqps://localhost/messages/events/$management", auth=auth, timeout=5000
    )
    try:
        with pytest.raises(uamqp.errors.LinkRedirect) as redirected:
            client.receive_message_batch(timeout=5000)
    finally:
        client.close()
    assert redirected.value.hostname == b"localhost"
    assert redirected.value.network_host == b"localhost"
    assert redirected.value.port == 5671
    assert redirected.value.address == b"amqps://localhost:5671/localhost/$management"
