"""Cloud-to-device messages, their feedback, the redirect, and addresses that lead nowhere."""

import asyncio
import json
import uuid
from typing import Any

import pytest
from tests.gateway.amqp_dialogue import Client, ServedHub, serving

from mooring.hub.identity import Ref
from mooring.hub.registry import IdentityRequest
from mooring.wire.amqp.messages import BATCH_FORMAT, Message, Properties, decode_message
from mooring.wire.amqp.performatives import (
    RECEIVER,
    SENDER,
    Accepted,
    Disposition,
    Flow,
    Modified,
    Rejected,
    Released,
)
from mooring.wire.amqp.types import Int, Timestamp, ULong

DEVICEBOUND = "amqps://localhost:5671/messages/deviceBound"
FEEDBACK = "/messages/serviceBound/feedback"
QUICK = {"feedback_batch_interval": 0.0}


def to(device: str = "d1", body: bytes = b"x", **more: Any) -> Message:
    address = f"/devices/{device}/messages/devicebound"
    return Message(properties=Properties(to=address, **more), data=[body])


async def device(served: ServedHub, device_id: str = "d1") -> Ref:
    identity = await served.hub.registry.create(IdentityRequest(device_id=device_id))
    return identity.ref


# ---- cloud-to-device -----------------------------------------------------------------------


async def test_a_message_with_everything() -> None:
    async with serving() as served:
        ref = await device(served)
        client = await served.opened("service")
        link = await client.sender(DEVICEBOUND)
        expires = int(served.clock() * 1000) + 60_000
        message = to(
            body=b"hello",
            message_id="m1",
            correlation_id=ULong(7),
            user_id=b"who",
            content_type="application/json",
            content_encoding="utf-8",
            absolute_expiry_time=expires,
        )
        message.application_properties = {"iothub-ack": "Full", "a": "b", "n": 5, "t": True}
        assert isinstance(await client.send(link, message), Accepted)
        (delivery,) = await served.hub.commands.receive(ref, 10)
        command = delivery.command
        assert (command.message_id, command.correlation_id, command.user_id) == ("m1", "7", "who")
        assert (command.content_type, command.content_encoding) == ("application/json", "utf-8")
        assert (command.expires, command.ack, command.body) == (expires, "full", b"hello")
        assert command.properties == {"a": "b", "n": "5", "t": "true"}
        client.close()


@pytest.mark.parametrize("message_id", [uuid.UUID(int=5), b"octets", b"\xff"])
async def test_ids_of_other_types_become_text(message_id: Any) -> None:
    async with serving() as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.sender(DEVICEBOUND)
        assert isinstance(await client.send(link, to(message_id=message_id)), Accepted)
        (delivery,) = await served.hub.commands.receive(ref, 10)
        expected = {b"octets": "octets", b"\xff": "ff"}.get(message_id, str(message_id))
        assert delivery.command.message_id == expected
        client.close()


async def test_targets_as_the_sdks_write_them() -> None:
    async with serving() as served:
        odd = await device(served, "a=b@c")
        module = IdentityRequest(device_id="a=b@c", module_id="m")
        await served.hub.registry.create(module)
        client = await served.opened()
        link = await client.sender("/messages/devicebound")
        for address, ref in (
            ("/devices/a=b@c/messages/devicebound", odd),
            ("/devices/a%3Db%40c/messages/deviceBound", odd),
            ("/devices/a%3Db%40c/modules/m/messages/deviceBound", Ref("a=b@c", "m")),
        ):
            before = await served.hub.commands.depth(ref)
            message = Message(properties=Properties(to=address), data=[b"x"])
            assert isinstance(await client.send(link, message), Accepted)
            assert await served.hub.commands.depth(ref) == before + 1
        client.close()


@pytest.mark.parametrize(
    ("message", "condition"),
    [
        (to("nobody"), "amqp:not-found"),
        (Message(data=[b"x"]), "com.microsoft:argument-error"),
        (Message(properties=Properties(to="/nowhere")), "com.microsoft:argument-error"),
        (to(absolute_expiry_time=5), "com.microsoft:argument-error"),
        (to(body=b"x" * 70_000), "amqp:link:message-size-exceeded"),
        (b"garbage", "amqp:decode-error"),
        (Message(properties=Properties(to="/devices/d1/messages/devicebound"), value=5), None),
    ],
)
async def test_rejections_leave_the_link_up(message: Any, condition: str | None) -> None:
    async with serving() as served:
        await device(served)
        client = await served.opened()
        link = await client.sender(DEVICEBOUND)
        state = await client.send(link, message)
        assert isinstance(state, Rejected)
        assert state.error is not None
        assert state.error.condition == (condition or "amqp:decode-error")
        description = json.loads(state.error.description or "")
        assert description["errorCode"] // 1000 in (400, 403, 404, 413)
        info = state.error.info or {}
        assert info["com.microsoft:tracking-id"] == description["trackingId"]
        assert info["com.microsoft:error-code"] == description["errorCode"]
        assert isinstance(await client.send(link, to()), Accepted)
        client.close()


