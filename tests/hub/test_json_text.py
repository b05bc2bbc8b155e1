"""JSON from strangers: what is read, what is refused, and that nothing else can happen."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.errors import ArgumentInvalid
from mooring.hub.json_text import check, parse, parse_object

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_reads_what_others_write(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse(text) == value
    check(text)


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse(data)
    except ArgumentInvalid:
        return
    check(data)


REFUSED = {
    "nothing": b"",
    "two values": b"{} {}",
    "cut off": b'{"a":',
    "single quotes": b"{'a':1}",
    "comment": b"{} // x",
    "trailing comma": b"[1,]",
    "control character in a text": b'"\x01"',
    "byte order mark": b"\xef\xbb\xbf{}",
    "not UTF-8": b'"\xff"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "surrogate as UTF-8": b'"\xed\xa0\x80"',
    "NaN": b"NaN",
    "infinity": b"[-Infinity]",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "too long": b" " * (256 * 1024) + b"1",
}
READ_ONLY_REFUSED = {
    "duplicate keys": b'{"a":1,"a":2}',
    "duplicate keys below": b'{"a":[{"b":1,"b":1}]}',
    "overflowing number": b"1e999",
    "many digits": b"9" * 5000,
    "lone surrogate": rb'"\ud800"',
    "lone surrogate in an array": rb'[[["\udc00"]]]',
    "lone surrogate as a key": rb'{"\ud800":1}',
    "lone surrogate in an object": rb'{"a":["\ud800"]}',
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_refused(data: bytes) -> None:
    with pytest.raises(ArgumentInvalid):
        parse(data)
    with pytest.raises(ArgumentInvalid):
        check(data)


@pytest.mark.parametrize("data", READ_ONLY_REFUSED.values(), ids=READ_ONLY_REFUSED.keys())
def test_refused_where_values_matter(data: bytes) -> None:
    with pytest.raises(ArgumentInvalid):
        parse(data)
    check(data)


def test_surrogate_pairs_are_one_character() -> None:
    assert parse(rb'"\ud83d\ude00"') == "😀"


def test_small_numbers_stay_finite() -> None:
    assert parse(b"1e-999") == 0
    assert math.isfinite(parse(b"1.7976931348623157e308"))


@pytest.mark.parametrize("data", [b"[]", b"1", b'"a"', b"null"])
def test_an_object_is_an_object(data: bytes) -> None:
    with pytest.raises(ArgumentInvalid, match="must be an object"):
        parse_object(data)


def test_errors_do_not_quote_what_was_sent() -> None:
    with pytest.raises(ArgumentInvalid) as caught:
        parse(b'{"secret-value-1": secret-value-2}')
    assert "secret" not in caught.value.message
