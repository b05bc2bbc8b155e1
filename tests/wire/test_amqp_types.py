"""AMQP types: one golden table for both directions, then what no peer may do to the decoder."""

import math
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.wire.amqp.types import (
    MAX_DEPTH,
    Array,
    Byte,
    Char,
    Decimal32,
    Described,
    Float,
    Int,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    decode,
    encode,
)
from mooring.wire.errors import WireError

GOLDEN = [
    (None, "40"),
    (True, "41"),
    (False, "42"),
    (UByte(200), "50c8"),
    (UShort(513), "600201"),
    (UInt(0), "43"),
    (UInt(200), "52c8"),
    (UInt(0x01020304), "7001020304"),
    (ULong(0), "44"),
    (ULong(16), "5310"),
    (ULong(1 << 40), "800000010000000000"),
    (Byte(-1), "51ff"),
    (Short(-2), "61fffe"),
    (Int(-3), "54fd"),
    (Int(1000), "71000003e8"),
    (-4, "55fc"),
    (127, "557f"),
    (128, "810000000000000080"),
    (-(1 << 63), "818000000000000000"),
    (Timestamp(1700000000000), "830000018bcfe56800"),
    (1.5, "823ff8000000000000"),
    (Float(1.5), "723fc00000"),
    (Char("é"), "73000000e9"),
    (Decimal32(b"\x01\x02\x03\x04"), "7401020304"),
    (uuid.UUID(int=1), "98" + "00" * 15 + "01"),
    (b"", "a000"),
    (b"ab", "a0026162"),
    ("é", "a102c3a9"),
    (Symbol("amqp"), "a304616d7170"),
    ([], "c00100"),
    ([True, None], "c003024140"),
    ({}, "c10100"),
    ({Symbol("a"): 1}, "c10602a301615501"),
    (Described(ULong(0x24), []), "005324c00100"),
    (Array((Symbol("a"), Symbol("bc")), Symbol), "e00702a3016102" + "6263"),
    (Array((UInt(1),), UInt), "e0060170" + "00000001"),
    (Array((), Symbol), "e00200a3"),
    ("x" * 256, "b100000100" + "78" * 256),
]


@pytest.mark.parametrize(("value", "octets"), GOLDEN)
def test_golden(value: object, octets: str) -> None:
    wire = bytes.fromhex(octets)
    assert encode(value) == wire
    decoded, end = decode(wire)
    assert decoded == value
    assert type(decoded) is type(value)
    assert end == len(wire)


OTHER_FORMS = [
    ("45", []),
    ("5601", True),
    ("5600", False),
    ("7000000005", UInt(5)),
    ("800000000000000005", ULong(5)),
    ("7100000005", Int(5)),
    ("b000000001ff", b"\xff"),
    ("b30000000161", Symbol("a")),
    ("d0000000050000000141", [True]),
    ("d100000004" + "00000000", {}),
    ("f0000000060000000150" + "07", Array((UByte(7),), UByte)),
    ("e00501005301" + "45", Array((Described(ULong(1), []),), Described)),
]


