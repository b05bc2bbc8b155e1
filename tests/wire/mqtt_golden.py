"""Raw MQTT packets beside what they mean: drives the decoder, the encoder and the fuzz seeds.

`GOOD` holds packets in the one form that our encoder gives them. `ODD` holds legal packets that we
would write differently. `BAD` holds what the specification forbids, with a word of the message.
"""

from mooring.wire.mqtt import (
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


def raw(text: str) -> bytes:
    """Hex, with 'quoted words' as they are."""
    parts = text.split("'")
    return b"".join(
        part.encode() if index % 2 else bytes.fromhex(part) for index, part in enumerate(parts)
    )


GOOD: dict[str, tuple[bytes, Packet]] = {
    "connect, smallest": (
        raw("10 0c 0004 'MQTT' 04 02 0000 0000"),
        Connect(client_id=""),
    ),
    "connect, as a device": (
        raw("10 18 0004 'MQTT' 04 c0 003c 0002 'd1' 0003 'h/d' 0003 'sas'"),
        Connect(
            client_id="d1", username="h/d", password=b"sas", clean_session=False, keep_alive=60
        ),
    ),
    "connect, with a certificate": (
        raw("10 13 0004 'MQTT' 04 80 00f0 0002 'd1' 0003 'h/d'"),
        Connect(client_id="d1", username="h/d", clean_session=False, keep_alive=240),
    ),
    "connect, empty password": (
        raw("10 12 0004 'MQTT' 04 c2 0000 0002 'd1' 0000 0000"),
        Connect(client_id="d1", username="", password=b""),
    ),
    "connect, with a will": (
        raw("10 17 0004 'MQTT' 04 2e 0001 0002 'd1' 0001 't' 0004 'gone'"),
        Connect(client_id="d1", keep_alive=1, will=Publish(b"t", b"gone", 1, 0, True)),
    ),
    "connect, with an empty will of QoS 2": (
        raw("10 13 0004 'MQTT' 04 16 0001 0002 'd1' 0001 't' 0000"),
        Connect(client_id="d1", keep_alive=1, will=Publish(b"t", b"", 2)),
    ),
    "connack": (raw("20 02 00 00"), Connack(0)),
    "connack, session present": (raw("20 02 01 00"), Connack(0, True)),
    "connack, not authorized": (raw("20 02 00 05"), Connack(5)),
    "publish, QoS 0": (raw("30 07 0003 'a/b' 'hi'"), Publish(b"a/b", b"hi")),
    "publish, retained": (raw("31 05 0003 'a/b'"), Publish(b"a/b", b"", retain=True)),
    "publish, QoS 1": (raw("32 09 0003 'a/b' 000a 'hi'"), Publish(b"a/b", b"hi", 1, 10)),
    "publish, QoS 1 retained": (
        raw("33 07 0003 'a/b' ffff"),
        Publish(b"a/b", b"", 1, 65535, retain=True),
    ),
    "publish, QoS 1 again": (
        raw("3a 07 0003 'a/b' 0001"),
        Publish(b"a/b", b"", 1, 1, dup=True),
    ),
    "publish, QoS 2": (raw("34 07 0003 'a/b' 0001"), Publish(b"a/b", b"", 2, 1)),
    "publish, everything set": (
        raw("3d 07 0003 'a/b' 0001"),
        Publish(b"a/b", b"", 2, 1, retain=True, dup=True),
    ),
    "publish, 127 bytes": (
        raw("30 7f 0001 't'") + b"x" * 124,
        Publish(b"t", b"x" * 124),
    ),
    "publish, 128 bytes": (
        raw("30 8001 0001 't'") + b"x" * 125,
        Publish(b"t", b"x" * 125),
    ),
    "publish, 16,384 bytes": (
        raw("32 808001 0001 't' 0102") + b"x" * 16379,
        Publish(b"t", b"x" * 16379, 1, 258),
    ),
    "publish, beyond ASCII": (
        raw("30 07 0005 c3a9 e282ac"),
        Publish("é€".encode(), b""),
    ),
    "puback": (raw("40 02 000a"), Puback(10)),
    "pubrec": (raw("50 02 000a"), Pubrec(10)),
    "pubrel": (raw("62 02 000a"), Pubrel(10)),
    "pubcomp": (raw("70 02 ffff"), Pubcomp(65535)),
    "subscribe": (raw("82 08 0001 0003 'a/#' 01"), Subscribe(1, (("a/#", 1),))),
    "subscribe, two": (
        raw("82 0c 0001 0003 'a/#' 02 0001 '+' 00"),
        Subscribe(1, (("a/#", 2), ("+", 0))),
    ),
    "suback": (raw("90 06 0001 00 01 02 80"), Suback(1, (0, 1, 2, 0x80))),
    "unsubscribe": (raw("a2 0a 0002 0003 'a/#' 0001 '+'"), Unsubscribe(2, ("a/#", "+"))),
    "unsuback": (raw("b0 02 0002"), Unsuback(2)),
    "pingreq": (raw("c0 00"), Pingreq()),
    "pingresp": (raw("d0 00"), Pingresp()),
    "disconnect": (raw("e0 00"), Disconnect()),
}

ODD: dict[str, tuple[bytes, Packet]] = {
    "a length longer than it needs to be": (raw("c0 80808000"), Pingreq()),
    "MQTT 3.1": (raw("10 0e 0006 'MQIsdp' 03 02 0000 0000"), Connect(client_id="", level=3)),
    "MQTT 5": (raw("10 0d 0004 'MQTT' 05 02 0000 00 0000"), Connect(client_id="", level=5)),
    "a byte order mark is a character": (
        raw("30 06 0004 efbbbf 't'"),
        Publish(b"\xef\xbb\xbft", b""),
    ),
    "a malformed filter is the session's affair": (
        raw("82 08 0001 0003 'a#b' 00"),
        Subscribe(1, (("a#b", 0),)),
    ),
}

BAD: dict[str, tuple[bytes, str]] = {
    "reserved type 0": (raw("00 00"), "reserved"),
    "reserved type 15": (raw("f0 00"), "reserved"),
    "connect with flags": (raw("11 0c 0004 'MQTT' 04 02 0000 0000"), "reserved flags"),
    "puback with flags": (raw("42 02 0001"), "reserved flags"),
    "pubrel without flags": (raw("60 02 0001"), "reserved flags"),
    "subscribe without flags": (raw("80 08 0001 0003 'a/#' 01"), "reserved flags"),
    "unsubscribe without flags": (raw("a0 07 0001 0003 'a/#'"), "reserved flags"),
    "pingreq with flags": (raw("c1 00"), "reserved flags"),
    "disconnect with flags": (raw("e8 00"), "reserved flags"),
    "five-byte length": (raw("c0 80808080 01"), "four bytes"),
    "longer than allowed": (raw("30 ffff7f"), "longer than"),
    "connect, nothing in it": (raw("10 00"), "cut short"),
    "connect, another protocol": (raw("10 0c 0004 'HTTP' 04 02 0000 0000"), "another protocol"),
    "connect, reserved flag": (raw("10 0c 0004 'MQTT' 04 03 0000 0000"), "reserved flag"),
    "connect, will of QoS 3": (
        raw("10 11 0004 'MQTT' 04 1e 0000 0000 0001 't' 0000"),
        "will flags",
    ),
    "connect, will QoS without will": (raw("10 0c 0004 'MQTT' 04 0a 0000 0000"), "will flags"),
    "connect, will retain without will": (raw("10 0c 0004 'MQTT' 04 22 0000 0000"), "will flags"),
    "connect, password alone": (
        raw("10 0f 0004 'MQTT' 04 42 0000 0000 0001 'p'"),
        "without a user name",
    ),
    "connect, no client id": (raw("10 0a 0004 'MQTT' 04 02 0000"), "cut short"),
    "connect, client id too long": (raw("10 0d 0004 'MQTT' 04 02 0000 0002 'a'"), "cut short"),
    "connect, bytes left": (raw("10 0d 0004 'MQTT' 04 02 0000 0000 00"), "last field"),
    "connect, will without topic": (
        raw("10 10 0004 'MQTT' 04 06 0000 0000 0000 0000"),
        "topic name is empty",
    ),
    "connect, will to a wildcard": (
        raw("10 11 0004 'MQTT' 04 06 0000 0000 0001 '#' 0000"),
        "wildcard",
    ),
    "connect, U+0000": (raw("10 0d 0004 'MQTT' 04 02 0000 0001 00"), r"U\+0000"),
    "connect, surrogate": (raw("10 0f 0004 'MQTT' 04 02 0000 0003 eda080"), "UTF-8"),
    "connect, overlong": (raw("10 0e 0004 'MQTT' 04 02 0000 0002 c080"), "UTF-8"),
    "connect, user name not UTF-8": (
        raw("10 0f 0004 'MQTT' 04 82 0000 0000 0001 ff"),
        "UTF-8",
    ),
    "connack, reserved flags": (raw("20 02 02 00"), "reserved flags"),
    "connack, reserved code": (raw("20 02 00 06"), "return code"),
    "connack, refused with a session": (raw("20 02 01 05"), "has a session"),
    "connack, long": (raw("20 03 00 00 00"), "its type cannot have"),
    "publish, no topic length": (raw("30 01 00"), "cut short"),
    "publish, topic longer than packet": (raw("30 03 0002 't'"), "cut short"),
    "publish, empty topic": (raw("30 02 0000"), "empty"),
    "publish, wildcard +": (raw("30 05 0003 'a/+'"), "wildcard"),
    "publish, wildcard #": (raw("30 03 0001 '#'"), "wildcard"),
    "publish, U+0000": (raw("30 04 0002 't' 00"), r"U\+0000"),
    "publish, not UTF-8": (raw("30 03 0001 ff"), "UTF-8"),
    "publish, surrogate": (raw("30 05 0003 edbfbf"), "UTF-8"),
    "publish, no packet id": (raw("32 03 0001 't'"), "cut short"),
    "publish, half a packet id": (raw("32 04 0001 't' 01"), "cut short"),
    "publish, packet id 0": (raw("32 05 0001 't' 0000"), "identifier is 0"),
    "publish, QoS 3": (raw("36 05 0001 't' 0001"), "QoS 3"),
    "publish, DUP at QoS 0": (raw("38 05 0001 't' 0001"), "DUP"),
    "puback, short": (raw("40 01 01"), "its type cannot have"),
    "puback, long": (raw("40 03 0001 00"), "its type cannot have"),
    "puback, packet id 0": (raw("40 02 0000"), "identifier is 0"),
    "pubrec, packet id 0": (raw("50 02 0000"), "identifier is 0"),
    "subscribe, no filter": (raw("82 02 0001"), "no filter"),
    "subscribe, packet id 0": (raw("82 06 0000 0001 'a' 00"), "identifier is 0"),
    "subscribe, empty filter": (raw("82 05 0001 0000 00"), "filter is empty"),
    "subscribe, QoS 3": (raw("82 06 0001 0001 'a' 03"), "above 2"),
    "subscribe, reserved bits": (raw("82 06 0001 0001 'a' 81"), "reserved bits"),
    "subscribe, no QoS": (raw("82 05 0001 0001 'a'"), "cut short"),
    "subscribe, not UTF-8": (raw("82 06 0001 0001 ff 00"), "UTF-8"),
    "suback, no code": (raw("90 02 0001"), "no return code"),
    "suback, reserved code": (raw("90 03 0001 03"), "reserved return code"),
    "unsubscribe, no filter": (raw("a2 02 0001"), "no filter"),
    "unsubscribe, empty filter": (raw("a2 04 0001 0000"), "filter is empty"),
    "unsubscribe, cut": (raw("a2 05 0001 0002 'a'"), "cut short"),
    "pingreq with a body": (raw("c0 01 00"), "its type cannot have"),
    "disconnect with a body": (raw("e0 01 00"), "its type cannot have"),
}
