"""The file of an event log: one writer and one reader connection, each for a thread of its own.

Rules.
- One statement commits all the batches of a commit: it is its own transaction, so that the writer
  waits for the interpreter once and not three times.
- WAL with synchronous=FULL: a statement returns after the fdatasync that covers it.
- Only the writer checkpoints, and the reader never writes. SQLite before 3.51.3 could damage a
  file when two connections checkpointed and wrote at the same moment; here that cannot happen.
- Before each checkpoint and with each deletion, `ends` notes how far every partition has come.
  So a log emptied by retention goes on counting, and a log whose last row was damaged beyond
  finding does not give its sequence numbers away a second time.
- Pages of deleted batches are used again by later ones, so retention bounds the file; it does not
  shrink.
"""

import sqlite3
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from ...errors import CorruptRecord, Unavailable
from ...files import make_private_file
from ...hub.events import FIRST_OFFSET
from .. import wal
from ..folder import DataFolderError
from .batch import (
    SEQUENCE_LIMIT,
    Batch,
    CorruptBatch,
    Head,
    Row,
    key,
    seal,
    unseal,
)

log = structlog.get_logger(__name__)

FORMAT = 1
_FACTS = ("format", "hub", "partitions", "created_ms")
ROW_BYTES = 1 << 20  # a partition's part of a commit is split into rows of about this size

# One step of retention deletes at most so much, so that no commit waits long behind it.
TRIM_BATCHES = 64
TRIM_BYTES = 4 << 20

_SCHEMA = """
CREATE TABLE log (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, count INTEGER NOT NULL, first_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL, next_offset INTEGER NOT NULL, enqueued_ms INTEGER NOT NULL,
    body_sum INTEGER NOT NULL, head_sum INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE ends (
    partition INTEGER PRIMARY KEY, next_sequence INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL, last_ms INTEGER NOT NULL, sum INTEGER NOT NULL);
"""
_HEAD = (
    "SELECT id, count, first_offset, last_offset, next_offset, enqueued_ms, body_sum, head_sum"
    " FROM batches"
)
_ROW = _HEAD.replace(" FROM", ", body FROM")


class End(NamedTuple):
    """How far a partition has come; `last_offset` is -1 while nothing was ever written."""

    next_sequence: int = 0
    next_offset: int = FIRST_OFFSET
    last_offset: int = -1
    last_ms: int = 0


class Bounds(NamedTuple):
    """The oldest event that a partition still has: where it is, and when its batch came."""

    sequence: int
    offset: int
    oldest_ms: int


def _connect(path: Path) -> sqlite3.Connection:
    # Autocommit: the module's own transaction handling would begin transactions of its own.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _set_up(connection: sqlite3.Connection) -> None:
    connection.executescript(
        "PRAGMA busy_timeout = 5000; PRAGMA wal_autocheckpoint = 0; PRAGMA cell_size_check = ON"
    )


