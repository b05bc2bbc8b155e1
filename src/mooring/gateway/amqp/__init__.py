"""AMQP 1.0 for back ends: telemetry, cloud-to-device messages and their feedback.

How it fits together:

    endpoint          what all connections share; makes a Connection for each transport
    connection        a transport, the engine (`wire.amqp`), tokens and links
    sasl, grants      who the client is: SASL PLAIN, and tokens put on `$cbs`
    routes            the table: address -> who may attach with which right -> handler
    request_response  the pattern behind `cbs` and `management`
    events, readers   a partition's receivers: positions (`selector`), epochs, metrics
    devicebound       cloud-to-device messages in; `feedback` on them out
    refusals          hub errors as AMQP errors

Life of a connection. SASL, or none; open, which names the hub; a session; a pair of links to
`$cbs` and a token on it, unless SASL PLAIN brought one. From then on every attach is looked up in
the table and needs a grant. A token that expires or is revoked takes the links with it that no
other token allows, and the connection with the last one.

Flow control. What goes out is bounded by the client's credit and by the socket: handlers send
only while `Connection.writable`. What comes in is bounded by the credit that we grant; a delivery
is given back, and its credit with it, when it is done.
"""

from mooring.gateway.amqp.endpoint import AmqpEndpoint

__all__ = ["AmqpEndpoint"]
