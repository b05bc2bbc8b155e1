"""The HTTP host: what the application sees, and what strangers cannot do to it."""

import asyncio
import contextlib
import json
import socket
import stat
import subprocess
from pathlib import Path

import httpx
import pytest
from tls_dialogue import client_context, connect, make_chains, read_all, until, write_client_chain

from mooring.errors import ConfigError
from mooring.gateway.http.server import HttpLimits, HttpServer, serve_unix
from mooring.gateway.tls import serve_tls, server_context


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return make_chains(tmp_path_factory.mktemp("pki"))


@contextlib.asynccontextmanager
async def https(pki, app, **limits):
    """A port of `app` over TLS: (listener, server)."""
    server = HttpServer(app, limits=HttpLimits(**limits))
    context = server_context(pki[1])
    listener = await serve_tls(server, context, host="127.0.0.1", port=0, purpose="HTTPS")
    try:
        yield listener, server
    finally:
        listener.close()
        await server.close(1.0)
        listener.abort_connections()
        await listener.wait_closed()


def resident(what: str) -> int:
    """Bytes of this process: resident now (VmRSS) or at most since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


async def reply(send, status=200, body=b"", headers=()):
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive):
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client has gone")
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def mirror(scope, receive, send):
    """Answers with what it saw."""
    body = await read_body(receive)
    state = scope["state"]
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "scheme": scope["scheme"],
        "client": scope["client"] and scope["client"][0],
        "local": state["local"],
        "chain": [certificate.hex() for certificate in state["peer_chain"]],
        "size": len(body),
    }
    await reply(send, body=json.dumps(seen).encode())


async def fetch(pki, listener, method="GET", path="/", *, certificate=None, **options):
    context = client_context(pki[0], certificate=certificate)
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=30) as client:
        return await client.request(method, f"https://localhost:{listener.port}{path}", **options)


def raw(address, context, *pieces):
    """Send bytes over TLS and read until the server closes."""
    with connect(address, context) as tls:
        with contextlib.suppress(OSError):
            for piece in pieces:
                tls.sendall(piece)
        return read_all(tls)


def is_refusal(response: httpx.Response, name: str) -> bool:
    document = response.json()
    return (
        response.headers["iothub-errorcode"] == name
        and document["Message"].startswith(f"ErrorCode:{name};")
        and document["ExceptionMessage"].startswith("Tracking ID:")
        and response.headers["connection"] == "close"
    )


# What the application sees --------------------------------------------------------------------


async def test_requests_over_tls_reach_the_application(pki):
    async with https(pki, mirror) as (listener, _):
        response = await fetch(pki, listener, "PUT", "/devices/d1?x=1", content=b"x" * 200_000)
        assert response.status_code == 200
        assert response.headers["date"]
        assert "server" not in response.headers
        assert response.json() == {
            "method": "PUT",
            "path": "/devices/d1",
            "scheme": "https",
            "client": "127.0.0.1",
            "local": False,
            "chain": [],
            "size": 200_000,
        }


async def test_the_clients_chain_is_in_the_scope(pki, tmp_path):
    certificate = tmp_path / "device.pem"
    presented = write_client_chain(certificate, 3)
    async with https(pki, mirror) as (listener, _):
        response = await fetch(pki, listener, certificate=certificate)
        assert response.json()["chain"] == [der.hex() for der in presented]


async def test_a_forwarding_header_does_not_change_the_client(pki):
    async with https(pki, mirror) as (listener, _):
        headers = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "http"}
        seen = (await fetch(pki, listener, headers=headers)).json()
        assert (seen["client"], seen["scheme"]) == ("127.0.0.1", "https")


async def test_connections_are_kept_between_requests(pki):
    async with https(pki, mirror) as (listener, _):
        context = client_context(pki[0])
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            for _ in range(5):
                response = await client.get(f"https://localhost:{listener.port}/")
                assert response.status_code == 200
        assert listener.accepted == 1


async def test_big_responses_arrive_whole(pki):
    block = bytes(range(256)) * 1024

    async def big(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(40):
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with https(pki, big) as (listener, _):
        assert (await fetch(pki, listener)).content == block * 40


async def test_a_half_closing_client_gets_its_response(pki):
    release = asyncio.Event()

    async def slow(scope, receive, send):
        await release.wait()
        await reply(send, body=b"at last")

    server = HttpServer(slow)
    loop = asyncio.get_running_loop()
    port = await loop.create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*port.sockets[0].getsockname())
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.write_eof()
    await until(lambda: server.connection_count)
    await asyncio.sleep(0.05)
    release.set()
    assert (await reader.read()).endswith(b"at last")
    writer.close()
    port.close()


async def test_openssls_client_gets_through_with_the_ca_file_alone(pki):
    async with https(pki, mirror) as (listener, _):
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-quiet", "-CAfile", str(pki[0])),
            *("-verify_return_error", "-connect", f"localhost:{listener.port}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        request = b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        process.stdin.write(request)
        output = await process.stdout.read()
        process.stdin.close()
        await process.wait()
        assert output.startswith(b"HTTP/1.1 200 ")


# What strangers cannot do ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [b"X-Filler: " + b"a" * 8000 + b"\r\n", b"a" * 8000], ids=["many", "one endless"]
)
async def test_100_mb_of_headers_are_cut_early_in_bounded_memory(pki, line):
    called = []

    async def app(scope, receive, send):
        called.append(scope)
        await reply(send)

    def flood(address):
        sent = 0
        answer = b""
        with connect(address, client_context(pki[0])) as tls:
            try:
                tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
                while sent < 100_000_000:
                    tls.sendall(line)
                    sent += len(line)
            except OSError:
                pass
            with contextlib.suppress(OSError):
                answer = read_all(tls)
        return sent, answer

    async with https(pki, app) as (listener, server):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        sent, answer = await asyncio.to_thread(flood, ("127.0.0.1", listener.port))
        grown = resident("VmHWM") - before  # the flooding client's own memory included
        # The headers were refused after 32 KiB; the rest is what the last words cost to be
        # read (8 MiB thrown away) and what the kernel's buffers took.
        assert sent < 30_000_000
        assert grown < 8_000_000
        assert called == []
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
        await until(lambda: server.connection_count == 0)
        assert (await fetch(pki, listener)).status_code == 200


async def test_headers_just_too_large_are_refused_in_our_shape(pki):
    async with https(pki, mirror) as (listener, _):
        response = await fetch(pki, listener, headers={"x-big": "a" * 64_000})
        assert response.status_code == 431
        assert is_refusal(response, "GenericBadRequest")
        response = await fetch(pki, listener, headers={"x-big": "a" * 8_000})
        assert response.status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"\x00\x01\x02\x03\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused(pki, request_bytes):
    async with https(pki, mirror) as (listener, _):
        answer = await asyncio.to_thread(
            raw, ("127.0.0.1", listener.port), client_context(pki[0]), request_bytes
        )
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"Tracking ID:" in answer


async def test_a_body_that_breaks_off_into_garbage_ends_the_request(pki):
    ended = []

    async def app(scope, receive, send):
        try:
            await read_body(receive)
        except ConnectionError:
            ended.append("disconnected")

    pieces = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n"
    async with https(pki, app) as (listener, _):
        answer = await asyncio.to_thread(
            raw, ("127.0.0.1", listener.port), client_context(pki[0]), *pieces
        )
        assert answer.startswith(b"HTTP/1.1 400 ")
        await until(lambda: ended == ["disconnected"])


async def drip(listener, pki, start, drop):
    """Send `start`, then `drop` again and again; what comes back until the server closes."""

    def talk():
        context = client_context(pki[0])
        with connect(("127.0.0.1", listener.port), context) as tls:
            tls.sendall(start)
            tls.settimeout(0.02)
            answer = b""
            while True:
                try:
                    data = tls.recv(65536)
                    if not data:
                        return answer
                    answer += data
                except TimeoutError:
                    with contextlib.suppress(OSError):
                        tls.sendall(drop)
                except OSError:
                    return answer

    return await asyncio.to_thread(talk)


async def test_headers_that_drip_are_cut_off(pki):
    async with https(pki, mirror, header_time=0.3) as (listener, _):
        answer = await drip(listener, pki, b"GET / HTTP/1.1\r\n", b"a")
        assert answer.startswith(b"HTTP/1.1 408 ")


async def test_headers_that_drip_on_a_kept_connection_are_cut_off(pki):
    first = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with https(pki, mirror, header_time=0.3) as (listener, _):
        answer = await drip(listener, pki, first, b"a")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in answer


async def test_a_body_that_drips_is_cut_off(pki):
    start = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    async with https(pki, mirror, body_time=0.3) as (listener, _):
        answer = await drip(listener, pki, start, b"a")
        assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_slow_application_is_not_the_clients_fault(pki):
    async def slow(scope, receive, send):
        await read_body(receive)
        await asyncio.sleep(0.5)
        await reply(send, body=b"done")

    async with https(pki, slow, header_time=0.2, body_time=0.2) as (listener, _):
        assert (await fetch(pki, listener, "POST", content=b"x")).content == b"done"


async def test_a_silent_connection_is_closed_without_a_word(pki):
    async with https(pki, mirror, header_time=0.2) as (listener, _):
        answer = await asyncio.to_thread(raw, ("127.0.0.1", listener.port), client_context(pki[0]))
        assert answer == b""


async def test_an_idle_connection_is_closed(pki):
    async with https(pki, mirror, idle_time=1) as (listener, _):
        answer = await asyncio.to_thread(
            raw,
            ("127.0.0.1", listener.port),
            client_context(pki[0]),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(pki):
    called = []

    async def app(scope, receive, send):
        called.append(scope)
        await reply(send)

    start = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    async with https(pki, app, body_bytes=1000) as (listener, _):
        answer = await asyncio.to_thread(
            raw, ("127.0.0.1", listener.port), client_context(pki[0]), start
        )
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert called == []
        response = await fetch(pki, listener, "POST", content=b"x" * 1001)
        assert is_refusal(response, "GenericRequestEntityTooLarge")
        assert (await fetch(pki, listener, "POST", content=b"x" * 1000)).status_code == 200


async def test_a_streamed_body_is_counted(pki):
    async def stream(size):
        for _ in range(size // 100):
            yield b"x" * 100

    async with https(pki, mirror, body_bytes=100_000) as (listener, _):
        response = await fetch(pki, listener, "POST", content=stream(100_000))
        assert response.json()["size"] == 100_000
        response = await fetch(pki, listener, "POST", content=stream(100_100))
        assert response.status_code == 413
        assert is_refusal(response, "GenericRequestEntityTooLarge")


async def test_an_application_that_answers_itself_closes_after_an_oversized_body(pki):
    async def app(scope, receive, send):
        try:
            await read_body(receive)
        except Exception:
            await reply(send, status=413, body=b"mine")

    async def stream():
        for _ in range(20):
            yield b"x" * 100

    async with https(pki, app, body_bytes=1000) as (listener, _):
        response = await fetch(pki, listener, "POST", content=stream())
        assert (response.status_code, response.content) == (413, b"mine")
        assert response.headers["connection"] == "close"


async def test_requests_in_flight_are_bounded(pki):
    release = asyncio.Event()
    running = []

    async def app(scope, receive, send):
        running.append(scope)
        await release.wait()
        await reply(send)

    async with https(pki, app, requests=2) as (listener, _):
        held = [asyncio.create_task(fetch(pki, listener)) for _ in range(2)]
        await until(lambda: len(running) == 2)
        response = await fetch(pki, listener)
        assert response.status_code == 503
        assert is_refusal(response, "ServiceUnavailable")
        release.set()
        assert [(await task).status_code for task in held] == [200, 200]
        assert (await fetch(pki, listener)).status_code == 200


async def test_websocket_upgrades_are_ignored_without_a_class_for_them(pki):
    headers = {"connection": "upgrade", "upgrade": "websocket"}
    async with https(pki, mirror) as (listener, _):
        assert (await fetch(pki, listener, headers=headers)).status_code == 200


# Shutdown -------------------------------------------------------------------------------------


async def test_shutdown_lets_a_response_finish_and_closes_idle_connections(pki):
    release = asyncio.Event()
    running = []

    async def app(scope, receive, send):
        running.append(scope)
        await release.wait()
        await reply(send, body=b"finished")

    async with https(pki, app) as (listener, server):
        request = asyncio.create_task(fetch(pki, listener))
        await until(lambda: running)
        idle = asyncio.create_task(
            asyncio.to_thread(raw, ("127.0.0.1", listener.port), client_context(pki[0]))
        )
        await until(lambda: server.connection_count == 2)
        closing = asyncio.create_task(server.close())
        assert await idle == b""
        release.set()
        assert (await request).content == b"finished"
        await closing
        await until(lambda: server.connection_count == 0)


async def test_shutdown_does_not_wait_for_ever(pki):
    cancelled = []

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(scope)
            raise

    async with https(pki, app) as (listener, server):
        request = asyncio.create_task(fetch(pki, listener))
        await until(lambda: server.connection_count == 1)
        await asyncio.sleep(0.05)
        await server.close(0.05)
        assert len(cancelled) == 1
        with contextlib.suppress(httpx.HTTPError):
            assert (await request).status_code == 500


# The private Unix socket ----------------------------------------------------------------------


async def test_the_unix_socket_is_private_and_marks_its_requests_as_local(tmp_path):
    path = tmp_path / "control.sock"
    listener = await serve_unix(HttpServer(mirror, local=True), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport) as client:
        seen = (await client.get("http://mooring/state")).json()
    assert (seen["local"], seen["client"], seen["scheme"]) == (True, None, "http")
    listener.close()
    assert not path.exists()


async def test_a_socket_left_by_a_dead_process_is_replaced(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    listener = await serve_unix(HttpServer(mirror, local=True), path)
    listener.close()


async def test_a_living_socket_is_left_alone(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        with pytest.raises(ConfigError, match="another hub answers"):
            await serve_unix(HttpServer(mirror, local=True), path)
        assert path.exists()


async def test_a_file_in_the_way_is_not_removed(tmp_path):
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="in the way"):
        await serve_unix(HttpServer(mirror, local=True), path)
    assert path.read_text() == "precious"


async def test_a_path_too_long_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="shorter data folder"):
        await serve_unix(HttpServer(mirror, local=True), tmp_path / ("x" * 120))
