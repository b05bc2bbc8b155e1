"""How an AMQP client proves who it is, and what ends when it no longer does."""

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import pytest
from tests.gateway.amqp_dialogue import Refused, plain, serving

from mooring.errors import ServiceUnavailable
from mooring.gateway.amqp import connection as gateway
from mooring.hub.policies import Right
from mooring.hub.registry import IdentityRequest
from mooring.wire import sas
from mooring.wire.amqp import engine_events as engine
from mooring.wire.amqp.messages import Message
from mooring.wire.amqp.performatives import RECEIVER, Attach, SaslInit, Source
from mooring.wire.amqp.types import Int, Symbol, ULong

PARTITION = "amqps://localhost/localhost/ConsumerGroups/$Default/Partitions/0"


def status(answer: Message) -> int:
    code = answer.application_properties["status-code"]
    assert type(code) is Int
    assert isinstance(answer.application_properties["status-description"], str)
    return int(code)


@pytest.mark.parametrize("mechanism", ["ANONYMOUS", "MSSBCBS", "EXTERNAL", None])
async def test_a_token_opens_the_events(mechanism: str | None) -> None:
    async with serving() as served:
        client = await served.client(sasl=SaslInit(mechanism) if mechanism else None)
        _, error = await client.refusal(RECEIVER, PARTITION)
        assert error.condition == "amqp:unauthorized-access"
        assert status(await client.put_token(served.token())) == 200
        await served.write(b"hello")
        link = await client.receiver(PARTITION)
        found = await client.message(link)
        assert found.body() == b"hello"
        client.close()


@pytest.mark.parametrize("message_id", ["text", ULong(0), uuid.uuid4(), b"octets"])
async def test_the_correlation_id_has_the_type_of_the_message_id(message_id: Any) -> None:
    async with serving() as served:
        client = await served.client()
        answer = await client.put_token(served.token(), message_id=message_id)
        assert status(answer) == 200
        client.close()


@pytest.mark.parametrize(
    ("application", "value", "expected"),
    [
        ({"type": "azure-devices.net:sastoken"}, "TOKEN", 200),
        ({"type": "SERVICEBUS.windows.net:SasToken"}, "TOKEN", 200),
        ({"type": "jwt"}, "TOKEN", 400),
        ({"type": None}, "TOKEN", 400),
        ({"operation": "delete-token"}, "TOKEN", 400),
        ({}, b"TOKEN", 200),
        ({}, 5, 400),
        ({}, None, 401),
        ({}, "Bearer abc", 401),
        ({}, "x" * 20_000, 400),
    ],
)
async def test_put_token_status(application: dict[str, Any], value: Any, expected: int) -> None:
    async with serving() as served:
        client = await served.client()
        token = served.token()
        if value == "TOKEN":
            value = token
        elif value == b"TOKEN":
            value = token.encode()
        assert status(await client.put_token(value, application=application)) == expected
        client.close()


@pytest.mark.parametrize(
    "token",
    [
        {"ttl": -10},
        {"resource": "sb://elsewhere/localhost"},
    ],
)
async def test_tokens_that_do_not_count(token: dict[str, Any]) -> None:
    async with serving() as served:
        client = await served.client()
        answer = await client.put_token(served.token(**token))
        assert status(answer) == 401
        # With one, azure-eventhub 5.15 tells its user neither status nor description.
        assert "error-condition" not in answer.application_properties
        client.close()


async def test_a_policy_without_the_right_and_a_scope_that_is_too_narrow() -> None:
    async with serving() as served:
        for token in (
            served.token("device"),
            served.token("registryRead"),
            served.token(resource="sb://localhost/localhost/ConsumerGroups/other"),
        ):
            client = await served.client()
            assert status(await client.put_token(token)) == 200
            link, error = await client.refusal(RECEIVER, PARTITION)
            assert error.condition == "amqp:unauthorized-access"
            assert link.attach is not None
            assert link.attach.source is not None  # azure-eventhub reads no other refusal
            client.close()
        for resource in ("localhost", "sb://LOCALHOST/localhost", PARTITION):
            client = await served.client()
            await client.put_token(served.token("service", resource))
            await client.attach(RECEIVER, PARTITION)
            client.close()


async def test_sasl_plain_needs_no_cbs_and_ends_with_its_token() -> None:
    async with serving() as served:
        token = served.token(resource="localhost", raw=False)
        client = await served.client(sasl=plain("iothubowner@sas.root.localhost", token))
        await client.attach(RECEIVER, PARTITION)
        assert [session.protocol for session in served.hub.sessions] == ["amqp"]
        await served.hub.policies.regenerate("iothubowner", "primary")
        closed = await client.ended()
        assert closed is not None
        assert closed.error is not None
        assert closed.error.condition == "amqp:unauthorized-access"
        assert list(served.hub.sessions) == []


async def test_sasl_plain_with_a_wrong_token() -> None:
    async with serving() as served:
        with pytest.raises(Refused):
            await served.client(sasl=plain("iothubowner@sas.root.localhost", "nonsense"))


async def test_expiry_takes_the_links_along() -> None:
    async with serving() as served:
        client = await served.client()
        await client.put_token(served.token(ttl=60))
        link = await client.attach(RECEIVER, PARTITION)
        served.advance(120)
        error = await client.detached(link)
        assert error is not None
        assert error.condition == "amqp:unauthorized-access"
        assert error.description is not None
        assert "expired" in error.description
        assert await client.ended() is not None


async def test_another_token_keeps_the_links() -> None:
    async with serving() as served:
        client = await served.client()
        await client.put_token(served.token("service"))
        link = await client.receiver(PARTITION)
        await client.put_token(served.token("iothubowner"))
        await served.hub.policies.regenerate("service", "primary")
        await served.write(b"still here")
        assert (await client.message(link)).body() == b"still here"
        client.close()


