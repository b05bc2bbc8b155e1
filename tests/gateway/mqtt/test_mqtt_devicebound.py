"""Chapter 7: cloud-to-device messages."""

import time
from datetime import datetime

import pytest
import structlog.testing
from mqtt_dialogue import Bench, Client, Device, rest

from mooring.gateway.mqtt.devicebound import WINDOW
from mooring.hub.settings import HubSettings
from mooring.wire import topics
from mooring.wire.mqtt import Puback, Publish, Unsuback, Unsubscribe


async def listening(device: Device, qos: int = 1, **changes: object) -> Client:
    client = await device.connect(**changes)
    await client.subscribe(device.devicebound + "#", qos=qos)
    return client


async def depth(device: Device) -> int:
    await rest()
    return await device.bench.hub.commands.depth(device.ref)


async def test_a_message_as_sdks_want_it(device: Device) -> None:
    client = await listening(device)
    await device.send_command(
        b"body",
        message_id="m 1",
        correlation_id="c",
        to="/devices/d1/messages/deviceBound",
        content_type="text/plain",
        content_encoding="utf-8",
        ack="full",
        properties={"k": "v/w"},
    )
    message = await client.publish()
    assert message == Publish(
        b"devices/d1/messages/devicebound/%24.mid=m%201&%24.cid=c"
        b"&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound"
        b"&%24.ct=text%2Fplain&%24.ce=utf-8&k=v%2Fw&iothub-ack=full",
        b"body",
        1,
        1,
    )
    assert await depth(device) == 1
    client.send(Puback(1))
    assert await depth(device) == 0


async def test_an_expiry_that_the_sender_set(device: Device) -> None:
    client = await listening(device)
    at = int(time.time()) * 1000 + 60_000
    await device.send_command(expires=at)
    bag = (await client.publish()).topic.decode().rpartition("/")[2]
    system, _ = topics.parse_bag(bag)
    expiry = datetime.fromisoformat(system["absolute-expiry-time"])
    assert expiry.timestamp() * 1000 == at


async def test_the_bag_is_never_empty(device: Device) -> None:
    client = await listening(device)
    await device.send_command()
    assert b"/devicebound/%24.to=" in (await client.publish()).topic


async def test_qos_0_completes_on_sending(device: Device) -> None:
    client = await listening(device, qos=0)
    for number in range(40):
        await device.send_command(b"%d" % number)
    for number in range(40):
        message = await client.publish()
        assert (message.payload, message.qos) == (b"%d" % number, 0)
    assert await depth(device) == 0


async def test_what_was_queued_comes_after_subscribing(device: Device) -> None:
    await device.send_command(b"1")
    await device.send_command(b"2")
    client = await device.connect()
    await client.silence()
    await client.subscribe(device.devicebound + "#")
    assert [(await client.publish()).payload for _ in range(2)] == [b"1", b"2"]


async def test_no_more_than_the_window_at_a_time(device: Device) -> None:
    client = await listening(device)
    for number in range(WINDOW + 3):
        await device.send_command(b"%d" % number)
    sent = [await client.publish() for _ in range(WINDOW)]
    assert [message.payload for message in sent] == [b"%d" % n for n in range(WINDOW)]
    assert len({message.packet_id for message in sent}) == WINDOW
    await client.silence()
    for message in sent[:2]:
        client.send(Puback(message.packet_id))
    assert [(await client.publish()).payload for _ in range(2)] == [b"16", b"17"]
    await client.silence()


async def test_a_puback_for_nothing(device: Device) -> None:
    client = await listening(device)
    client.send(Puback(9))
    await client.silence()


async def test_unacknowledged_come_again_with_dup_in_a_kept_session(device: Device) -> None:
    client = await listening(device, clean_session=False)
    for body in (b"1", b"2", b"3"):
        await device.send_command(body)
    first = [await client.publish() for _ in range(3)]
    client.send(Puback(first[1].packet_id))
    await rest()
    await client.vanish()
    client = await device.connect(clean_session=False, present=True)
    again = [await client.publish() for _ in range(2)]
    assert [(m.payload, m.packet_id, m.dup) for m in again] == [
        (b"1", first[0].packet_id, True),
        (b"3", first[2].packet_id, True),
    ]
    await device.send_command(b"4")
    fresh = await client.publish()
    assert not fresh.dup
    assert fresh.packet_id not in {message.packet_id for message in again}
    for message in (*again, fresh):
        client.send(Puback(message.packet_id))
    assert await depth(device) == 0


