"""Dialogues with a hub over MQTT without sockets: send these packets, expect those.

bench = await Bench.open()
device = await bench.device("d1")          # registered; its credentials are known
client = await device.connect()            # CONNECT sent, CONNACK 0 received
client.send(Pingreq())
await client.expect(Pingresp())
await client.silence()                     # and nothing more
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tests.events import MemoryEvents
from tests.state import MemoryState, Tables

from mooring.gateway.mqtt import MqttEndpoint
from mooring.gateway.mqtt.connection import Connection
from mooring.hub.commands import Command
from mooring.hub.hub import Hub
from mooring.hub.hubs import Hubs
from mooring.hub.identity import Identity, Ref
from mooring.hub.registry import IdentityRequest
from mooring.hub.settings import HubSettings
from mooring.wire import mqtt, sas
from mooring.wire.amqp.messages import Message, decode_message
from mooring.wire.mqtt import Connack, Connect, Packet, Publish, Suback, Subscribe

PATIENCE = 10.0  # seconds until something that does not come counts as missing
TURNS = 60  # of the event loop, in which whatever is under way has come to rest


async def rest() -> None:
    """Let everything that needs no time happen."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Pipe(asyncio.Transport):
    """The server's end of a connection that is nowhere."""

    def __init__(self, **extra: Any) -> None:
        super().__init__({"peername": ("192.0.2.1", 4711), **extra})
        self.protocol: Connection | None = None
        self.written = bytearray()
        self.writes = 0
        self.reading = True
        self.closed = asyncio.Event()

    def write(self, data: Any) -> None:
        assert not self.closed.is_set(), "written after close"
        self.written += data
        self.writes += 1

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed while reading"
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def break_off(self) -> None:
        """The network goes."""
        self._lose(ConnectionResetError("reset"))

    def _lose(self, error: Exception | None) -> None:
        if not self.closed.is_set():
            self.closed.set()
            assert self.protocol
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)


class Client:
    """One connection, from the client's side."""

    def __init__(self, endpoint: MqttEndpoint, **extra: Any) -> None:
        self.pipe = Pipe(**extra)
        self.connection = endpoint()
        self.pipe.protocol = self.connection
        self.connection.connection_made(self.pipe)
        self._decoder = mqtt.Decoder(mqtt.LONGEST)
        self._pending = b""
        self.received: list[Packet] = []

    def send(self, *packets: Packet | bytes) -> None:
        """Send them in one piece, as far as the server reads."""
        self._pending += b"".join(
            each if isinstance(each, bytes) else mqtt.encode(each) for each in packets
        )
        self._flush()

    def _flush(self) -> None:
        while self._pending and self.pipe.reading and not self.pipe.closed.is_set():
            piece, self._pending = self._pending[:65536], self._pending[65536:]
            self.connection.data_received(piece)

    def _read(self) -> None:
        data = bytes(self.pipe.written)
        self.pipe.written.clear()
        if data:
            self.received += self._decoder.feed(data)

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until it holds, reading and sending meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._flush()
            self._read()
            if done():
                return
            assert time.monotonic() < deadline, f"got {self.received}"
            await asyncio.sleep(0 if self.received else 0.001)

    async def packet(self) -> Packet:
        """The next packet, whatever it is."""
        await self.until(lambda: bool(self.received))
        return self.received.pop(0)

    async def expect(self, *packets: Packet) -> None:
        """Exactly these come next, in this order."""
        for packet in packets:
            assert await self.packet() == packet

    async def publish(self) -> Publish:
        """The next packet, a PUBLISH."""
        packet = await self.packet()
        assert isinstance(packet, Publish), packet
        return packet

    async def silence(self) -> None:
        """Nothing more comes, and the connection stays."""
        await rest()
        self._flush()
        await rest()
        self._read()
        assert self.received == []
        assert not self.pipe.closed.is_set()

    async def closed(self) -> None:
        """The server closes, having sent nothing more."""
        await self.until(self.pipe.closed.is_set)
        await rest()
        self._read()
        assert self.received == []

    async def leave(self) -> None:
        """DISCONNECT."""
        self.send(mqtt.Disconnect())
        await self.closed()

    async def vanish(self) -> None:
        """Without a word."""
        self.pipe.break_off()
        await rest()

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Subscribe to these, each of which is granted."""
        self.send(Subscribe(77, tuple((name, qos) for name in filters)))
        await self.expect(Suback(77, tuple(min(qos, 1) for _ in filters)))


class Device:
    """A registered identity and its credentials."""

    def __init__(self, bench: "Bench", identity: Identity) -> None:
        self.bench = bench
        self.identity = identity
        self.ref: Ref = identity.ref
        self.client_id = str(identity.ref)
        modules = f"/modules/{self.ref.module_id}" if self.ref.module_id else ""
        self.base = f"devices/{self.ref.device_id}{modules}"
        self.events = f"{self.base}/messages/events/"
        self.devicebound = f"{self.base}/messages/devicebound/"

    def token(self, *, expires: float = 4e9, key: str | None = None) -> bytes:
        key = key or self.identity.primary_key or ""
        return sas.generate(key, f"localhost/{self.base}", int(expires)).encode()

    def hello(self, **changes: Any) -> Connect:
        """The CONNECT of an SDK."""
        fields: dict[str, Any] = {
            "client_id": self.client_id,
            "username": f"localhost/{self.client_id}/?api-version=2021-04-12",
            "password": self.token(),
            "clean_session": True,
            "keep_alive": 60,
        }
        return Connect(**{**fields, **changes})

    async def connect(self, *, present: bool = False, **changes: Any) -> Client:
        """A connected client."""
        client = Client(self.bench.endpoint)
        client.send(self.hello(**changes))
        await client.expect(Connack(0, present))
        return client

    async def send_command(self, body: bytes = b"hello", **fields: Any) -> Command:
        """Queue a cloud-to-device message."""
        device_id, module_id = self.ref
        return await self.bench.hub.commands.send(
            Command(device_id=device_id, module_id=module_id, body=body, **fields)
        )


class Bench:
    """A hub in memory and its MQTT endpoint."""

    def __init__(self, hub: Hub, state: MemoryState, events: MemoryEvents, **options: Any) -> None:
        self.hub = hub
        self.state = state
        self.events = events
        self.endpoint = MqttEndpoint(Hubs([hub]), **options)

    @classmethod
    async def open(
        cls,
        *,
        tables: Tables | None = None,
        settings: HubSettings | None = None,
        events: MemoryEvents | None = None,
        now: Callable[[], float] = time.time,
        **options: Any,
    ) -> "Bench":
        state = MemoryState(tables)
        events = events or MemoryEvents()
        hub = await Hub.open("localhost", state, events, settings, aliases=["hub.test"], now=now)
        return cls(hub, state, events, **options)

    async def device(self, device_id: str = "d1", module_id: str = "") -> Device:
        if module_id and await self.hub.registry.lookup(Ref(device_id)) is None:
            await self.device(device_id)
        ref = Ref(device_id, module_id)
        identity = await self.hub.registry.lookup(ref)
        if identity is None:
            request = IdentityRequest(device_id=device_id, module_id=module_id)
            identity = await self.hub.registry.create(request)
        return Device(self, identity)

    async def messages(self) -> list[Message]:
        """All telemetry that is in the log."""
        await rest()
        found = []
        for partition in range(self.events.partition_count):
            events = await self.events.read(partition, -1, max_events=10**6, max_bytes=10**9)
            found += [decode_message(event.record) for event in events]
        return found
