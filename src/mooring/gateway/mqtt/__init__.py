"""MQTT 3.1.1 for devices and modules: one connection is one session of an identity.

How it fits together:

    endpoint     what all connections share; makes a Connection for each transport
    connection   bytes <-> packets; who may go on reading; time limits; begins with one CONNECT
    admission    CONNECT -> the hub, the principal and the session's options, or a refusal
    session      what each packet of an accepted client does
    hold         reasons not to read
    acks         PUBACKs in the order of the PUBLISHes [MQTT-4.6.0-2]
    requests     what has to wait for the disk, one after another: subscribing, twins
    devicebound  cloud-to-device messages: a window of unacknowledged ones

Life of a session. CONNECT stops reading until it is judged; what was pipelined behind it waits,
undecoded, in the decoder. An accepted session opens in `hub.sessions`, which ends an older one of
the same identity at once, before the CONNACK: its unacknowledged cloud-to-device messages are free
again by the time that the new session asks for them. It ends exactly once, by whoever comes first:
the client's DISCONNECT, a lost transport, silence, a broken rule, or `Session.end`. Any but the
first publish the will.

Flow control. Reading stops, for any number of reasons at a time (`hold`), while the
CONNECT is judged, the event log is congested, too many PUBLISHes wait for their PUBACK, too many
requests wait for the disk, or the client does not read what it is sent. So everything a client can
make us keep is bounded by those limits and one chunk of input.
"""

from .endpoint import MqttEndpoint

__all__ = ["MqttEndpoint"]