def _sum(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


class EventWriter:
    """Writes one hub's log; everything but the constructor runs in the writer's thread."""

    def __init__(self, path: Path, hub: str, *, fsync: bool) -> None:
        self.path = path
        self._hub = hub
        self._fsync = fsync
        self.partitions = 0
        self.created_ms = 0
        self.ends: list[End] = []
        self.begins: list[Bounds] = []
        # Below these a reader may find nothing because it was deleted, and not because it is
        # damaged. Raised before the deletion; read by the reader's thread.
        self.floors: list[int] = []
        # Bytes written to the WAL since all of it was last in the database, roughly.
        self.wal_bytes = 0
        self._inserts: dict[int, str] = {}

    def open(self, partitions: int, now_ms: int) -> None:
        """Open the file, or make it. Raises DataFolderError or CorruptRecord."""
        make_private_file(self.path)
        frames = wal.scan(self.path.with_name(self.path.name + "-wal"))
        self._connection = _connect(self.path)
        try:
            self._open(partitions, now_ms, frames)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, partitions: int, now_ms: int, frames: wal.WalFrames) -> None:
        try:
            _set_up(self._connection)
            # Twice SQLite's default: a fifth less CPU for full batches, while commits of a single
            # message, which write one page each, cost hardly more. 16 KiB pages cost them a third.
            self._connection.execute("PRAGMA page_size = 8192")
            self._connection.execute("PRAGMA journal_mode = WAL")
            wal.report_damage(self.path, self._connection, frames)
            # What a checkpoint left unused of the WAL is given back above this size.
            self._connection.execute("PRAGMA journal_size_limit = 33554432")
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'OFF'}")
            self._prepare(partitions, now_ms)
            self._find_ends()
        except sqlite3.OperationalError as error:
            raise DataFolderError(f"cannot open {self.path}: {error}") from error
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # SQLite quotes what is damaged, and the driver may fail to decode the quotation.
            raise CorruptRecord(f"event log {self.path.name} is damaged: {error}") from error

    def _prepare(self, partitions: int, now_ms: int) -> None:
        execute = self._connection.execute
        if execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                execute(statement)
            new = dict(zip(_FACTS, (FORMAT, self._hub, partitions, now_ms), strict=True))
            new["sum"] = _sum(*new.values())
            self._connection.executemany("INSERT INTO log VALUES (?, ?)", new.items())
            execute("COMMIT")
        found: dict[str, Any] = dict(execute("SELECT name, value FROM log").fetchall())
        facts: tuple[Any, ...] = tuple(found.get(name) for name in _FACTS)
        form, hub, made_with, created_ms = facts
        if found.get("sum") != _sum(*facts):
            raise CorruptRecord(f"event log {self.path.name} is damaged: its facts do not sum up")
        if form != FORMAT:
            raise DataFolderError(
                f"{self.path} has format {form}, this version knows {FORMAT}: "
                "it was written by a newer mooring"
            )
        if hub != self._hub:
            raise DataFolderError(f"{self.path} is the event log of another hub")
        self.partitions, self.created_ms = made_with, created_ms

    def _find_ends(self) -> None:
        noted = {}
        for partition, *values, stored_sum in self._connection.execute("SELECT * FROM ends"):
            if stored_sum == _sum(partition, *values):
                noted[partition] = End(*values)
            else:
                log.error("corrupt_end", log=self.path.name, partition=partition)
        for partition in range(self.partitions):
            end = noted.get(partition, End())
            found = self._connection.execute(
                _HEAD + " WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
                (key(partition, 0), key(partition + 1, 0) - 1),
            ).fetchone()
            if found:
                end = self._after(partition, Head(*found), end)
            self.ends.append(end)
            self.begins.append(self._begin(partition))
            self.floors.append(self.begins[-1].sequence)

    @staticmethod
    def _after(partition: int, last: Head, noted: End) -> End:
        """The end of a partition by its last row, or by what was noted if that says more."""
        if last.is_intact():
            if last.last < noted.next_sequence:
                return noted
            return End(last.last + 1, last.next_offset, last.last_offset, last.enqueued_ms)
        if last.first < noted.next_sequence:
            return noted
        raise CorruptBatch(
            partition, last.first, last.first,
            "the head of the last batch fails its checksum, so that the end of the log is "
            "unknown; restore the file from a backup",
        )  # fmt: skip

    def _begin(self, partition: int) -> Bounds:
        end = self.ends[partition]
        rows = self._connection.execute(
            _HEAD + " WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
            (key(partition, 0), key(partition + 1, 0) - 1, TRIM_BATCHES),
        ).fetchall()
        heads = [Head(*row) for row in rows]
        for head in heads:
            if head.is_intact():
                return Bounds(heads[0].first, head.first_offset, head.enqueued_ms)
        first = heads[0].first if heads else end.next_sequence
        return Bounds(first, end.next_offset, end.last_ms)

    def commit(self, records: dict[int, list[bytes]], now_ms: int) -> list[Batch]:
        """Write the records of each partition; when it returns they are on disk.

        Raises sqlite3.Error, and then nothing was added."""
        rows: list[Row] = []
        ends = {}
        now_ms = max(now_ms, *(self.ends[partition].last_ms for partition in records))
        for partition, batch in records.items():
            end = self.ends[partition]
            for part in _split(batch):
                row = seal(partition, end.next_sequence, end.next_offset, now_ms, part)
                end = End(end.next_sequence + row.events, row.next_offset, row.last_offset, now_ms)
                rows.append(row)
            ends[partition] = end
        insert = self._inserts.get(len(rows))
        if insert is None:
            places = ", ".join(["(?,?,?,?,?,?,?,?,?)"] * len(rows))
            insert = self._inserts[len(rows)] = f"INSERT INTO batches VALUES {places}"  # noqa: S608
        values: list[object] = []
        for row in rows:
            values += row
        self._connection.execute(insert, values)
        for partition, end in ends.items():
            self.ends[partition] = end
        batches = []
        for row in rows:
            partition, first = divmod(row.id, SEQUENCE_LIMIT)
            body = bytes(row.body)
            if self.begins[partition].sequence == first:  # it was empty
                self.begins[partition] = Bounds(first, row.first_offset, row.enqueued_ms)
            self.wal_bytes += len(body) + 8192
            batches.append(
                Batch(partition, first, row.events, row.first_offset, row.enqueued_ms, body)
            )
        return batches

    def checkpoint(self) -> bool:
        """Move what the WAL holds into the database, so that its space can be used again.

        False if somebody's snapshot keeps a part of it in use."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._note_ends()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        _, frames, moved = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if frames != moved:
            return False
        self.wal_bytes = 0
        return True

    def _note_ends(self) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO ends VALUES (?, ?, ?, ?, ?, ?)",
            [(each, *end, _sum(each, *end)) for each, end in enumerate(self.ends)],
        )

    def trim(self, before_ms: int, keep_bytes: int) -> list[Bounds]:
        """Delete some of the batches that are older than `before_ms`, and some of the oldest
        ones if the log holds more than `keep_bytes`; returns where each partition begins now."""
        excess = sum(end.next_offset for end in self.ends) - keep_bytes
        excess -= sum(begin.offset for begin in self.begins)
        doomed: dict[int, Head] = {}  # partition: the last batch that goes
        candidates: list[tuple[int, int, Head]] = []
        for partition in range(self.partitions):
            heads = [
                Head(*row)
                for row in self._connection.execute(
                    _HEAD + " WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
                    (key(partition, 0), key(partition + 1, 0) - 1, TRIM_BATCHES),
                )
            ]
            # A damaged head says nothing reliable: it goes when the batch after it goes.
            ms = self.ends[partition].last_ms
            for head in reversed(heads):
                if head.is_intact():
                    ms = head.enqueued_ms
                candidates.append((ms, partition, head))
        candidates.sort(key=lambda item: (item[0], item[2].id))
        taken = 0
        for ms, partition, head in candidates[:TRIM_BATCHES]:
            size = head.next_offset - head.first_offset if head.is_intact() else 0
            if (ms >= before_ms and excess <= 0) or taken + size > max(TRIM_BYTES, size):
                break
            doomed[partition] = head
            taken += size
            excess -= size
        if doomed:
            self._delete(doomed)
        return self.begins

    def _delete(self, doomed: dict[int, Head]) -> None:
        for partition in doomed:
            self.floors[partition] = self.ends[partition].next_sequence
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            for partition, head in doomed.items():
                execute(
                    "DELETE FROM batches WHERE id BETWEEN ? AND ?", (key(partition, 0), head.id)
                )
            self._note_ends()
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            self.floors = [begin.sequence for begin in self.begins]
            raise
        begins = list(self.begins)
        for partition in doomed:
            begins[partition] = self._begin(partition)
            self.floors[partition] = begins[partition].sequence
        self.begins = begins
        self.wal_bytes += 8192 * len(doomed)

    def close(self) -> None:
        """Put everything into the database file and close it."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        try:
            self.checkpoint()
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            # The WAL keeps what could not be moved; the next start will do it.
            pass
        self._connection.close()


