"""ETags: made from counters, and compared with what clients write into If-Match."""

import base64
import struct

from mooring.errors import PreconditionFailed

_COUNTER = struct.Struct(">Q")


def twin_etag(counter: int) -> str:
    """Base64 of eight bytes, most significant first: 1 is `AAAAAAAAAAE=`."""
    return base64.b64encode(_COUNTER.pack(counter)).decode()


def matches(if_match: str | None, etag: str) -> bool:
    """Whether a write may go on: no header, `*`, or this ETag.

    Clients write `*`, `"*"`, `abc=`, `"abc="` and `W/"abc="`; an empty one is what Node sends for
    an object without an ETag (service-apis reference §1.2)."""
    if if_match is None:
        return True
    text = if_match.strip().removeprefix("W/").strip('"')
    return text in ("", "*", etag)


def require(if_match: str | None, etag: str) -> None:
    """Raise `PreconditionFailed` if a write may not go on."""
    if not matches(if_match, etag):
        raise PreconditionFailed(
            "The ETag does not match: the object has changed since it was read.",
        )
