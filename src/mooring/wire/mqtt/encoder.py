"""Packets to bytes."""

from collections.abc import Callable, Sequence

from .packets import (
    LONGEST,
    PINGRESP,
    PROTOCOL_NAME,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)


def encode(packet: Packet) -> bytes:
    """The bytes of any packet. Raises ValueError if a field does not fit."""
    return _ENCODERS[type(packet)](packet)


def encode_connect(packet: Connect) -> bytes:
    """§3.1."""
    flags = 0x02 if packet.clean_session else 0
    payload = _string(packet.client_id.encode())
    will = packet.will
    if will is not None:
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
        payload += _string(will.topic) + _string(will.payload)
    if packet.username is not None:
        flags |= 0x80
        payload += _string(packet.username.encode())
    if packet.password is not None:
        flags |= 0x40
        payload += _string(packet.password)
    head = _string(PROTOCOL_NAME.encode()) + bytes((packet.level, flags))
    return _framed(0x10, head + packet.keep_alive.to_bytes(2, "big") + payload)


def encode_connack(return_code: int, *, session_present: bool = False) -> bytes:
    """§3.2."""
    return bytes((0x20, 2, session_present, return_code))


def encode_publish(
    topic: bytes,
    payload: bytes,
    qos: int = 0,
    packet_id: int = 0,
    *,
    retain: bool = False,
    dup: bool = False,
) -> bytes:
    """§3.3."""
    first = 0x30 | (8 if dup else 0) | qos << 1 | (1 if retain else 0)
    number = packet_id.to_bytes(2, "big") if qos else b""
    return _framed(first, b"".join((_string(topic), number, payload)))


def encode_puback(packet_id: int) -> bytes:
    """§3.4."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def encode_suback(packet_id: int, codes: Sequence[int]) -> bytes:
    """§3.9."""
    return _framed(0x90, packet_id.to_bytes(2, "big") + bytes(codes))


def encode_unsuback(packet_id: int) -> bytes:
    """§3.11."""
    return b"\xb0\x02" + packet_id.to_bytes(2, "big")


def encode_subscribe(packet: Subscribe) -> bytes:
    """§3.8."""
    filters = (_string(name.encode()) + bytes((qos,)) for name, qos in packet.filters)
    return _framed(0x82, packet.packet_id.to_bytes(2, "big") + b"".join(filters))


def encode_unsubscribe(packet: Unsubscribe) -> bytes:
    """§3.10."""
    filters = (_string(name.encode()) for name in packet.filters)
    return _framed(0xA2, packet.packet_id.to_bytes(2, "big") + b"".join(filters))


def _string(data: bytes) -> bytes:
    if len(data) > 65_535:
        raise ValueError("a string of MQTT has at most 65,535 bytes")
    return len(data).to_bytes(2, "big") + data


def _framed(first: int, body: bytes) -> bytes:
    length = len(body)
    if length < 128:
        return bytes((first, length)) + body
    if length > LONGEST - 5:
        raise ValueError("a packet of MQTT has at most 268,435,455 bytes after its header")
    head = bytearray((first,))
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + body


def _numbered(first: int) -> Callable[..., bytes]:
    return lambda packet: bytes((first, 2)) + packet.packet_id.to_bytes(2, "big")


_ENCODERS: dict[type, Callable[..., bytes]] = {
    Connect: encode_connect,
    Connack: lambda p: encode_connack(p.return_code, session_present=p.session_present),
    Publish: lambda p: encode_publish(
        p.topic, p.payload, p.qos, p.packet_id, retain=p.retain, dup=p.dup
    ),
    Puback: _numbered(0x40),
    Pubrec: _numbered(0x50),
    Pubrel: _numbered(0x62),
    Pubcomp: _numbered(0x70),
    Subscribe: encode_subscribe,
    Suback: lambda p: encode_suback(p.packet_id, p.codes),
    Unsubscribe: encode_unsubscribe,
    Unsuback: _numbered(0xB0),
    Pingreq: lambda _: b"\xc0\x00",
    Pingresp: lambda _: PINGRESP,
    Disconnect: lambda _: b"\xe0\x00",
}