@pytest.mark.parametrize(("octets", "value"), OTHER_FORMS)
def test_forms_that_others_write(octets: str, value: object) -> None:
    assert decode(bytes.fromhex(octets)) == (value, len(octets) // 2)


MALFORMED = {
    "nothing": "",
    "unknown constructor": "01",
    "short integer": "7000",
    "boolean of 2": "5602",
    "string past the end": "a10561",
    "string of bad UTF-8": "a101ff",
    "symbol that is not ASCII": "a302c3a9",
    "surrogate char": "730000d800",
    "char beyond Unicode": "7300110000",
    "list past the end": "c0ff01",
    "list size below its count field": "c000",
    "list of more elements than bytes": "c002ff40",
    "wide list of four billion": "d000000005ffffffff40",
    "list that overruns its size": "c0020170" + "00000001",
    "list that falls short of its size": "c004014040" + "40",
    "map with an odd count": "c10401a10161",
    "map keyed by a list": "c104024540" + "40",
    "map keyed by a map": "c10502c1010040",
    "map keyed by a uuid": "c1130298" + "00" * 16 + "40",
    "map keyed by a description": "c10602005301" + "4040",
    "map keyed by an array": "c10602e0020040" + "40",
    "array without a constructor": "e00100",
    "array of many nulls": "f000000005ffffffff40",
    "array of unknown elements": "e0020001",
    "array of described elements, and none": "e0050000530140",
    "described without a value": "005310",
}


@pytest.mark.parametrize("octets", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(octets: str) -> None:
    with pytest.raises(WireError):
        decode(bytes.fromhex(octets))


@pytest.mark.parametrize("layer", [b"\x00\x53\x01", b"\x00"])
def test_depth_is_bounded_for_descriptions(layer: bytes) -> None:
    with pytest.raises(WireError):
        decode(layer * 10_000 + b"\x40")


def test_depth_is_bounded_for_lists() -> None:
    value: list[object] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert decode(encode(value))[0] == value
    with pytest.raises(WireError, match="deep"):
        decode(encode([value]))


def test_what_amqp_cannot_carry_is_our_mistake() -> None:
    for value in (1 << 64, UByte(256), UInt(-1), Int(1 << 31), Symbol("é")):
        with pytest.raises(ValueError):  # noqa: PT011
            encode(value)
    with pytest.raises(TypeError):
        encode(object())


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.integers(0, 255).map(UByte)
    | st.integers(0, 65535).map(UShort)
    | st.integers(0, (1 << 32) - 1).map(UInt)
    | st.integers(0, (1 << 64) - 1).map(ULong)
    | st.integers(-128, 127).map(Byte)
    | st.integers(-(1 << 15), (1 << 15) - 1).map(Short)
    | st.integers(-(1 << 31), (1 << 31) - 1).map(Int)
    | st.integers(-(1 << 63), (1 << 63) - 1).map(Timestamp)
    | st.floats(allow_nan=False)
    | st.floats(allow_nan=False, width=32).map(Float)
    | st.uuids()
    | st.binary(max_size=300)
    | st.text(max_size=300)
    | st.text(st.characters(codec="ascii"), max_size=300).map(Symbol)
)
arrays = st.lists(st.integers(0, (1 << 32) - 1).map(UInt)).map(
    lambda items: Array(tuple(items), UInt)
) | st.lists(st.text(max_size=80)).map(lambda items: Array(tuple(items), str))
values = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(max_size=5) | st.integers(2, 9), inner, max_size=6)
        | st.builds(Described, st.integers(0, 255).map(ULong), inner)
    ),
    max_leaves=20,
)


def typed(value: object) -> object:
    """The value with its types spelled out, since `UInt(1) == 1 == True`."""
    if isinstance(value, Described):
        return ("described", typed(value.descriptor), typed(value.value))
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        return {key: (type(key), typed(item)) for key, item in value.items()}
    if isinstance(value, Array):
        return (value.kind, [typed(item) for item in value.items])
    return (type(value), value)


@given(values)
def test_round_trip(value: object) -> None:
    wire = encode(value)
    decoded, end = decode(b"\xff" + wire + b"\xff", 1)
    assert end == len(wire) + 1
    assert typed(decoded) == typed(value)


@given(values, st.data())
def test_truncation_is_always_noticed(value: object, data: st.DataObject) -> None:
    wire = encode(value)
    with pytest.raises(WireError):
        decode(wire[: data.draw(st.integers(0, len(wire) - 1))])


@given(st.binary(max_size=200))
def test_random_bytes_decode_or_raise_a_wire_error(octets: bytes) -> None:
    try:
        value, end = decode(octets)
    except WireError:
        return
    assert 0 < end <= len(octets)
    if not _has_nan(value):
        assert typed(decode(encode(value))[0]) == typed(value)


def _has_nan(value: object) -> bool:
    if isinstance(value, Described):
        return _has_nan(value.descriptor) or _has_nan(value.value)
    if isinstance(value, list):
        return any(map(_has_nan, value))
    if isinstance(value, dict):
        return any(map(_has_nan, value)) or any(map(_has_nan, value.values()))
    if isinstance(value, Array):
        return any(map(_has_nan, value.items))
    return isinstance(value, float) and math.isnan(value)


def test_decodes_any_buffer() -> None:
    wire = encode(["a", b"b", Symbol("c"), struct.pack(">d", 1.0)])
    assert decode(memoryview(bytearray(wire))) == decode(wire)