async def test_the_fifty_first_message() -> None:
    async with serving(settings={"c2d_queue_depth": 2}) as served:
        await device(served)
        client = await served.opened()
        link = await client.sender(DEVICEBOUND)
        states = [await client.send(link, to()) for _ in range(3)]
        assert [type(state) for state in states] == [Accepted, Accepted, Rejected]
        assert states[2].error.condition == "amqp:resource-limit-exceeded"  # type: ignore[union-attr]
        client.close()


async def test_nothing_is_accepted_that_is_not_stored() -> None:
    async with serving() as served:
        await device(served)
        client = await served.opened()
        link = await client.sender(DEVICEBOUND)
        served.state.failing = True
        state = await client.send(link, to())
        assert isinstance(state, Rejected)
        assert state.error is not None
        assert state.error.condition == "com.microsoft:server-busy"
        served.state.failing = False
        assert isinstance(await client.send(link, to()), Accepted)
        client.close()


async def test_a_batch_and_many_in_order() -> None:
    async with serving() as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.sender(DEVICEBOUND)
        batch = Message(data=[to(body=b"0").encode(), to(body=b"1").encode()])
        assert isinstance(await client.send(link, batch, format=BATCH_FORMAT), Accepted)
        for number in range(2, 20):
            assert link.send(to(body=b"%d" % number).encode()) is not None
        assert isinstance(await client.send(link, to(body=b"20")), Accepted)
        deliveries = await served.hub.commands.receive(ref, 50)
        assert [d.command.body for d in deliveries] == [b"%d" % n for n in range(21)]
        client.close()


async def test_more_than_the_credit_keeps_flowing() -> None:
    async with serving(settings={"c2d_queue_depth": 200}) as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.sender(DEVICEBOUND)
        for _ in range(100):
            assert isinstance(await client.send(link, to()), Accepted)
        assert await served.hub.commands.depth(ref) == 100
        client.close()


async def test_a_message_beyond_what_the_link_takes() -> None:
    async with serving() as served:
        client = await served.opened()
        link = await client.sender(DEVICEBOUND)
        link.send(to(body=b"x" * 300_000).encode())
        client.flush()
        error = await client.detached(link)
        assert error is not None
        assert error.condition == "amqp:link:message-size-exceeded"
        client.close()


# ---- feedback ------------------------------------------------------------------------------


async def outcome(served: ServedHub, client: Client, ref: Ref, message_id: str) -> None:
    """A message that the device completes, so that its sender is told."""
    link = await client.sender(DEVICEBOUND)
    message = to(ref.device_id, message_id=message_id)
    message.application_properties = {"iothub-ack": "full"}
    assert isinstance(await client.send(link, message), Accepted)
    (delivery,) = await served.hub.commands.receive(ref, 1)
    await served.hub.commands.complete(delivery.lock_token)


async def test_feedback_is_a_batch_with_a_lock_token() -> None:
    async with serving(settings=QUICK) as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.receiver(FEEDBACK)
        await outcome(served, client, ref, "m1")
        delivery = await client.delivery(link)
        assert len(delivery.tag) == 16
        assert not delivery.settled
        message = decode_message(delivery.payload)
        (record,) = json.loads(message.body())
        assert (record["originalMessageId"], record["statusCode"]) == ("m1", "Success")
        assert message.properties.content_type == "application/vnd.microsoft.iothub.feedback.json"
        assert message.properties.user_id == b"localhost"
        assert type(message.message_annotations["iothub-enqueuedtime"]) is Timestamp
        link.settle([delivery], Accepted())
        client.flush()
        await until_none_is_left(served)
        client.close()


async def until_none_is_left(served: ServedHub) -> None:
    async with asyncio.timeout(10):
        while served.state.tables.feedback:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("state", [Released(), Modified(True)])
