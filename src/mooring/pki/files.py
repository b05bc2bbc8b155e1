"""Files that must be whole or absent, and private from their first byte.

A reader sees the old content or the new, never a part, also after a power cut: the bytes are
written beside the target, synced, renamed over it, and the folder is synced.
"""

import contextlib
import os
from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Create `folder` (0700), or close an existing one to everybody but its owner."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `content` in one step, with `mode` from the start."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    # O_EXCL, after clearing what a crashed run left: never write through a planted link.
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
