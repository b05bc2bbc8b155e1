"""AMQP 1.0 types (part 1 of the specification): Python values to bytes and back.

Rules that hold here:

- A value that was decoded encodes to the same AMQP type again: whatever Python has no type of its
  own for has a thin subclass here. A plain `int` is a *long* (a *ulong* above 2^63), a plain
  `float` a *double*, `bytes` a *binary*, `list` and `dict` a *list* and a *map*.
- Decoding believes no length: sizes and counts are compared with the bytes that are there before
  anything is allocated, nesting ends at `MAX_DEPTH`, and every failure is a `WireError`.
- Keys of a map are text, numbers, binary or null. No client has others, and Python hashes UUIDs
  and compounds of a peer's choice all to one value: a frame of them took half a second to read.
- A list is never written as list0: azure-eventhub 5.15 (`_pyamqp/_decode.py`) reads its size byte.

Encoding a value that AMQP cannot carry is our own mistake: `TypeError` or `ValueError`.
"""

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mooring.wire.errors import WireError

MAX_DEPTH: Final = 32

Buffer = bytes | bytearray | memoryview


class Symbol(str):
    """ASCII text from a constrained domain."""

    __slots__ = ()


class Char(str):
    """One Unicode character."""

    __slots__ = ()


class UByte(int):
    __slots__ = ()


class UShort(int):
    __slots__ = ()


class UInt(int):
    __slots__ = ()


class ULong(int):
    __slots__ = ()


class Byte(int):
    __slots__ = ()


class Short(int):
    __slots__ = ()


class Int(int):
    __slots__ = ()


Long = int  # a plain integer already is one


class Timestamp(int):
    """Milliseconds since 1970 UTC."""

    __slots__ = ()


class Float(float):
    """Single precision; a plain float is double precision."""

    __slots__ = ()


class Decimal32(bytes):
    """IEEE 754 decimal, kept as its 4 bytes."""

    __slots__ = ()


class Decimal64(bytes):
    """IEEE 754 decimal, kept as its 8 bytes."""

    __slots__ = ()


