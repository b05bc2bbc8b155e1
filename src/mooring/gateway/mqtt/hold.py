"""Reasons not to read from a client, each a bit; it is read again when none is left.

Plain numbers, since an enum's arithmetic is too slow for what each message may touch.
"""

from typing import Final

CONNECTING: Final = 1
"""The CONNECT is being judged."""

CONGESTED: Final = 2
"""The event log asked for it."""

UNACKNOWLEDGED: Final = 4
"""Too many PUBLISHes wait for their PUBACK."""

REQUESTS: Final = 8
"""Too many requests wait for the disk."""

WRITING: Final = 16
"""The client does not read what it is sent."""
