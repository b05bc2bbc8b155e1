"""Record batches: what one commit adds to one partition, kept as one row under checksums.

    body     the length of each record as u32 little-endian, then the records, one after another
    head     the other columns; `head_sum` is the CRC-32 of all of them and of `body_sum`, which
             is the CRC-32 of the body

CRC-32 finds every flipped bit and every burst of up to 32 bits, and runs at 4 GB/s here, where
BLAKE2b reaches 0.9: it must not become a noticeable part of what a message costs. The head has a
sum of its own so that the bounds of a log can be trusted without reading whole batches.

All records of a batch carry the time of the commit, which makes them one instant for readers.
"""

import struct
import zlib
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

from ...errors import CorruptRecord
from ...hub.events import OFFSET_AT, OFFSET_DIGITS, RECORD_HEAD, SEQUENCE_AT, TIME_AT, Event

# A row's key is partition and first sequence number in one integer, so that SQLite keeps a
# partition's batches together and in order without a second index: 2^48 events a partition.
SEQUENCE_BITS = 48
SEQUENCE_LIMIT = 1 << SEQUENCE_BITS

MIN_RECORD = TIME_AT + 8  # a record that ends before its last slot is none

_BASE = TIME_AT + 8 - len(RECORD_HEAD)
_OFFSET_KEY = RECORD_HEAD[SEQUENCE_AT + 8 - _BASE : OFFSET_AT - _BASE]
_TIME_KEY = RECORD_HEAD[OFFSET_AT + OFFSET_DIGITS - _BASE : TIME_AT - _BASE]
# One call for all three slots, writing the constant bytes between them again: three calls took
# twice as long.
_fill = struct.Struct(f">q{len(_OFFSET_KEY)}s{OFFSET_DIGITS}s{len(_TIME_KEY)}sq").pack_into
_head = struct.Struct("<7q")


class Row(NamedTuple):
    """A batch as stored, in the order of the table's columns."""

    id: int
    events: int
    first_offset: int
    last_offset: int
    next_offset: int
    enqueued_ms: int
    body_sum: int
    head_sum: int
    body: bytes | bytearray


class Head(NamedTuple):
    """A row without its body."""

    id: int
    events: int
    first_offset: int
    last_offset: int
    next_offset: int
    enqueued_ms: int
    body_sum: int
    head_sum: int

    @property
    def first(self) -> int:
        return self.id & (SEQUENCE_LIMIT - 1)

    @property
    def last(self) -> int:
        return self.first + self.events - 1

    def is_intact(self) -> bool:
        try:
            return zlib.crc32(_head.pack(*self[:7])) == self.head_sum
        except (struct.error, TypeError):
            return False


class CorruptBatch(CorruptRecord):
    """Events `first` to `last` of a partition cannot be trusted; those around them can."""

    def __init__(self, partition: int, first: int, last: int, why: str) -> None:
        super().__init__(
            f"event log: partition {partition}, sequence numbers {first} to {last}: {why}"
        )
        self.partition, self.first, self.last, self.why = partition, first, last, why


class Batch:
    """A batch in memory, known to be intact. Reading its events slices them out once."""

    __slots__ = ("_events", "_offsets", "body", "count", "enqueued_ms", "first", "first_offset",
                 "partition", "size")  # fmt: skip

    def __init__(
        self, partition: int, first: int, count: int, first_offset: int, enqueued_ms: int,
        body: bytes,
    ) -> None:  # fmt: skip
        self.partition = partition
        self.first = first
        self.count = count
        self.first_offset = first_offset
        self.enqueued_ms = enqueued_ms
        self.body = body
        self.size = len(body) - 4 * count  # bytes of offset that it covers
        self._events: list[Event] | None = None
        self._offsets: list[int] | None = None

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    @property
    def last_length(self) -> int:
        """Bytes of its last record."""
        length: int = struct.unpack_from("<I", self.body, 4 * self.count - 4)[0]
        return length

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes, roughly, once somebody has read it."""
        return 2 * len(self.body) + 200 * self.count

    def events(self) -> list[Event]:
        """All its events in order; the list is shared, do not change it."""
        if self._events is None:
            body, base, ms = self.body, 4 * self.count, self.enqueued_ms
            lengths = struct.unpack_from(f"<{self.count}I", body)
            sequence, offset = self.first, self.first_offset
            shift = base - offset
            events = []
            for length in lengths:
                start = offset + shift
                events.append(Event(sequence, offset, ms, body[start : start + length]))
                sequence += 1
                offset += length
            self._events = events
        return self._events

    def last_at(self, offset: int) -> int:
        """The highest sequence number at or below an offset, `first - 1` if there is none."""
        if self._offsets is None:
            lengths = struct.unpack_from(f"<{self.count - 1}I", self.body)
            self._offsets = list(accumulate(lengths, initial=self.first_offset))
        return self.first + bisect_right(self._offsets, offset) - 1


def key(partition: int, sequence: int) -> int:
    """The row id of a batch that begins at this sequence number."""
    return partition << SEQUENCE_BITS | sequence


def seal(
    partition: int, first: int, first_offset: int, enqueued_ms: int, records: list[bytes]
) -> Row:
    """Fill the slots of `records` in order, and put them under checksums."""
    count = len(records)
    lengths = list(map(len, records))
    body = bytearray(struct.pack(f"<{count}I", *lengths))
    position = len(body) + SEQUENCE_AT
    body += b"".join(records)
    sequence, offset = first, first_offset
    for length in lengths:
        _fill(body, position, sequence, _OFFSET_KEY, b"%016d" % offset, _TIME_KEY, enqueued_ms)
        sequence += 1
        offset += length
        position += length
    body_sum = zlib.crc32(body)
    head = (key(partition, first), count, first_offset, offset - lengths[-1], offset, enqueued_ms,
            body_sum)  # fmt: skip
    return Row(*head, zlib.crc32(_head.pack(*head)), body)


def unseal(row: Row) -> Batch:
    """Check a stored row and return its batch. Raises CorruptBatch."""
    head = Head(*row[:8])
    partition, first = divmod(head.id, SEQUENCE_LIMIT)
    if not head.is_intact():
        raise CorruptBatch(partition, first, first, "the head of the batch fails its checksum")
    body = row.body
    if not isinstance(body, bytes) or zlib.crc32(body) != head.body_sum:
        raise CorruptBatch(partition, first, head.last, "the batch fails its checksum")
    return Batch(partition, first, head.events, head.first_offset, head.enqueued_ms, body)
