"""Devices that publish as fast as they are let, and know exactly what was acknowledged.

MQTT over real TLS, with nothing of a client library in between: what was sent and what was
acknowledged is noted here in the moment it happens.
"""

import asyncio
import ssl
import time
from pathlib import Path

from mooring.wire import mqtt, sas

PATIENCE = 20.0
MARKER = "<{device}|{number:08}>"
SIZE = 200


def body(device: str, number: int) -> bytes:
    """200 bytes that say who and which, over and over, so that no page break hides it."""
    marker = MARKER.format(device=device, number=number).encode()
    return (marker * (SIZE // len(marker) + 1))[:SIZE]


def tls(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    return context


def connect(device: str, key: str) -> bytes:
    token = sas.generate(key, f"localhost/devices/{device}", int(time.time()) + 3600)
    return mqtt.encode_connect(
        mqtt.Connect(
            client_id=device,
            username=f"localhost/{device}/?api-version=2021-04-12",
            password=token.encode(),
            clean_session=True,
            keep_alive=60,
        )
    )


class Publisher(asyncio.Protocol):
    """One device's connection with `window` messages in flight, until it is lost or stopped."""

    def __init__(self, device: str, key: str, *, window: int, first: int, limit: int) -> None:
        self.device = device
        self.acknowledged: list[int] = []
        """Numbers in the order in which their acknowledgements came."""
        self.next = first
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.local_port = 0
        self._key = key
        self._window = window
        self._limit = first + limit
        self._in_flight: dict[int, int] = {}
        self._decoder = mqtt.Decoder(mqtt.SESSION_LIMIT)
        self._topic = f"devices/{device}/messages/events/".encode()
        self._transport: asyncio.Transport

    async def connect(self, port: int, ca: Path) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(
            lambda: self, "127.0.0.1", port, ssl=tls(ca), server_hostname="localhost"
        )

    def stop(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.local_port = transport.get_extra_info("sockname")[1]
        self._transport.write(connect(self.device, self._key))

    def data_received(self, data: bytes) -> None:
        for packet in self._decoder.feed(data):
            if isinstance(packet, mqtt.Connack):
                assert packet.return_code == mqtt.ACCEPTED, packet
                for _ in range(self._window):
                    self._publish()
            else:
                assert isinstance(packet, mqtt.Puback), packet
                self.acknowledged.append(self._in_flight.pop(packet.packet_id))
                self._publish()
        if not self._in_flight and self.next >= self._limit:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _publish(self) -> None:
        if self.next >= self._limit or self._transport.is_closing():
            return
        packet_id = self.next % 60_000 + 1
        self._in_flight[packet_id] = self.next
        self._transport.write(
            mqtt.encode_publish(self._topic, body(self.device, self.next), 1, packet_id)
        )
        self.next += 1


async def report(device: str, key: str, port: int, ca: Path, patches: list[bytes]) -> int:
    """Send patches of reported properties, each after the answer to the one before; returns the
    local port."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls(ca), server_hostname="localhost"
    )
    decoder = mqtt.Decoder(mqtt.SESSION_LIMIT)

    async def answer() -> mqtt.Packet:
        async with asyncio.timeout(PATIENCE):
            while not (packets := decoder.feed(await reader.read(65_536))):
                assert not reader.at_eof()
        (packet,) = packets
        return packet

    writer.write(connect(device, key))
    assert await answer() == mqtt.Connack(mqtt.ACCEPTED)
    results = mqtt.Subscribe(1, (("$iothub/twin/res/#", 0),))
    writer.write(mqtt.encode_subscribe(results))
    assert isinstance(await answer(), mqtt.Suback)
    for number, patch in enumerate(patches):
        topic = f"$iothub/twin/PATCH/properties/reported/?$rid={number}"
        writer.write(mqtt.encode_publish(topic.encode(), patch))
        published = await answer()
        assert isinstance(published, mqtt.Publish)
        assert published.topic.startswith(b"$iothub/twin/res/204/"), published
    local_port: int = writer.get_extra_info("sockname")[1]
    writer.close()
    return local_port
