"""The data folder: private to its owner, and held by one process at a time.

Rules. The folder is 0700 and what is made in it 0600 (`mooring.files`); SQLite gives its side files
(-wal, -shm) the mode of the database, so it is enough to make the database file ourselves. The lock
is the kernel's (flock): it ends with the process however that ends, so that there is nothing stale
to clean up.
"""

import fcntl
import os
from pathlib import Path

from ..errors import MooringError
from ..files import make_private_folder

LOCK_NAME = "lock"


class DataFolderError(MooringError):
    """The data folder cannot be used as it is; the message says why and what to do."""


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
        make_private_folder(path)
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
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(lock)
            raise DataFolderError(f"cannot write in {path}: {error.strerror}") from error
        return cls(path, lock)

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
