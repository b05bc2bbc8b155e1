"""The event log over SQLite: numbering, order, positions, retention, congestion, bad disks."""

import asyncio
import resource
import sqlite3
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from mooring.errors import CorruptRecord, Unavailable
from mooring.hub.events import (
    FIRST_OFFSET,
    OFFSET_AT,
    OFFSET_DIGITS,
    RECORD_HEAD,
    SEQUENCE_AT,
    TIME_AT,
)
from mooring.storage.events import SqliteEventLog
from mooring.storage.events import log as log_module
from mooring.storage.folder import DataFolderError

HEAD = b"\x00\x53\x72\xd1" + bytes(8) + RECORD_HEAD


def record(body: bytes = b"x") -> bytes:
    return HEAD + body


def slots(filled: bytes) -> tuple[int, int, int]:
    """What a reader finds in the three slots of a record."""
    (sequence,) = struct.unpack_from(">q", filled, SEQUENCE_AT)
    (ms,) = struct.unpack_from(">q", filled, TIME_AT)
    return sequence, int(filled[OFFSET_AT : OFFSET_AT + OFFSET_DIGITS]), ms


class Waiter:
    """A sink that remembers, and lets a test wait for a number of outcomes."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.lost: list[Any] = []
        self.calls = 0
        self.error: Exception | None = None
        self._changed = asyncio.Event()

    def committed(self, tokens: list[Any]) -> None:
        self.calls += 1
        self.done += tokens
        self._changed.set()

    def failed(self, tokens: list[Any], error: Exception) -> None:
        self.lost += tokens
        self.error = error
        self._changed.set()

    async def outcomes(self, count: int) -> None:
        while len(self.done) + len(self.lost) < count:
            self._changed.clear()
            await self._changed.wait()


class Clock:
    def __init__(self, at: float = 1_700_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


async def put(log: SqliteEventLog, partition: int, *bodies: bytes) -> None:
    """Append, and return when it is committed."""
    waiter = Waiter()
    for number, body in enumerate(bodies):
        log.append(partition, record(body), waiter, number)
    await waiter.outcomes(len(bodies))
    assert waiter.error is None


async def read_all(log: SqliteEventLog, partition: int, after: int = -1, **limits: int) -> list:
    found = []
    limits = {"max_events": 100, "max_bytes": 1 << 20} | limits
    while events := await log.read(partition, after, **limits):
        found += events
        after = events[-1].sequence_number
    return found


def bodies(events: list) -> list[bytes]:
    return [event.record[len(HEAD) :] for event in events]


async def test_what_is_appended_is_read_back_in_order_with_its_slots_filled(tmp_path):
    clock = Clock()
    log = await SqliteEventLog.open(tmp_path, "localhost", now=clock)
    await put(log, 2, b"one", b"two" * 50)
    await put(log, 2, b"three")
    await put(log, 0, b"elsewhere")
    events = await read_all(log, 2)
    assert bodies(events) == [b"one", b"two" * 50, b"three"]
    offset = FIRST_OFFSET
    for number, event in enumerate(events):
        assert event[:3] == (number, offset, 1_700_000_000_000)
        assert slots(event.record) == event[:3]
        offset += len(event.record)
    assert bodies(await read_all(log, 0)) == [b"elsewhere"]
    assert await log.read(1, -1, max_events=9, max_bytes=9) == []
    await log.close()


async def test_everything_but_the_slots_is_kept_byte_for_byte(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost", fsync=False)
    sent = (
        b"\x00\x53\x72\xd1" + b"\x11\x22\x33\x44\x55\x66\x77\x88" + RECORD_HEAD + bytes(range(256))
    )
    waiter = Waiter()
    log.append(0, sent, waiter, None)
    await waiter.outcomes(1)
    (event,) = await log.read(0, -1, max_events=1, max_bytes=1)
    blank = bytearray(event.record)
    blank[SEQUENCE_AT : SEQUENCE_AT + 8] = bytes(8)
    blank[OFFSET_AT : OFFSET_AT + OFFSET_DIGITS] = b"0" * OFFSET_DIGITS
    blank[TIME_AT : TIME_AT + 8] = bytes(8)
    assert bytes(blank) == sent
    await log.close()


async def test_numbers_go_on_after_a_restart_and_time_does_not_go_back(tmp_path):
    clock = Clock()
    log = await SqliteEventLog.open(tmp_path, "localhost", now=clock)
    created = log.created_ms
    await put(log, 1, b"a", b"b")
    before = log.info(1)
    await log.close()

    clock.at -= 3600
    log = await SqliteEventLog.open(tmp_path, "localhost", now=clock)
    assert log.created_ms == created
    assert log.info(1) == before
    assert log.info(1).last_sequence_number == 1
    await put(log, 1, b"c")
    events = await read_all(log, 1)
    assert bodies(events) == [b"a", b"b", b"c"]
    assert [event.sequence_number for event in events] == [0, 1, 2]
    assert events[2].offset == events[1].offset + len(events[1].record)
    assert events[2].enqueued_ms == events[1].enqueued_ms
    assert log.info(1).last_offset == events[2].offset
    await log.close()


async def test_info_of_an_unwritten_partition(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost", partitions=2)
    assert log.partition_count == 2
    assert log.info(0) == (0, -1, -1, 0, True)
    assert await log.position(0, offset=5) == -1
    assert await log.position(0, enqueued_ms=5) == -1
    await log.close()


async def test_one_turn_of_the_loop_makes_one_commit_and_one_call_for_each_sink(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    one, two = Waiter(), Waiter()
    for number in range(50):
        log.append(number % 4, record(), one, number)
        log.append(number % 4, record(), two, -number)
    await one.outcomes(50)
    await two.outcomes(50)
    assert (one.calls, two.calls) == (1, 1)
    assert one.done == list(range(50))
    assert two.done == [-number for number in range(50)]
    await log.close()


async def test_subscribers_are_woken_after_the_sinks_and_can_read_at_once(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    order: list[Any] = []

    class Noting(Waiter):
        def committed(self, tokens: list[Any]) -> None:
            order.append("sink")
            super().committed(tokens)

    stop = log.subscribe(1, lambda: order.append(log.info(1).last_sequence_number))
    log.subscribe(2, lambda: order.append("never"))
    waiter = Noting()
    log.append(1, record(), waiter, 0)
    await waiter.outcomes(1)
    assert order == ["sink", 0]
    stop()
    log.append(1, record(), waiter, 1)
    await waiter.outcomes(2)
    assert order == ["sink", 0, "sink"]
    await log.close()


async def test_a_sink_or_subscriber_that_raises_does_not_harm_the_others(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost")

    class Broken(Waiter):
        def committed(self, tokens: list[Any]) -> None:
            raise RuntimeError("broken sink")

    def broken() -> None:
        raise RuntimeError("broken subscriber")

    woken: list[int] = []
    log.subscribe(0, broken)
    log.subscribe(0, lambda: woken.append(1))
    good = Waiter()
    log.append(0, record(), Broken(), 0)
    log.append(0, record(), good, 1)
    await good.outcomes(1)
    assert woken == [1]
    await log.close()


async def test_reads_heed_their_limits_and_bring_at_least_one(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost", fsync=False)
    await put(log, 0, *[b"%03d" % number for number in range(40)])
    await put(log, 0, *[b"%03d" % number for number in range(40, 60)])
    size = len(record(b"000"))
    assert len(await log.read(0, -1, max_events=7, max_bytes=1 << 20)) == 7
    assert len(await log.read(0, -1, max_events=50, max_bytes=1 << 20)) == 50
    assert len(await log.read(0, -1, max_events=50, max_bytes=1)) == 1
    assert len(await log.read(0, -1, max_events=50, max_bytes=3 * size)) == 3
    assert bodies(await log.read(0, 38, max_events=2, max_bytes=1 << 20)) == [b"039", b"040"]
    assert await log.read(0, 59, max_events=2, max_bytes=99) == []
    await log.close()


@pytest.mark.parametrize("cache_bytes", [1, 32 << 20])
async def test_positions_by_offset_and_time(tmp_path, cache_bytes):
    clock = Clock(1000.0)
    log = await SqliteEventLog.open(
        tmp_path, "localhost", fsync=False, now=clock, cache_bytes=cache_bytes
    )
    for second in range(20):
        clock.at = 1000.0 + second
        await put(log, 3, b"a", b"bb", b"ccc")
    events = await read_all(log, 3)
    assert len(events) == 60
    for event in events:
        number = event.sequence_number
        assert await log.position(3, offset=event.offset) == number
        assert await log.position(3, offset=event.offset - 1) == number - 1
        last_of_batch = number - number % 3 + 2
        assert await log.position(3, enqueued_ms=event.enqueued_ms) == last_of_batch
        assert await log.position(3, enqueued_ms=event.enqueued_ms - 1) == last_of_batch - 3
    assert await log.position(3, offset=0) == -1
    assert await log.position(3, offset=10**17) == 59
    assert await log.position(3, enqueued_ms=0) == -1
    assert await log.position(3, enqueued_ms=10**15) == 59
    with pytest.raises(ValueError, match="offset or by time"):
        await log.position(3)
    await log.close()


async def test_a_commit_larger_than_a_row_is_split_without_a_seam(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost", fsync=False)
    sent = [bytes([number]) * 200_000 for number in range(20)]
    await put(log, 0, *sent)
    await log.close()
    log = await SqliteEventLog.open(tmp_path, "localhost", fsync=False)
    events = await read_all(log, 0, max_bytes=1 << 30)
    assert bodies(events) == sent
    assert [event.sequence_number for event in events] == list(range(20))
    await log.close()


async def test_congestion_is_reported_and_its_end_announced(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost", pending_bytes=100_000)
    waiter = Waiter()
    answers = [log.append(0, record(bytes(10_000)), waiter, number) for number in range(20)]
    assert answers[0] is True
    assert answers[-1] is False
    drained = asyncio.Event()
    log.when_drained(drained.set)
    assert not drained.is_set()
    await drained.wait()
    assert waiter.done == list(range(20))  # what was refused as congested was taken all the same
    drained.clear()
    log.when_drained(drained.set)  # nothing is congested now: at once
    await drained.wait()
    await log.close()


async def test_closing_commits_what_waits_and_refuses_what_comes_after(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    waiter = Waiter()
    for number in range(100):
        log.append(0, record(), waiter, number)
    await log.close()
    assert waiter.done == list(range(100))
    with pytest.raises(Unavailable):
        log.append(0, record(), waiter, 100)
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["localhost.db"]


async def test_a_record_without_room_for_its_slots_is_refused(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    with pytest.raises(ValueError, match="slots"):
        log.append(0, HEAD[:-1], Waiter(), 0)
    with pytest.raises(ValueError, match="no partition"):
        log.append(4, record(), Waiter(), 0)
    await log.close()


async def test_hubs_keep_apart_and_a_file_knows_its_hub_and_partitions(tmp_path):
    one = await SqliteEventLog.open(tmp_path, "one.example")
    two = await SqliteEventLog.open(tmp_path, "two.example", partitions=8)
    await put(one, 0, b"1")
    await put(two, 0, b"2")
    assert bodies(await read_all(one, 0)) == [b"1"]
    await one.close()
    await two.close()
    two = await SqliteEventLog.open(tmp_path, "two.example", partitions=2)
    assert two.partition_count == 8
    await two.close()
    (tmp_path / "events/two.example.db").rename(tmp_path / "events/three.example.db")
    with pytest.raises(DataFolderError, match="another hub"):
        await SqliteEventLog.open(tmp_path, "three.example")


async def test_the_files_are_private(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    await put(log, 0, b"x")
    files = list((tmp_path / "events").iterdir())
    assert len(files) == 3
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "events").stat().st_mode) == 0o700
    await log.close()


# retention -----------------------------------------------------------------------------------


async def settle(log: SqliteEventLog) -> None:
    """Let retention finish what it has begun."""
    log._look_for_old()
    while log._busy or log._trim_due:
        await asyncio.sleep(0.001)


async def test_old_batches_go_whole_and_readers_get_what_is_left(tmp_path):
    clock = Clock()
    log = await SqliteEventLog.open(
        tmp_path, "localhost", fsync=False, now=clock, retention_seconds=86_400
    )
    for day in range(4):
        for _ in range(100):  # more than one step deletes at a time
            await put(log, 0, b"%d" % day)
        clock.at += 50_000
    await settle(log)
    info = log.info(0)
    assert info.first_sequence_number == 300
    assert info.last_sequence_number == 399
    assert bodies(await read_all(log, 0)) == [b"3"] * 100
    assert (await log.read(0, 17, max_events=1, max_bytes=1))[0].sequence_number == 300
    assert await log.position(0, offset=FIRST_OFFSET) == -1
    assert await log.position(0, enqueued_ms=0) == -1
    await log.close()


async def test_a_log_emptied_by_age_goes_on_counting(tmp_path):
    clock = Clock()
    log = await SqliteEventLog.open(tmp_path, "localhost", now=clock, retention_seconds=86_400)
    await put(log, 0, b"a", b"b")
    last = log.info(0)
    clock.at += 90_000
    await settle(log)
    assert log.info(0) == (2, 1, last.last_offset, last.last_enqueued_ms, True)
    assert await read_all(log, 0) == []
    assert await log.position(0, offset=last.last_offset) == 1
    await log.close()
    log = await SqliteEventLog.open(tmp_path, "localhost", now=clock, retention_seconds=86_400)
    assert log.info(0) == (2, 1, last.last_offset, last.last_enqueued_ms, True)
    await put(log, 0, b"c")
    (event,) = await read_all(log, 0)
    assert (event.sequence_number, event.offset) == (2, last.last_offset + len(record(b"b")))
    assert log.info(0).first_sequence_number == 2
    await log.close()


async def test_size_is_bounded_over_all_partitions_and_so_is_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "CHECKPOINT_BYTES", 1 << 20)
    limit = 4 << 20
    log = await SqliteEventLog.open(tmp_path, "localhost", fsync=False, retention_bytes=limit)
    sizes = []
    for turn in range(60):
        for partition in range(4):
            await put(log, partition, *[bytes(10_000)] * 10)
        if turn % 20 == 19:
            await settle(log)
            sizes.append(sum(path.stat().st_size for path in (tmp_path / "events").iterdir()))
            assert log.stored_bytes <= limit
    assert log.info(0).first_sequence_number > 0
    assert max(sizes) < 3 * limit  # 24 MB went through
    assert sizes[-1] <= sizes[0] * 1.5
    events = await read_all(log, 1)
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(log.info(1).first_sequence_number, 600))
    await log.close()


async def test_a_reader_is_not_disturbed_by_retention_under_it(tmp_path, monkeypatch):
    clock = Clock()
    log = await SqliteEventLog.open(
        tmp_path, "localhost", fsync=False, now=clock, retention_seconds=86_400, cache_bytes=1
    )
    for _ in range(300):
        await put(log, 0, b"x")
        clock.at += 300.0

    async def walk() -> list[int]:
        return [event.sequence_number for event in await read_all(log, 0, max_events=1)]

    reading = [asyncio.create_task(walk()) for _ in range(3)]
    for _ in range(20):
        clock.at += 3000.0
        log._look_for_old()
        await asyncio.sleep(0.002)
    for numbers in await asyncio.gather(*reading):
        assert numbers == sorted(set(numbers))
    await log.close()


# disks that fail -----------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """Calls `limit(bytes)`: no file can grow past it, until `limit(None)`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


