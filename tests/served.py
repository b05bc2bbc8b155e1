"""A hub for tests: the real `mooring serve`, in a process and a data directory of its own.

    served = Served(tmp_path, ports=FREE)
    served.start()                     # returns once the line `ready` was printed
    served.mqtt_port, served.ca, served.connection_string(events=True)
    served.run("device", "create", "d1")
    served.kill(); served.start()      # the same data again
    served.stop()

Ports: `STANDARD` are those that the Azure SDKs fix; they exist once on a machine, so whoever uses
them takes turns by a lock. `FREE` lets the system choose.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 60.0  # seconds until a hub that does not come up or go down counts as stuck

STANDARD = ("--mqtt-port", "8883", "--amqp-port", "5671", "--https-port", "443")
FREE = ("--mqtt-port", "0", "--amqp-port", "0", "--https-port", "0")

# Settings of whoever runs the tests must not reach the hubs that they start.
_ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("MOORING_")}


class Served:
    """One hub and its data directory, started and stopped any number of times."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        ports: tuple[str, ...] = STANDARD,
        environ: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        """`flags` go to `mooring serve`, `wrapper` in front of the command (as in strace)."""
        self.folder = folder
        self.data = folder / "data"
        self.printed: list[str] = []
        """What it wrote to standard output since the last start, by line."""
        self.process: subprocess.Popen[str] | None = None
        self._command = (
            *wrapper,
            *(sys.executable, "-m", "mooring", "serve", "--data", str(self.data)),
            *ports,
            *("--metrics-port", "0"),
            *flags,
        )
        self._environ = {**_ENVIRONMENT, **(environ or {})}
        self._log = folder / "mooring.log"
        self._status: dict[str, Any] = {}
        self._reader: threading.Thread | None = None

    def __enter__(self) -> "Served":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait for `ready`; fails with its log if that never comes."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self.printed = []
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environ,
            )
        lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(
            target=self._read, args=(self.process, lines), daemon=True, name="served-stdout"
        )
        self._reader.start()
        deadline = time.monotonic() + PATIENCE
        try:
            while (line := lines.get(timeout=max(0.0, deadline - time.monotonic()))) != "ready":
                if line is None:
                    self.process.wait(PATIENCE)
                    raise AssertionError(f"mooring did not start:\n{self.log()}")
        except queue.Empty:
            self.kill()
            raise AssertionError(f"mooring never became ready:\n{self.log()}") from None
        with self.control() as http:
            self._status = http.get("/control/status").raise_for_status().json()

    def _read(self, process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
        assert process.stdout
        for line in process.stdout:
            self.printed.append(line.rstrip("\n"))
            lines.put(line.rstrip("\n"))
        lines.put(None)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal; its exit status. Harmless if it does not run."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(by)
        return self._wait()

    def kill(self) -> None:
        """`kill -9`."""
        if self.process is not None:
            self.process.kill()
            self._wait()

    def _wait(self) -> int:
        assert self.process
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
            raise AssertionError(f"mooring did not end:\n{self.log()}") from None
        if self._reader is not None:
            self._reader.join(PATIENCE)
        assert self.process.stdout
        self.process.stdout.close()
        return code

    @property
    def pid(self) -> int:
        """Process id of the server (of the wrapper, if there is one)."""
        assert self.process
        return self.process.pid

    # What clients are told ----------------------------------------------------------------------

    @property
    def ca(self) -> Path:
        """The certificate that clients must trust."""
        return self.data / "ca.pem"

    def port(self, protocol: str) -> int:
        """The port of `mqtt`, `amqp`, `https`, `amqp-plain` or `metrics`."""
        for each in self._status["listening"]:
            if each["protocol"] == protocol:
                return int(each["port"])
        raise LookupError(f"it does not listen for {protocol}")

    @property
    def mqtt_port(self) -> int:
        return self.port("mqtt")

    @property
    def amqp_port(self) -> int:
        return self.port("amqp")

    @property
    def https_port(self) -> int:
        return self.port("https")

    @property
    def amqp_plain_port(self) -> int:
        return self.port("amqp-plain")

    @property
    def metrics_port(self) -> int:
        return self.port("metrics")

    def connection_string(
        self,
        policy: str | None = None,
        *,
        device: str | None = None,
        module: str | None = None,
        events: bool = False,
        plain: bool = False,
    ) -> str:
        """What `mooring connection-string` prints."""
        options = [
            *(("--policy", policy) if policy else ()),
            *(("--device", device) if device else ()),
            *(("--module", module) if module else ()),
            *(("--events",) if events else ()),
            *(("--plain",) if plain else ()),
        ]
        done = self.run("connection-string", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a `mooring` command on this hub; `arguments` without --data."""
        return run(*arguments, environ={**self._environ, "MOORING_DATA": str(self.data)}, **options)

    def control(self) -> httpx.Client:
        """HTTP with all rights over the private Unix socket: REST API and `/control`."""
        transport = httpx.HTTPTransport(uds=str(self.data / "control.sock"))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE)

    def log(self) -> str:
        """All that it logged since the first start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def run(
    *arguments: str, environ: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a `mooring` command to its end."""
    return subprocess.run(
        (sys.executable, "-m", "mooring", *arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environ if environ is not None else _ENVIRONMENT,
        check=False,
        **options,
    )
