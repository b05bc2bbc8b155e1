"""The data folder: private to its owner, and held by one process at a time.

Rules. The folder is 0700 and what is made in it 0600; SQLite gives its side files (-wal, -shm)
the mode of the database, so it is enough to make the database file ourselves. A new name counts as
durable only after its directory was flushed. The lock is the kernel's (flock): it ends with the
process however that ends, so that there is nothing stale to clean up.
"""

import fcntl
import os
from pathlib import Path

from ..errors import MooringError

LOCK_NAME = "lock"


class DataFolderError(MooringError):
    """The data folder cannot be used as it is; the message says why and what to do."""


def flush_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: Path) -> None:
    """Make a directory that only its owner can enter, or tighten the one that is there."""
    try:
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            flush_directory(path.parent)
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise DataFolderError(f"cannot use {path} as data folder: {error.strerror}") from error


def make_private_file(path: Path) -> bool:
    """Make an empty file that only its owner can read; False if it was there already."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return False
    os.close(descriptor)
    flush_directory(path.parent)
    return True


def write_private_file(path: Path, content: bytes) -> None:
    """Write a new private file so that after a crash it is there whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    draft.rename(path)
    flush_directory(path.parent)


class DataFolder:
    """A data folder that this process holds the lock of, until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    @classmethod
    def open(cls, path: Path | str) -> "DataFolder":
        """Make the folder if it is missing, and lock it.

        Raises DataFolderError if another process holds it or it cannot be written."""
        path = Path(path).absolute()
        make_private_directory(path)
        try:
            lock = os.open(path / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataFolderError(f"cannot write in {path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise DataFolderError(
                f"another mooring (process {holder}) is running on {path}; "
                "stop it, or choose another folder with --data"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return cls(path, lock)

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
