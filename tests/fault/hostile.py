"""A stranger with bad intentions: thousands of connections that never authenticate.

Run as a process of its own: `python -m tests.fault.hostile MQTT AMQP HTTPS COUNT`. Each attack is
a coroutine that holds its connection until the server ends it, or until it has waited long enough
to be a nuisance. Prints one line of JSON: how many connections each attack made.
"""

import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

from mooring.wire import mqtt

AT_ONCE = 400  # connections held open together
PATIENCE = 6.0  # seconds that an attack holds on to its connection
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303")  # the beginning of one

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def tls() -> ssl.SSLContext:
    """A client that does not care who the server is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


TLS = tls()


async def plain(port: int) -> Stream:
    return await asyncio.open_connection("127.0.0.1", port)


async def secure(port: int) -> Stream:
    return await asyncio.open_connection("127.0.0.1", port, ssl=TLS, ssl_handshake_timeout=30)


async def drain(stream: Stream) -> None:
    """Wait until the server ends it."""
    reader, writer = stream
    with contextlib.suppress(TimeoutError, OSError, ssl.SSLError):
        async with asyncio.timeout(PATIENCE):
            while await reader.read(65536):
                pass
    writer.transport.abort()


async def silent_socket(ports: dict[str, int], number: int) -> Stream:
    """Connects and says nothing."""
    return await plain(ports["mqtt" if number % 2 else "amqp"])


async def half_handshake(ports: dict[str, int], number: int) -> Stream:
    """Begins a handshake and leaves it there."""
    stream = await plain(ports["mqtt" if number % 2 else "https"])
    stream[1].write(CLIENT_HELLO)
    return stream


async def garbage_socket(ports: dict[str, int], number: int) -> Stream:
    """Noise where a handshake should be."""
    stream = await plain(ports["mqtt" if number % 2 else "amqp"])
    stream[1].write(os.urandom(2048))
    return stream


async def no_connect(ports: dict[str, int], number: int) -> Stream:
    """A handshake, then no CONNECT, no AMQP header."""
    return await secure(ports["mqtt" if number % 2 else "amqp"])


async def slow_connect(ports: dict[str, int], number: int) -> Stream:
    """A CONNECT that comes a byte at a time."""
    stream = await secure(ports["mqtt"])
    for byte in mqtt.encode(mqtt.Connect(client_id="slow", username="localhost/slow/?x")):
        stream[1].write(bytes([byte]))
        await asyncio.sleep(PATIENCE / 20)
        if stream[0].at_eof():
            break
    return stream


async def garbage_packets(ports: dict[str, int], number: int) -> Stream:
    """Noise where packets should be."""
    stream = await secure(ports["mqtt" if number % 2 else "amqp"])
    stream[1].write(os.urandom(4096))
    return stream


async def oversize_packet(ports: dict[str, int], number: int) -> Stream:
    """Says that 256 MB will come, and begins to send them."""
    stream = await secure(ports["mqtt" if number % 2 else "amqp"])
    stream[1].write(
        b"\x10\xff\xff\xff\x7f" if number % 2 else b"AMQP\x00\x01\x00\x00\x7f\xff\xff\xff"
    )
    with contextlib.suppress(OSError):
        for _ in range(16):
            stream[1].write(bytes(65536))
            await stream[1].drain()
    return stream


async def flood(ports: dict[str, int], number: int) -> Stream:
    """A CONNECT with a wrong token and, not waiting for its answer, a flood of publishes."""
    stream = await secure(ports["mqtt"])
    token = f"SharedAccessSignature sr=localhost%2Fdevices%2Fflood&sig={'A' * 43}%3D&se=4102444800"
    stream[1].write(
        mqtt.encode(
            mqtt.Connect(
                client_id="flood",
                username="localhost/flood/?api-version=2021-04-12",
                password=token.encode(),
            )
        )
    )
    publish = mqtt.encode(
        mqtt.Publish(b"devices/flood/messages/events/", bytes(60_000), qos=1, packet_id=1)
    )
    with contextlib.suppress(OSError):
        for _ in range(16):
            stream[1].write(publish)
            await stream[1].drain()
    return stream


async def endless_header(ports: dict[str, int], number: int) -> Stream:
    """An HTTP request whose headers do not end."""
    stream = await secure(ports["https"])
    stream[1].write(b"GET /devices?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\n")
    with contextlib.suppress(OSError):
        for _ in range(64):
            stream[1].write(b"X-Filler: " + b"x" * 16384 + b"\r\n")
            await stream[1].drain()
    return stream


ATTACKS: tuple[Callable[[dict[str, int], int], Awaitable[Stream]], ...] = (
    silent_socket,
    half_handshake,
    garbage_socket,
    no_connect,
    slow_connect,
    garbage_packets,
    oversize_packet,
    flood,
    endless_header,
)


async def main(mqtt_port: int, amqp_port: int, https_port: int, count: int) -> None:
    ports = {"mqtt": mqtt_port, "amqp": amqp_port, "https": https_port}
    places = asyncio.Semaphore(AT_ONCE)
    made: Counter[str] = Counter()

    async def one(number: int) -> None:
        attack = ATTACKS[number % len(ATTACKS)]
        async with places:
            # A server that will not even shake hands with this one has defended itself: it counts.
            made[attack.__name__] += 1
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                await drain(await attack(ports, number))

    await asyncio.gather(*(one(number) for number in range(count)))
    print(json.dumps(made), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*(int(each) for each in sys.argv[1:5])))
