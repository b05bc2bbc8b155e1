"""What a TLS port grants a stranger before anybody has looked at a credential."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds of one connection, in seconds and bytes."""

    handshake_timeout: float = 10.0
    first_byte_timeout: float = 10.0
    write_stall_timeout: float = 30.0  # the peer reads nothing for so long
    close_timeout: float = 10.0  # to flush after close()
    linger: float = 2.0  # to let the peer read our last words
    write_high: int = 64 * 1024
    write_low: int = 16 * 1024
    write_max: int = 8 * 1024 * 1024  # a write while more than this is queued ends it
    chain_bytes: int = 32 * 1024  # the client's certificates, DER


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Bounds of one listener.

    `pending` are connections in the handshake or before their first byte: when there are more,
    the oldest is dropped, which under a flood hits the stalled and not the newcomer.
    """

    connections: int = 20_000
    pending: int = 1_000
    per_source: int | None = None  # connections from one address
    backlog: int = 1024
    transport: TransportLimits = TransportLimits()
