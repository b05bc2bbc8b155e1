"""Cloud-to-device queues: dialogues of a back end, a device and the clock."""

import asyncio
from typing import Any

import pytest
from tests.state import MemoryState

from mooring.errors import (
    ArgumentInvalid,
    DeviceMaximumQueueDepthExceeded,
    DeviceMessageLockLost,
    DeviceNotFound,
    InvalidMessageExpiryTime,
    MessageTooLarge,
    ModuleNotFound,
    Unavailable,
)
from mooring.hub.commands import Command, Commands, destinations
from mooring.hub.feedback import Feedback
from mooring.hub.identity import Identity, Ref
from mooring.hub.settings import HubSettings

D1, D2 = Ref("d1"), Ref("d2")
NOW = 1_700_000_000.0


class World:
    """A hub's queues with a clock that stands until it is moved."""

    def __init__(self, state: MemoryState | None = None, **settings: Any) -> None:
        self.time = NOW
        self.state = state or MemoryState()
        self.settings = HubSettings(**settings)
        self.start()

    def start(self) -> None:
        """As after a restart: what was in memory is gone."""
        clocks: Any = {"now": lambda: self.time, "clock": lambda: self.time}
        self.feedback = Feedback(self.state, self.settings, **clocks)
        self.commands = Commands(self.state, self.settings, self.feedback, **clocks)

    async def add(self, ref: Ref, generation_id: str = "g1") -> None:
        identity = Identity(
            device_id=ref.device_id, module_id=ref.module_id, generation_id=generation_id
        )
        await self.state.write(lambda tx: tx.put_identity(identity))

    async def send(self, text: str = "x", ref: Ref = D1, **fields: Any) -> Command:
        return await self.commands.send(
            Command(
                device_id=ref.device_id,
                module_id=ref.module_id,
                message_id=text,
                body=text.encode(),
                **fields,
            )
        )

    async def receive(self, limit: int = 10, ref: Ref = D1) -> list[str]:
        return [one.command.message_id for one in await self.commands.receive(ref, limit)]

    async def token(self, ref: Ref = D1) -> bytes:
        (delivery,) = await self.commands.receive(ref, 1)
        return delivery.lock_token

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(one.message_id, one.status) for one in self.state.tables.feedback.values()]

    @property
    def queued(self) -> list[str]:
        return [one.message_id for one in self.state.tables.commands.values()]


@pytest.fixture
async def world() -> World:
    world = World()
    await world.add(D1)
    await world.add(D2)
    return world


# sending


async def test_what_is_sent_is_stored_with_its_times(world: World) -> None:
    command = await world.send("a", properties={"k": "v"}, delivery_count=7, sequence=99)
    assert (command.sequence, command.delivery_count) == (1, 0)
    assert command.enqueued == NOW * 1000
    assert command.expires == (NOW + 3600) * 1000
    assert command.generation_id == "g1"
    (delivery,) = await world.commands.receive(D1, 10)
    assert delivery.command == command
    assert len(delivery.lock_token) == 16


async def test_unknown_identities(world: World) -> None:
    for call in (lambda ref: world.send(ref=ref), world.commands.purge):
        with pytest.raises(DeviceNotFound):
            await call(Ref("d3"))
        with pytest.raises(ModuleNotFound):
            await call(Ref("d1", "m1"))


async def test_the_queue_is_50_deep(world: World) -> None:
    for n in range(50):
        await world.send(str(n))
    await world.commands.receive(D1, 5)
    with pytest.raises(DeviceMaximumQueueDepthExceeded):
        await world.send("51")
    await world.send("other", D2)
    assert await world.commands.depth(D1) == 50


async def test_a_full_queue_gives_way_where_it_has_expired(world: World) -> None:
    for n in range(50):
        await world.send(str(n), ack="full", expires=int(NOW + 10) * 1000 if n < 2 else 0)
    await world.token()
    world.time += 10
    await world.send("new")
    assert world.outcomes == [("1", "Expired")]  # 0 is locked
    assert await world.commands.depth(D1) == 50
    with pytest.raises(DeviceMaximumQueueDepthExceeded):
        await world.send("newer")


