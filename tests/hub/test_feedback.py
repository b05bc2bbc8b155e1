"""Feedback: batches by number and by time."""

import asyncio
import json
from typing import Any

import pytest
from tests.state import MemoryState

from mooring.errors import DeviceMessageLockLost, Unavailable
from mooring.hub.commands import FeedbackRecord
from mooring.hub.feedback import Feedback, FeedbackBatch
from mooring.hub.settings import HubSettings

NOW = 1_700_000_000.0


class World:
    def __init__(self, **settings: Any) -> None:
        self.time = NOW
        self.state = MemoryState()
        self.settings = HubSettings(feedback_max_delivery_count=3, **settings)
        self.start()

    def start(self) -> None:
        """As after a restart: what was in memory is gone."""
        self.feedback = Feedback(
            self.state, self.settings, now=lambda: self.time, clock=lambda: self.time
        )

    async def add(self, *names: str, ttl: int = 3600, **fields: Any) -> None:
        at = int(self.time * 1000)
        records = [
            FeedbackRecord(
                message_id=name,
                device_id="d1",
                generation_id="g1",
                status="Success",
                enqueued=at,
                expires=at + ttl * 1000,
                **fields,
            )
            for name in names
        ]
        await self.state.write(lambda tx: [tx.add_feedback(record) for record in records])
        self.feedback.added(len(records))

    async def batch(self) -> FeedbackBatch:
        batch = await self.feedback.receive()
        assert batch is not None
        return batch

    @property
    def stored(self) -> list[str]:
        return [record.message_id for record in self.state.tables.feedback.values()]


def names(batch: FeedbackBatch) -> list[str]:
    return [record.message_id for record in batch.records]


@pytest.fixture
async def world() -> World:
    return World()


async def test_nothing_to_tell(world: World) -> None:
    assert await world.feedback.receive() is None


async def test_the_body(world: World) -> None:
    await world.add("a")
    world.time += 1
    await world.add("b", module_id="m1")
    batch = await world.batch()
    assert json.loads(batch.body) == [
        {
            "originalMessageId": "a",
            "deviceGenerationId": "g1",
            "deviceId": "d1",
            "enqueuedTimeUtc": "2023-11-14T22:13:20.0000000Z",
            "statusCode": "Success",
            "description": "Success",
        },
        {
            "originalMessageId": "b",
            "deviceGenerationId": "g1",
            "deviceId": "d1",
            "moduleId": "m1",
            "enqueuedTimeUtc": "2023-11-14T22:13:21.0000000Z",
            "statusCode": "Success",
            "description": "Success",
        },
    ]
    assert batch.enqueued == int(NOW + 1) * 1000
    assert len(batch.lock_token) == 16


async def test_fifteen_seconds_after_the_last(world: World) -> None:
    await world.add("a")
    assert names(await world.batch()) == ["a"]
    await world.add("b", "c")
    world.time += 14
    assert await world.feedback.receive() is None
    world.time += 1
    assert names(await world.batch()) == ["b", "c"]
    await world.feedback.close()


async def test_sixty_four_at_once(world: World) -> None:
    await world.add("first")
    await world.batch()
    await world.add(*(str(n) for n in range(63)))
    assert await world.feedback.receive() is None
    await world.add("63", "64")
    assert names(await world.batch()) == [str(n) for n in range(64)]
    assert await world.feedback.receive() is None
    await world.feedback.close()


async def test_complete_is_the_end(world: World) -> None:
    await world.add("a", "b")
    batch = await world.batch()
    await world.add("c")
    await world.feedback.complete(batch.lock_token)
    assert world.stored == ["c"]
    with pytest.raises(DeviceMessageLockLost):
        await world.feedback.complete(batch.lock_token)
    await world.feedback.close()


async def test_abandoned_ones_come_back_until_it_is_enough(world: World) -> None:
    await world.add("a", "b")
    for count in range(3):
        batch = await world.batch()
        assert [record.delivery_count for record in batch.records] == [count, count]
        await world.feedback.abandon(batch.lock_token)
        assert await world.feedback.receive() is None
        world.time += 15
    assert world.stored == []
    await world.feedback.close()


async def test_abandoning_does_not_bring_back_what_is_gone(world: World) -> None:
    await world.add("a", "b")
    batch = await world.batch()
    await world.state.write(lambda tx: tx.delete_feedback([1]))
    await world.feedback.abandon(batch.lock_token)
    assert world.stored == ["b"]
    await world.feedback.close()


async def test_locks_end_without_counting(world: World) -> None:
    await world.add("a")
    lost = await world.batch()
    world.time += 60
    again = await world.batch()
    assert again.records == lost.records
    with pytest.raises(DeviceMessageLockLost):
        await world.feedback.complete(lost.lock_token)
    world.feedback.release([again.lock_token])
    third = await world.batch()
    assert third.records == lost.records
    world.start()
    assert (await world.batch()).records == lost.records


async def test_expired_records_are_not_told(world: World) -> None:
    await world.add(*(f"old{n}" for n in range(70)), ttl=10)
    await world.add("new")
    world.time += 10
    assert names(await world.batch()) == ["new"]
    assert await world.feedback.sweep() == 70
    assert await world.feedback.sweep() == 0
    assert world.stored == ["new"]


async def test_a_settlement_that_fails_leaves_the_records(world: World) -> None:
    await world.add("a")
    batch = await world.batch()
    world.state.failing = True
    with pytest.raises(Unavailable):
        await world.feedback.complete(batch.lock_token)
    world.state.failing = False
    world.time += 15
    assert names(await world.batch()) == ["a"]


async def test_two_receivers_do_not_overlap(world: World) -> None:
    await world.add(*(str(n) for n in range(128)))
    found = await asyncio.gather(world.batch(), world.batch())
    assert sorted(names(found[0]) + names(found[1]), key=int) == [str(n) for n in range(128)]
    await world.feedback.close()


async def test_watchers_are_woken_when_a_batch_is_due() -> None:
    world = World(feedback_batch_interval=0.01)
    world.feedback = Feedback(world.state, world.settings, now=lambda: world.time)
    woken = asyncio.Event()
    stop = world.feedback.watch(woken.set)
    await world.add("a")
    assert woken.is_set()
    await world.batch()
    woken.clear()
    await world.add("b")
    await woken.wait()
    assert names(await world.batch()) == ["b"]
    woken.clear()
    stop()
    stop()
    await asyncio.sleep(0.02)
    await world.add("c")
    assert not woken.is_set()
    await world.feedback.close()