class Decimal128(bytes):
    """IEEE 754 decimal, kept as its 16 bytes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Described:
    """A value under a descriptor, usually a `ULong` or a `Symbol`."""

    descriptor: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Array:
    """Values of one type. `kind` is their class (`type(None)`, `bool`, `Symbol`, …), needed since
    an array may be empty. Elements of kind `Described` share one descriptor, which an empty array
    could not keep: there is none of those."""

    items: tuple[Any, ...]
    kind: type = Symbol


NoneType = type(None)

# ---- decoding -------------------------------------------------------------------------------

_KEYS: Final = (str, int, float, bytes, NoneType)

_Decoder = Callable[[Buffer, int, int], tuple[Any, int]]

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_I16 = struct.Struct(">h")
_I32 = struct.Struct(">i")
_I64 = struct.Struct(">q")
_F32 = struct.Struct(">f")
_F64 = struct.Struct(">d")


def decode(buffer: Buffer, offset: int = 0) -> tuple[Any, int]:
    """The value that starts at `offset` and the offset behind it; `WireError` if malformed."""
    try:
        return _value(buffer, offset, MAX_DEPTH)
    except (IndexError, struct.error):
        raise WireError("AMQP value ends early") from None
    except UnicodeDecodeError:
        raise WireError("AMQP text is not in its encoding") from None


def _value(buffer: Buffer, at: int, depth: int) -> tuple[Any, int]:
    code = buffer[at]
    if code == 0:
        return _described(buffer, at, depth)
    decoder = _DECODERS[code]
    if decoder is None:
        raise WireError(f"unknown AMQP constructor 0x{code:02x}")
    return decoder(buffer, at + 1, depth)


def _described(buffer: Buffer, at: int, depth: int) -> tuple[Any, int]:
    if depth <= 0:
        raise WireError("AMQP value nested too deeply")
    descriptor, at = _value(buffer, at + 1, depth - 1)
    value, at = _value(buffer, at, depth - 1)
    return Described(descriptor, value), at


def _constant(value: Any) -> _Decoder:
    return lambda buffer, at, depth: (value, at)


def _fixed(unpack: struct.Struct, kind: Callable[[Any], Any] | None = None) -> _Decoder:
    def read(buffer: Buffer, at: int, depth: int) -> tuple[Any, int]:
        value = unpack.unpack_from(buffer, at)[0]
        return (value if kind is None else kind(value)), at + unpack.size

    return read


def _octet(kind: Callable[[int], Any] | None = None, *, signed: bool = False) -> _Decoder:
    def read(buffer: Buffer, at: int, depth: int) -> tuple[Any, int]:
        value = buffer[at]
        if signed and value > 127:
            value -= 256
        return (value if kind is None else kind(value)), at + 1

    return read


def _boolean(buffer: Buffer, at: int, depth: int) -> tuple[bool, int]:
    octet = buffer[at]
    if octet > 1:
        raise WireError("AMQP boolean is neither 0 nor 1")
    return octet == 1, at + 1


def _char(buffer: Buffer, at: int, depth: int) -> tuple[Char, int]:
    point = _U32.unpack_from(buffer, at)[0]
    if point > 0x10FFFF or 0xD800 <= point <= 0xDFFF:
        raise WireError("AMQP char is no Unicode character")
    return Char(chr(point)), at + 4


def _opaque(width: int, kind: Callable[[bytes], Any]) -> _Decoder:
    def read(buffer: Buffer, at: int, depth: int) -> tuple[Any, int]:
        end = at + width
        if end > len(buffer):
            raise WireError("AMQP value ends early")
        return kind(bytes(buffer[at:end])), end

    return read


def _variable(wide: bool, kind: Callable[[bytes], Any]) -> _Decoder:
    def read(buffer: Buffer, at: int, depth: int) -> tuple[Any, int]:
        if wide:
            size = _U32.unpack_from(buffer, at)[0]
            at += 4
        else:
            size = buffer[at]
            at += 1
        end = at + size
        if end > len(buffer):
            raise WireError("AMQP value is longer than the bytes that hold it")
        return kind(bytes(buffer[at:end])), end

    return read


def _text(octets: bytes) -> str:
    return octets.decode()


def _symbol(octets: bytes) -> Symbol:
    return Symbol(octets.decode("ascii"))


def _extent(buffer: Buffer, at: int, wide: bool) -> tuple[int, int, int]:
    """Count, first element and end of a compound whose size field is at `at`."""
    if wide:
        size = _U32.unpack_from(buffer, at)[0]
        count = _U32.unpack_from(buffer, at + 4)[0]
        first = at + 8
        end = at + 4 + size
    else:
        size = buffer[at]
        count = buffer[at + 1]
        first = at + 2
        end = at + 1 + size
    if end > len(buffer) or end < first:
        raise WireError("AMQP compound is longer than the bytes that hold it")
    if count > end - first:  # the shortest element is one byte
        raise WireError("AMQP compound holds fewer bytes than elements")
    return count, first, end


def _list(wide: bool) -> _Decoder:
    def read(buffer: Buffer, at: int, depth: int) -> tuple[list[Any], int]:
        if depth <= 0:
            raise WireError("AMQP value nested too deeply")
        count, at, end = _extent(buffer, at, wide)
        items = []
        for _ in range(count):
            item, at = _value(buffer, at, depth - 1)
            items.append(item)
        if at != end:
            raise WireError("AMQP list does not fill its size")
        return items, end

    return read


def _map(wide: bool) -> _Decoder:
    def read(buffer: Buffer, at: int, depth: int) -> tuple[dict[Any, Any], int]:
        if depth <= 0:
            raise WireError("AMQP value nested too deeply")
        count, at, end = _extent(buffer, at, wide)
        if count % 2:
            raise WireError("AMQP map has a key without a value")
        pairs: dict[Any, Any] = {}
        for _ in range(count // 2):
            key, at = _value(buffer, at, depth - 1)
            value, at = _value(buffer, at, depth - 1)
            if not isinstance(key, _KEYS):
                raise WireError("AMQP map has a key that is neither text, number nor binary")
            pairs[key] = value
        if at != end:
            raise WireError("AMQP map does not fill its size")
        return pairs, end

    return read


def _array(wide: bool) -> _Decoder:
    def read(buffer: Buffer, at: int, depth: int) -> tuple[Array, int]:
        if depth <= 0:
            raise WireError("AMQP value nested too deeply")
        # Elements may have no width at all (null, true, uint0): that a count cannot exceed the
        # array's own size is stricter than the specification, and keeps memory in proportion.
        count, at, end = _extent(buffer, at, wide)
        descriptor: Any = None
        described = buffer[at] == 0
        if described:
            if not count:
                raise WireError("AMQP array of described elements is empty")  # see `Array`
            descriptor, at = _value(buffer, at + 1, depth - 1)
        code = buffer[at]
        decoder = _DECODERS[code]
        if decoder is None:
            raise WireError(f"unknown AMQP constructor 0x{code:02x}")
        at += 1
        items: list[Any] = []
        for _ in range(count):
            item, at = decoder(buffer, at, depth - 1)
            items.append(Described(descriptor, item) if described else item)
        if at != end:
            raise WireError("AMQP array does not fill its size")
        return Array(tuple(items), Described if described else _KINDS[code]), end

    return read


_TABLE: Final[dict[int, tuple[type, _Decoder]]] = {
    0x40: (NoneType, _constant(None)),
    0x41: (bool, _constant(True)),
    0x42: (bool, _constant(False)),
    0x43: (UInt, _constant(UInt(0))),
    0x44: (ULong, _constant(ULong(0))),
    0x45: (list, lambda buffer, at, depth: ([], at)),
    0x50: (UByte, _octet(UByte)),
    0x51: (Byte, _octet(Byte, signed=True)),
    0x52: (UInt, _octet(UInt)),
    0x53: (ULong, _octet(ULong)),
    0x54: (Int, _octet(Int, signed=True)),
    0x55: (int, _octet(signed=True)),
    0x56: (bool, _boolean),
    0x60: (UShort, _fixed(_U16, UShort)),
    0x61: (Short, _fixed(_I16, Short)),
    0x70: (UInt, _fixed(_U32, UInt)),
    0x71: (Int, _fixed(_I32, Int)),
    0x72: (Float, _fixed(_F32, Float)),
    0x73: (Char, _char),
    0x74: (Decimal32, _opaque(4, Decimal32)),
    0x80: (ULong, _fixed(_U64, ULong)),
    0x81: (int, _fixed(_I64)),
    0x82: (float, _fixed(_F64)),
    0x83: (Timestamp, _fixed(_I64, Timestamp)),
    0x84: (Decimal64, _opaque(8, Decimal64)),
    0x94: (Decimal128, _opaque(16, Decimal128)),
    0x98: (uuid.UUID, _opaque(16, lambda octets: uuid.UUID(bytes=octets))),
    0xA0: (bytes, _variable(False, bytes)),
    0xA1: (str, _variable(False, _text)),
    0xA3: (Symbol, _variable(False, _symbol)),
    0xB0: (bytes, _variable(True, bytes)),
    0xB1: (str, _variable(True, _text)),
    0xB3: (Symbol, _variable(True, _symbol)),
    0xC0: (list, _list(False)),
    0xC1: (dict, _map(False)),
    0xD0: (list, _list(True)),
    0xD1: (dict, _map(True)),
    0xE0: (Array, _array(False)),
    0xF0: (Array, _array(True)),
}
_DECODERS: Final[list[_Decoder | None]] = [
    _TABLE[code][1] if code in _TABLE else None for code in range(256)
]
_KINDS: Final = {code: kind for code, (kind, _) in _TABLE.items()}

# ---- encoding -------------------------------------------------------------------------------

NULL: Final = b"\x40"


def encode(value: Any) -> bytes:
    """The shortest form of `value`, except that lists are never list0."""
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        encoder = _inherited(value)
    return encoder(value)


def encode_list(fields: list[bytes]) -> bytes:
    """A list of values that are encoded already."""
    body = b"".join(fields)
    return _compound(0xC0, len(fields), body)


def encode_described(code: int, body: bytes) -> bytes:
    """An encoded value under a small ulong descriptor, the only form that azure-eventhub reads."""
    return bytes((0x00, 0x53, code)) + body


def _inherited(value: Any) -> Callable[[Any], bytes]:
    for base in type(value).__mro__:
        if base in _ENCODERS:
            return _ENCODERS[base]
    raise TypeError(f"AMQP has no type for {type(value).__name__}")


def _compound(narrow: int, count: int, body: bytes) -> bytes:
    size = len(body) + 1
    if size < 256 and count < 256:
        return bytes((narrow, size, count)) + body
    return bytes((narrow | 0x10,)) + _U32.pack(size + 3) + _U32.pack(count) + body


def _sized(narrow: int, octets: bytes) -> bytes:
    size = len(octets)
    if size < 256:
        return bytes((narrow, size)) + octets
    return bytes((narrow | 0x10,)) + _U32.pack(size) + octets


def _in_range(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError("integer is out of range for its AMQP type")
    return value


def _long(value: int) -> bytes:
    if -128 <= value <= 127:
        return bytes((0x55, value & 0xFF))
    if value >= 1 << 63:
        return _ulong(value)
    return b"\x81" + _I64.pack(_in_range(value, -(1 << 63), value))


def _ulong(value: int) -> bytes:
    if value == 0:
        return b"\x44"
    if 0 < value < 256:
        return bytes((0x53, value))
    return b"\x80" + _U64.pack(_in_range(value, 0, (1 << 64) - 1))


def _uint(value: int) -> bytes:
    if value == 0:
        return b"\x43"
    if 0 < value < 256:
        return bytes((0x52, value))
    return b"\x70" + _U32.pack(_in_range(value, 0, (1 << 32) - 1))


def _int(value: int) -> bytes:
    if -128 <= value <= 127:
        return bytes((0x54, value & 0xFF))
    return b"\x71" + _I32.pack(_in_range(value, -(1 << 31), (1 << 31) - 1))


def _ubyte(value: int) -> bytes:
    return bytes((0x50, _in_range(value, 0, 255)))


def _ushort(value: int) -> bytes:
    return b"\x60" + _U16.pack(_in_range(value, 0, 65535))


def _byte(value: int) -> bytes:
    return bytes((0x51, _in_range(value, -128, 127) & 0xFF))


def _short(value: int) -> bytes:
    return b"\x61" + _I16.pack(_in_range(value, -32768, 32767))


def _timestamp(value: int) -> bytes:
    return b"\x83" + _I64.pack(_in_range(value, -(1 << 63), (1 << 63) - 1))


def _encode_char(value: str) -> bytes:
    return b"\x73" + _U32.pack(ord(value))


def _encode_map(pairs: dict[Any, Any]) -> bytes:
    body = b"".join([encode(part) for pair in pairs.items() for part in pair])
    return _compound(0xC1, len(pairs) * 2, body)


def _encode_described(value: Described) -> bytes:
    return b"\x00" + encode(value.descriptor) + encode(value.value)


# Array elements share a constructor, so each kind has the one code that fits all its values, and
# `encode` of a value that large or small starts with a code that is cut off again.
_ELEMENTS: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    NoneType: (0x40, lambda value: b""),
    bool: (0x56, lambda value: b"\x01" if value else b"\x00"),
    UByte: (0x50, lambda value: _ubyte(value)[1:]),
    UShort: (0x60, lambda value: _ushort(value)[1:]),
    UInt: (0x70, lambda value: _U32.pack(_in_range(value, 0, (1 << 32) - 1))),
    ULong: (0x80, lambda value: _U64.pack(_in_range(value, 0, (1 << 64) - 1))),
    Byte: (0x51, lambda value: _byte(value)[1:]),
    Short: (0x61, lambda value: _short(value)[1:]),
    Int: (0x71, lambda value: _I32.pack(_in_range(value, -(1 << 31), (1 << 31) - 1))),
    int: (0x81, lambda value: _I64.pack(_in_range(value, -(1 << 63), (1 << 63) - 1))),
    Float: (0x72, _F32.pack),
    float: (0x82, _F64.pack),
    Char: (0x73, lambda value: _encode_char(value)[1:]),
    Timestamp: (0x83, lambda value: _timestamp(value)[1:]),
    Decimal32: (0x74, bytes),
    Decimal64: (0x84, bytes),
    Decimal128: (0x94, bytes),
    uuid.UUID: (0x98, lambda value: bytes(value.bytes)),
    bytes: (0xB0, lambda value: _U32.pack(len(value)) + value),
    str: (0xB1, lambda value: _wide_text(value.encode())),
    Symbol: (0xB3, lambda value: _wide_text(value.encode("ascii"))),
    list: (0xD0, lambda value: _wide_compound(len(value), [encode(item) for item in value])),
    dict: (
        0xD1,
        lambda value: _wide_compound(
            2 * len(value), [encode(part) for pair in value.items() for part in pair]
        ),
    ),
    Array: (0xF0, lambda value: _wide_array(value)),
}


def _wide_text(octets: bytes) -> bytes:
    return _U32.pack(len(octets)) + octets


def _wide_compound(count: int, parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return _U32.pack(len(body) + 4) + _U32.pack(count) + body


def _wide_array(value: Array) -> bytes:
    return _wide_compound(len(value.items), [_array_body(value)])


def _array_body(value: Array) -> bytes:
    """The constructor and the elements."""
    items: tuple[Any, ...] = value.items
    kind, head = value.kind, b""
    if kind is Described:
        if not items:
            raise ValueError("an empty array cannot be of described elements")
        head = b"\x00" + encode(items[0].descriptor)
        if any(item.descriptor != items[0].descriptor for item in items):
            raise ValueError("elements of an array share one descriptor")
        items = tuple(item.value for item in items)
        kind = type(items[0])
    code, element = _ELEMENTS[kind]
    if kind in (str, Symbol) and max(map(len, items), default=0) < 64:
        # The short form, as peers write it; a character takes at most four bytes of UTF-8.
        octets = [item.encode() for item in items]
        parts = [bytes((len(text),)) + text for text in octets]
        return head + bytes((code & 0xEF,)) + b"".join(parts)
    return head + bytes((code,)) + b"".join([element(item) for item in items])


def _encode_array(value: Array) -> bytes:
    return _compound(0xE0, len(value.items), _array_body(value))


_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    NoneType: lambda value: NULL,
    bool: lambda value: b"\x41" if value else b"\x42",
    int: _long,
    UByte: _ubyte,
    UShort: _ushort,
    UInt: _uint,
    ULong: _ulong,
    Byte: _byte,
    Short: _short,
    Int: _int,
    Float: lambda value: b"\x72" + _F32.pack(value),
    float: lambda value: b"\x82" + _F64.pack(value),
    Char: _encode_char,
    Timestamp: _timestamp,
    Decimal32: lambda value: b"\x74" + value,
    Decimal64: lambda value: b"\x84" + value,
    Decimal128: lambda value: b"\x94" + value,
    uuid.UUID: lambda value: b"\x98" + value.bytes,
    bytes: lambda value: _sized(0xA0, value),
    bytearray: lambda value: _sized(0xA0, bytes(value)),
    memoryview: lambda value: _sized(0xA0, bytes(value)),
    str: lambda value: _sized(0xA1, value.encode()),
    Symbol: lambda value: _sized(0xA3, value.encode("ascii")),
    list: lambda value: encode_list([encode(item) for item in value]),
    tuple: lambda value: encode_list([encode(item) for item in value]),
    dict: _encode_map,
    Described: _encode_described,
    Array: _encode_array,
}
