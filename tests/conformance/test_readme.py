"""The README's tour, run as it stands: its device, its reader and its back end, unmodified."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .cloud import eventually
from .standing import Hub

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def programs() -> dict[str, str]:
    """The Python blocks by the file name in their first line."""
    found = {}
    for language, text in _BLOCK.findall(README.read_text()):
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, f"a Python block of the README does not name its file: {text[:40]!r}"
            found[name[1]] = text
    return found


def shell_blocks() -> list[str]:
    return [text for language, text in _BLOCK.findall(README.read_text()) if language == "sh"]


class Running:
    """A program under `mooring exec`, and what it has printed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.printed.append(line.rstrip("\n"))

    def says(self, line: str) -> None:
        """Wait until it has printed this line."""
        eventually(lambda: line in self.printed, f"{line!r} is printed; so far {self.printed[-5:]}")


@pytest.fixture
def environ(hub: Hub) -> dict[str, str]:
    """What the tour's first shell block exports."""
    hub.run("device", "delete", "thermostat")
    made = hub.run("device", "create", "thermostat")
    assert made.returncode == 0, made.stderr
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MOORING_")}
    # The tour runs without the trust that the conformance session sets up.
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        kept.pop(name, None)
    return {
        **kept,
        "MOORING_DATA": str(hub.data),
        "DEVICE": hub.connection_string(device="thermostat"),
        "HUB": hub.connection_string(),
        "EVENTS": hub.connection_string(events=True),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
    }


@contextmanager
def running(name: str, folder: Path, environ: dict[str, str]) -> Iterator[Running]:
    """One of the README's programs, as the README runs it."""
    (folder / name).write_text(programs()[name])
    process = subprocess.Popen(
        ("mooring", "exec", "--", "python", name),
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Running(process)
    finally:
        process.terminate()
        process.wait(20)


def test_the_tour(tmp_path: Path, environ: dict[str, str]) -> None:
    with running("device.py", tmp_path, environ) as device:
        device.says("connected")
        with running("events.py", tmp_path, environ) as events:
            events.says('telemetry: thermostat {"temperature": 21.5}')
        with running("backend.py", tmp_path, environ) as backend:
            backend.says("answer: 200 {'done': True}")
            backend.says("twin: 10")
            assert backend.process.wait(20) == 0
        device.says("message: hello")
        device.says("method: reboot {'delay': 5}")
        device.says("desired: 10")


def test_the_tour_without_an_sdk(tmp_path: Path, environ: dict[str, str]) -> None:
    (command,) = [text for text in shell_blocks() if text.startswith("mosquitto_pub")]
    done = subprocess.run(
        ("bash", "-euc", command),
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with running("events.py", tmp_path, environ) as events:
        events.says('telemetry: thermostat {"temperature": 21.5}')


def test_every_program_of_the_tour_is_run() -> None:
    assert set(programs()) == {"device.py", "events.py", "backend.py"}
