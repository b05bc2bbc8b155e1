"""AMQP frames: protocol headers and length-prefixed frames, found in any chunking of a stream.

Rules: a frame is refused from its first four bytes if it is longer than allowed at that moment,
so the buffer never holds more than one frame plus the chunk that came last. After an error the
decoder is of no further use.
"""

import struct
from typing import Final, NamedTuple

from mooring.wire.errors import WireError

AMQP: Final = 0  # protocol ids of a header, frame types of a frame
SASL: Final = 3
TYPE_AMQP: Final = 0
TYPE_SASL: Final = 1

MIN_MAX_FRAME_SIZE: Final = 512
EMPTY_FRAME: Final = b"\x00\x00\x00\x08\x02\x00\x00\x00"
AMQP_HEADER: Final = b"AMQP\x00\x01\x00\x00"
SASL_HEADER: Final = b"AMQP\x03\x01\x00\x00"

_HEAD = struct.Struct(">IBBH")


class Frame(NamedTuple):
    """`body` is empty for a heartbeat."""

    type: int
    channel: int
    body: bytes


def encode_frame(channel: int, body: bytes, frame_type: int = TYPE_AMQP) -> bytes:
    return _HEAD.pack(len(body) + 8, 2, frame_type, channel) + body


class FrameDecoder:
    """Cuts a byte stream into headers and frames; the caller says which it expects next.

    `max_frame_size` may be raised while decoding: it holds for frames not yet taken.
    """

    def __init__(self, max_frame_size: int) -> None:
        self.max_frame_size = max_frame_size
        self._buffer: bytes | bytearray = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        if not self.buffered:
            self._buffer, self._at = data, 0
            return
        if isinstance(self._buffer, bytes):
            self._buffer, self._at = bytearray(self._buffer[self._at :]), 0
        elif self._at > len(self._buffer) // 2:  # now and then only: one byte at a time stays cheap
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    @property
    def buffered(self) -> int:
        """How many bytes wait."""
        return len(self._buffer) - self._at

    def header(self) -> bytes | None:
        """The next 8 bytes, a protocol header; None if they are not there yet."""
        have = self._buffer[self._at : self._at + 8]
        if have[:4] != b"AMQP"[: len(have)]:
            raise WireError("stream does not begin with an AMQP protocol header")
        if len(have) < 8:
            return None
        self._at += 8
        return bytes(have)

    def starts_header(self) -> bool:
        """Whether what comes next can only be a protocol header; no frame is that long."""
        return self._buffer[self._at : self._at + 4] == b"AMQP"

    def frame(self) -> Frame | None:
        """The next frame, or None if it is not complete yet."""
        at = self._at
        have = len(self._buffer) - at
        if have < 4:
            return None
        size = int.from_bytes(self._buffer[at : at + 4], "big")
        if size > self.max_frame_size:
            raise WireError("frame is larger than allowed")
        if size < 8:
            raise WireError("frame is shorter than its header")
        if have < size:
            return None
        _, offset, kind, channel = _HEAD.unpack_from(self._buffer, at)
        if offset < 2 or offset * 4 > size:
            raise WireError("frame's data offset is outside the frame")
        if kind not in (TYPE_AMQP, TYPE_SASL):
            raise WireError("unknown frame type")
        body = bytes(self._buffer[at + offset * 4 : at + size])
        self._at = at + size
        if self._at == len(self._buffer):  # an idle connection keeps no chunk
            self._buffer, self._at = b"", 0
        return Frame(kind, channel, body)
