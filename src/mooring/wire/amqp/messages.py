"""AMQP messages: the sections of a payload.

Reading takes sections in any order, since the C SDK writes properties before annotations
(device-protocols reference §3.6), and refuses a section that occurs twice unless the
specification lets it repeat. Writing keeps the specification's order, with full-length lists.
"""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mooring.wire.amqp.types import (
    NULL,
    Array,
    Buffer,
    Described,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    decode,
    encode,
    encode_described,
    encode_list,
)
from mooring.wire.errors import WireError

BATCH_FORMAT: Final = 0x80013700  # data sections that each hold one encoded message

HEADER: Final = 0x70
DELIVERY_ANNOTATIONS: Final = 0x71
MESSAGE_ANNOTATIONS: Final = 0x72
PROPERTIES: Final = 0x73
APPLICATION_PROPERTIES: Final = 0x74
DATA: Final = 0x75
SEQUENCE: Final = 0x76
VALUE: Final = 0x77
FOOTER: Final = 0x78

_NAMES: Final[dict[Any, int]] = {
    "amqp:header:list": HEADER,
    "amqp:delivery-annotations:map": DELIVERY_ANNOTATIONS,
    "amqp:message-annotations:map": MESSAGE_ANNOTATIONS,
    "amqp:properties:list": PROPERTIES,
    "amqp:application-properties:map": APPLICATION_PROPERTIES,
    "amqp:data:binary": DATA,
    "amqp:amqp-sequence:list": SEQUENCE,
    "amqp:amqp-value:*": VALUE,
    "amqp:footer:map": FOOTER,
}
_MAPS: Final = {
    DELIVERY_ANNOTATIONS: "delivery_annotations",
    MESSAGE_ANNOTATIONS: "message_annotations",
    APPLICATION_PROPERTIES: "application_properties",
    FOOTER: "footer",
}


