"""The fourteen control packets of MQTT 3.1.1 as values, and the numbers that go with them.

msgspec Structs: they are made in C and, with gc=False, unseen by the garbage collector, which the
hot path counts on.
"""

import msgspec

PROTOCOL_NAME = "MQTT"
PROTOCOL_LEVEL = 4

CONNECT_LIMIT = 65_536
"""Bytes of a first packet: enough for every field of a CONNECT that means anything to a hub."""

MESSAGE_LIMIT = 262_144
"""Bytes of a message: body and properties (device-protocols reference §1.1)."""

SESSION_LIMIT = MESSAGE_LIMIT + 2 + 65_535 + 2 + 5
"""Bytes of a packet on an accepted session: a body of the limit, the longest topic, the header."""

LONGEST = 268_435_455 + 5
"""Bytes of the longest packet that the format can express."""

# Return codes of CONNACK (§3.2.2.3).
ACCEPTED = 0
REFUSED_PROTOCOL = 1
REFUSED_IDENTIFIER = 2
REFUSED_UNAVAILABLE = 3
REFUSED_CREDENTIALS = 4
REFUSED_NOT_AUTHORIZED = 5

FAILURE = 0x80
"""SUBACK: this filter was not granted (§3.9.3)."""


class Connect(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """§3.1. A protocol name or level other than MQTT 4 is reported in `level`, not raised, since
    it deserves an answer [MQTT-3.1.2-2]; the other fields are then meaningless."""

    client_id: str
    username: str | None = None
    password: bytes | None = None
    will: "Publish | None" = None
    clean_session: bool = True
    keep_alive: int = 0
    level: int = PROTOCOL_LEVEL

    def __repr__(self) -> str:  # the password is a credential, and the will somebody's data
        return (
            f"Connect(client_id={self.client_id!r}, username={self.username!r}, "
            f"clean_session={self.clean_session}, keep_alive={self.keep_alive})"
        )


class Connack(msgspec.Struct, frozen=True, gc=False):
    """§3.2."""

    return_code: int
    session_present: bool = False


class Publish(msgspec.Struct, frozen=True, gc=False):
    """§3.3. `topic` is valid UTF-8 without wildcards; `packet_id` is 0 at QoS 0 only."""

    topic: bytes
    payload: bytes
    qos: int = 0
    packet_id: int = 0
    retain: bool = False
    dup: bool = False


class Puback(msgspec.Struct, frozen=True, gc=False):
    """§3.4."""

    packet_id: int


class Pubrec(msgspec.Struct, frozen=True, gc=False):
    """§3.5."""

    packet_id: int


class Pubrel(msgspec.Struct, frozen=True, gc=False):
    """§3.6."""

    packet_id: int


class Pubcomp(msgspec.Struct, frozen=True, gc=False):
    """§3.7."""

    packet_id: int


class Subscribe(msgspec.Struct, frozen=True):
    """§3.8. Filters with the QoS asked for; whether a filter is legal is for the session to say."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


class Suback(msgspec.Struct, frozen=True):
    """§3.9. A QoS or FAILURE for each filter, in their order."""

    packet_id: int
    codes: tuple[int, ...]


class Unsubscribe(msgspec.Struct, frozen=True):
    """§3.10."""

    packet_id: int
    filters: tuple[str, ...]


class Unsuback(msgspec.Struct, frozen=True, gc=False):
    """§3.11."""

    packet_id: int


class Pingreq(msgspec.Struct, frozen=True, gc=False):
    """§3.12."""


class Pingresp(msgspec.Struct, frozen=True, gc=False):
    """§3.13."""


class Disconnect(msgspec.Struct, frozen=True, gc=False):
    """§3.14."""


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
)

PINGRESP = b"\xd0\x00"
