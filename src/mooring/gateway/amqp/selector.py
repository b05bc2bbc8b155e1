"""Where a reader starts: the selector filters of Event Hubs clients.

    amqp.annotation.x-opt-offset > '1000000000000123'       '-1' the start, '@latest' only new
    amqp.annotation.x-opt-sequence-number >= '5'            quoted or not
    amqp.annotation.x-opt-enqueued-time > '1700000000000'   milliseconds
    amqp.annotation.x-opt-enqueuedtimeutc > 1700000000000   the Azure command line's name for it

(device-protocols reference §7.2.) Without a filter reading starts at the beginning. A filter that
is not understood is refused: ignoring it would deliver what the reader did not ask for.
"""

import re
from typing import Any, Final, NamedTuple

from mooring.errors import ArgumentInvalid
from mooring.hub.events import FIRST_OFFSET, EventLog
from mooring.wire.amqp.types import Described

FILTER: Final = "apache.org:selector-filter:string"
FILTER_CODE: Final = 0x0000468C00000004
MAX_EXPRESSION: Final = 512

_EXPRESSION = re.compile(
    r"""\s* amqp\.annotation\. (?P<name>[a-z-]+) \s*
        (?P<operator>>=?) \s*
        (?: '(?P<quoted>[^']*)' | "(?P<double>[^"]*)" | (?P<plain>[^\s'"]+) ) \s*""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"(-?[0-9]{1,19})(\.[0-9]*)?")

_OFFSET, _SEQUENCE, _TIME = "offset", "sequence number", "enqueued time"
_NAMES: Final = {
    "x-opt-offset": _OFFSET,
    "x-opt-sequence-number": _SEQUENCE,
    "x-opt-enqueued-time": _TIME,
    "x-opt-enqueuedtimeutc": _TIME,
}


class Start(NamedTuple):
    """Where to start: after `value`, or at it if `inclusive`. `latest` has no value."""

    kind: str = _OFFSET
    value: int = -1
    inclusive: bool = False
    latest: bool = False


def parse(expression: str) -> Start:
    """The start that a selector means. Raises ArgumentInvalid."""
    found = _EXPRESSION.fullmatch(expression) if len(expression) <= MAX_EXPRESSION else None
    if found is None or found["name"] not in _NAMES:
        raise ArgumentInvalid(
            "The filter is not of the form amqp.annotation.{x-opt-offset | x-opt-sequence-number"
            " | x-opt-enqueued-time} {> | >=} 'value'."
        )
    kind = _NAMES[found["name"]]
    text = next(found[group] for group in ("quoted", "double", "plain") if found[group] is not None)
    if kind == _OFFSET and text.lower() == "@latest":
        return Start(latest=True)
    number = _NUMBER.fullmatch(text)
    if number is None or (number[2] and kind != _TIME):
        raise ArgumentInvalid(f"The filter's {kind} is not a whole number.")
    return Start(kind, int(number[1]), found["operator"] == ">=")


def from_filters(filters: dict[Any, Any] | None) -> Start:
    """The start that a source's filter map asks for. Raises ArgumentInvalid."""
    start = Start()
    for name, value in (filters or {}).items():
        if value is None:
            continue
        descriptor, expression = name, value
        if isinstance(value, Described):
            descriptor, expression = value.descriptor, value.value
        if descriptor not in (FILTER, FILTER_CODE):
            raise ArgumentInvalid(f"The only supported filter is {FILTER}.")
        if isinstance(expression, bytes):
            expression = expression.decode("ascii", "replace")
        if not isinstance(expression, str):
            raise ArgumentInvalid("The filter's expression is not text.")
        start = parse(expression)
    return start


async def resolve(start: Start, log: EventLog, partition: int) -> int:
    """The sequence number after which to read. Raises ArgumentInvalid if it lies in the future.

    A reader whose checkpoint is ahead of the log has read another log; to wait until this one
    has caught up would skip events silently.
    """
    info = log.info(partition)
    if start.latest:
        return info.last_sequence_number
    if start.kind == _SEQUENCE:
        if start.value > info.last_sequence_number + 1:
            raise ArgumentInvalid(
                f"The supplied sequence number '{start.value}' is invalid. The last sequence"
                f" number in the partition is '{info.last_sequence_number}'."
            )
        return max(start.value - start.inclusive, -1)
    if start.kind == _OFFSET:
        if start.value < FIRST_OFFSET:
            return -1
        if start.value > info.last_offset:
            raise ArgumentInvalid(
                f"The supplied offset '{start.value}' is invalid. The last offset in the"
                f" partition is '{info.last_offset}'."
            )
        return await log.position(partition, offset=start.value - start.inclusive)
    if start.value < 0:
        return -1
    return await log.position(partition, enqueued_ms=start.value - start.inclusive)