async def test_a_full_queue_gives_way_where_a_lock_has_run_out_as_well(world: World) -> None:
    for n in range(50):
        await world.send(str(n), ack="full", expires=int(NOW + 10) * 1000 if n < 1 else 0)
    token = await world.token()
    world.time += 59
    with pytest.raises(DeviceMaximumQueueDepthExceeded):
        await world.send("more")
    world.time += 1
    await world.send("more")
    assert world.outcomes == [("0", "Expired")]
    with pytest.raises(DeviceMessageLockLost):
        await world.commands.complete(token)


@pytest.mark.parametrize("seconds", [-1, 0, 2 * 86400 + 1])
async def test_expiry_times_out_of_range(world: World, seconds: int) -> None:
    with pytest.raises(InvalidMessageExpiryTime):
        await world.send(expires=int(NOW + seconds) * 1000)
    await world.send(expires=int(NOW + 2 * 86400) * 1000)


async def test_size_counts_everything(world: World) -> None:
    fields: dict[str, Any] = {"correlation_id": "cc", "properties": {"k": "vv"}}
    await world.commands.send(Command(device_id="d1", body=bytes(65531), **fields))
    with pytest.raises(MessageTooLarge):
        await world.commands.send(Command(device_id="d1", body=bytes(65532), **fields))


async def test_bad_fields(world: World) -> None:
    with pytest.raises(ArgumentInvalid, match="iothub-ack"):
        await world.send(ack="maybe")
    with pytest.raises(ArgumentInvalid):
        await world.send(properties={"k": "\ud800"})
    assert world.queued == []


async def test_what_was_not_written_was_not_sent(world: World) -> None:
    woken = []
    world.commands.watch(D1, lambda: woken.append(1))
    world.state.failing = True
    with pytest.raises(Unavailable):
        await world.send()
    assert (woken, world.queued) == ([], [])


@pytest.mark.parametrize(
    ("to", "refs"),
    [
        ("/devices/d1/messages/devicebound", [Ref("d1")]),
        ("/Devices/D1/Messages/deviceBound/", [Ref("D1")]),
        ("devices/d1/modules/m1/messages/deviceBound", [Ref("d1", "m1")]),
        ("/devices/a%2Bb/messages/devicebound", [Ref("a%2Bb"), Ref("a+b")]),
    ],
)
def test_addresses(to: str, refs: list[Ref]) -> None:
    assert list(destinations(to)) == refs


@pytest.mark.parametrize(
    "to", ["", "/", "/devices/d1", "/devices/d1/messages/events", "/devices/a/b/c/d/e", "d1"]
)
def test_what_is_no_address(to: str) -> None:
    with pytest.raises(ArgumentInvalid):
        destinations(to)


async def test_an_address_is_of_who_exists(world: World) -> None:
    await world.add(Ref("a+b"))
    to = "/devices/a%2Bb/messages/devicebound"
    assert await world.commands.resolve(to) == Ref("a+b")
    await world.add(Ref("a%2Bb"))
    assert await world.commands.resolve(to) == Ref("a%2Bb")
    assert await world.commands.resolve(to.replace("a", "c", 1)) == Ref("c%2Bb")


# receiving


async def test_in_order_and_each_once(world: World) -> None:
    for text in "abcde":
        await world.send(text)
    assert await world.receive(2) == ["a", "b"]
    assert await world.receive(2) == ["c", "d"]
    assert await world.receive(2) == ["e"]
    assert await world.receive(2) == []
    assert await world.commands.depth(D1) == 5


async def test_complete_is_the_end(world: World) -> None:
    await world.send("a", ack="full")
    token = await world.token()
    await world.commands.complete(token)
    assert world.queued == []
    assert world.outcomes == [("a", "Success")]
    with pytest.raises(DeviceMessageLockLost):
        await world.commands.complete(token)


async def test_reject_is_the_end(world: World) -> None:
    await world.send("a", ack="full")
    await world.commands.reject(await world.token())
    assert world.queued == []
    assert world.outcomes == [("a", "Rejected")]


async def test_abandoning_counts(world: World) -> None:
    await world.send("a", ack="full")
    await world.send("b")
    for count in range(10):
        (delivery,) = await world.commands.receive(D1, 1)
        assert (delivery.command.message_id, delivery.command.delivery_count) == ("a", count)
        await world.commands.abandon(delivery.lock_token)
    assert world.outcomes == [("a", "DeliveryCountExceeded")]
    assert await world.receive() == ["b"]


