"""`mooring serve`: how it starts, what it says when it cannot, and how it ends."""

import contextlib
import json
import signal
import socket
import ssl
import stat
import threading
import time
from pathlib import Path

import httpx
import pytest

from ..served import FREE, Served, run


def tls_handshake(port: int, ca: Path) -> str:
    """The TLS version that a client which trusts `ca` agrees on."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.version() or ""


def test_first_start_says_where_it_listens_and_what_to_do_next(tmp_path: Path) -> None:
    with Served(tmp_path, ports=FREE) as hub:
        said = "\n".join(hub.printed)
        assert hub.printed[-1] == "ready"
        for protocol in ("mqtt", "amqp", "https", "metrics"):
            assert f":{hub.port(protocol)}" in said
        assert str(hub.ca) in said
        assert "mooring connection-string" in said
        assert "mooring device create" in said


def test_every_tls_port_serves_a_certificate_that_the_printed_ca_vouches_for(
    tmp_path: Path,
) -> None:
    with Served(tmp_path, ports=FREE) as hub:
        for port in (hub.mqtt_port, hub.amqp_port, hub.https_port):
            assert tls_handshake(port, hub.ca) == "TLSv1.3"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, by: signal.Signals) -> None:
    hub = Served(tmp_path, ports=FREE)
    hub.start()
    assert hub.run("device", "create", "kept").returncode == 0
    assert hub.stop(by) == 0
    assert '"stopped"' in hub.log()
    assert not (hub.data / "control.sock").exists()
    # SQLite's side files are gone once everything was closed in order.
    assert list(hub.data.rglob("*-wal")) == []
    hub.start()
    assert hub.run("device", "show", "kept").returncode == 0
    assert hub.stop() == 0


def test_open_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    hub = Served(tmp_path, ports=FREE)
    hub.start()
    context = ssl.create_default_context(cafile=str(hub.ca))
    with (
        socket.create_connection(("127.0.0.1", hub.mqtt_port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.version()
        assert hub.stop() == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    hub = Served(tmp_path, ports=FREE)
    hub.start()
    assert hub.run("device", "create", "away").returncode == 0

    def call() -> None:
        with hub.control() as http, contextlib.suppress(httpx.HTTPError):
            http.post(
                "/twins/away/methods",
                json={"methodName": "m", "connectTimeoutInSeconds": 60},
            )

    # A request that is still being answered keeps a clean end waiting for some seconds.
    caller = threading.Thread(target=call)
    caller.start()
    metrics = f"http://127.0.0.1:{hub.metrics_port}/metrics"
    while 'methods_invoked_total{hub="localhost"} 1.0' not in httpx.get(metrics).text:
        time.sleep(0.02)
    assert hub.process
    hub.process.send_signal(signal.SIGTERM)
    while '"stopping"' not in hub.log():
        time.sleep(0.02)
    assert hub.stop() == 128 + signal.SIGTERM
    caller.join()
    hub.start()
    assert hub.run("device", "show", "away").returncode == 0
    hub.stop()


def test_keys_survive_a_restart(tmp_path: Path) -> None:
    hub = Served(tmp_path, ports=FREE)
    hub.start()
    before, ca = hub.connection_string(), hub.ca.read_bytes()
    hub.kill()
    hub.start()
    assert (hub.connection_string(), hub.ca.read_bytes()) == (before, ca)
    hub.stop()


def test_a_second_process_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with Served(tmp_path, ports=FREE) as hub:
        second = run("serve", "--data", str(hub.data), *FREE, "--metrics-port", "0")
        assert second.returncode == 1
        assert f"process {hub.pid}" in second.stderr
        assert "--data" in second.stderr
        assert hub.run("status").returncode == 0


def test_ports_that_are_taken_are_all_named_with_what_to_do(tmp_path: Path) -> None:
    with Served(tmp_path, ports=FREE) as hub:
        other = tmp_path / "other"
        second = run(
            *("serve", "--data", str(other), "--mqtt-port", str(hub.mqtt_port)),
            *("--amqp-port", str(hub.amqp_port), "--https-port", "0", "--metrics-port", "0"),
        )
    assert second.returncode == 1
    for port, flag in ((hub.mqtt_port, "--mqtt-port"), (hub.amqp_port, "--amqp-port")):
        (line,) = [line for line in second.stderr.splitlines() if f"port {port} " in line]
        assert flag in line
    assert "ready" not in second.stdout
    # A start that could not succeed leaves nothing to be taken for a hub.
    assert not (other / "ca.pem").exists()


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "mooring.toml").write_text("[events]\nretention_days = 9\n")
    refused = run("serve", "--data", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr == (
        "mooring: mooring.toml: events.retention_days must be between 1 and 7, not 9\n"
    )


def test_everything_in_the_data_directory_is_private(tmp_path: Path) -> None:
    with Served(tmp_path, ports=FREE) as hub:
        assert stat.S_IMODE(hub.data.stat().st_mode) == 0o700
        assert stat.S_IMODE((hub.data / "control.sock").stat().st_mode) == 0o600
        open_to_others = [
            path
            for path in hub.data.rglob("*")
            if path.is_file()
            and path.name != "ca.pem"  # public by nature
            and stat.S_IMODE(path.stat().st_mode) & 0o077
        ]
        assert open_to_others == []


def test_metrics_and_health(tmp_path: Path) -> None:
    with Served(tmp_path, ports=FREE) as hub:
        base = f"http://127.0.0.1:{hub.metrics_port}"
        assert httpx.get(f"{base}/healthz").text == "ok\n"
        ready = httpx.get(f"{base}/readyz")
        assert (ready.status_code, ready.text) == (200, "ready\n")
        text = httpx.get(f"{base}/metrics").text
        for family in (
            "mooring_info",
            "mooring_connections",
            "mooring_events_accepted_total",
            "mooring_event_commits_total",
            "mooring_state_commits_total",
            "mooring_methods_invoked_total",
            "mooring_twin_operations_total",
            "mooring_errors_total",
            "process_open_fds",
        ):
            assert f"# TYPE {family.removesuffix('_total')}" in text
        assert httpx.get(f"{base}/other").status_code == 404
        assert httpx.post(f"{base}/metrics").status_code == 405


def test_the_log_is_json_when_nobody_watches(tmp_path: Path) -> None:
    hub = Served(tmp_path, ports=FREE)
    hub.start()
    hub.stop()
    lines = [json.loads(line) for line in hub.log().splitlines()]
    assert {"serving", "stopping", "stopped"} <= {line["event"] for line in lines}
    assert all({"time", "level"} <= line.keys() for line in lines)


def test_the_first_hub_keeps_its_data_under_another_name(tmp_path: Path) -> None:
    hub = Served(tmp_path, ports=FREE)
    hub.start()
    assert hub.run("device", "create", "d1").returncode == 0
    hub.stop()
    renamed = Served(tmp_path, "--hub-name", "hub.factory.example", ports=FREE)
    renamed.start()
    shown = renamed.connection_string(device="d1")
    assert shown.startswith("HostName=hub.factory.example;DeviceId=d1;SharedAccessKey=")
    assert "EntityPath=hub" in renamed.connection_string(events=True)
    renamed.stop()


def test_two_hubs_share_nothing(tmp_path: Path) -> None:
    environ = {"MOORING_HUB_OTHERS": "second.example"}
    with Served(tmp_path, ports=FREE, environ=environ) as both:
        assert both.run("device", "create", "d1").returncode == 0
        listed = both.run("device", "list", "--json", "--hub", "second.example")
        assert json.loads(listed.stdout) == []
        first = both.connection_string()
        second = both.run("connection-string", "--hub", "second.example").stdout.strip()
        assert second.startswith("HostName=second.example;")
        assert first.partition("SharedAccessKey=")[2] != second.partition("SharedAccessKey=")[2]
