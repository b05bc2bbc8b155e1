"""An event log in memory: the port's behaviour without a disk."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from mooring.hub.events import (
    FIRST_OFFSET,
    OFFSET_AT,
    OFFSET_DIGITS,
    SEQUENCE_AT,
    TIME_AT,
    Event,
    PartitionInfo,
    Sink,
)

_LONG = struct.Struct(">q")


class MemoryEvents:
    """Commits on the next turn of the event loop, or when told to if `manual` is set."""

    def __init__(
        self,
        partition_count: int = 4,
        *,
        now: Callable[[], float] = lambda: 1_700_000_000.0,
        manual: bool = False,
        congested: bool = False,
    ) -> None:
        self.created_ms = int(now() * 1000)
        self.congested = congested
        self.failure: Exception | None = None
        self._partitions: list[list[Event]] = [[] for _ in range(partition_count)]
        self._ends = [FIRST_OFFSET] * partition_count
        self._pending: list[tuple[int, bytes, Sink, Any]] = []
        self._drained: list[Callable[[], None]] = []
        self._wakes: list[list[Callable[[], None]]] = [[] for _ in range(partition_count)]
        self._now = now
        self._manual = manual

    @property
    def partition_count(self) -> int:
        return len(self._partitions)

    def append(self, partition: int, record: bytes, sink: Sink, token: Any) -> bool:
        if not self._pending and not self._manual:
            asyncio.get_running_loop().call_soon(self.commit)
        self._pending.append((partition, record, sink, token))
        return not self.congested

    def commit(self) -> None:
        """Store what is pending, or fail all of it with `failure`."""
        pending, self._pending = self._pending, []
        tokens: dict[int, tuple[Sink, list[Any]]] = {}
        touched = set()
        for partition, record, sink, token in pending:
            tokens.setdefault(id(sink), (sink, []))[1].append(token)
            if self.failure is None:
                self._store(partition, record)
                touched.add(partition)
        for sink, of_sink in tokens.values():
            if self.failure is None:
                sink.committed(of_sink)
            else:
                sink.failed(of_sink, self.failure)
        for partition in sorted(touched):
            for wake in tuple(self._wakes[partition]):
                wake()
        drained, self._drained = self._drained, []
        for callback in drained:
            callback()

    def _store(self, partition: int, record: bytes) -> None:
        events = self._partitions[partition]
        sequence = len(events)
        offset = self._ends[partition]
        at = int(self._now() * 1000)
        filled = bytearray(record)
        _LONG.pack_into(filled, SEQUENCE_AT, sequence)
        filled[OFFSET_AT : OFFSET_AT + OFFSET_DIGITS] = str(offset).encode()
        _LONG.pack_into(filled, TIME_AT, at)
        events.append(Event(sequence, offset, at, bytes(filled)))
        self._ends[partition] = offset + len(record)

    def when_drained(self, callback: Callable[[], None]) -> None:
        self._drained.append(callback)

    async def read(
        self, partition: int, after: int, *, max_events: int, max_bytes: int
    ) -> list[Event]:
        found: list[Event] = []
        size = 0
        for event in self._partitions[partition][max(after + 1, 0) :]:
            size += len(event.record)
            if found and (len(found) >= max_events or size > max_bytes):
                break
            found.append(event)
        return found

    async def position(
        self, partition: int, *, offset: int | None = None, enqueued_ms: int | None = None
    ) -> int:
        highest = -1
        for event in self._partitions[partition]:
            if offset is not None and event.offset > offset:
                break
            if enqueued_ms is not None and event.enqueued_ms > enqueued_ms:
                break
            highest = event.sequence_number
        return highest

    def info(self, partition: int) -> PartitionInfo:
        events = self._partitions[partition]
        if not events:
            return PartitionInfo(0, -1, -1, 0, True)
        last = events[-1]
        return PartitionInfo(0, last.sequence_number, last.offset, last.enqueued_ms, False)

    def subscribe(self, partition: int, wake: Callable[[], None]) -> Callable[[], None]:
        self._wakes[partition].append(wake)
        return lambda: self._wakes[partition].remove(wake)
