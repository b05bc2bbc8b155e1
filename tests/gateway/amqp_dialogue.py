"""A served hub in memory and a client of our own engine that says one thing at a time."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from tests.events import MemoryEvents
from tests.state import MemoryState

from mooring.gateway.amqp import AmqpEndpoint
from mooring.hub.access import Principal
from mooring.hub.hub import Hub
from mooring.hub.hubs import Hubs
from mooring.hub.identity import Ref
from mooring.hub.policies import ALL_RIGHTS
from mooring.hub.settings import HubSettings
from mooring.wire import sas
from mooring.wire.amqp import engine_events as engine
from mooring.wire.amqp.connection import Connection, Settings
from mooring.wire.amqp.link import Delivery, Link
from mooring.wire.amqp.messages import Message, Properties, decode_message
from mooring.wire.amqp.performatives import (
    RECEIVER,
    SENDER,
    Accepted,
    Attach,
    DeliveryState,
    Error,
    SaslInit,
    Source,
    Target,
)

PATIENCE = 10.0


class Stored:
    """A sink that waits for everything appended through it."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.waiting = 0

    def committed(self, tokens: list[Any]) -> None:
        self.waiting -= len(tokens)
        self.done.set()

    def failed(self, tokens: list[Any], error: Exception) -> None:
        raise error


class Clock:
    """The hub's clock, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class ServedHub:
    """One hub on a plain loopback port."""

    def __init__(
        self, hub: Hub, hubs: Hubs, endpoint: AmqpEndpoint, port: int, clock: "Clock"
    ) -> None:
        self.hub = hub
        self.clock = clock
        self.hubs = hubs
        self.endpoint = endpoint
        self.port = port
        self.events: MemoryEvents = hub.events  # type: ignore[assignment]
        self.state: MemoryState = hub.state  # type: ignore[assignment]

    def token(
        self,
        policy: str = "iothubowner",
        resource: str = "sb://localhost/localhost",
        *,
        ttl: float = 3600,
        raw: bool = True,
    ) -> str:
        held = self.hub.policies.get(policy)
        assert held is not None
        expires = int(time.time() + ttl)
        return sas.generate(held.primary_key, resource, expires, policy=policy, raw_text=raw)

    def advance(self, seconds: float) -> None:
        """Let the hub believe that so much time has gone by."""
        self.clock.ahead += seconds
        self.hub.sessions.expire()

    def connection_string(self, policy: str = "iothubowner") -> str:
        held = self.hub.policies.get(policy)
        assert held is not None
        return (
            f"Endpoint=sb://localhost:{self.port}/;SharedAccessKeyName={policy};"
            f"SharedAccessKey={held.primary_key};EntityPath=localhost;UseDevelopmentEmulator=true"
        )

    async def write(self, *bodies: bytes, device: str = "d1") -> None:
        """Telemetry of a device, as the log keeps it."""
        principal = Principal(self.hub.name, ALL_RIGHTS, Ref(device), generation_id="1")
        channel = self.hub.telemetry.channel(principal)
        prepared = channel.prepare({"content-type": "text/plain"}, {"p": "v"})
        sink = Stored()
        sink.waiting = len(bodies)
        for body in bodies:
            channel.accept(prepared, body, sink, None)
        while sink.waiting:
            sink.done.clear()
            await sink.done.wait()

    async def client(self, **options: Any) -> "Client":
        """A client whose connection is open; raises Refused if it was not let in."""
        client = Client()
        await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", self.port)
        client.engine.connect(hostname=options.pop("hostname", "localhost"), **options)
        client.flush()
        await client.expect(lambda event: isinstance(event, engine.Opened))
        return client

    async def opened(self, policy: str = "iothubowner", **options: Any) -> "Client":
        """A client that has put a policy's token for all of the hub."""
        client = await self.client(**options)
        await client.put_token(self.token(policy, "localhost", raw=False))
        return client


