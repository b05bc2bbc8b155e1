"""Presence: current at once, on disk soon, and gone with the identity."""

import asyncio

import pytest
from tests.state import MemoryState

from mooring.errors import Unavailable
from mooring.hub.identity import Identity, Ref
from mooring.hub.presence import NEVER, Presence, Status

D1, D2 = Ref("d1"), Ref("d2")


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state() -> MemoryState:
    state = MemoryState()
    for ref in (D1, D2):
        state.tables.identities[ref] = Identity(device_id=ref.device_id, generation_id="1")
    return state


@pytest.fixture
def presence(state: MemoryState, clock: Clock) -> Presence:
    return Presence(state, activity_interval=60.0, now=clock)


async def test_who_never_came_has_never_been(presence: Presence) -> None:
    assert await presence.of(D1) == NEVER == Status(False, 0, 0)


async def test_a_connect_shows_at_once_and_is_on_disk_after_a_flush(
    presence: Presence, state: MemoryState
) -> None:
    presence.connected(D1)
    assert await presence.of(D1) == Status(True, 1_000_000, 1_000_000)
    assert state.tables.presence == {}
    await presence.flush()
    assert state.tables.presence == {D1: (True, 1_000_000, 1_000_000)}


async def test_a_disconnect_leaves_memory_once_it_is_on_disk(
    presence: Presence, state: MemoryState, clock: Clock
) -> None:
    presence.connected(D1)
    clock.at += 5
    presence.disconnected(D1)
    await presence.flush()
    assert presence._known == {}
    assert await presence.of(D1) == Status(False, 1_005_000, 1_005_000)


async def test_activity_shows_at_once_and_is_written_about_once_a_minute(
    presence: Presence, state: MemoryState, clock: Clock
) -> None:
    presence.connected(D1)
    await presence.flush()
    clock.at += 7
    presence.touch(D1)
    await presence.flush()
    assert (await presence.of(D1)).active == 1_007_000
    assert state.tables.presence[D1][2] == 1_000_000
    clock.at += 60
    await presence.flush()
    assert state.tables.presence[D1] == (True, 1_000_000, 1_007_000)


async def test_activity_without_a_connection_keeps_the_state(
    presence: Presence, state: MemoryState, clock: Clock
) -> None:
    state.tables.presence[D1] = (False, 5, 6)
    presence.touch(D1)
    await presence.flush(everything=True)
    assert state.tables.presence[D1] == (False, 5, 1_000_000)
    assert presence._active == {}


async def test_what_could_not_be_written_is_written_later(
    presence: Presence, state: MemoryState
) -> None:
    presence.connected(D1)
    state.failing = True
    with pytest.raises(Unavailable):
        await presence.flush()
    state.failing = False
    await presence.flush()
    assert state.tables.presence[D1][0] is True


async def test_a_deleted_identity_is_forgotten(presence: Presence, state: MemoryState) -> None:
    presence.connected(D1)
    presence.touch(D1)
    presence.forget(D1)
    await presence.flush(everything=True)
    assert state.tables.presence == {}
    assert await presence.of(D1) == NEVER


async def test_after_a_start_nothing_is_connected(state: MemoryState, clock: Clock) -> None:
    state.tables.presence[D1] = (True, 5, 6)
    presence = Presence(state, now=clock)
    await presence.open()
    try:
        assert await presence.of(D1) == Status(False, 1_000_000, 6)
    finally:
        await presence.close()


async def test_closing_writes_the_rest(state: MemoryState, clock: Clock) -> None:
    presence = Presence(state, now=clock)
    await presence.open()
    presence.connected(D1)
    presence.disconnected(D1)
    presence.touch(D2)
    await presence.close()
    assert state.tables.presence == {
        D1: (False, 1_000_000, 1_000_000),
        D2: (False, 0, 1_000_000),
    }


async def test_closing_in_the_middle_of_a_flush_loses_nothing(
    presence: Presence, state: MemoryState
) -> None:
    presence.connected(D1)
    state.gate = asyncio.Event()
    flush = asyncio.create_task(presence.flush())
    while presence._changed:
        await asyncio.sleep(0)
    flush.cancel()
    await asyncio.gather(flush, return_exceptions=True)
    state.gate = None
    state.tables.presence.clear()  # the store does not begin what nobody waits for any more
    await presence.close()
    assert state.tables.presence == {D1: (True, 1_000_000, 1_000_000)}
