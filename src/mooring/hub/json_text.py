"""JSON as others send it: read strictly, in bounded depth and size.

Rules that hold here: one value, in UTF-8, of at most the bytes that the caller allows; no
duplicate keys, since two readers would then see two documents; no NaN and no infinities, also not
as a number too large for a double; no lone surrogates, which UTF-8 cannot carry on. Nothing but
`ArgumentInvalid` is raised for what a client wrote.

The standard library's decoder is used for its hooks: msgspec keeps the last of duplicate keys.
"""

import json
import math
from typing import Any, Final, NoReturn

from mooring.errors import ArgumentInvalid

MAX_BYTES: Final = 256 * 1024
_MAX_DIGITS: Final = 24  # no integer of more digits is within any limit; int() is quadratic


def parse(data: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text; `ArgumentInvalid` says what is wrong with it."""
    return _decode(data, _READER, max_bytes)


def parse_object(data: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The same for a text that must be an object."""
    value = parse(data, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ArgumentInvalid("The JSON must be an object.")
    return value


def check(data: bytes, *, max_bytes: int = MAX_BYTES) -> None:
    """Raise `ArgumentInvalid` if this is no JSON text that can be handed on verbatim.

    Grammar only: numbers of any size, duplicate keys and escaped surrogates are the business of
    whoever reads the values."""
    _decode(data, _CHECKER, max_bytes)


def _decode(data: bytes, decoder: json.JSONDecoder, max_bytes: int) -> Any:
    if len(data) > max_bytes:
        raise ArgumentInvalid(f"The JSON is longer than {max_bytes} bytes.")
    try:
        return decoder.decode(str(data, "utf-8"))
    except UnicodeDecodeError:
        raise ArgumentInvalid("The JSON is not valid UTF-8.") from None
    except RecursionError:
        raise ArgumentInvalid("The JSON is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ArgumentInvalid(
            f"The JSON is not valid: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None


def _no_constant(name: str) -> NoReturn:
    raise ArgumentInvalid(f"The JSON is not valid: {name} is not a JSON number.")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ArgumentInvalid("The JSON has an integer that is out of range.")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ArgumentInvalid("The JSON has a number that is out of range.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ArgumentInvalid("The JSON has an object with duplicate keys.")
    for key, item in pairs:
        _encodable(key)
        _texts(item)
    return value


def _texts(item: Any) -> None:
    """Objects have been seen on their way out; what is left are texts, in arrays or not."""
    if isinstance(item, str):
        _encodable(item)
    elif isinstance(item, list):
        for inner in item:
            _texts(inner)


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentInvalid("The JSON has a text with a lone surrogate.") from None


class _Strict(json.JSONDecoder):
    """Also looks at what is in no object."""

    def decode(self, s: str, *args: Any) -> Any:
        value = super().decode(s, *args)
        _texts(value)
        return value


_READER: Final = _Strict(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_number,
    parse_constant=_no_constant,
)
_CHECKER: Final = json.JSONDecoder(
    # Values do not matter, and int() of a million digits would take minutes.
    parse_int=lambda text: 0,
    parse_float=lambda text: 0.0,
    parse_constant=_no_constant,
)
