"""Damaged files: found and reported, never served; what surrounds the damage stays readable."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mooring.errors import CorruptRecord, MooringError
from mooring.hub.events import Event
from mooring.storage.events import SqliteEventLog

from .test_events import bodies, put, read_all

PARTITIONS = 3


class Written:
    """A data folder and what its log holds; its repr stays short in reports."""

    def __init__(self, folder: Path, events: dict[int, list[Event]]) -> None:
        self.folder, self.events = folder, events


def name(path: Path) -> Path:
    return path / "events" / "localhost.db"


async def reopen(path: Path) -> SqliteEventLog:
    return await SqliteEventLog.open(path, "localhost", partitions=PARTITIONS, now=now)


def now() -> float:
    """Retention stays out of these tests."""
    return 1_700_000_000.0


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    """A log closed cleanly, and what it holds."""
    import asyncio

    folder = tmp_path_factory.mktemp("written")
    chance = random.Random(7)

    async def write() -> dict[int, list[Event]]:
        log = await reopen(folder)
        for _ in range(12):
            for partition in range(PARTITIONS):
                sizes = [chance.randrange(0, 3000) for _ in range(chance.randrange(1, 6))]
                await put(log, partition, *[chance.randbytes(size) for size in sizes])
        events = {partition: await read_all(log, partition) for partition in range(PARTITIONS)}
        await log.close()
        return events

    return Written(folder, asyncio.run(write()))


async def assert_nothing_wrong_is_served(path: Path, expected: dict[int, list[Event]]) -> int:
    """Walk a damaged log the way a stubborn reader would; returns how many reads were refused."""
    try:
        log = await reopen(path)
    except MooringError:
        return 1
    refused = 0
    try:
        for partition, events in expected.items():
            for event in events:
                number = event.sequence_number
                try:
                    found = await log.read(partition, number - 1, max_events=2, max_bytes=1 << 20)
                    assert found, f"event {number} of partition {partition} vanished in silence"
                    same = found == events[number : number + len(found)]
                    assert same, f"event {number} of partition {partition} is another"
                    place = await log.position(partition, offset=event.offset)
                    assert place == number
                    assert await log.position(partition, enqueued_ms=event.enqueued_ms) >= number
                except MooringError:
                    refused += 1
    finally:
        await log.close()
    return refused


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_the_file_is_never_served(written, tmp_path_factory, data):
    import asyncio

    source, expected = written.folder, written.events
    size = name(source).stat().st_size
    position = data.draw(st.integers(0, size - 1), label="byte")
    bit = data.draw(st.integers(0, 7), label="bit")
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copytree(source / "events", folder / "events")
    content = bytearray(name(folder).read_bytes())
    content[position] ^= 1 << bit
    name(folder).write_bytes(content)
    with capture_logs():
        asyncio.run(assert_nothing_wrong_is_served(folder, expected))
    shutil.rmtree(folder)


async def test_damage_names_its_place_and_its_neighbours_are_served(tmp_path):
    log = await reopen(tmp_path)
    for number in range(5):
        await put(log, 1, b"%d-one" % number, b"%d-two" % number)
    await log.close()
    content = name(tmp_path).read_bytes()
    at = content.index(b"2-two")
    name(tmp_path).write_bytes(content[:at] + b"X" + content[at + 1 :])

    log = await reopen(tmp_path)
    with capture_logs() as logs:
        good = await log.read(1, -1, max_events=100, max_bytes=1 << 20)
        assert bodies(good) == [b"0-one", b"0-two", b"1-one", b"1-two"]
        with pytest.raises(CorruptRecord, match="partition 1, sequence numbers 4 to 5"):
            await log.read(1, 3, max_events=100, max_bytes=1 << 20)
    assert [entry["event"] for entry in logs] == ["corrupt_events"]
    assert (logs[0]["partition"], logs[0]["first"], logs[0]["last"]) == (1, 4, 5)
    assert bodies(await read_all(log, 1, after=5)) == [b"3-one", b"3-two", b"4-one", b"4-two"]
    await put(log, 1, b"5-one")
    assert bodies(await read_all(log, 1, after=9)) == [b"5-one"]
    await log.close()


async def test_a_row_that_vanished_leaves_a_hole_that_is_reported(tmp_path):
    log = await reopen(tmp_path)
    for number in range(5):
        await put(log, 0, b"%d" % number)
    await log.close()
    with sqlite3.connect(name(tmp_path)) as connection:
        connection.execute("DELETE FROM batches WHERE id IN (2, 4)")
    connection.close()
    log = await reopen(tmp_path)
    assert log.info(0).last_sequence_number == 4  # the last number is not given away again
    assert bodies(await log.read(0, -1, max_events=9, max_bytes=999)) == [b"0", b"1"]
    for after in (1, 3):
        with pytest.raises(CorruptRecord, match="missing"):
            await log.read(0, after, max_events=9, max_bytes=999)
    await put(log, 0, b"5")
    assert [event.sequence_number for event in await read_all(log, 0, after=4)] == [5]
    await log.close()


async def crashed(source: SqliteEventLog, path: Path, target: Path) -> Path:
    """The files as a killed process would leave them."""
    shutil.copytree(path / "events", target / "events")
    return target


@pytest.mark.parametrize("cut", [1, 31, 33, 4000, 8000, 9000, 20_000])
async def test_a_truncated_wal_loses_only_its_end(tmp_path, cut):
    log = await reopen(tmp_path)
    for number in range(10):
        await put(log, 0, b"%d" % number * 100)
    full = await read_all(log, 0)
    copy = await crashed(log, tmp_path, tmp_path / "copy")
    await log.close()
    wal = name(copy).with_name("localhost.db-wal")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size - cut)
    log = await reopen(copy)
    left = await read_all(log, 0)
    assert left == full[: len(left)]
    assert len(left) >= 10 - 1 - cut // 8000
    await put(log, 0, b"next")
    assert [e.sequence_number for e in await read_all(log, 0)] == list(range(len(left) + 1))
    await log.close()


async def test_a_torn_last_transaction_is_recovered_from_without_alarm(tmp_path):
    log = await reopen(tmp_path)
    for number in range(10):
        await put(log, 0, b"%d" % number * 100)
    full = await read_all(log, 0)
    copy = await crashed(log, tmp_path, tmp_path / "copy")
    await log.close()
    wal = name(copy).with_name("localhost.db-wal")
    content = bytearray(wal.read_bytes())
    content[-4096:] = bytes(4096)
    wal.write_bytes(content)
    with capture_logs() as logs:
        log = await reopen(copy)
    assert logs == []
    assert await read_all(log, 0) == full[:9]
    await log.close()


@pytest.mark.parametrize("position", [10, 20, 32 + 24 + 100, 32 + 3 * (24 + 8192) + 9])
async def test_a_flipped_bit_inside_the_wal_is_reported_and_the_wal_kept(tmp_path, position):
    log = await reopen(tmp_path)
    for number in range(10):
        await put(log, 0, b"%d" % number * 100)
    full = await read_all(log, 0)
    copy = await crashed(log, tmp_path, tmp_path / "copy")
    await log.close()
    wal = name(copy).with_name("localhost.db-wal")
    content = bytearray(wal.read_bytes())
    content[position] ^= 0x10
    wal.write_bytes(content)
    with capture_logs() as logs:
        try:
            log = await reopen(copy)
        except CorruptRecord:
            return
    assert "wal_damaged" in [entry["event"] for entry in logs]
    left = await read_all(log, 0)
    assert left == full[: len(left)]
    assert len(left) < 10
    (kept,) = [path for path in wal.parent.iterdir() if "damaged" in path.name]
    assert kept.read_bytes() == bytes(content)
    await log.close()


async def test_a_damaged_head_of_the_last_batch_does_not_give_its_numbers_away(tmp_path):
    log = await reopen(tmp_path)
    for number in range(3):
        await put(log, 0, b"%d" % number)
    await log.close()
    with sqlite3.connect(name(tmp_path)) as connection:
        connection.execute("UPDATE batches SET count = 7 WHERE id IN (0, 2)")
    connection.close()
    log = await reopen(tmp_path)
    assert log.info(0).first_sequence_number == 0
    assert log.info(0).last_sequence_number == 2
    with capture_logs(), pytest.raises(CorruptRecord):
        await log.read(0, 1, max_events=9, max_bytes=999)
    await put(log, 0, b"3")
    assert [event.sequence_number for event in await read_all(log, 0, after=2)] == [3]
    assert [
        event.sequence_number for event in await log.read(0, 0, max_events=9, max_bytes=99)
    ] == [1]
    await log.close()


async def test_without_a_note_of_the_end_a_damaged_last_batch_is_refused(tmp_path):
    log = await reopen(tmp_path)
    await put(log, 0, b"0")
    await log.close()
    with sqlite3.connect(name(tmp_path)) as connection:
        connection.execute("UPDATE batches SET count = 7")
        connection.execute("DELETE FROM ends")
    connection.close()
    with pytest.raises(CorruptRecord, match="end of the log is unknown"):
        await reopen(tmp_path)