async def test_feedback_that_is_handed_back_comes_again(state: Any) -> None:
    async with serving(settings=QUICK) as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.receiver(FEEDBACK)
        await outcome(served, client, ref, "m1")
        first = await client.delivery(link)
        link.settle([first], state)
        client.flush()
        again = await client.delivery(link)
        assert again.tag != first.tag
        assert [r.delivery_count for r in served.state.tables.feedback.values()] == [1]
        client.close()


async def test_feedback_of_a_receiver_that_goes_is_free_at_once() -> None:
    async with serving(settings=QUICK) as served:
        ref = await device(served)
        client, other = await served.opened(), await served.opened()
        link = await client.receiver(FEEDBACK)
        await outcome(served, client, ref, "m1")
        await client.delivery(link)
        next_link = await other.receiver(FEEDBACK)
        client.close()
        await other.delivery(next_link)
        assert [r.delivery_count for r in served.state.tables.feedback.values()] == [0]
        other.close()


async def test_settled_feedback_is_gone_when_sent() -> None:
    async with serving(settings=QUICK) as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.receiver(FEEDBACK, snd_settle_mode=1)
        await outcome(served, client, ref, "m1")
        assert (await client.delivery(link)).settled
        await until_none_is_left(served)
        client.close()


async def test_draining_feedback_is_answered_with_and_without_credit() -> None:
    async with serving(settings=QUICK) as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.receiver(FEEDBACK, credit=1)
        await outcome(served, client, ref, "m1")
        await client.delivery(link)
        for credit in (0, 5):
            heard: list[Flow] = []
            link.on_flow = heard.append  # type: ignore[method-assign]
            link.flow(credit, drain=True)
            client.flush()
            async with asyncio.timeout(10):
                while not heard:
                    await asyncio.sleep(0.001)
            assert heard[-1].drain
            assert heard[-1].link_credit == 0
        client.close()


async def test_settling_in_two_steps() -> None:
    async with serving(settings=QUICK) as served:
        ref = await device(served)
        client = await served.opened()
        link = await client.receiver(FEEDBACK, rcv_settle_mode=1)
        await outcome(served, client, ref, "m1")
        delivery = await client.delivery(link)
        client.session.send(Disposition(RECEIVER, delivery.id, None, False, Accepted()))
        client.flush()
        await until_none_is_left(served)
        client.close()


# ---- elsewhere -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "hub.example.com"])
@pytest.mark.parametrize(
    "path", ["$management", "ConsumerGroups/$Default/Partitions/0", "consumergroups/x"]
)
async def test_the_hub_redirects_to_its_events(host: str, path: str) -> None:
    async with serving() as served:
        client = await served.opened("service", hostname=host)
        link, error = await client.refusal(RECEIVER, f"amqps://{host}/messages/events/{path}")
        assert error.condition == "amqp:link:redirect"
        info = error.info or {}
        assert (info["hostname"], info["network-host"]) == (host, host)
        assert info["port"] == 5671
        assert type(info["port"]) is Int
        assert info["address"] == f"amqps://{host}:5671/localhost/{path}"
        assert "com.microsoft:tracking-id" in info
        assert link.attach is not None
        assert link.attach.source is not None
        client.close()


@pytest.mark.parametrize(
    ("role", "address", "condition"),
    [
        (SENDER, "/nowhere", "amqp:not-found"),
        (SENDER, "", "amqp:not-found"),
        (RECEIVER, "x" * 3000, "amqp:not-found"),
        (RECEIVER, "/messages/devicebound", "amqp:not-allowed"),
        (SENDER, FEEDBACK, "amqp:not-allowed"),
        (RECEIVER, "/messages/serviceBound/filenotifications", "amqp:not-implemented"),
        (SENDER, "/devices/d1/messages/events", "amqp:not-implemented"),
        (RECEIVER, "localhost/devices/d1/modules/m/twin", "amqp:not-implemented"),
    ],
)
async def test_addresses_that_lead_nowhere(role: bool, address: str, condition: str) -> None:
    async with serving() as served:
        client = await served.opened()
        link, error = await client.refusal(role, address)
        assert error.condition == condition
        assert json.loads(error.description or "")["errorCode"] >= 400_000
        assert link.attach is not None
        assert link.attach.source is None
        assert link.attach.target is None
        client.close()


@pytest.mark.parametrize(
    ("role", "address"), [(SENDER, "/messages/devicebound"), (RECEIVER, FEEDBACK)]
)
async def test_back_end_links_need_the_right(role: bool, address: str) -> None:
    async with serving() as served:
        for policy in ("device", "registryReadWrite"):
            client = await served.opened(policy)
            _, error = await client.refusal(role, address)
            assert error.condition == "amqp:unauthorized-access"
            client.close()
