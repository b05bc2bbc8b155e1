"""Link addresses as clients write them, taken apart.

The same place is called `amqps://host:5671/messages/events`, `/messages/events` or
`host/messages/events` (device-protocols reference §3.4). Segments are percent-decoded once; an
address without a scheme may or may not begin with the host, so both readings are offered.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import unquote

from mooring.errors import AmqpAddressNotFound

MAX_ADDRESS: Final = 2048
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")

Segments = tuple[str, ...]


def readings(address: str, is_host: Callable[[str], bool]) -> Iterator[Segments]:
    """The segments that an address may mean, most likely first. Raises AmqpAddressNotFound."""
    if len(address) > MAX_ADDRESS:
        raise AmqpAddressNotFound("The link address is too long.")
    path = address.partition("?")[0]
    scheme = _SCHEME.match(path)
    if scheme is not None:
        path = path[scheme.end() :]
    segments = tuple(unquote(part) for part in path.split("/") if part)
    yield segments
    if scheme is None and not path.startswith("/") and segments and is_host(segments[0]):
        yield segments[1:]


def match(pattern: Segments, segments: Segments) -> dict[str, str] | None:
    """What the `{placeholders}` of a pattern stand for; None if it does not fit.

    Fixed words match in any case. A last `*` takes the rest, which may be empty."""
    captures: dict[str, str] = {}
    if pattern and pattern[-1] == "*":
        pattern, rest = pattern[:-1], segments[len(pattern) - 1 :]
        segments = segments[: len(pattern)]
        captures["*"] = "/".join(rest)
    if len(pattern) != len(segments):
        return None
    for word, segment in zip(pattern, segments, strict=True):
        if word.startswith("{"):
            captures[word[1:-1]] = segment
        elif word != segment.lower():
            return None
    return captures
