"""Finds damage in a write-ahead log that SQLite takes for its end.

After a crash SQLite reads its WAL up to the first frame that fails its checksum, and takes that
for the place where the writing was cut off. A flipped bit in the middle looks the same to it, and
everything behind is dropped without a word, acknowledged or not. The two can be told apart: a
transaction is flushed before the next one begins, so a power cut tears the last one only. Complete
transactions behind the end that SQLite found mean that it was no end.

The layout is described in SQLite's file format documentation, §4.1 and §4.2.
"""

import os
import shutil
import sqlite3
import struct
import time
from pathlib import Path
from typing import NamedTuple

import structlog

log = structlog.get_logger(__name__)

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682  # its lowest bit says in which byte order checksums are computed


class WalFrames(NamedTuple):
    """What a WAL looks like without computing the checksums of its pages."""

    header_ok: bool
    commits: list[int]
    """Numbers, from 1, of the frames that end a transaction of the WAL's present generation."""


def scan(path: Path) -> WalFrames:
    """Read the headers of a WAL; an absent or empty one has no frames."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return WalFrames(True, [])
    with file:
        size = os.fstat(file.fileno()).st_size
        if size < _HEADER.size:
            return WalFrames(True, [])
        header = file.read(_HEADER.size)
        magic, _, page_size, _, salt1, salt2, sum1, sum2 = _HEADER.unpack(header)
        header_ok = magic & ~1 == _MAGIC and (sum1, sum2) == _checksum(header[:24], magic & 1)
        if not header_ok:
            return WalFrames(False, [])
        commits = []
        step = _FRAME.size + (page_size or 65536)
        for number in range(1, (size - _HEADER.size) // step + 1):
            file.seek(_HEADER.size + (number - 1) * step)
            _, pages, frame_salt1, frame_salt2, _, _ = _FRAME.unpack(file.read(_FRAME.size))
            # Frames of the generation before may follow: they were all moved into the database.
            if pages and (frame_salt1, frame_salt2) == (salt1, salt2):
                commits.append(number)
        return WalFrames(True, commits)


def report_damage(database: Path, connection: sqlite3.Connection, before: WalFrames) -> bool:
    """Say so, and keep the WAL, if SQLite dropped transactions that a power cut does not explain.

    `before` is what the WAL looked like before `connection` was opened, and nothing was written
    since. True if there was damage."""
    # Recovery happens here at the latest; the frames it accepted are the second figure.
    _, recovered, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    dropped = [number for number in before.commits if number > recovered]
    # One may have been torn: a frame in its middle is missing or half written.
    if before.header_ok and len(dropped) < 2:
        return False
    wal = database.with_name(database.name + "-wal")
    kept = wal.with_name(f"{wal.name}.damaged-{int(time.time())}")
    shutil.copyfile(wal, kept)
    kept.chmod(0o600)
    log.error(
        "wal_damaged",
        file=wal.name,
        kept_as=kept.name,
        recovered_frames=recovered,
        dropped_transactions=len(dropped) if before.header_ok else "unknown",
        reason="a write-ahead log was damaged before its end; what came after is not served",
    )
    return True


def _checksum(data: bytes, big_endian: int) -> tuple[int, int]:
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    one = two = 0
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
