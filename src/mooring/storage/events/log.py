"""A hub's event log over SQLite: group commit on the event loop's side of two threads.

The way of a record: `append` puts it into the batch that is filling. At the end of the loop's
turn the batch goes to the writer's thread, if that is idle; else when the commit that is running
has come back. So everything that one turn of the loop brings, and everything that arrives during
a commit, shares one flush to disk, and the thread is woken once for all of it.

Rules.
- All state here belongs to the event loop. The writer has one piece of work at a time: a commit,
  a checkpoint or a step of retention. `_pump` decides which, and is the only one that does.
- A sink hears of a record once, after the flush or after the failure, in the order of appending.
- Whoever reads sees events only after their sinks were told.
- Memory is bounded by `pending_bytes` (a limit for callers that heed `append`) and `cache_bytes`.

There is one file for each hub: a hub can then be moved, restored or deleted by its file, and its
retention needs no account of its neighbours. Several hubs in one process pay with a flush each.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from ...errors import Unavailable
from ...files import make_private_folder
from ...hub.events import Event, PartitionInfo, Sink
from ..folder import DataFolder
from ..worker import Worker
from .batch import MIN_RECORD, Batch, CorruptBatch
from .cache import BatchCache
from .file import Bounds, End, EventReader, EventWriter

log = structlog.get_logger(__name__)

T = TypeVar("T")

DAY = 86_400
TRIM_INTERVAL = 30.0  # seconds between looks for batches that have become too old
# Moving 4 MiB from the WAL into the database holds up commits for about 5 ms here; smaller steps
# would flush more often, larger ones would show in the 99th percentile. When nothing waits it is
# done earlier.
CHECKPOINT_IDLE_BYTES = 1 << 20
CHECKPOINT_BYTES = 4 << 20


class _Filling:
    """What the next commit will hold."""

    __slots__ = ("bytes", "flushed", "records", "tokens")

    def __init__(self) -> None:
        self.records: dict[int, list[bytes]] = {}
        self.tokens: dict[Sink, list[Any]] = {}
        self.bytes = 0
        self.flushed: list[asyncio.Future[None]] = []


class SqliteEventLog:
    """Implements `hub.events.EventLog`."""

    def __init__(
        self, writer: EventWriter, *, retention_ms: int, retention_bytes: int, pending_bytes: int,
        cache_bytes: int, now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._reader = EventReader(writer)
        self._write_worker = Worker("events-writer")
        self._read_worker = Worker("events-reader")
        self._retention_ms = retention_ms
        self._retention_bytes = retention_bytes
        self._pending_limit = pending_bytes
        self._cache_limit = cache_bytes
        self._now = now

        self._filling = _Filling()
        self._in_flight = 0  # bytes that the running commit holds
        self._committing: _Filling | None = None
        self._busy = False  # the writer has work
        self._pump_due = False
        self._trim_due = False
        self._trim_turn = False  # commits and steps of retention take turns
        self._checkpoint_failed = False
        self._held_up = 0  # WAL bytes at the last checkpoint that somebody's old snapshot held up
        self._reads = 0  # that the reader has
        self._pause: asyncio.Future[None] | None = None  # reads to come wait for a checkpoint
        self._closed = False  # nothing is appended any more
        self._stopped = False  # and the writer takes no more work
        self._failing = False  # the last commit failed
        self._idle: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._drained: list[Callable[[], None]] = []
        self._ends: list[End] = []
        self._begins: list[Bounds] = []
        self._wakes: list[dict[object, Callable[[], None]]] = []
        self._cache = BatchCache(0, 0)
        self.commits = 0
        """Since the start, for the metrics."""

    @classmethod
    async def open(
        cls, folder: DataFolder | Path | str, hub: str, *, partitions: int = 4,
        retention_seconds: int = DAY, retention_bytes: int = 16 << 30, fsync: bool = True,
        pending_bytes: int = 16 << 20, cache_bytes: int = 32 << 20,
        now: Callable[[], float] = time.time,
    ) -> "SqliteEventLog":  # fmt: skip
        """Open the log of `hub` in a data folder, making it with `partitions` partitions if it
        is new; an existing log keeps the number that it was made with.

        `fsync=False` is for tests only. Raises DataFolderError or CorruptRecord."""
        root = folder.path if isinstance(folder, DataFolder) else Path(folder)
        directory = root / "events"
        make_private_folder(directory)
        writer = EventWriter(directory / f"{hub}.db", hub, fsync=fsync)
        self = cls(
            writer, retention_ms=retention_seconds * 1000, retention_bytes=retention_bytes,
            pending_bytes=pending_bytes, cache_bytes=cache_bytes, now=now,
        )  # fmt: skip
        try:
            await self._write_worker.call(lambda: writer.open(partitions, int(now() * 1000)))
            await self._read_worker.call(self._reader.open)
        except BaseException:
            self._closed = True
            await self._write_worker.stop()
            await self._read_worker.stop()
            raise
        if writer.partitions != partitions:
            log.warning("partition_count_kept", hub=hub, made_with=writer.partitions,
                        configured=partitions)  # fmt: skip
        self._ends = list(writer.ends)
        self._begins = writer.begins
        self._wakes = [{} for _ in self._ends]
        self._cache = BatchCache(len(self._ends), cache_bytes)
        self._look_for_old()
        return self

    async def flush(self) -> None:
        """Wait until what was appended so far is on disk, or failed, and its sinks were told."""
        last = self._filling if self._filling.bytes else self._committing
        if last is not None:
            flushed = self._loop.create_future()
            last.flushed.append(flushed)
            await flushed

    async def close(self) -> None:
        """Commit what was appended, tell its sinks, and close the file."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._trim_due = False
        while self._busy or self._filling.bytes:
            self._idle = self._loop.create_future()
            self._pump()
            await self._idle
        self._stopped = True
        self._let_read()
        # The writer closes last: the last connection to go takes the WAL along.
        await self._read_worker.call(self._reader.close)
        await self._read_worker.stop()
        await self._write_worker.call(self._writer.close)
        await self._write_worker.stop()

    # the port ------------------------------------------------------------------------------

    @property
    def partition_count(self) -> int:
        return len(self._ends)

    @property
    def created_ms(self) -> int:
        return self._writer.created_ms

    @property
    def stored_bytes(self) -> int:
        """Bytes of events that the log holds, over all partitions."""
        return sum(
            end.next_offset - begin.offset
            for end, begin in zip(self._ends, self._begins, strict=True)
        )

    @property
    def is_failing(self) -> bool:
        """Whether the last commit could not be made."""
        return self._failing

    def append(self, partition: int, record: bytes, sink: Sink, token: Any) -> bool:
        """See the port. Raises Unavailable after `close`, ValueError for what is no record."""
        if self._closed:
            raise Unavailable("the event log is closed")
        size = len(record)
        if size < MIN_RECORD:
            raise ValueError("a record must have its slots")
        filling = self._filling
        records = filling.records.get(partition)
        if records is None:
            if not 0 <= partition < len(self._ends):
                raise ValueError(f"no partition {partition}")
            records = filling.records[partition] = []
        records.append(record)
        tokens = filling.tokens.get(sink)
        if tokens is None:
            filling.tokens[sink] = [token]
        else:
            tokens.append(token)
        filling.bytes += size
        if not (self._busy or self._pump_due):
            self._pump_due = True
            self._loop.call_soon(self._pump)
        return filling.bytes + self._in_flight < self._pending_limit

    def when_drained(self, callback: Callable[[], None]) -> None:
        if self._filling.bytes + self._in_flight < self._pending_limit:
            self._loop.call_soon(callback)
        else:
            self._drained.append(callback)

    async def read(
        self, partition: int, after: int, *, max_events: int, max_bytes: int
    ) -> list[Event]:
        """See the port. Raises CorruptRecord if the first event to return is damaged."""
        while True:
            begin, end = self._begins[partition].sequence, self._ends[partition].next_sequence
            start = max(after + 1, begin)
            if start >= end:
                return []
            events = self._cached(partition, start, end, max_events, max_bytes)
            if events:
                return events
            batches = await self._fetch(partition, start, end, max_bytes)
            for batch in batches:
                self._cache.put(batch)
            if batches:
                return _select(batches, start, max_events, max_bytes)
            # All of it was deleted while we looked: look again, from where the log begins now.
            after = max(after, self._writer.floors[partition] - 1)

    async def _fetch(self, partition: int, start: int, end: int, max_bytes: int) -> list[Batch]:
        # More than an eighth of the cache at once would push out what it is meant to keep.
        limit = min(max_bytes, self._cache_limit // 8)
        try:
            return await self._look_up(lambda: self._reader.batches(partition, start, end, limit))
        except CorruptBatch as error:
            log.error("corrupt_events", log=self._writer.path.name, partition=error.partition,
                      first=error.first, last=error.last, reason=error.why)  # fmt: skip
            raise

    def _cached(
        self, partition: int, start: int, end: int, max_events: int, max_bytes: int
    ) -> list[Event]:
        batches: list[Batch] = []
        size = count = 0
        sequence = start
        while sequence < end and count < max_events and size < max_bytes:
            batch = self._cache.get(partition, sequence)
            if batch is None:
                break
            batches.append(batch)
            count += batch.last - sequence + 1
            # A batch of which only the end is wanted counts for less; a little too much is read
            # here, and cut by `_select`.
            size += batch.size * (batch.last - sequence + 1) // batch.count
            sequence = batch.last + 1
        return _select(batches, start, max_events, max_bytes) if batches else []

    async def position(
        self, partition: int, *, offset: int | None = None, enqueued_ms: int | None = None
    ) -> int:
        """See the port. Raises CorruptRecord, ValueError if neither or both are given."""
        if (offset is None) == (enqueued_ms is None):
            raise ValueError("a position is by offset or by time")
        begin, end = self._begins[partition], self._ends[partition]
        first, last = begin.sequence, end.next_sequence - 1
        if offset is not None:
            if offset >= end.last_offset:
                return last
            if offset < begin.offset:
                return -1
            return await self._look_up(
                partial(self._reader.by_offset, partition, offset, first, last + 1)
            )
        assert enqueued_ms is not None
        if enqueued_ms >= end.last_ms:
            return last
        return await self._look_up(
            partial(self._reader.by_time, partition, enqueued_ms, first, last + 1)
        )

    async def _look_up(self, work: Callable[[], T]) -> T:
        """Have the reader do something with the file."""
        while self._pause is not None:
            await asyncio.shield(self._pause)
        if self._stopped:
            raise Unavailable("the event log is closed")
        self._reads += 1
        try:
            return await self._read_worker.call(work)
        finally:
            self._looked_up()

    def _looked_up(self) -> None:
        self._reads -= 1
        if not self._reads and self._pause is not None:
            self._pump()

    def _let_read(self) -> None:
        if self._pause is not None:
            self._pause.set_result(None)
            self._pause = None

    def info(self, partition: int) -> PartitionInfo:
        begin, end = self._begins[partition], self._ends[partition]
        return PartitionInfo(
            first_sequence_number=begin.sequence,
            last_sequence_number=end.next_sequence - 1,
            last_offset=end.last_offset,
            last_enqueued_ms=end.last_ms,
            is_empty=begin.sequence == end.next_sequence,
        )

    def subscribe(self, partition: int, wake: Callable[[], None]) -> Callable[[], None]:
        wakes = self._wakes[partition]
        place = object()
        wakes[place] = wake

        def stop() -> None:
            wakes.pop(place, None)

        return stop

    # the writer's work ---------------------------------------------------------------------

    def _pump(self) -> None:
        """Give the writer its next piece of work, if it has none."""
        self._pump_due = False
        if self._busy or self._stopped:
            return
        filling, writer = self._filling, self._writer
        waiting = bool(filling.bytes)
        if self._trim_due and (self._trim_turn or not waiting):
            self._trim_turn = False
            self._start(self._trim, self._trimmed, self._trim_failed)
        elif self._checkpoint_due(waiting):
            self._start(writer.checkpoint, self._checkpointed, self._not_checkpointed)
        elif waiting:
            self._filling = _Filling()
            self._in_flight = filling.bytes
            self._committing = filling
            self._trim_turn = True
            now_ms = int(self._now() * 1000)
            self._start(
                lambda: writer.commit(filling.records, now_ms),
                lambda batches: self._committed(filling, batches),
                lambda error: self._failed(filling, error),
            )
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _checkpoint_due(self, waiting: bool) -> bool:
        if self._checkpoint_failed:
            return False
        if self._pause is not None:
            return not self._reads
        step = CHECKPOINT_BYTES if waiting and not self._held_up else CHECKPOINT_IDLE_BYTES
        return self._writer.wal_bytes - self._held_up > step

    def _start(
        self, work: Callable[[], Any], done: Callable[[Any], None],
        fail: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._busy = True
        self._write_worker.run(work, done, fail)

    def _committed(self, filling: _Filling, batches: list[Batch]) -> None:
        # The writer is given the next commit first: it runs while the sinks are told.
        self._busy = False
        self._in_flight = 0
        self._committing = None
        self.commits += 1
        self._checkpoint_failed = False
        if self._failing:
            self._failing = False
            log.warning("event_log_recovered", log=self._writer.path.name)
        touched = []
        for batch in batches:
            end = self._ends[batch.partition]
            next_offset = batch.first_offset + batch.size
            last_offset = next_offset - batch.last_length
            self._ends[batch.partition] = End(
                batch.last + 1, next_offset, last_offset, batch.enqueued_ms
            )
            if end.next_sequence == self._begins[batch.partition].sequence:
                touched.append(batch)
            self._cache.put(batch)
        for batch in touched:
            begin = self._begins[batch.partition]
            if begin.sequence == batch.first:
                self._begins[batch.partition] = Bounds(
                    batch.first, batch.first_offset, batch.enqueued_ms
                )
        if not self._trim_due and self.stored_bytes > self._retention_bytes:
            self._trim_due = True
        self._pump()
        for sink, tokens in filling.tokens.items():
            try:
                sink.committed(tokens)
            except Exception:
                log.exception("sink_failed", log=self._writer.path.name)
        for partition in filling.records:
            for wake in list(self._wakes[partition].values()):
                try:
                    wake()
                except Exception:
                    log.exception("subscriber_failed", log=self._writer.path.name)
        self._tell_flushed(filling)
        self._tell_drained()

    def _failed(self, filling: _Filling, error: BaseException) -> None:
        self._busy = False
        self._in_flight = 0
        self._committing = None
        if not self._failing:
            self._failing = True
            log.error("event_log_unavailable", log=self._writer.path.name, reason=str(error))
        refusal = Unavailable("the event log cannot be written")
        refusal.__cause__ = error
        for sink, tokens in filling.tokens.items():
            try:
                sink.failed(tokens, refusal)
            except Exception:
                log.exception("sink_failed", log=self._writer.path.name)
        self._tell_flushed(filling)
        self._tell_drained()
        self._pump()

    def _tell_flushed(self, filling: _Filling) -> None:
        for flushed in filling.flushed:
            if not flushed.done():
                flushed.set_result(None)

    def _tell_drained(self) -> None:
        # Half, so that callers do not stop again at once.
        if self._drained and self._filling.bytes + self._in_flight <= self._pending_limit // 2:
            callbacks, self._drained = self._drained, []
            for callback in callbacks:
                try:
                    callback()
                except Exception:
                    # The others must not stay stopped for ever.
                    log.exception("drained_callback_failed", log=self._writer.path.name)

    def _checkpointed(self, complete: bool) -> None:
        # Whoever still reads an older state of the file keeps the rest in the WAL. Commits go on
        # meanwhile. Our own reader stops for the next try, since under many readers there would
        # never be a right moment; for others (somebody's backup) it is tried now and then.
        if not complete and self._reads and self._pause is None:
            self._pause = self._loop.create_future()
        else:
            self._held_up = 0 if complete else self._writer.wal_bytes
            self._let_read()
        self._busy = False
        self._pump()

    def _not_checkpointed(self, error: BaseException) -> None:
        # The WAL has it all; after the next good commit it is tried again.
        self._checkpoint_failed = True
        self._let_read()
        self._busy = False
        log.warning("checkpoint_failed", log=self._writer.path.name, reason=str(error))
        self._pump()

    # retention -----------------------------------------------------------------------------

    def _look_for_old(self) -> None:
        """Every half minute; in between, only a log that has grown too big is trimmed."""
        self._timer = self._loop.call_later(TRIM_INTERVAL, self._look_for_old)
        self._trim_due = self._trim_due or self._has_old()
        self._held_up = 0
        if not (self._busy or self._pump_due):
            self._pump()

    def _has_old(self) -> bool:
        before = int(self._now() * 1000) - self._retention_ms
        return self.stored_bytes > self._retention_bytes or any(
            begin.oldest_ms < before and begin.sequence < end.next_sequence
            for begin, end in zip(self._begins, self._ends, strict=True)
        )

    def _trim(self) -> list[Bounds]:
        before = int(self._now() * 1000) - self._retention_ms
        return self._writer.trim(before, self._retention_bytes)

    def _trimmed(self, begins: list[Bounds]) -> None:
        self._busy = False
        moved = begins != self._begins
        self._begins = list(begins)
        # Another step if this one was worth it; commits that wait go in between.
        self._trim_due = moved and self._has_old()
        self._pump()

    def _trim_failed(self, error: BaseException) -> None:
        self._busy = False
        self._trim_due = False
        log.warning("retention_failed", log=self._writer.path.name, reason=str(error))
        self._pump()


def _select(batches: list[Batch], start: int, max_events: int, max_bytes: int) -> list[Event]:
    """The events from `start` on within both limits, at least one."""
    found: list[Event] = []
    size = 0
    for batch in batches:
        for event in batch.events()[max(0, start - batch.first) :]:
            size += len(event.record)
            if found and (size > max_bytes or len(found) >= max_events):
                return found
            found.append(event)
    return found