async def test_an_expired_lock_puts_back_and_does_not_count(world: World) -> None:
    await world.send("a")
    (delivery,) = await world.commands.receive(D1, 1)
    world.time += 59.9
    assert await world.receive() == []
    world.time += 0.1
    with pytest.raises(DeviceMessageLockLost):
        await world.commands.complete(delivery.lock_token)
    (again,) = await world.commands.receive(D1, 1)
    assert again.command == delivery.command
    assert again.lock_token != delivery.lock_token
    with pytest.raises(DeviceMessageLockLost):
        await world.commands.complete(delivery.lock_token)
    await world.commands.complete(again.lock_token)


async def test_release_puts_back_at_once(world: World) -> None:
    await world.send("a")
    await world.send("b")
    woken = []
    world.commands.watch(D1, lambda: woken.append(1))
    deliveries = await world.commands.receive(D1, 2)
    world.commands.release([one.lock_token for one in deliveries] + [b"unknown"])
    assert woken == [1]
    again = await world.commands.receive(D1, 2)
    assert [one.command for one in again] == [one.command for one in deliveries]
    world.commands.release([one.lock_token for one in deliveries])
    assert await world.receive() == []


async def test_a_restart_puts_back(world: World) -> None:
    await world.send("a")
    token = await world.token()
    world.start()
    with pytest.raises(DeviceMessageLockLost):
        await world.commands.complete(token)
    assert await world.receive() == ["a"]


async def test_a_lock_of_an_earlier_device_means_nothing(world: World) -> None:
    await world.send("old")
    token = await world.token()
    await world.state.write(lambda tx: tx.delete_identity(D1))
    await world.add(D1, "g2")
    await world.send("new")
    with pytest.raises(DeviceMessageLockLost):
        await world.commands.complete(token)
    assert await world.receive() == ["new"]


async def test_a_settlement_that_fails_leaves_the_message(world: World) -> None:
    await world.send("a", ack="full")
    token = await world.token()
    world.state.failing = True
    with pytest.raises(Unavailable):
        await world.commands.complete(token)
    world.state.failing = False
    assert world.outcomes == []
    assert await world.receive() == ["a"]


async def test_who_settles_and_goes_has_settled(world: World) -> None:
    await world.send("a", ack="full")
    token = await world.token()
    world.state.gate = asyncio.Event()
    caller = asyncio.create_task(world.commands.complete(token))
    while world.queued:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    world.state.gate.set()
    await world.commands.close()
    assert len(world.commands._locks) == 0
    assert await world.receive() == []


async def test_one_settles_only_once(world: World) -> None:
    await world.send("a", ack="full")
    token = await world.token()
    outcomes = await asyncio.gather(
        world.commands.complete(token), world.commands.reject(token), return_exceptions=True
    )
    assert [type(one) for one in outcomes] == [type(None), DeviceMessageLockLost]
    assert world.outcomes == [("a", "Success")]


async def test_a_read_under_way_does_not_bring_back_what_was_completed(world: World) -> None:
    await world.send("a")
    token = await world.token()
    world.state.gate = asyncio.Event()
    reader = asyncio.create_task(world.commands.receive(D1, 1))
    while not world.state.reads:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)  # the reader has its snapshot, with the message in it
    gate, world.state.gate = world.state.gate, None
    await world.commands.complete(token)
    gate.set()
    assert await reader == []


async def test_nor_hands_out_what_was_abandoned_as_it_was(world: World) -> None:
    await world.send("a")
    token = await world.token()
    woken = []
    world.state.gate = asyncio.Event()
    reader = asyncio.create_task(world.commands.receive(D1, 1))
    await asyncio.sleep(0.01)
    gate, world.state.gate = world.state.gate, None
    await world.commands.abandon(token)
    world.commands.watch(D1, lambda: woken.append(1))
    gate.set()
    assert await reader == []
    assert woken == [1]
    (delivery,) = await world.commands.receive(D1, 1)
    assert delivery.command.delivery_count == 1
    assert world.commands._locks._reading == {}


async def test_two_readers_share_and_do_not_overlap(world: World) -> None:
    for n in range(10):
        await world.send(str(n))
    found = await asyncio.gather(world.receive(6), world.receive(6))
    assert sorted(found[0] + found[1]) == [str(n) for n in range(10)]


# waking


