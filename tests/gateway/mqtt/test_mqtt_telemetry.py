"""Chapter 3: telemetry, from topic and payload to the log, and its acknowledgement."""

import pytest
import structlog.testing
from mqtt_dialogue import Bench, Client, Device, rest

from mooring.errors import Unavailable
from mooring.gateway.mqtt.acks import Acks
from mooring.gateway.mqtt.session import MAX_UNACKNOWLEDGED, MAX_UNACKNOWLEDGED_BYTES
from mooring.wire.mqtt import Disconnect, Puback, Pubcomp, Publish, Pubrel, encode_puback


async def ended(client: Client, *packets: object) -> str:
    """The reason for which these packets end the session."""
    with structlog.testing.capture_logs() as logs:
        client.send(*packets)  # type: ignore[arg-type]
        await client.closed()
    (entry,) = [each for each in logs if each["event"] == "mqtt_session_ended"]
    assert entry["tracking_id"]
    return str(entry["reason"])


async def test_a_message_with_everything(bench: Bench, device: Device) -> None:
    client = await device.connect()
    bag = (
        "%24.mid=m%201&%24.cid=c&%24.uid=u&%24.to=t&%24.ct=application%2Fjson&%24.ce=utf-8"
        "&%24.exp=2030-01-01T00%3A00%3A00Z&%24.ctime=2020-01-01&%24.ifid=i&%24.sub=comp"
        "&temperature=1%2B1&empty=&none"
    )
    client.send(Publish((device.events + bag).encode(), b"{}", 1, 7))
    await client.expect(Puback(7))
    (message,) = await bench.messages()
    assert message.body() == b"{}"
    assert message.application_properties == {"temperature": "1+1", "empty": "", "none": None}
    properties = message.properties
    assert (properties.message_id, properties.correlation_id) == ("m 1", "c")
    assert (properties.user_id, properties.to) == (b"u", "t")
    assert (properties.content_type, properties.content_encoding) == ("application/json", "utf-8")
    assert properties.absolute_expiry_time == 1893456000000
    annotations = message.message_annotations
    assert annotations["iothub-connection-device-id"] == "d1"
    assert annotations["dt-subject"] == "comp"
    assert annotations["iothub-interface-id"] == "i"
    assert '"scope":"device"' in annotations["iothub-connection-auth-method"]


async def test_the_same_topic_again_and_others_between(bench: Bench, device: Device) -> None:
    client = await device.connect()
    for number in range(1, 60):
        topic = f"{device.events}n={number % 12}"
        client.send(Publish(topic.encode(), b"%d" % number, 1, number))
        await client.expect(Puback(number))
    messages = await bench.messages()
    assert [message.body() for message in messages] == [b"%d" % n for n in range(1, 60)]
    assert [message.application_properties["n"] for message in messages] == [
        str(number % 12) for number in range(1, 60)
    ]


async def test_qos_0_is_not_acknowledged(bench: Bench, device: Device) -> None:
    client = await device.connect()
    topic = device.events.encode()
    client.send(Publish(topic, b"1"), Publish(topic, b"2"), Publish(topic, b"3", 1, 5))
    await client.expect(Puback(5))
    client.send(Publish(topic, b"4"))
    await client.silence()
    assert [message.body() for message in await bench.messages()] == [b"1", b"2", b"3", b"4"]


async def test_retain_and_dup_become_properties(bench: Bench, device: Device) -> None:
    client = await device.connect()
    topic = (device.events + "a=1").encode()
    client.send(
        Publish(topic, b"", 1, 1),
        Publish(topic, b"", 1, 2, retain=True),
        Publish(topic, b"", 1, 3, dup=True),
        Publish(topic, b"", 1, 4),
        Publish(topic, b"", retain=True),
    )
    await client.expect(*map(Puback, range(1, 5)))
    assert [message.application_properties for message in await bench.messages()] == [
        {"a": "1"},
        {"a": "1", "mqtt-retain": "true"},
        {"a": "1", "mqtt-dup": "true"},
        {"a": "1"},
        {"a": "1", "mqtt-retain": "true"},
    ]


