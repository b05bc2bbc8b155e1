"""The Event Hubs-compatible endpoint, spoken to frame by frame."""

import asyncio
from typing import Any

import pytest
from tests.gateway.amqp_dialogue import Client, ServedHub, serving

from mooring.errors import CorruptRecord
from mooring.gateway.amqp.selector import FILTER
from mooring.hub.events import Event
from mooring.hub.telemetry import partition_of
from mooring.wire.amqp.messages import Message
from mooring.wire.amqp.performatives import RECEIVER, SENDER
from mooring.wire.amqp.types import Array, Described, Int, Symbol, Timestamp

EVENTS = "amqps://localhost/localhost/ConsumerGroups/{}/Partitions/{}"
PARTITION = EVENTS.format("$Default", 0)


def selector(expression: str) -> dict[Any, Any]:
    return {Symbol(FILTER): Described(Symbol(FILTER), f"amqp.annotation.{expression}")}


async def bodies(client: Client, link: Any, count: int) -> list[bytes]:
    return [(await client.message(link)).body() for _ in range(count)]


# ---- $management ---------------------------------------------------------------------------


def read(kind: str, **more: Any) -> dict[str, Any]:
    return {"operation": "READ", "type": f"com.microsoft:{kind}", "name": "localhost", **more}


@pytest.mark.parametrize("node", ["$management", "amqps://localhost/localhost/$management"])
async def test_what_the_hub_and_its_partitions_look_like(node: str) -> None:
    async with serving(partitions=1) as served:
        client = await served.opened()
        hub = await client.request(node, read("eventhub"))
        assert hub.application_properties["status-code"] == 200
        assert hub.value == {
            "name": "localhost",
            "type": "com.microsoft:eventhub",
            "created_at": served.events.created_ms,
            "partition_count": 1,
            "partition_ids": Array(("0",), str),
            "georeplication_factor": 1,
        }
        assert type(hub.value["created_at"]) is Timestamp
        assert type(hub.value["partition_count"]) is Int
        empty = await client.request(node, read("partition", partition="0"))
        assert empty.value["is_partition_empty"] is True
        assert empty.value["last_enqueued_sequence_number"] == -1
        await served.write(b"a", b"b")
        info = served.events.info(0)
        filled = await client.request(node, read("partition", partition="0"))
        assert filled.value == {
            "name": "localhost",
            "type": "com.microsoft:partition",
            "partition": "0",
            "begin_sequence_number": 0,
            "last_enqueued_sequence_number": 1,
            "last_enqueued_offset": str(info.last_offset),
            "last_enqueued_time_utc": info.last_enqueued_ms,
            "is_partition_empty": False,
        }
        client.close()


@pytest.mark.parametrize(
    ("application", "status", "condition"),
    [
        (read("eventhub", name="other"), 404, "amqp:not-found"),
        (read("partition", partition="9"), 404, "amqp:not-found"),
        (read("partition", partition=None), 404, "amqp:not-found"),
        (read("namespace"), 400, "com.microsoft:argument-error"),
        (read("eventhub", operation="WRITE"), 400, "com.microsoft:argument-error"),
        ({}, 400, "com.microsoft:argument-error"),
    ],
)
async def test_management_refuses(application: dict[str, Any], status: int, condition: str) -> None:
    async with serving() as served:
        client = await served.opened()
        answer = await client.request("$management", application)
        assert answer.application_properties["status-code"] == status
        assert answer.application_properties["error-condition"] == condition
        client.close()


async def test_management_needs_the_right() -> None:
    async with serving() as served:
        client = await served.client()
        answer = await client.request("$management", read("eventhub"))
        assert answer.application_properties["status-code"] == 401
        for token, status in ((served.token("service"), 200), (served.token("device"), 401)):
            answer = await client.request("$management", read("eventhub", security_token=token))
            assert answer.application_properties["status-code"] == status
        client.close()


async def test_a_request_that_cannot_be_read_is_rejected() -> None:
    async with serving() as served:
        client = await served.opened()
        link = await client.sender("$management")
        state = await client.send(link, Message(value=1))
        assert getattr(state, "error", None) is not None  # there is no link to answer on
        await client.receiver("$management", target="replies")
        state = await client.send(link, b"garbage")
        assert getattr(state, "error", None) is not None
        client.close()


# ---- where reading starts ------------------------------------------------------------------


async def test_from_the_beginning_in_order_and_on() -> None:
    async with serving(partitions=1) as served:
        await served.write(b"0", b"1", b"2")
        client = await served.opened()
        link = await client.receiver(PARTITION)
        assert await bodies(client, link, 3) == [b"0", b"1", b"2"]
        await served.write(b"3", b"4")
        assert await bodies(client, link, 2) == [b"3", b"4"]
        client.close()


