"""Bodies in and out: JSON from clients to typed documents, and values to JSON responses."""

from typing import Any, TypeVar

import msgspec
from litestar import Response

from mooring.errors import ArgumentInvalid

T = TypeVar("T")

JSON = "application/json; charset=utf-8"


def parse(body: bytes, kind: type[T]) -> T:
    """The document that a body holds; clients do not always name its content type.

    Raises ArgumentInvalid, which says what is wrong and never what was sent: it may be a key."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise ArgumentInvalid(f"The body is not valid: {error}") from None
    except RecursionError:
        raise ArgumentInvalid("The body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ArgumentInvalid("The body is not JSON in UTF-8") from None


def reply(value: Any, *, status: int = 200, etag: str = "") -> Response[bytes]:
    """A JSON response; `etag` without quotes."""
    headers = {"ETag": f'"{etag}"'} if etag else {}
    return Response(
        msgspec.json.encode(value), status_code=status, media_type=JSON, headers=headers
    )