async def test_a_module_s_output(bench: Bench) -> None:
    module = await bench.device("d1", "m1")
    client = await module.connect()
    client.send(Publish((module.events + "%24.on=out").encode(), b"", 1, 1))
    await client.expect(Puback(1))
    (message,) = await bench.messages()
    assert message.message_annotations["iothub-outputname"] == "out"
    assert message.message_annotations["iothub-connection-module-id"] == "m1"


async def test_no_puback_before_the_commit_and_many_in_one_write(device: Device) -> None:
    events = device.bench.events
    events._manual = True
    client = await device.connect()
    topic = device.events.encode()
    client.send(*(Publish(topic, b"x", 1, number) for number in range(1, 11)))
    await client.silence()
    writes = client.pipe.writes
    events.commit()
    await client.expect(*map(Puback, range(1, 11)))
    assert client.pipe.writes == writes + 1


async def test_pubacks_keep_the_order_of_the_publishes(bench: Bench, device: Device) -> None:
    bench.events._manual = True
    client = await device.connect()
    telemetry = device.events.encode()
    client.send(
        Publish(telemetry, b"1", 1, 1),
        Publish(b"$iothub/twin/PATCH/properties/reported/?$rid=1", b"{}", 1, 2),
        Publish(telemetry, b"2", 1, 3),
        Publish(b"$iothub/methods/res/200/?$rid=1", b"{}", 1, 4),
        Publish(telemetry, b"3", 1, 5),
    )
    await client.silence()  # the patch and the response are done, but not the first message
    bench.events.commit()
    await client.expect(*map(Puback, range(1, 6)))


async def test_a_slow_request_holds_the_pubacks_behind_it(bench: Bench, device: Device) -> None:
    client = await device.connect()
    import asyncio

    bench.state.gate = asyncio.Event()
    patch = b"$iothub/twin/PATCH/properties/reported/?$rid=1"
    client.send(
        Publish(device.events.encode(), b"1", 1, 1),
        Publish(patch, b"{}", 1, 2),
        Publish(device.events.encode(), b"2", 1, 3),
    )
    await client.expect(Puback(1))
    await client.silence()
    bench.state.gate.set()
    await client.expect(Puback(2), Puback(3))


async def test_what_could_not_be_stored_is_not_acknowledged(bench: Bench, device: Device) -> None:
    client = await device.connect()
    bench.events.failure = Unavailable("the disk is full")
    reason = await ended(client, Publish(device.events.encode(), b"1", 1, 1))
    assert "disk is full" in reason


async def test_lost_qos_0_is_logged_and_the_session_stays(bench: Bench, device: Device) -> None:
    client = await device.connect()
    bench.events.failure = Unavailable("the disk is full")
    with structlog.testing.capture_logs() as logs:
        client.send(Publish(device.events.encode(), b"1"))
        await client.silence()
    assert [each["event"] for each in logs] == ["unconfirmed_telemetry_lost"]


async def test_a_packet_id_may_come_again_once_acknowledged(device: Device) -> None:
    client = await device.connect()
    for _ in range(5):
        client.send(Publish(device.events.encode(), b"1", 1, 1))
        await client.expect(Puback(1))


@pytest.mark.parametrize(
    "topic",
    [
        "devices/d2/messages/events/",
        "devices/d1/modules/m1/messages/events/",
        "devices/d1/messages/devicebound/",
        "home/kitchen",
        "$iothub/twin/GET/",
        "devices/d1/messages/events/a=%ff",
    ],
)
async def test_an_unsupported_topic_closes(bench: Bench, device: Device, topic: str) -> None:
    client = await device.connect()
    assert topic in await ended(client, Publish(topic.encode(), b"", 1, 1))
    assert await bench.messages() == []


async def test_qos_2_closes(device: Device) -> None:
    client = await device.connect()
    assert "QoS 2" in await ended(client, Publish(device.events.encode(), b"", 2, 1))


@pytest.mark.parametrize("packet", [Pubrel(1), Pubcomp(1), b"\x20\x02\x00\x00", b"\xd0\x00"])
async def test_what_only_a_server_sends_closes(device: Device, packet: object) -> None:
    client = await device.connect()
    assert "may not send" in await ended(client, packet)


