"""Chapter 2: one session an identity, and what is published for a client that disappears."""

import pytest
import structlog.testing
from mqtt_dialogue import Bench, Client, Device, rest

from mooring.errors import IotHubUnauthorized
from mooring.wire.mqtt import Connack, Connect, Pingreq, Pingresp, Puback, Publish


async def test_a_new_connection_takes_over(bench: Bench, device: Device) -> None:
    first = await device.connect()
    with structlog.testing.capture_logs() as logs:
        second = await device.connect()
        await first.closed()
    (ended,) = [each for each in logs if each["event"] == "mqtt_session_ended"]
    assert ended["error"] == "ConnectionForcefullyClosedOnNewConnection"
    second.send(Pingreq())
    await second.expect(Pingresp())
    session = bench.hub.sessions.of(device.ref)
    assert session is second.connection.session
    await second.leave()
    assert bench.hub.sessions.of(device.ref) is None


async def test_module_and_device_are_two(bench: Bench, device: Device) -> None:
    module = await bench.device("d1", "m1")
    first, second = await device.connect(), await module.connect()
    await first.silence()
    await second.silence()


async def test_nobody_is_taken_over_by_a_wrong_key(bench: Bench, device: Device) -> None:
    first = await device.connect()
    other = await bench.device("d2")
    second = Client(bench.endpoint)
    second.send(device.hello(password=device.token(key=other.identity.primary_key)))
    await second.expect(Connack(5))
    await first.silence()


async def test_telemetry_of_the_old_connection_is_not_acknowledged_on_it(device: Device) -> None:
    device.bench.events._manual = True
    first = await device.connect()
    first.send(Publish(device.events.encode(), b"1", 1, 1))
    second = await device.connect()
    await first.closed()
    device.bench.events.commit()
    await second.silence()
    assert [message.body() for message in await device.bench.messages()] == [b"1"]


def with_will(device: Device, topic: str, **fields: object) -> Connect:
    will = Publish(topic.encode(), b"gone", **fields)  # type: ignore[arg-type]
    return device.hello(will=will)


async def test_a_client_that_vanishes_leaves_its_will(bench: Bench, device: Device) -> None:
    client = Client(bench.endpoint)
    client.send(with_will(device, device.events + "a=1&%24.ct=text%2Fplain", qos=1, retain=True))
    await client.expect(Connack(0))
    await client.vanish()
    (message,) = await bench.messages()
    assert message.body() == b"gone"
    assert message.application_properties == {
        "a": "1",
        "iothub-MessageType": "Will",
        "mqtt-retain": "true",
    }
    assert message.properties.content_type == "text/plain"
    assert message.message_annotations["iothub-connection-device-id"] == "d1"


async def test_takeover_silence_and_broken_rules_publish_it_too(
    bench: Bench, device: Device
) -> None:
    for end in ("takeover", "silence", "malformed", "eof", "revoked"):
        before = len(await bench.messages())
        client = Client(bench.endpoint)
        client.send(with_will(device, device.events))
        await client.expect(Connack(0))
        session = client.connection.session
        assert session is not None
        if end == "takeover":
            await device.connect()
        elif end == "silence":
            client.connection.patience = 0
            client.connection._look()
        elif end == "malformed":
            client.send(b"\xff\xff")
        elif end == "eof":
            client.connection.eof_received()
            client.pipe.close()
        else:
            session.end(IotHubUnauthorized("no longer"))
            session.end(IotHubUnauthorized("no longer"))
        await client.closed()
        assert len(await bench.messages()) == before + 1, end


async def test_a_disconnect_discards_it(bench: Bench, device: Device) -> None:
    client = Client(bench.endpoint)
    client.send(with_will(device, device.events))
    await client.expect(Connack(0))
    await client.leave()
    assert await bench.messages() == []


async def test_a_shutdown_publishes_no_wills(bench: Bench, device: Device) -> None:
    client = Client(bench.endpoint)
    client.send(with_will(device, device.events))
    await client.expect(Connack(0))
    await bench.hub.close()
    await client.closed()
    assert await bench.messages() == []


@pytest.mark.parametrize(
    "topic", ["devices/d2/messages/events/", "elsewhere", "$iothub/twin/GET/?$rid=1"]
)
async def test_a_will_for_another_topic_is_left_out_and_logged(
    bench: Bench, device: Device, topic: str
) -> None:
    client = Client(bench.endpoint)
    with structlog.testing.capture_logs() as logs:
        client.send(with_will(device, topic))
        await client.expect(Connack(0))
    assert any(each["event"] == "mqtt_will_ignored" for each in logs)
    await client.vanish()
    assert await bench.messages() == []


async def test_a_module_s_will(bench: Bench) -> None:
    module = await bench.device("d1", "m1")
    client = Client(bench.endpoint)
    client.send(with_will(module, module.events))
    await client.expect(Connack(0))
    await client.vanish()
    (message,) = await bench.messages()
    assert message.message_annotations["iothub-connection-module-id"] == "m1"


async def test_what_is_sent_after_a_disconnect_counts_for_nothing(
    bench: Bench, device: Device
) -> None:
    client = await device.connect()
    topic = device.events.encode()
    client.send(Publish(topic, b"1", 1, 1), b"\xe0\x00", Publish(topic, b"2", 1, 2))
    await client.closed()
    await rest()
    assert [message.body() for message in await bench.messages()] == [b"1"]


async def test_a_puback_that_the_client_may_still_read(bench: Bench, device: Device) -> None:
    client = await device.connect()
    client.send(Publish(device.events.encode(), b"1", 1, 1))
    await client.expect(Puback(1))
    await client.leave()
