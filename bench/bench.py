"""`make bench`: mooring beside Debian's Mosquitto in one run, on the same machine and load.

For each TLS version, 500 clients publish 200 bytes at QoS 1 with 1 and with 16 in flight.
Measured: the server's CPU time (all its threads, from /proc) for each acknowledged message, for
each connect, and its resident memory for each idle connection. mooring checks a SAS token and has
the message on disk before its PUBACK; Mosquitto takes anonymous clients and keeps it in memory.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from mooring.wire import sas

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError("no VmRSS")


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


class Server:
    """A server under measurement: its process, its port, and who may connect."""

    def __init__(self, name: str, pid: int, port: int, ca: Path, clients: Path) -> None:
        self.name, self.pid, self.port, self.ca, self.clients = name, pid, port, ca, clients


@contextlib.contextmanager
def mooring(folder: Path, count: int) -> Iterator[Server]:
    """A hub with `count` devices, each with a SAS token of its own."""
    data, port = folder / "hub", free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mooring", "serve", "--data", str(data)),
            *("--mqtt-port", str(port), "--amqp-port", "0", "--https-port", "0"),
            *("--metrics-port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=(folder / "mooring.log").open("wb"),
        text=True,
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if line.strip() == "ready":
                break
        else:
            raise SystemExit("mooring did not start:\n" + (folder / "mooring.log").read_text())
        clients = []
        transport = httpx.HTTPTransport(uds=str(data / "control.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=60) as http:
            for first in range(0, count, 100):
                ids = [f"bench-{n}" for n in range(first, min(first + 100, count))]
                answer = http.post(
                    "/devices?api-version=2021-04-12",
                    json=[{"id": device, "importMode": "create"} for device in ids],
                )
                answer.raise_for_status()
                for device in ids:
                    found = http.get(f"/devices/{device}?api-version=2021-04-12").json()
                    key = found["authentication"]["symmetricKey"]["primaryKey"]
                    resource = f"localhost/devices/{device}"
                    token = sas.generate(key, resource, int(time.time()) + 86400)
                    user = f"localhost/{device}/?api-version=2021-04-12"
                    clients.append([device, user, token])
        (folder / "mooring.json").write_text(json.dumps(clients))
        yield Server("mooring", process.pid, port, data / "ca.pem", folder / "mooring.json")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def mosquitto(folder: Path, count: int, tls: Path) -> Iterator[Server]:
    """Debian's Mosquitto with the same P-256 certificate chain and anonymous clients."""
    program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
    if not program:
        raise SystemExit("mosquitto is not installed: apt-get install mosquitto")
    port = free_port()
    shutil.copytree(tls, folder / "tls")
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
        f"certfile {folder}/tls/server-p256.pem\nkeyfile {folder}/tls/server-p256.pem\n"
        "set_tcp_nodelay true\nmax_connections -1\nlog_type error\nuser root\n"
    )
    process = subprocess.Popen(
        [program, "-c", str(folder / "mosquitto.conf")],
        stderr=(folder / "mosquitto.log").open("wb"),
    )
    try:
        wait_for_port(port)
        clients = [[f"bench-{n}", "", ""] for n in range(count)]
        (folder / "mosquitto.json").write_text(json.dumps(clients))
        ca = folder / "hub" / "ca.pem"
        yield Server("mosquitto", process.pid, port, ca, folder / "mosquitto.json")
    finally:
        process.terminate()
        process.wait(30)


class Load:
    """The load process: a word goes in, its measurements come out."""

    def __init__(self, server: Server, tls: str) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "load.py"), "--port", str(server.port)),
                *("--ca", str(server.ca), "--tls", tls, "--clients", str(server.clients)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: str) -> dict[str, float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the load process ended: see its message above")
        result: dict[str, float] = json.loads(answer)
        return result

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def measure(server: Server, tls: str, clients: int, seconds: float) -> dict[str, float]:
    """All figures of one server under one TLS version."""
    load, found = Load(server, tls), {}
    try:
        load("connect 50")  # warm caches, pools and allocators
        load("publish 1 1")
        load("disconnect")
        time.sleep(1)
        memory, cpu = resident_kib(server.pid), cpu_seconds(server.pid)
        connected = load(f"connect {clients}")
        found["connect CPU µs"] = (cpu_seconds(server.pid) - cpu) / clients * 1e6
        found["connects/s"] = clients / connected["seconds"]
        time.sleep(1)
        found["idle KiB"] = (resident_kib(server.pid) - memory) / clients
        for window in (1, 16):
            load(f"publish {window} 1")
            cpu = cpu_seconds(server.pid)
            run = load(f"publish {window} {seconds}")
            spent = cpu_seconds(server.pid) - cpu
            found[f"CPU µs, {window} in flight"] = spent / run["messages"] * 1e6
            found[f"messages/s, {window} in flight"] = run["messages"] / run["seconds"]
            found[f"p50 ms, {window} in flight"] = run["p50_ms"]
            found[f"p99 ms, {window} in flight"] = run["p99_ms"]
        load("disconnect")
    finally:
        load.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=1, help="the median of so many is shown")
    parser.add_argument("--tls", choices=["1.2", "1.3"], action="append")
    parser.add_argument("--only", choices=["mooring", "mosquitto"])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    console = Console()
    console.print(
        f"{args.clients} clients, 200 bytes, QoS 1; {platform.python_implementation()} "
        f"{platform.python_version()}, {ssl.OPENSSL_VERSION}, {os.cpu_count()} cores"
    )
    results: dict[str, Any] = {}
    for tls in args.tls or ["1.3", "1.2"]:
        rounds: dict[str, list[dict[str, float]]] = {}
        for _ in range(args.rounds):
            # Fresh servers each time: memory that an earlier load has left behind is not idle cost.
            with contextlib.ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mooring-")))
                ours = stack.enter_context(mooring(folder, args.clients))
                theirs = stack.enter_context(mosquitto(folder, args.clients, folder / "hub/tls"))
                for server in (ours, theirs):
                    if args.only in (None, server.name):
                        figures = measure(server, tls, args.clients, args.seconds)
                        rounds.setdefault(server.name, []).append(figures)
        results[tls] = {
            name: {key: sorted(each[key] for each in runs)[len(runs) // 2] for key in runs[0]}
            for name, runs in rounds.items()
        }
        show(console, tls, results[tls])
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


def show(console: Console, tls: str, found: dict[str, dict[str, float]]) -> None:
    table = Table(title=f"TLS {tls}")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    table.add_column("ratio", justify="right")
    for key in next(iter(found.values())):
        row = [figures[key] for figures in found.values()]
        ratio = f"{row[0] / row[1]:.2f}" if len(row) == 2 and row[1] else ""
        table.add_row(key, *(f"{value:,.1f}" for value in row), ratio)
    console.print(table)


if __name__ == "__main__":
    main()
