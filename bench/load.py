"""The load: many MQTT clients over TLS in one epoll loop, and what their publishes cost in time.

Runs as a process of its own so that the server's CPU time is the server's alone. Speaks just
enough MQTT to connect and to publish at QoS 1, with the standard library's TLS on non-blocking
sockets, which costs less than any server measured with it. One line of JSON goes out a phase.
"""

import argparse
import contextlib
import json
import select
import socket
import ssl
import struct
import sys
import time
from pathlib import Path


def text(value: str) -> bytes:
    """An MQTT string: two bytes of length, then UTF-8."""
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


def packet(kind: int, body: bytes) -> bytes:
    """A packet with its remaining length."""
    head, length = bytearray([kind]), len(body)
    while True:
        length, digit = divmod(length, 128)
        head.append(digit | (0x80 if length else 0))
        if not length:
            return bytes(head) + body


class Client:
    """One connected client that keeps `window` publishes in flight."""

    def __init__(self, sock: ssl.SSLSocket, device: str, body: bytes) -> None:
        self.sock = sock
        self.buffer = b""
        self.next_id = 1
        self.sent: list[float] = []  # send times, oldest first
        self.out = b""
        self.body = body
        self.topic = text(f"devices/{device}/messages/events/")

    def publishes(self, count: int, now: float) -> None:
        parts = []
        for _ in range(count):
            packet_id = self.next_id
            self.next_id = packet_id % 65535 + 1
            parts.append(packet(0x32, self.topic + struct.pack(">H", packet_id) + self.body))
            self.sent.append(now)
        self.write(b"".join(parts))

    def write(self, data: bytes) -> None:
        data = self.out + data
        try:
            done = self.sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            done = 0
        self.out = data[done:]

    def acknowledgements(self) -> int:
        """Reads all that is there; returns how many PUBACKs it held.

        It reads on until the socket is empty, even past the end of a TLS record, so that a server
        that sends its PUBACKs one by one still gets its next publishes together."""
        count = 0
        while True:
            try:
                data = self.sock.recv(16384)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return count
            if not data:
                raise ConnectionError("the server closed the connection")
            data = self.buffer + data
            whole = len(data) // 4 * 4
            for at in range(0, whole, 4):
                if data[at] != 0x40:
                    raise ConnectionError(f"expected a PUBACK, got {data[at : at + 4].hex()}")
            self.buffer = data[whole:]
            count += whole // 4
            if len(self.sent) <= count:
                return count  # nothing is outstanding: save the read that would find nothing


def connect(
    port: int, context: ssl.SSLContext, device: str, user: str, password: str, body: bytes
) -> Client:
    """Connects one client: TCP, TLS, CONNECT, CONNACK."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=30)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = context.wrap_socket(raw, server_hostname="localhost")
    flags = 0x02 | (0x80 if user else 0) | (0x40 if password else 0)
    variable = text("MQTT") + bytes([4, flags]) + struct.pack(">H", 1000)
    payload = text(device) + (text(user) if user else b"") + (text(password) if password else b"")
    sock.sendall(packet(0x10, variable + payload))
    answer = sock.recv(4)
    if answer != b"\x20\x02\x00\x00":
        raise ConnectionError(f"{device} was refused: {answer.hex()}")
    sock.setblocking(False)
    return Client(sock, device, body)


def publish(clients: list[Client], window: int, seconds: float) -> dict[str, float]:
    """Publishes for this long with this many in flight a client; then waits for the rest."""
    poll = select.epoll()
    by_fd = {client.sock.fileno(): client for client in clients}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    clock = time.perf_counter
    latencies: list[float] = []
    begin = clock()
    for client in clients:
        client.publishes(window, clock())
    end, acknowledged = begin + seconds, 0
    outstanding = window * len(clients)
    while outstanding:
        for fd, mask in poll.poll(5):
            client = by_fd[fd]
            if client.out:
                client.write(b"")
                poll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if client.out else 0))
            if not mask & select.EPOLLIN:
                continue
            count = client.acknowledgements()
            if not count:
                continue
            now = clock()
            latencies.extend([now - sent for sent in client.sent[:count]])
            del client.sent[:count]
            acknowledged += count
            if now < end:
                client.publishes(count, now)
                if client.out:
                    poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
            else:
                outstanding -= count
    took = clock() - begin
    latencies.sort()
    return {
        "messages": acknowledged,
        "seconds": took,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--tls", choices=["1.2", "1.3"], required=True)
    parser.add_argument("--clients", required=True, help="JSON file: [[device, user, password]]")
    parser.add_argument("--bytes", type=int, default=200)
    args = parser.parse_args()

    context = ssl.create_default_context(cafile=args.ca)
    version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[args.tls]
    context.minimum_version = context.maximum_version = version
    clients: list[Client] = []
    body = b"x" * args.bytes

    # One command a line on standard input, one line of JSON back on standard output.
    for line in sys.stdin:
        word, *rest = line.split()
        result: dict[str, float] = {}
        if word == "connect":
            begin = time.perf_counter()
            everyone = json.loads(Path(args.clients).read_text())
            for device, user, password in everyone[: int(rest[0])]:
                clients.append(connect(args.port, context, device, user, password, body))
            result = {"clients": len(clients), "seconds": time.perf_counter() - begin}
        elif word == "publish":
            result = publish(clients, window=int(rest[0]), seconds=float(rest[1]))
        elif word == "disconnect":
            for client in clients:
                client.sock.send(packet(0xE0, b""))
                with contextlib.suppress(ssl.SSLError, OSError):
                    client.sock.unwrap()
                client.sock.close()
            clients.clear()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
