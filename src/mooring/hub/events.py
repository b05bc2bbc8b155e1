"""The port to the event log: partitions of encoded events, durable before acknowledged.

A record is one complete AMQP message, encoded once at ingest in the form that readers are sent.
It begins with a message-annotations section (map32) whose first three entries are slots of fixed
width, which the log fills at commit, the only moment that knows their values:

    x-opt-sequence-number  long       per partition, +1, from 0
    x-opt-offset           string     16 digits, the event's byte position + FIRST_OFFSET
    x-opt-enqueued-time    timestamp  milliseconds since 1970 UTC, never decreasing

Offsets begin at 10^15: their text is 16 digits wide for the first 9 petabytes of a partition, and
stays below 2^53, so that a reader may also take it for a number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

FIRST_OFFSET = 10**15
OFFSET_DIGITS = 16

_MAP = b"\x00\x53\x72\xd1" + bytes(8)  # descriptor, map32, size and count: filled by the encoder
_SEQUENCE_KEY = b"\xa3\x15x-opt-sequence-number\x81"
_OFFSET_KEY = b"\xa3\x0cx-opt-offset\xa1\x10"
_TIME_KEY = b"\xa3\x13x-opt-enqueued-time\x83"

SEQUENCE_AT = len(_MAP) + len(_SEQUENCE_KEY)
OFFSET_AT = SEQUENCE_AT + 8 + len(_OFFSET_KEY)
TIME_AT = OFFSET_AT + OFFSET_DIGITS + len(_TIME_KEY)
SLOTS = 3

# What the slots look like before a commit has filled them; the map's size and count come before.
RECORD_HEAD = _SEQUENCE_KEY + bytes(8) + _OFFSET_KEY + b"0" * OFFSET_DIGITS + _TIME_KEY + bytes(8)


class Sink(Protocol):
    """Whoever appended and waits for the disk; called on the event loop, once for each batch."""

    def committed(self, tokens: list[Any]) -> None:
        """The records that were appended with these tokens are on disk, in this order."""

    def failed(self, tokens: list[Any], error: Exception) -> None:
        """They are not, and must not be acknowledged."""


class Event(NamedTuple):
    """One event as read: `record` has its slots filled."""

    sequence_number: int
    offset: int
    enqueued_ms: int
    record: bytes


class PartitionInfo(NamedTuple):
    """The bounds of a partition; `last_*` are -1, -1 and 0 while nothing was ever written."""

    first_sequence_number: int
    last_sequence_number: int
    last_offset: int
    last_enqueued_ms: int
    is_empty: bool


class EventLog(Protocol):
    """An append-only log of one hub's events in numbered partitions."""

    @property
    def partition_count(self) -> int: ...

    @property
    def created_ms(self) -> int: ...

    def append(self, partition: int, record: bytes, sink: Sink, token: Any) -> bool:
        """Queue a record for the next commit; from the event loop only.

        False means that the log is congested: it took the record, but the caller must stop
        reading from its peer until the callback that it passes to `when_drained` runs."""

    def when_drained(self, callback: Callable[[], None]) -> None: ...

    async def read(
        self, partition: int, after: int, *, max_events: int, max_bytes: int
    ) -> list[Event]:
        """Events with a sequence number above `after`, at least one if there is any."""

    async def position(
        self, partition: int, *, offset: int | None = None, enqueued_ms: int | None = None
    ) -> int:
        """The highest sequence number at or below this offset or time, -1 if there is none.

        Reading after it gives what comes later than the offset or time."""

    def info(self, partition: int) -> PartitionInfo: ...

    def subscribe(self, partition: int, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` on the event loop after each commit; returns how to stop that."""