async def test_the_largest_message_and_one_more(bench: Bench, device: Device) -> None:
    client = await device.connect()
    topic = (device.events + "ab=cd").encode()
    client.send(Publish(topic, bytes(262_144 - 4), 1, 1))
    await client.expect(Puback(1))
    reason = await ended(client, Publish(topic, bytes(262_144 - 3), 1, 2))
    assert "262144" in reason
    assert len(await bench.messages()) == 1


async def test_an_oversize_packet_closes_by_its_header(device: Device) -> None:
    client = await device.connect()
    assert "longer" in await ended(client, b"\x32\xff\xff\xff\x7f")


async def test_a_congested_log_stops_reading_until_it_is_drained(device: Device) -> None:
    events = device.bench.events
    events._manual = events.congested = True
    client = await device.connect()
    topic = device.events.encode()
    client.send(Publish(topic, b"1", 1, 1), Publish(topic, b"2", 1, 2))
    assert not client.pipe.reading
    assert len(events._drained) == 1
    client.send(Publish(topic, b"3", 1, 3))
    await client.silence()
    events.congested = False
    events.commit()
    await client.expect(Puback(1), Puback(2))
    assert client.pipe.reading
    await client.silence()
    events.commit()
    await client.expect(Puback(3))


async def test_too_many_unacknowledged_stop_reading(device: Device) -> None:
    events = device.bench.events
    events._manual = True
    client = await device.connect()
    topic = device.events.encode()
    for number in range(1, MAX_UNACKNOWLEDGED + 1):
        assert client.pipe.reading
        client.send(Publish(topic, b"", 1, number))
    assert not client.pipe.reading
    events.commit()
    await client.expect(*map(Puback, range(1, MAX_UNACKNOWLEDGED + 1)))
    assert client.pipe.reading


async def test_too_many_unacknowledged_bytes_stop_reading(device: Device) -> None:
    events = device.bench.events
    events._manual = True
    client = await device.connect()
    topic = device.events.encode()
    size = 200_000
    sent = 0
    while client.pipe.reading:
        sent += 1
        client.send(Publish(topic, bytes(size), 1, sent))
        assert sent * size < 2 * MAX_UNACKNOWLEDGED_BYTES
    assert sent * size >= MAX_UNACKNOWLEDGED_BYTES
    events.commit()
    await client.expect(*map(Puback, range(1, sent + 1)))
    assert client.pipe.reading


async def test_a_client_that_does_not_read_is_not_read(device: Device) -> None:
    client = await device.connect()
    client.connection.pause_writing()
    assert not client.pipe.reading
    client.connection.resume_writing()
    assert client.pipe.reading


async def test_holds_add_up(device: Device) -> None:
    events = device.bench.events
    events._manual = events.congested = True
    client = await device.connect()
    client.send(Publish(device.events.encode(), b"1", 1, 1))
    client.connection.pause_writing()
    events.congested = False
    events.commit()
    assert not client.pipe.reading
    client.connection.resume_writing()
    assert client.pipe.reading


async def test_a_release_after_the_end_is_harmless(device: Device) -> None:
    events = device.bench.events
    events._manual = events.congested = True
    client = await device.connect()
    client.send(Publish(device.events.encode(), b"1", 1, 1))
    await client.vanish()
    events.commit()
    await rest()


async def test_activity_is_noted(bench: Bench, device: Device) -> None:
    client = await device.connect()
    session = client.connection.session
    assert session is not None
    session._touched = -1e9
    before = (await bench.hub.presence.of(device.ref)).active
    client.send(Publish(device.events.encode(), b"1", 1, 1))
    await client.expect(Puback(1))
    assert (await bench.hub.presence.of(device.ref)).active >= before
    assert session._touched > 0
    client.send(Disconnect())
    await client.closed()


def test_acks_in_any_order_of_finishing() -> None:
    acks = Acks()
    positions = [acks.expect(number) for number in (7, 8, 9, 10)]
    assert acks.settle([positions[2]]) == b""
    assert acks.settle([positions[0]]) == encode_puback(7)
    assert acks.settle([positions[1], positions[3]]) == b"".join(map(encode_puback, (8, 9, 10)))
    assert len(acks) == 0
    positions = [acks.expect(number) for number in (1, 2, 3)]
    assert acks.settle(positions[:2]) == encode_puback(1) + encode_puback(2)
    assert acks.settle(positions[2:]) == encode_puback(3)