async def test_what_is_never_acknowledged_is_not_remembered_for_ever(device: Device) -> None:
    client = await listening(device, clean_session=False)
    for _ in range(12):
        for _ in range(WINDOW):
            await device.send_command()
        last = [await client.publish() for _ in range(WINDOW)][-1]
        await client.vanish()
        await device.bench.hub.commands.purge(device.ref)
        client = await device.connect(clean_session=False, present=True)
    remembered = device.bench.endpoint._unacknowledged
    await client.vanish()
    (packet_ids,) = [list(each.values()) for each in remembered.values()]
    assert len(packet_ids) == 8 * WINDOW
    assert packet_ids[-1] == last.packet_id


async def test_a_session_that_ran_out_leaves_no_packet_ids_to_the_next() -> None:
    now = time.time()
    bench = await Bench.open(now=lambda: now, session_expiry=3600)
    device = await bench.device()
    client = await listening(device, clean_session=False)
    await device.send_command(b"1", expires=int(now * 1000) + 86_400_000)
    await client.publish()
    await client.vanish()
    now += 3700
    client = await listening(device, clean_session=False)
    assert not (await client.publish()).dup
    await bench.hub.close()


async def test_a_clean_session_gets_them_afresh(device: Device) -> None:
    client = await listening(device)
    await device.send_command(b"1")
    await client.publish()
    await client.vanish()
    client = await listening(device)
    message = await client.publish()
    assert (message.payload, message.dup) == (b"1", False)


async def test_a_takeover_gets_them_at_once(device: Device) -> None:
    first = await listening(device, clean_session=False)
    await device.send_command(b"1")
    await first.publish()
    second = await device.connect(clean_session=False, present=True)
    message = await second.publish()
    assert (message.payload, message.dup) == (b"1", True)
    second.send(Puback(message.packet_id))
    assert await depth(device) == 0


async def test_unsubscribing_leaves_them_in_the_queue(device: Device) -> None:
    client = await listening(device)
    client.send(Unsubscribe(1, (device.devicebound + "#",)))
    await client.expect(Unsuback(1))
    await device.send_command(b"1")
    await client.silence()
    assert await depth(device) == 1


async def test_a_client_that_does_not_read_is_sent_nothing(device: Device) -> None:
    client = await listening(device)
    client.connection.pause_writing()
    await device.send_command(b"1")
    await client.silence()
    client.connection.resume_writing()
    assert (await client.publish()).payload == b"1"


async def test_a_puback_after_the_lock_was_lost_still_completes() -> None:
    bench = await Bench.open(settings=HubSettings(c2d_lock=60))
    now = 0.0
    bench.hub.commands._locks._clock = lambda: now
    device = await bench.device()
    client = await listening(device)
    await device.send_command(b"1")
    message = await client.publish()
    now += 61
    client.send(Puback(message.packet_id))
    assert await depth(device) == 0
    await client.silence()
    await bench.hub.close()


async def test_it_is_not_sent_again_while_the_client_takes_its_time() -> None:
    bench = await Bench.open()
    now = 0.0
    bench.hub.commands._locks._clock = lambda: now
    device = await bench.device()
    client = await listening(device)
    await device.send_command(b"1")
    message = await client.publish()
    now += 61
    await bench.hub.commands.sweep()
    await client.silence()
    client.send(Puback(message.packet_id))
    assert await depth(device) == 0
    await bench.hub.close()


async def test_a_purged_message_s_puback_is_harmless(bench: Bench, device: Device) -> None:
    client = await listening(device)
    await device.send_command(b"1")
    message = await client.publish()
    assert await bench.hub.commands.purge(device.ref) == 1
    client.send(Puback(message.packet_id))
    await client.silence()
    await device.send_command(b"2")
    assert (await client.publish()).payload == b"2"


async def test_properties_that_fit_no_topic_are_dead_lettered(device: Device) -> None:
    client = await listening(device)
    with structlog.testing.capture_logs() as logs:
        await device.send_command(b"1", properties={"k": "\u20ac" * 12_000})
        await client.silence()
    assert any(each["event"] == "command_rejected" for each in logs)
    assert await depth(device) == 0


async def test_a_state_that_fails_for_a_while(
    bench: Bench, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.gateway.mqtt.devicebound._RETRY", 0.01)
    client = await listening(device)
    await device.send_command(b"1")
    message = await client.publish()
    bench.state.failing = True
    client.send(Puback(message.packet_id))
    await client.silence()
    bench.state.failing = False
    deadline = time.monotonic() + 5
    while await depth(device):
        assert time.monotonic() < deadline
    await client.silence()


async def test_a_module_s_queue(bench: Bench) -> None:
    module = await bench.device("d1", "m1")
    client = await module.connect()
    await client.subscribe(f"{module.base}/#")
    await module.send_command(b"1")
    message = await client.publish()
    assert message.topic.startswith(b"devices/d1/modules/m1/messages/devicebound/%24.to=")
    client.send(Puback(message.packet_id))
    assert await depth(module) == 0