async def test_selectors() -> None:
    async with serving(partitions=1) as served:
        await served.write(b"0", b"1", b"2", b"3")
        offset = (await served.events.read(0, 0, max_events=1, max_bytes=1))[0].offset
        client = await served.opened()
        for expression, first in (
            ("x-opt-offset > '-1'", b"0"),
            (f"x-opt-offset > '{offset}'", b"2"),
            (f"x-opt-offset >= '{offset}'", b"1"),
            ("x-opt-sequence-number > 2", b"3"),
            ("x-opt-sequence-number >= '2'", b"2"),
            ("x-opt-enqueuedtimeutc > 0", b"0"),
        ):
            link = await client.receiver(PARTITION, 1, filter=selector(expression))
            assert (await client.message(link)).body() == first
            assert link.attach is not None
            assert link.attach.source is not None
            assert link.attach.source.filter == selector(expression)  # echoed: it is honoured
            link.detach()
            client.flush()
        client.close()


async def test_only_new_events() -> None:
    async with serving(partitions=1) as served:
        await served.write(b"old")
        client = await served.opened()
        link = await client.receiver(PARTITION, filter=selector("x-opt-offset > '@latest'"))
        await client.put_token(served.token())  # answered after the receiver has begun
        await served.write(b"new")
        assert (await client.message(link)).body() == b"new"
        client.close()


@pytest.mark.parametrize(
    ("address", "more", "condition"),
    [
        (EVENTS.format("nobody", 0), {}, "amqp:not-found"),
        (EVENTS.format("$Default", 7), {}, "amqp:not-found"),
        (EVENTS.format("$Default", "x"), {}, "amqp:not-found"),
        (PARTITION.replace("localhost/Consumer", "elsewhere/Consumer"), {}, "amqp:not-found"),
        (PARTITION, {"filter": selector("x-opt-color > 1")}, "com.microsoft:argument-error"),
        (PARTITION, {"filter": {Symbol("jms"): "x"}}, "com.microsoft:argument-error"),
        (
            PARTITION,
            {"filter": selector("x-opt-sequence-number > 99")},
            "com.microsoft:argument-error",
        ),
        (
            PARTITION,
            {"properties": {Symbol("com.microsoft:epoch"): "one"}},
            "com.microsoft:argument-error",
        ),
    ],
)
async def test_refusals_come_after_a_full_attach(
    address: str, more: dict[str, Any], condition: str
) -> None:
    """azure-eventhub gives up on an attach with neither source nor target."""
    async with serving(partitions=2) as served:
        client = await served.opened()
        link, error = await client.refusal(RECEIVER, address, **more)
        assert error.condition == condition
        assert link.attach is not None
        assert link.attach.source is not None
        assert link.attach.target is not None
        assert link.attach.initial_delivery_count == 0
        client.close()


async def test_nobody_sends_to_a_partition() -> None:
    async with serving() as served:
        client = await served.opened()
        _, error = await client.refusal(SENDER, PARTITION)
        assert error.condition == "amqp:not-allowed"
        client.close()


# ---- credit, settlement, metrics -----------------------------------------------------------


async def test_no_more_than_the_credit_and_then_more() -> None:
    async with serving(partitions=1) as served:
        await served.write(*[b"%d" % number for number in range(10)])
        client = await served.opened()
        link = await client.receiver(PARTITION, 3)
        assert await bodies(client, link, 3) == [b"0", b"1", b"2"]
        assert link.credit == 0
        link.flow(100)
        client.flush()
        assert await bodies(client, link, 7) == [b"%d" % number for number in range(3, 10)]
        client.close()


async def test_draining_an_idle_partition_returns_the_credit() -> None:
    async with serving(partitions=1) as served:
        await served.write(b"only")
        client = await served.opened()
        link = await client.receiver(PARTITION, 0)
        link.flow(50, drain=True)
        client.flush()
        assert (await client.message(link)).body() == b"only"
        async with asyncio.timeout(10):
            while link.credit:
                await asyncio.sleep(0.01)
        assert link.delivery_count == 50
        client.close()


@pytest.mark.parametrize("mode", [0, 1, 2])
async def test_more_than_may_be_unsettled_reaches_a_reader_that_never_settles(mode: int) -> None:
    """azure-eventhub 5.15 attaches with mode 0, unsettled, and sends no dispositions."""
    count = 3000
    async with serving(partitions=1) as served:
        await served.write(*(b"%d" % number for number in range(count)))
        client = await served.opened()
        link = await client.receiver(PARTITION, count, snd_settle_mode=mode)
        deliveries = [await client.delivery(link) for _ in range(count)]
        assert all(delivery.settled for delivery in deliveries)
        assert len({delivery.tag for delivery in deliveries}) == count
        client.close()