async def test_a_renewed_token_keeps_the_links() -> None:
    async with serving() as served:
        client = await served.client()
        await client.put_token(served.token(ttl=60))
        link = await client.receiver(PARTITION)
        await client.put_token(served.token(ttl=3600))
        assert len(served.hub.sessions) == 1
        (session,) = served.hub.sessions
        assert session.principal.expires is not None
        served.advance(120)
        await served.write(b"still here")
        assert (await client.message(link)).body() == b"still here"
        client.close()


async def test_a_renewed_token_that_grants_less_keeps_less() -> None:
    """The policy shrank, and its holder was faster than the look at its sessions."""
    async with serving() as served:
        client = await served.client()
        await client.put_token(served.token("service"))
        link = await client.receiver(PARTITION)
        (grant,) = served.hub.sessions
        principal = replace(grant.principal, rights=Right.DEVICE_CONNECT)
        grant._grants.put(served.hub, principal)  # type: ignore[attr-defined]
        error = await client.detached(link)
        assert error is not None
        assert error.condition == "amqp:unauthorized-access"
        client.close()


async def test_a_devices_token_counts_but_opens_nothing_here() -> None:
    async with serving() as served:
        identity = await served.hub.registry.create(IdentityRequest(device_id="d1"))
        assert identity.primary_key is not None
        token = sas.generate(identity.primary_key, "localhost/devices/d1", 4_000_000_000)
        client = await served.client(sasl=plain("d1@sas.localhost", token))
        assert status(await client.put_token(token)) == 200
        assert list(served.hub.sessions) == []  # the device's own connection is not pushed out
        _, error = await client.refusal(RECEIVER, PARTITION)
        assert error.condition == "amqp:unauthorized-access"
        _, error = await client.refusal(RECEIVER, "/devices/d1/messages/devicebound")
        assert error.condition == "amqp:not-implemented"
        client.close()


async def test_more_tokens_than_a_connection_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooring.gateway.amqp.grants.MAX_TOKENS", 2)
    async with serving() as served:
        client = await served.client()
        for policy, expected in (
            ("service", 200),
            ("device", 200),
            ("iothubowner", 403),
            ("service", 200),
        ):
            assert status(await client.put_token(served.token(policy))) == expected
        client.close()


async def test_who_puts_no_token_is_sent_away() -> None:
    async with serving(authentication_time=0.2) as served:
        client = await served.client()
        closed = await client.ended()
        assert closed is not None
        assert closed.error is not None
        assert closed.error.condition == "amqp:unauthorized-access"
        silent = await asyncio.open_connection("127.0.0.1", served.port)
        assert await asyncio.wait_for(silent[0].read(), 10) == b""
        silent[1].close()


async def test_strangers_get_few_links() -> None:
    async with serving() as served:
        client = await served.client()
        links = [
            await client.attach(RECEIVER, "$cbs", name=f"link-{number}")
            for number in range(gateway.STRANGER_LINKS)
        ]
        client.session.attach(Attach("one more", 0, RECEIVER, source=Source("$cbs")))
        client.flush()
        ended = await client.expect(lambda event: isinstance(event, engine.Ended))
        assert ended.error.condition == "amqp:resource-limit-exceeded"
        assert set(links) <= set(ended.links)
        client.close()

        client = await served.opened()
        for number in range(gateway.STRANGER_LINKS * 2):
            await client.attach(RECEIVER, "$cbs", name=f"link-{number}")
        client.close()


async def test_strangers_get_short_links() -> None:
    more: dict[str, Any] = {"properties": {Symbol("p"): "x" * gateway.STRANGER_PERFORMATIVE}}
    async with serving() as served:
        client = await served.client()
        with pytest.raises(Refused, match="resource-limit-exceeded"):
            await client.attach(RECEIVER, "$cbs", **more)
        client = await served.opened()
        await client.attach(RECEIVER, "$cbs", **more)
        client.close()


async def test_strangers_get_few_guesses() -> None:
    async with serving() as served:
        client = await served.client()
        for _ in range(gateway.MAX_FAILED_TOKENS - 1):
            assert status(await client.put_token("wrong")) == 401
        with pytest.raises(Refused, match="amqp:unauthorized-access"):
            await client.put_token("wrong")


async def test_the_hosts_name() -> None:
    async with serving() as served:
        for host in ("LOCALHOST", "127.0.0.1:5671", "hub.example.com", None):
            client = await served.client(hostname=host)
            assert status(await client.put_token(served.token())) == 200
            client.close()
        client = await served.client(hostname="elsewhere.example.com")
        closed = await client.ended()
        assert closed is not None
        assert closed.error is not None
        assert closed.error.condition == "com.microsoft:iot-hub-not-found-error"


async def test_shutting_down_closes_with_a_reason() -> None:
    async with serving() as served:
        client = await served.opened()
        link = await client.attach(RECEIVER, PARTITION)
        await served.hub.sessions.stop(ServiceUnavailable("The server is shutting down"))
        error = await client.detached(link)
        assert error is not None
        assert error.condition == "com.microsoft:server-busy"
        assert error.info is not None
        assert Symbol("com.microsoft:tracking-id") in error.info
        assert await client.ended() is not None


async def test_garbage_costs_one_connection_only() -> None:
    async with serving() as served:
        good = await served.opened()
        for octets in (b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x00\x01\x00\x00" + b"\xff" * 100):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(octets)
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
        await served.write(b"hello")
        assert (await good.message(await good.receiver(PARTITION))).body() == b"hello"
        good.close()