@contextlib.asynccontextmanager
async def serving(
    *, partitions: int = 2, settings: dict[str, Any] | None = None, **endpoint: Any
) -> AsyncIterator[ServedHub]:
    """A hub `localhost` and what serves it."""
    clock = Clock()
    hub = await Hub.open(
        "localhost",
        MemoryState(),
        MemoryEvents(partitions, now=clock),
        HubSettings(**(settings or {})),
        aliases=("127.0.0.1", "hub.example.com"),
        now=clock,
    )
    hubs = Hubs([hub])
    served = AmqpEndpoint(hubs, **endpoint)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(served, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield ServedHub(hub, hubs, served, port, clock)
    finally:
        server.close()
        await hub.close()


class Refused(Exception):
    """The server ended what the client asked for."""

    def __init__(self, error: Error | None) -> None:
        super().__init__(error.condition if error else "no error")
        self.error = error


class Client(asyncio.Protocol):
    """One connection; every wait ends with the connection."""

    def __init__(self) -> None:
        self.engine = Connection(Settings("client"))
        self.transport: asyncio.Transport | None = None
        self.events: list[Any] = []
        self.closed: engine.Closed | None = None
        self.lost = False
        self._changed = asyncio.Event()
        self._taken: set[int] = set()
        self._session: Any = None
        self._reply_to: dict[str, tuple[Link, Link]] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.engine.receive_data(data)
        while (event := self.engine.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, engine.Closed):
                self.closed = event
        self.flush()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._changed.set()

    def flush(self) -> None:
        assert self.transport is not None
        data = self.engine.data_to_send()
        if data:
            self.transport.write(data)

    async def expect(self, accept: Any) -> Any:
        """The first event, not yet taken, for which `accept` is true."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for index, event in enumerate(self.events):
                    if index not in self._taken and accept(event):
                        self._taken.add(index)
                        return event
                if self.closed is not None or self.lost:
                    raise Refused(self.closed.error if self.closed else None)
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> engine.Closed | None:
        """The connection has gone; what the server said last."""
        async with asyncio.timeout(PATIENCE):
            while not self.lost:
                self._changed.clear()
                await self._changed.wait()
        return self.closed

    @property
    def session(self) -> Any:
        if self._session is None:
            self._session = self.engine.begin()
        return self._session

    async def attach(self, role: bool, address: str, **more: Any) -> Link:
        """Attach and wait for the answer; raises Refused if a detach follows at once."""
        source = Source(None if role is SENDER else address, filter=more.pop("filter", None))
        target = Target(address if role is SENDER else more.pop("target", None))
        link: Link = self.session.attach(
            Attach(
                more.pop("name", None) or str(uuid.uuid4()),
                0,
                role,
                source=source,
                target=target,
                initial_delivery_count=0 if role is SENDER else None,
                **more,
            )
        )
        self.flush()
        await self.expect(lambda e: isinstance(e, engine.Attached) and e.link is link)
        return link

    async def sender(self, address: str, **more: Any) -> Link:
        """A sending link with credit."""
        link = await self.attach(SENDER, address, **more)
        event = await self.expect(
            lambda e: isinstance(e, engine.Credited | engine.Detached) and e.link is link
        )
        if isinstance(event, engine.Detached):
            raise Refused(event.error)
        return link

    async def receiver(self, address: str, credit: int = 100, **more: Any) -> Link:
        link = await self.attach(RECEIVER, address, **more)
        if credit:
            link.flow(credit)
            self.flush()
        return link

    async def detached(self, link: Link) -> Error | None:
        event = await self.expect(lambda e: isinstance(e, engine.Detached) and e.link is link)
        error: Error | None = event.error
        return error

    async def refusal(self, role: bool, address: str, **more: Any) -> tuple[Link, Error]:
        """An attach that ends in a detach."""
        link = await self.attach(role, address, **more)
        error = await self.detached(link)
        assert error is not None
        return link, error

    async def send(self, link: Link, message: Message | bytes, **more: Any) -> DeliveryState | None:
        """Send and wait for the outcome."""
        payload = message if isinstance(message, bytes) else message.encode()
        sent = link.send(payload, **more)
        assert sent is not None
        self.flush()
        event = await self.expect(lambda e: isinstance(e, engine.Disposed) and sent in e.deliveries)
        state: DeliveryState | None = event.state
        return state

    async def delivery(self, link: Link) -> Delivery:
        event = await self.expect(
            lambda e: isinstance(e, engine.Delivered) and e.delivery.link is link
        )
        delivery: Delivery = event.delivery
        return delivery

    async def message(self, link: Link) -> Message:
        return decode_message((await self.delivery(link)).payload)

    async def request(
        self, node: str, application: dict[str, Any], value: Any = None, message_id: Any = None
    ) -> Message:
        """Ask a request-response node."""
        if node not in self._reply_to:
            reply = await self.receiver(node, target="replies")
            self._reply_to[node] = (await self.sender(node), reply)
        request, reply = self._reply_to[node]
        properties = Properties(message_id=message_id or uuid.uuid4(), reply_to="replies")
        state = await self.send(
            request, Message(properties=properties, application_properties=application, value=value)
        )
        assert isinstance(state, Accepted)
        answer = await self.message(reply)
        assert answer.properties.correlation_id == properties.message_id
        assert type(answer.properties.correlation_id) is type(properties.message_id)
        return answer

    async def put_token(self, token: str, **more: Any) -> Message:
        return await self.request(
            "$cbs",
            {
                "operation": "put-token",
                "type": "servicebus.windows.net:sastoken",
                "name": "sb://localhost/localhost",
                **more.pop("application", {}),
            },
            token,
            **more,
        )

    def close(self) -> None:
        assert self.transport is not None
        self.transport.abort()


def plain(user: str, token: str) -> SaslInit:
    return SaslInit("PLAIN", f"\0{user}\0{token}".encode())