class Absent:
    """Stands for "there is no amqp-value section"; a null value is something else."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


class Header(NamedTuple):
    durable: bool = False
    priority: int = 4
    ttl: int | None = None
    first_acquirer: bool = False
    delivery_count: int = 0


class Properties(NamedTuple):
    """Ids are str, ULong, UUID or bytes and keep their type; times are milliseconds."""

    message_id: Any = None
    user_id: bytes | None = None
    to: str | None = None
    subject: str | None = None
    reply_to: str | None = None
    correlation_id: Any = None
    content_type: str | None = None
    content_encoding: str | None = None
    absolute_expiry_time: int | None = None
    creation_time: int | None = None
    group_id: str | None = None
    group_sequence: int | None = None
    reply_to_group_id: str | None = None


@dataclass(slots=True)
class Message:
    """One message; a section that was absent is empty, or ABSENT for `value`."""

    header: Header | None = None
    delivery_annotations: dict[Any, Any] = field(default_factory=dict)
    message_annotations: dict[Any, Any] = field(default_factory=dict)
    properties: Properties = field(default_factory=Properties)
    application_properties: dict[Any, Any] = field(default_factory=dict)
    data: list[bytes] = field(default_factory=list)
    sequences: list[list[Any]] = field(default_factory=list)
    value: Any = ABSENT
    footer: dict[Any, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        """The data sections in a row, or a binary or text value; raises WireError on others."""
        if self.data:
            return self.data[0] if len(self.data) == 1 else b"".join(self.data)
        if self.sequences:
            raise WireError("message body is a sequence, not data")
        if self.value is ABSENT or self.value is None:
            return b""
        if isinstance(self.value, bytes):
            return self.value
        if isinstance(self.value, str):
            return self.value.encode()
        raise WireError("message body is a value, not data")

    def encode(self) -> bytes:
        parts = []
        if self.header is not None:
            parts.append(encode_described(HEADER, _encode_header(self.header)))
        if self.delivery_annotations:
            parts.append(encode_delivery_annotations(self.delivery_annotations))
        if self.message_annotations:
            parts.append(encode_described(MESSAGE_ANNOTATIONS, encode(self.message_annotations)))
        if self.properties != Properties():
            parts.append(encode_described(PROPERTIES, encode_properties(self.properties)))
        if self.application_properties:
            parts.append(
                encode_described(APPLICATION_PROPERTIES, encode(self.application_properties))
            )
        parts += [encode_described(DATA, encode(octets)) for octets in self.data]
        parts += [encode_described(SEQUENCE, encode(items)) for items in self.sequences]
        if self.value is not ABSENT:
            parts.append(encode_described(VALUE, encode(self.value)))
        if self.footer:
            parts.append(encode_described(FOOTER, encode(self.footer)))
        return b"".join(parts)


def encode_delivery_annotations(annotations: dict[Any, Any]) -> bytes:
    """The section that an intermediary may put in front of a message encoded already."""
    return encode_described(DELIVERY_ANNOTATIONS, encode(annotations))


def _encode_header(header: Header) -> bytes:
    return encode(
        [
            header.durable,
            UByte(header.priority),
            None if header.ttl is None else UInt(header.ttl),
            header.first_acquirer,
            UInt(header.delivery_count),
        ]
    )


_WRAPPERS: Final = {6: Symbol, 7: Symbol, 8: Timestamp, 9: Timestamp, 11: UInt}


def encode_properties(properties: Properties) -> bytes:
    """All 13 fields; azure-eventhub reads the correlation id by position."""
    fields = []
    for index, value in enumerate(properties):
        wrap = _WRAPPERS.get(index)
        if value is None:
            fields.append(NULL)
        else:
            fields.append(encode(value if wrap is None else wrap(value)))
    return encode_list(fields)


_ID = "id"
_PROPERTY_TYPES: Final[tuple[Any, ...]] = (
    _ID,
    bytes,
    str,
    str,
    str,
    _ID,
    str,
    str,
    int,
    int,
    str,
    int,
    str,
)


def _read_properties(fields: Any) -> Properties:
    if not isinstance(fields, list) or len(fields) > len(_PROPERTY_TYPES):
        raise WireError("message properties are no list of at most 13 fields")
    read: list[Any] = []
    for kind, value in zip(_PROPERTY_TYPES, fields, strict=False):
        if value is not None:
            if kind is _ID:
                if isinstance(value, list | dict | Array | Described):
                    raise WireError("message id is a compound")
            elif kind is bytes:
                if isinstance(value, str):  # hand-written clients send text for user-id
                    value = value.encode()
                elif not isinstance(value, bytes):
                    raise WireError("message property has the wrong type")
            elif not isinstance(value, kind) or isinstance(value, bool):
                raise WireError("message property has the wrong type")
        read.append(value)
    return Properties(*read)


def _read_header(fields: Any) -> Header:
    if not isinstance(fields, list) or len(fields) > 5:
        raise WireError("message header is no list of at most 5 fields")
    kinds = (bool, int, int, bool, int)
    read: list[Any] = []
    for default, kind, value in zip(Header(), kinds, fields, strict=False):
        if value is not None and not isinstance(value, kind):
            raise WireError("message header field has the wrong type")
        read.append(default if value is None else value)
    return Header(*read)


def decode_message(payload: Buffer) -> Message:
    """The message in `payload`; raises WireError if it is malformed."""
    message = Message()
    seen = set()
    at = 0
    while at < len(payload):
        section, at = decode(payload, at)
        if not isinstance(section, Described):
            raise WireError("message section has no descriptor")
        code, value = _code(section.descriptor), section.value
        if code not in (DATA, SEQUENCE):
            if code in seen:
                raise WireError("message section occurs twice")
            seen.add(code)
        if code == DATA:
            if not isinstance(value, bytes):
                raise WireError("data section is not binary")
            message.data.append(value)
        elif code in _MAPS:
            if value is not None and not isinstance(value, dict):
                raise WireError("message section is no map")
            setattr(message, _MAPS[code], value or {})
        elif code == PROPERTIES:
            message.properties = _read_properties(value)
        elif code == HEADER:
            message.header = _read_header(value)
        elif code == VALUE:
            message.value = value
        else:
            if not isinstance(value, list):
                raise WireError("sequence section is no list")
            message.sequences.append(value)
    return message


def _code(descriptor: Any) -> int:
    if isinstance(descriptor, Symbol):
        descriptor = _NAMES.get(descriptor)
    if not isinstance(descriptor, int) or not HEADER <= descriptor <= FOOTER:
        raise WireError("unknown message section")
    return int(descriptor)


def decode_batch(payload: Buffer) -> list[Message]:
    """The messages of a transfer in BATCH_FORMAT; raises WireError if one is malformed."""
    return [decode_message(octets) for octets in decode_message(payload).data]