def _split(records: list[bytes]) -> list[list[bytes]]:
    if sum(map(len, records)) <= ROW_BYTES:
        return [records]
    parts: list[list[bytes]] = [[]]
    size = 0
    for record in records:
        if size and size + len(record) > ROW_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(record)
        size += len(record)
    return parts


class EventReader:
    """Reads batches back; everything but the constructor runs in the reader's thread.

    Raises CorruptRecord wherever the file does not hold what the log says that it holds."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer

    def open(self) -> None:
        self._connection = _connect(self._writer.path)
        _set_up(self._connection)
        self._connection.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        self._connection.close()

    def batches(self, partition: int, sequence: int, end: int, max_bytes: int) -> list[Batch]:
        """The batch that holds `sequence` (or, if that was deleted meanwhile, the first after
        it) and those that follow, up to `end` and about `max_bytes`."""
        try:
            return self._batches(partition, sequence, end, max_bytes)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"event log {self._writer.path.name}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(partition, sequence, end, error) from error

    def _batches(self, partition: int, sequence: int, end: int, max_bytes: int) -> list[Batch]:
        found: list[Batch] = []
        taken = 0
        start = self._holding(partition, sequence)
        rows = self._connection.execute(
            _ROW + " WHERE id BETWEEN ? AND ? ORDER BY id", (start, key(partition, end) - 1)
        )
        expected = sequence
        try:
            for values in rows:
                batch = unseal(Row(*values))
                self._check_place(partition, expected, batch, follows=bool(found))
                if batch.last < sequence:
                    continue
                found.append(batch)
                expected = batch.last + 1
                taken += batch.size
                if taken >= max_bytes:
                    break
        except CorruptRecord:
            # What is good is served first; whoever goes on reading meets the damage.
            if not found:
                raise
        finally:
            rows.close()
        if not found and max(sequence, self._writer.floors[partition]) < end:
            raise CorruptBatch(partition, sequence, end - 1, "the events are missing")
        return found

    def _check_place(self, partition: int, expected: int, batch: Batch, *, follows: bool) -> None:
        """A row whose key was damaged leaves a hole where it was."""
        floor = self._writer.floors[partition]
        missing = batch.first > expected and batch.first > floor
        overlap = follows and batch.first < expected
        if missing or overlap:
            raise CorruptBatch(
                partition, min(expected, batch.first), max(expected, batch.first) - 1,
                "the events are missing",
            )  # fmt: skip

    def _holding(self, partition: int, sequence: int) -> int:
        """The id of the last batch that begins at or below `sequence`."""
        row = self._connection.execute(
            "SELECT max(id) FROM batches WHERE id BETWEEN ? AND ?",
            (key(partition, 0), key(partition, sequence)),
        ).fetchone()
        return key(partition, sequence) if row[0] is None else int(row[0])

    def by_offset(self, partition: int, offset: int, begin: int, end: int) -> int:
        """The highest sequence number in [begin, end) at or below `offset`, -1 if none."""
        head = self._search(partition, begin, end, offset, "first_offset")
        if head is None:
            return -1
        for batch in self.batches(partition, head.first, head.last + 1, 1):
            return batch.last_at(offset)
        return -1

    def by_time(self, partition: int, enqueued_ms: int, begin: int, end: int) -> int:
        """The highest sequence number in [begin, end) at or before a time, -1 if none."""
        head = self._search(partition, begin, end, enqueued_ms, "enqueued_ms")
        return -1 if head is None else head.last

    def _search(self, partition: int, begin: int, end: int, value: int, column: str) -> Head | None:
        """The last batch whose column is not above `value`. Offsets and times both grow with the
        sequence number, so that halving its range finds the place without an index."""
        best: Head | None = None
        low, high = begin, end - 1
        try:
            while low <= high:
                middle = (low + high) // 2
                row = self._connection.execute(
                    _HEAD + " WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
                    (key(partition, low), key(partition, middle)),
                ).fetchone()
                if row is None:  # `low` is inside a batch, or its batch was deleted meanwhile
                    low = middle + 1
                    continue
                head = Head(*row)
                if not head.is_intact():
                    raise CorruptBatch(
                        partition, head.first, head.first,
                        "the head of the batch fails its checksum",
                    )  # fmt: skip
                if getattr(head, column) <= value:
                    best, low = head, head.last + 1
                else:
                    high = head.first - 1
        except sqlite3.OperationalError as error:
            raise Unavailable(f"event log {self._writer.path.name}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(partition, begin, end, error) from error
        return best

    def _damaged(
        self, partition: int, sequence: int, end: int, error: sqlite3.Error
    ) -> CorruptRecord:
        return CorruptBatch(partition, sequence, end - 1, f"{self._writer.path.name}: {error}")