async def test_runtime_metrics_if_wished() -> None:
    async with serving(partitions=1) as served:
        await served.write(b"0", b"1")
        client = await served.opened()
        wish = ("com.microsoft:enable-receiver-runtime-metric",)
        link = await client.receiver(PARTITION, desired_capabilities=wish)
        annotations = (await client.message(link)).delivery_annotations
        info = served.events.info(0)
        assert annotations["last_enqueued_sequence_number"] == 1
        assert annotations["last_enqueued_offset"] == str(info.last_offset)
        assert annotations["last_enqueued_time_utc"] == info.last_enqueued_ms
        assert type(annotations["runtime_info_retrieval_time_utc"]) is Timestamp
        plain = await client.receiver(PARTITION)
        assert (await client.message(plain)).delivery_annotations == {}
        client.close()


async def test_large_events_are_fragmented() -> None:
    async with serving(partitions=1) as served:
        big = bytes(range(256)) * 900
        await served.write(b"small", big, b"after")
        client = await served.opened()
        link = await client.receiver(PARTITION)
        assert await bodies(client, link, 3) == [b"small", big, b"after"]
        client.close()


async def test_a_corrupt_record_ends_the_link_and_is_not_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(partitions=1) as served:
        await served.write(b"0", b"1", b"2")
        read = served.events.read

        async def torn(partition: int, after: int, **more: Any) -> list[Event]:
            if after >= 0:
                raise CorruptRecord("batch 7 does not match its checksum")
            return (await read(partition, after, **more))[:1]

        monkeypatch.setattr(served.events, "read", torn)
        client = await served.opened()
        link = await client.receiver(PARTITION)
        assert (await client.message(link)).body() == b"0"
        error = await client.detached(link)
        assert error is not None
        assert error.condition == "amqp:internal-error"
        assert "checksum" not in (error.description or "")
        client.close()


async def test_a_client_that_does_not_read_holds_nobody_up() -> None:
    async with serving(partitions=1) as served:
        await served.write(*[b"x" * 100_000] * 100)
        stuck = await served.opened()
        assert stuck.transport is not None
        link = await stuck.receiver(PARTITION, 0)
        link.flow(1000)
        stuck.flush()
        stuck.transport.pause_reading()
        client = await served.opened()
        link = await client.receiver(PARTITION)
        assert len(await bodies(client, link, 100)) == 100
        stuck.close()
        client.close()


# ---- epochs --------------------------------------------------------------------------------


def epoch(value: int) -> dict[str, Any]:
    return {"properties": {Symbol("com.microsoft:epoch"): value}}


async def test_a_higher_epoch_steals() -> None:
    async with serving() as served:
        first, second = await served.opened(), await served.opened()
        old = await first.receiver(PARTITION, **epoch(1))
        other = await first.receiver(EVENTS.format("$Default", 1), **epoch(1))
        new = await second.receiver(PARTITION, **epoch(2))
        error = await first.detached(old)
        assert error is not None
        assert error.condition == "amqp:link:stolen"
        _, error = await first.refusal(RECEIVER, PARTITION, **epoch(1))
        assert error.condition == "amqp:link:stolen"
        _, error = await first.refusal(RECEIVER, PARTITION)
        assert error.condition == "amqp:link:stolen"
        for partition in range(2):
            await served.write(b"for the owner", device=device_of(served, partition))
        assert (await second.message(new)).body() == b"for the owner"
        assert (await first.message(other)).body() == b"for the owner"
        second.close()
        first.close()


async def test_the_place_is_free_when_the_owner_goes() -> None:
    async with serving() as served:
        for _ in range(2):
            client = await served.opened()
            await client.receiver(PARTITION, **epoch(5))
            client.close()
            async with asyncio.timeout(10):
                while served.hub.sessions:
                    await asyncio.sleep(0.01)
        client = await served.opened()
        link = await client.receiver(PARTITION)
        link.detach()
        client.flush()
        again = await client.receiver(PARTITION, **epoch(0))
        await served.write(b"x", device=device_of(served, 0))
        assert (await client.message(again)).body() == b"x"
        client.close()


def device_of(served: ServedHub, partition: int) -> str:
    count = served.events.partition_count
    return next(
        f"d{number}" for number in range(99) if partition_of(f"d{number}", count) == partition
    )


async def test_five_receivers_without_an_epoch() -> None:
    async with serving() as served:
        await served.hub.consumer_groups.create("second")
        client = await served.opened()
        for _ in range(5):
            await client.receiver(PARTITION)
        _, error = await client.refusal(RECEIVER, PARTITION)
        assert error.condition == "amqp:resource-limit-exceeded"
        await client.receiver(EVENTS.format("SECOND", 0))
        client.close()