async def test_nothing_is_acknowledged_while_the_disk_is_full_and_all_is_well_after(
    tmp_path, small_disk
):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    await put(log, 0, b"before")
    waiter = Waiter()
    small_disk(64 << 10)
    try:
        for number in range(3):
            log.append(0, record(bytes(200_000)), waiter, number)
            await waiter.outcomes(number + 1)
    finally:
        small_disk(None)
    assert waiter.done == []
    assert waiter.lost == [0, 1, 2]
    assert isinstance(waiter.error, Unavailable)
    assert log.info(0).last_sequence_number == 0
    await put(log, 0, b"after")
    assert bodies(await read_all(log, 0)) == [b"before", b"after"]
    await log.close()
    log = await SqliteEventLog.open(tmp_path, "localhost")
    events = await read_all(log, 0)
    assert bodies(events) == [b"before", b"after"]
    assert [event.sequence_number for event in events] == [0, 1]
    await log.close()


async def test_a_newer_format_is_refused(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    await log.close()
    facts = (99, "localhost", 4, log.created_ms)
    with sqlite3.connect(tmp_path / "events/localhost.db") as connection:
        connection.execute("UPDATE log SET value = 99 WHERE name = 'format'")
        connection.execute(
            "UPDATE log SET value = ? WHERE name = 'sum'", (zlib.crc32(repr(facts).encode()),)
        )
    connection.close()
    with pytest.raises(DataFolderError, match="newer mooring"):
        await SqliteEventLog.open(tmp_path, "localhost")


@pytest.mark.parametrize("fact", ["partitions", "created_ms", "hub"])
async def test_a_damaged_fact_about_the_log_is_not_believed(tmp_path, fact):
    log = await SqliteEventLog.open(tmp_path, "localhost")
    await log.close()
    with sqlite3.connect(tmp_path / "events/localhost.db") as connection:
        connection.execute("UPDATE log SET value = 5 WHERE name = ?", (fact,))
    connection.close()
    with pytest.raises(CorruptRecord, match="do not sum up"):
        await SqliteEventLog.open(tmp_path, "localhost")


async def test_what_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events/localhost.db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(CorruptRecord, match="event log localhost"):
        await SqliteEventLog.open(tmp_path, "localhost")


async def test_the_write_ahead_log_stays_small_under_load_and_readers(tmp_path):
    log = await SqliteEventLog.open(tmp_path, "localhost", fsync=False, cache_bytes=1)
    wal = tmp_path / "events/localhost.db-wal"
    reading = True

    async def walk() -> None:
        after = -1
        while reading:
            events = await log.read(0, after, max_events=50, max_bytes=1 << 20)
            after = events[-1].sequence_number if events else -1
            await asyncio.sleep(0)

    readers = [asyncio.create_task(walk()) for _ in range(3)]
    sizes = []
    for _ in range(60):
        await put(log, 0, *[bytes(10_000)] * 100)
        sizes.append(wal.stat().st_size)
    reading = False
    await asyncio.gather(*readers)
    assert max(sizes) < 4 * log_module.CHECKPOINT_BYTES  # 60 MB went through
    await log.close()


@pytest.mark.parametrize("then", ["commit", "close"])
async def test_whoever_keeps_an_old_snapshot_of_the_file_holds_up_nobody(tmp_path, then):
    log = await SqliteEventLog.open(tmp_path, "localhost", fsync=False)
    await put(log, 0, b"seen")
    backup = sqlite3.connect(tmp_path / "events" / "localhost.db", isolation_level=None)
    backup.execute("BEGIN")
    assert backup.execute("SELECT count(*) FROM batches").fetchone() == (1,)
    attempts = 0
    checkpoint = log._writer.checkpoint

    def counted():
        nonlocal attempts
        attempts += 1
        return checkpoint()

    log._writer.checkpoint = counted
    for number in range(10):
        await asyncio.wait_for(put(log, 0, b"%d" % number, bytes(1 << 20)), 10)
    assert len(await read_all(log, 0)) == 21
    # The end of the snapshot is waited for, not asked for again and again.
    assert 1 <= attempts <= 12
    if then == "commit":
        backup.close()
        await put(log, 0, bytes(2 << 20))
        while log._busy:
            await asyncio.sleep(0)
        assert log._writer.wal_bytes == 0
    await asyncio.wait_for(log.close(), 30)
    backup.close()