async def test_a_send_wakes_who_watches(world: World) -> None:
    woken = []
    stop = world.commands.watch(D1, lambda: woken.append("d1"))
    world.commands.watch(D2, lambda: woken.append("d2"))
    await world.send(ref=D2)
    await world.send(ref=D1)
    assert woken == ["d2", "d1"]
    stop()
    stop()
    await world.send(ref=D1)
    assert woken == ["d2", "d1"]


async def test_a_failing_watcher_fails_alone(world: World) -> None:
    woken = []

    def fail() -> None:
        raise RuntimeError("gone")

    world.commands.watch(D1, fail)
    world.commands.watch(D1, lambda: woken.append(1))
    await world.send()
    assert woken == [1]


async def test_an_expired_lock_wakes(world: World) -> None:
    await world.send("a")
    await world.token()
    woken = []
    world.commands.watch(D1, lambda: woken.append(1))
    world.time += 60
    await world.commands.sweep()
    assert woken == [1]


# expiry and purge


async def test_expired_messages_are_never_handed_out(world: World) -> None:
    await world.send("a", expires=int(NOW + 10) * 1000, ack="full")
    await world.send("b")
    world.time += 10
    assert await world.receive(1) == ["b"]
    assert await world.commands.sweep() == 1
    assert world.outcomes == [("a", "Expired")]
    assert world.queued == ["b"]


async def test_the_sweep_takes_many_by_steps(world: World) -> None:
    for device in range(4):
        ref = Ref(f"many{device}")
        await world.add(ref)
        for n in range(50):
            await world.send(str(n), ref, expires=int(NOW + 10) * 1000)
    held = await world.commands.receive(Ref("many0"), 30)
    world.time += 10
    assert await world.commands.sweep() == 170
    world.commands.release([one.lock_token for one in held])
    assert await world.commands.sweep() == 30
    assert world.queued == []


async def test_a_locked_message_may_be_completed_past_its_time(world: World) -> None:
    await world.send("a", expires=int(NOW + 10) * 1000, ack="full")
    token = await world.token()
    world.time += 20
    assert await world.commands.sweep() == 0
    await world.commands.complete(token)
    assert world.outcomes == [("a", "Success")]


async def test_the_sweeper_runs_by_itself() -> None:
    world = World(expiry_interval=0.01)
    await world.add(D1)
    await world.send("a", expires=int(NOW + 10) * 1000, ack="full")
    await world.commands.open()
    try:
        world.time += 10
        while world.queued:
            await asyncio.sleep(0.01)
    finally:
        await world.commands.close()
    assert world.outcomes == [("a", "Expired")]


async def test_the_sweeper_survives_a_full_disk() -> None:
    world = World(expiry_interval=0.01)
    await world.add(D1)
    await world.send("a", expires=int(NOW + 10) * 1000)
    world.time += 10
    world.state.failing = True
    writes = world.state.writes
    await world.commands.open()
    try:
        while world.state.writes < writes + 2:
            await asyncio.sleep(0.01)
        world.state.failing = False
        while world.queued:
            await asyncio.sleep(0.01)
    finally:
        await world.commands.close()


async def test_purge_takes_locked_ones_too(world: World) -> None:
    for text in "abc":
        await world.send(text, ack="negative")
    await world.send("other", D2)
    token = await world.token()
    assert await world.commands.purge(D1) == 3
    assert world.outcomes == [(text, "Purged") for text in "abc"]
    with pytest.raises(DeviceMessageLockLost):
        await world.commands.complete(token)
    assert await world.receive() == []
    assert world.queued == ["other"]
    assert await world.commands.purge(D1) == 0


@pytest.mark.parametrize(
    ("ack", "told"),
    [
        ("none", []),
        ("positive", ["Success"]),
        ("negative", ["Rejected", "Expired", "Purged"]),
        ("full", ["Success", "Rejected", "Expired", "Purged"]),
    ],
)
async def test_who_asked_is_told(world: World, ack: str, told: list[str]) -> None:
    await world.send(ack=ack)
    await world.commands.complete(await world.token())
    await world.send(ack=ack)
    await world.commands.reject(await world.token())
    await world.send(ack=ack, expires=int(NOW + 1) * 1000)
    world.time += 1
    await world.commands.sweep()
    await world.send(ack=ack)
    await world.commands.purge(D1)
    assert [status for _, status in world.outcomes] == told
