"""What every wire format raises when the peer's bytes break its rules."""


class WireError(ValueError):
    """The peer sent what the format forbids; the message says which rule, never the payload."""
