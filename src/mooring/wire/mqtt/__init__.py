"""MQTT 3.1.1 control packets: bytes to values and back (OASIS mqtt-v3.1.1-os).

Rules of this package:

- All fourteen packets, in both directions; it knows neither its role nor what a topic means.
- Whatever the specification forbids raises `MalformedPacket`, which names the rule and carries the
  packets that came before it, so that how the bytes were cut changes nothing.
- A packet's length is held against the limit before any of it is buffered.
- After a CONNECT the decoder holds what follows, undecoded, until `proceed` is called: packets
  pipelined behind a CONNECT are legal [MQTT-3.1.4-5], but judged under the limit of an accepted
  session, and nobody has been accepted yet.
"""

from .decoder import Decoder, MalformedPacket
from .encoder import (
    encode,
    encode_connack,
    encode_connect,
    encode_puback,
    encode_publish,
    encode_suback,
    encode_subscribe,
    encode_unsuback,
    encode_unsubscribe,
)
from .packets import (
    ACCEPTED,
    CONNECT_LIMIT,
    FAILURE,
    LONGEST,
    MESSAGE_LIMIT,
    PINGRESP,
    PROTOCOL_LEVEL,
    PROTOCOL_NAME,
    REFUSED_CREDENTIALS,
    REFUSED_IDENTIFIER,
    REFUSED_NOT_AUTHORIZED,
    REFUSED_PROTOCOL,
    REFUSED_UNAVAILABLE,
    SESSION_LIMIT,
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

__all__ = [
    "ACCEPTED",
    "CONNECT_LIMIT",
    "FAILURE",
    "LONGEST",
    "MESSAGE_LIMIT",
    "PINGRESP",
    "PROTOCOL_LEVEL",
    "PROTOCOL_NAME",
    "REFUSED_CREDENTIALS",
    "REFUSED_IDENTIFIER",
    "REFUSED_NOT_AUTHORIZED",
    "REFUSED_PROTOCOL",
    "REFUSED_UNAVAILABLE",
    "SESSION_LIMIT",
    "Connack",
    "Connect",
    "Decoder",
    "Disconnect",
    "MalformedPacket",
    "Packet",
    "Pingreq",
    "Pingresp",
    "Puback",
    "Pubcomp",
    "Publish",
    "Pubrec",
    "Pubrel",
    "Suback",
    "Subscribe",
    "Unsuback",
    "Unsubscribe",
    "encode",
    "encode_connack",
    "encode_connect",
    "encode_puback",
    "encode_publish",
    "encode_suback",
    "encode_subscribe",
    "encode_unsuback",
    "encode_unsubscribe",
]
