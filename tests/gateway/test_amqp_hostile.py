"""What no client should do, done to the AMQP adapter."""

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.gateway.amqp_dialogue import Refused, serving

from mooring.gateway.amqp import connection as gateway
from mooring.gateway.amqp.request_response import MAX_QUEUED, REQUEST_CREDIT
from mooring.wire.amqp.frames import AMQP_HEADER, SASL_HEADER, encode_frame
from mooring.wire.amqp.messages import Message, Properties
from mooring.wire.amqp.performatives import (
    RECEIVER,
    Accepted,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Open,
    SaslInit,
    Source,
    Target,
    Transfer,
    encode_composite,
)

PARTITION = "amqps://localhost/localhost/ConsumerGroups/$Default/Partitions/0"


async def test_strangers_are_refused_a_few_links_and_then_the_connection() -> None:
    async with serving() as served:
        client = await served.client()
        for _ in range(gateway.MAX_REFUSALS):
            await client.refusal(RECEIVER, PARTITION)
        with pytest.raises(Refused, match="unauthorized"):
            await client.refusal(RECEIVER, PARTITION)
        assert await client.ended() is not None


async def test_many_requests_at_once_are_all_answered_and_reading_stops_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[object] = []
    hold = gateway.Connection.hold

    def spy(self: gateway.Connection, reason: object) -> None:
        held.append(reason)
        hold(self, reason)

    monkeypatch.setattr(gateway.Connection, "hold", spy)
    async with serving() as served:
        client = await served.client()
        reply = await client.receiver("$cbs", target="replies")
        request = await client.sender("$cbs")
        message = Message(
            properties=Properties(message_id="m", reply_to="replies"),
            application_properties={"operation": "put-token", "type": "sastoken"},
            value=served.token(),
        ).encode()
        count = min(REQUEST_CREDIT, request.sendable)
        assert count > MAX_QUEUED
        for _ in range(count):
            assert request.send(message) is not None
        client.flush()
        for _ in range(count):
            answer = await client.message(reply)
            assert answer.application_properties["status-code"] == 200
        assert held
        client.close()


async def test_a_request_larger_than_any_token() -> None:
    async with serving() as served:
        client = await served.client()
        link = await client.sender("$cbs")
        link.send(Message(value="x" * 40_000).encode())
        client.flush()
        error = await client.detached(link)
        assert error is not None
        assert error.condition == "amqp:link:message-size-exceeded"
        client.close()


async def test_half_a_sasl_frame_and_silence() -> None:
    async with serving(authentication_time=0.2) as served:
        for octets in (b"", b"AMQ", SASL_HEADER, SASL_HEADER + b"\x00\x00\x00\x20\x02\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(octets)
            await asyncio.wait_for(reader.read(), 10)
            writer.close()


class Stuck(asyncio.Transport):
    """A transport whose other end takes nothing, so that closing it does not come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        """Nothing comes."""


async def test_a_silent_client_that_cannot_be_told_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = 0
    tick = gateway.Connection._on_tick

    def spy(self: gateway.Connection) -> None:
        nonlocal ticks
        ticks += 1
        tick(self)

    monkeypatch.setattr(gateway.Connection, "_on_tick", spy)
    async with serving(idle_time_out=0.01) as served:
        transport = Stuck()
        connection = served.endpoint()
        connection.connection_made(transport)
        connection.data_received(AMQP_HEADER + frame(Open("c", "localhost")))
        async with asyncio.timeout(10):
            while not transport.closed:
                await asyncio.sleep(0.001)
        assert b"idle" in transport.written
        ticks = 0
        for _ in range(50):
            await asyncio.sleep(0)
        assert ticks == 0
        connection.connection_lost(None)


async def test_a_node_is_there_again_after_its_links_were_not() -> None:
    """The links go in the same turn in which the request came, before it was looked at."""
    async with serving() as served:
        client = await served.client()
        await client.receiver("$management", target="replies")
        reply = await client.receiver("$cbs", target="replies")
        request = await client.sender("$cbs")
        assert request.send(PUT) is not None
        request.detach()
        reply.detach()
        client.flush()
        answer = await client.put_token(served.token())
        assert answer.application_properties["status-code"] == 200
        client.close()


async def test_guesses_count_wherever_they_are_made() -> None:
    async with serving() as served:
        client = await served.client()
        question = {
            "operation": "READ",
            "type": "com.microsoft:eventhub",
            "name": "localhost",
            "security_token": served.token(ttl=-1000),
        }
        for _ in range(gateway.MAX_FAILED_TOKENS - 1):
            answer = await client.request("$management", question)
            assert answer.application_properties["status-code"] == 401
        with pytest.raises(Refused):
            await client.request("$management", question)


def frame(performative: Any, channel: int = 0, payload: bytes = b"") -> bytes:
    return encode_frame(channel, encode_composite(performative) + payload)


PUT = Message(
    properties=Properties(message_id=1),
    application_properties={"operation": "put-token", "type": "sastoken"},
    value="SharedAccessSignature sr=localhost&sig=AAAA&se=1",
).encode()
ADDRESSES = ["$cbs", "$management", PARTITION, "/messages/devicebound", "/nowhere", None]
attaches = st.builds(
    lambda address, role, handle, name: Attach(
        name,
        handle,
        role,
        source=Source(address),
        target=Target(address),
        initial_delivery_count=0,
    ),
    st.sampled_from(ADDRESSES),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from("abc"),
)
handles = st.integers(0, 3)
frames = st.one_of(
    attaches.map(frame),
    handles.map(lambda h: frame(Transfer(h, 0, b"t"), payload=PUT)),
    handles.map(lambda h: frame(Transfer(h, 1, b"u", more=True), payload=b"x")),
    st.tuples(handles, st.integers(0, 200)).map(
        lambda t: frame(Flow(0, 100, 0, 100, t[0], 0, t[1], drain=bool(t[1] % 2)))
    ),
    handles.map(lambda h: frame(Detach(h, True))),
    st.just(frame(Disposition(RECEIVER, 0, 50, True, Accepted()))),
    st.just(frame(Begin(None, 0, 100, 100), 1)),
    st.just(frame(End())),
    st.just(frame(Begin(None, 0, 100, 100))),
    st.just(frame(Close())),
    st.binary(max_size=30).map(lambda body: encode_frame(0, body)),
)


@given(st.lists(frames, max_size=25), st.booleans())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_frames_in_any_order(said: list[bytes], proved: bool) -> None:
    """Whatever comes, the server answers or closes; nothing of ours breaks."""

    async def run() -> None:
        async with serving(partitions=1) as served:
            await served.write(b"an event")
            start = AMQP_HEADER
            if proved:
                token = served.token(resource="localhost", raw=False)
                response = f"\0iothubowner@sas.root.localhost\0{token}".encode()
                init = encode_frame(0, encode_composite(SaslInit("PLAIN", response)), 1)
                start = SASL_HEADER + init + AMQP_HEADER
            stream = start + frame(Open("c", "localhost")) + frame(Begin(None, 0, 100, 100))
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(stream + b"".join(said) + frame(Close()))
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer[:4] == b"AMQP"
            if not proved:
                at = 8  # the protocol header; then nothing but whole frames
                while at < len(answer):
                    (size,) = struct.unpack_from(">I", answer, at)
                    at += size
                assert at == len(answer)
            writer.close()
            async with asyncio.timeout(10):
                while list(served.hub.sessions):
                    await asyncio.sleep(0.001)

    with capture_logs() as logs:
        asyncio.run(run())
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
