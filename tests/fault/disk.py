"""A disk that forgets what was not flushed: files rebuilt from a trace of system calls.

Rules, stricter than most file systems and as strict as POSIX lets one be:

- What is written to a file is lost unless an fsync or fdatasync of that file began after the write
  had ended, and came back.
- A name (of a new file, a renamed or a deleted one, a folder) changes only with an fsync of the
  folder that holds it. Folders are found by their names like files.

    disk = Disk(data)
    for call in calls: disk.apply(call)      # in order; stop anywhere
    disk.restore(copy)                       # the folder as a power cut would leave it
"""

import os
from pathlib import Path

from .strace import Call

_SKIP = ("-shm",)  # SQLite makes it anew; it is written through a mapping, which no trace shows


class _File:
    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, bytes | None]] = []
        """(place where it ended, offset or length, data or None for a truncation)"""
        self.durable = bytearray()

    def flush(self, began: int) -> None:
        """An fsync that began there came back."""
        left = []
        for operation in self.waiting:
            ended, at, data = operation
            if ended > began:
                left.append(operation)
            elif data is None:
                if at < len(self.durable):
                    del self.durable[at:]
                else:
                    self.durable.extend(bytes(at - len(self.durable)))
            else:
                if at > len(self.durable):
                    self.durable.extend(bytes(at - len(self.durable)))
                self.durable[at : at + len(data)] = data
        self.waiting = left


class _Folder:
    def __init__(self) -> None:
        self.names: dict[str, _File | _Folder | Path] = {}
        self.durable: dict[str, _File | _Folder | Path] = {}


class Disk:
    """One folder, empty when the trace began."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._top = _Folder()
        self._positions: dict[str, int] = {}
        self.flushes = 0

    def apply(self, call: Call) -> None:
        """Take note of a call that has ended."""
        handler = getattr(self, f"_{call.name}", None)
        if handler is not None:
            handler(call)

    def restore(self, target: Path) -> None:
        """Write the folder as a power cut would leave it now."""
        target.mkdir(mode=0o700)
        _restore(self._top, target)

    # calls -----------------------------------------------------------------------------------

    def _openat(self, call: Call) -> None:
        place = self._place(call.fd)
        if place is None:
            return
        folder, name = place
        file = folder.names.get(name)
        if file is None and "O_CREAT" in call.text:
            file = folder.names[name] = _File()
        if isinstance(file, _File):
            self._positions[call.fd] = 0
            if "O_TRUNC" in call.text:
                file.waiting.append((call.ended, 0, None))

    def _pwrite64(self, call: Call) -> None:
        file = self._file(call.fd)
        if file is not None:
            file.waiting.append((call.ended, call.numbers[-1], call.data))

    def _write(self, call: Call) -> None:
        file = self._file(call.fd)
        if file is not None:
            at = self._positions.get(call.fd, 0)
            file.waiting.append((call.ended, at, call.data))
            self._positions[call.fd] = at + len(call.data)

    def _ftruncate(self, call: Call) -> None:
        file = self._file(call.fd)
        if file is not None:
            file.waiting.append((call.ended, call.numbers[-1], None))

    def _fsync(self, call: Call) -> None:
        if call.fd == str(self.root):
            self._top.durable = dict(self._top.names)
            return
        place = self._place(call.fd)
        if place is None:
            return
        found = place[0].names.get(place[1])
        self.flushes += 1
        if isinstance(found, _Folder):
            found.durable = dict(found.names)
        elif isinstance(found, _File):
            found.flush(call.began)

    _fdatasync = _fsync

    def _rename(self, call: Call) -> None:
        old, new = (self._place(os.fsdecode(path)) for path in call.strings)
        if old is not None and new is not None:
            new[0].names[new[1]] = old[0].names.pop(old[1])

    def _unlink(self, call: Call) -> None:
        place = self._place(os.fsdecode(call.strings[0]))
        if place is not None:
            place[0].names.pop(place[1], None)

    def _mkdir(self, call: Call) -> None:
        place = self._place(os.fsdecode(call.strings[0]))
        if place is not None:
            place[0].names[place[1]] = _Folder()

    def _symlink(self, call: Call) -> None:
        target, path = (os.fsdecode(text) for text in call.strings)
        place = self._place(path)
        if place is not None:
            place[0].names[place[1]] = Path(target)

    def _unknown(self, call: Call) -> None:
        if str(self.root) in call.fd or any(os.fsencode(self.root) in s for s in call.strings):
            raise NotImplementedError(f"{call.name} is not understood here")

    _pwritev = _fallocate = _sync_file_range = _link = _unknown
    _renameat = _renameat2 = _unlinkat = _mkdirat = _linkat = _symlinkat = _unknown

    # -----------------------------------------------------------------------------------------

    def _file(self, path: str) -> _File | None:
        place = self._place(path)
        found = place[0].names.get(place[1]) if place else None
        return found if isinstance(found, _File) else None

    def _place(self, path: str) -> tuple[_Folder, str] | None:
        """The folder and the name of a path under the root."""
        root = f"{self.root}/"
        if not path.startswith(root) or path.endswith(_SKIP):
            return None
        *folders, name = path.removeprefix(root).split("/")
        folder = self._top
        for part in folders:
            inner = folder.names[part]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name


def _restore(folder: _Folder, target: Path) -> None:
    for name, entry in folder.durable.items():
        path = target / name
        if isinstance(entry, _Folder):
            path.mkdir(mode=0o700)
            _restore(entry, path)
        elif isinstance(entry, _File):
            path.touch(mode=0o600)
            path.write_bytes(entry.durable)
        else:
            path.symlink_to(entry)
