"""The system calls of a server, in the order in which the kernel saw them.

    trace = Strace(tmp_path / "trace")
    served = Served(tmp_path, ports=FREE, wrapper=trace.wrapper)
    served.start(); ...; served.kill()
    calls = trace.calls()

`strace -D` makes the tracer a grandchild, so that the server is the process that was started and
can be killed itself. A call has a place where it began and one where it ended; what stands on one
line happened at one place, since strace splits the line of a call that another thread's call came
into. Only calls of these names are there: those that move bytes of files and sockets.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PATIENCE = 60.0

_FILES = "openat,pwrite64,pwritev,ftruncate,fallocate,fsync,fdatasync,sync_file_range"
_NAMES = "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,link,linkat,symlink,symlinkat"
_BYTES = "read,recvfrom,recvmsg,write,writev,sendto,sendmsg"

_READS = {"read", "recvfrom", "recvmsg"}

_LINE = re.compile(
    r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*)|\+\+\+ .*|--- .*)$", re.DOTALL
)
_UNFINISHED = " <unfinished ...>"
_FD = re.compile(r"^(-?\d+|AT_FDCWD)(?:<((?:->|\\x[0-9a-f]{2}|[^>\\])*)>)?")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_RESULT = re.compile(r"\)\s+= (-?\d+|\?)([^=]*)$")
_NUMBERS = re.compile(r", (\d+)(?=[,)])")
_OPENED = re.compile(r"^<(.*)>")

# In CI it is never skipped: what proves that an acknowledgement is on disk must run there.
requires_strace = pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"),
    reason="strace is not installed (apt install strace)",
)


class Call(NamedTuple):
    """One system call that succeeded."""

    began: int
    ended: int
    thread: int
    name: str
    fd: str
    """What the descriptor stands for: a path, or `TCP:[here->there]`."""
    strings: list[bytes]
    """Paths and data, in the order of the arguments."""
    numbers: list[int]
    """Plain numbers among the arguments: lengths and offsets."""
    result: int
    text: str
    """The arguments without the strings, for flags."""

    @property
    def data(self) -> bytes:
        """The bytes that were moved; of a read or write those that the kernel says were."""
        return b"".join(self.strings)[: self.result]


class Strace:
    """Where a trace goes, and what it says once the traced process has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def wrapper(self) -> tuple[str, ...]:
        return (
            "strace", "-f", "-D", "--seccomp-bpf", "-qq", "-xx", "-yy", "-s", "40000000",
            "-e", f"trace={_FILES},{_NAMES},{_BYTES}", "-e", "signal=none", "-o", str(self.path),
        )  # fmt: skip

    def calls(self) -> list[Call]:
        """All calls that succeeded, by the place where they began."""
        self._wait()
        calls = list(self._parse())
        calls.sort(key=lambda call: call.began)
        return calls

    def _wait(self) -> None:
        """The tracer ends a little after what it traced."""
        deadline = time.monotonic() + PATIENCE
        size = -1
        while size != (size := self.path.stat().st_size) or not self._is_closed():
            assert time.monotonic() < deadline, "strace does not come to an end"
            time.sleep(0.1)

    def _is_closed(self) -> bool:
        target = str(self.path)
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if str(link.readlink()) == target:
                    return False
            except OSError:
                continue
        return True

    def _parse(self) -> Iterator[Call]:
        begun: dict[int, tuple[int, str, str]] = {}
        with self.path.open() as file:
            for place, line in enumerate(file):
                match = _LINE.match(line.rstrip("\n"))
                assert match, line[:200]
                thread, name, rest, resumed, tail = match.groups()
                if name and rest.endswith(_UNFINISHED):
                    begun[int(thread)] = (place, name, rest.removesuffix(_UNFINISHED))
                elif name:
                    yield from _call(place, place, int(thread), name, rest)
                elif resumed:
                    start, name, head = begun.pop(int(thread))
                    assert name == resumed
                    yield from _call(start, place, int(thread), name, head + tail)


def _call(began: int, ended: int, thread: int, name: str, rest: str) -> Iterator[Call]:
    if name in _READS and "<TCP" not in rest[:20]:
        return  # Python reading its modules, for the most part
    result = _RESULT.search(rest)
    if result is None or result[1] == "?" or int(result[1]) < 0:
        return  # it failed, or the process ended in it
    body = rest[: result.start() + 1]
    found = list(_STRING.finditer(body))
    assert not any(string[2] for string in found), "strace cut a string short"
    strings = [_bytes(string[1]) for string in found]
    plain = _STRING.sub("S", body)
    if name == "openat":
        opened = _OPENED.match(result[2].strip())
        fd = _text(opened[1]) if opened else ""
    else:
        handle = _FD.match(plain)
        fd = _text(handle[2] or "") if handle else ""
        plain = plain[handle.end() :] if handle else plain
    numbers = [int(number) for number in _NUMBERS.findall(plain)]
    yield Call(began, ended, thread, name, fd, strings, numbers, int(result[1]), plain)


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(path: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda hit: chr(int(hit[1], 16)), path)
