"""Files and folders that are private from their first byte, and whole or absent.

Rules. Folders are 0700 and files 0600 unless their reader is told otherwise; what is found more
open than that is tightened. A reader sees the old content or the new, never a part, also after a
power cut: the bytes are written beside the target, synced, renamed over it, and the folder is
synced, since a new name counts as durable only then. What the system refuses (a full disk, somebody
else's folder) is raised as `Unavailable`, with the path and the system's reason.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import Unavailable


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, or tighten the one that is there."""
    with _refusals("use the folder", path):
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(path.parent)
        tighten(path, 0o700)


def make_private_file(path: Path) -> bool:
    """Make an empty file that only its owner can read; False if it was there already."""
    with _refusals("make", path):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            tighten(path)
            return False
        os.close(descriptor)
        _sync_folder(path.parent)
        return True


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make or replace a file in one step, with `mode` from the start."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    with _refusals("write", path):
        # O_EXCL, after clearing what a crashed run left: never write through a planted link.
        beside.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(beside, flags, 0o600)
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


def tighten(path: Path, mode: int = 0o600) -> bool:
    """Take away what others may do with it; False if that was nothing."""
    if not path.stat().st_mode & 0o077:
        return False
    path.chmod(mode)
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refusals(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"cannot {what} {path}: {error.strerror or error}") from error
