"""Chapter 5: the twin as a device sees it."""

import asyncio
import json

import pytest
from mqtt_dialogue import Bench, Client, Device, rest

from mooring.gateway.mqtt.requests import LIMIT
from mooring.wire.mqtt import Puback, Publish, Suback, Subscribe

RESPONSES = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"
REPORTED = "$iothub/twin/PATCH/properties/reported/?$rid="
GET = "$iothub/twin/GET/?$rid="


def get(rid: str, qos: int = 0, packet_id: int = 0) -> Publish:
    return Publish((GET + rid).encode(), b" ", qos, packet_id)


def patch(rid: str, body: object) -> Publish:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Publish((REPORTED + rid).encode(), data)


async def listening(device: Device, *filters: str) -> Client:
    client = await device.connect()
    await client.subscribe(*filters)
    return client


async def test_get(bench: Bench, device: Device) -> None:
    await bench.hub.twins.patch(device.ref, {"tags": {"t": 1}, "properties": {"desired": {"a": 1}}})
    client = await listening(device, RESPONSES)
    client.send(get("guid-1"))
    answer = await client.publish()
    assert answer.topic == b"$iothub/twin/res/200/?$rid=guid-1"
    assert (answer.qos, answer.retain) == (0, False)
    assert json.loads(answer.payload) == {
        "desired": {"a": 1, "$version": 2},
        "reported": {"$version": 1},
    }


async def test_python_asks_at_qos_1(device: Device) -> None:
    client = await listening(device, RESPONSES)
    client.send(get("1", 1, 44))
    await client.expect(Puback(44))
    assert (await client.publish()).topic == b"$iothub/twin/res/200/?$rid=1"


async def test_patch_reported(bench: Bench, device: Device) -> None:
    client = await listening(device, RESPONSES)
    client.send(patch("a", {"x": {"y": 1}}), patch("b", {"x": {"y": None, "z": 2}}))
    await client.expect(
        Publish(b"$iothub/twin/res/204/?$rid=a&$version=2", b""),
        Publish(b"$iothub/twin/res/204/?$rid=b&$version=3", b""),
    )
    assert (await bench.hub.twins.get(device.ref)).reported == {"x": {"z": 2}}


async def test_patch_on_top_of_a_version(device: Device) -> None:
    client = await listening(device, RESPONSES)
    client.send(patch("a&$version=1", {"x": 1}), patch("b&$version=1", {"x": 2}))
    assert (await client.publish()).topic == b"$iothub/twin/res/204/?$rid=a&$version=2"
    answer = await client.publish()
    assert answer.topic == b"$iothub/twin/res/412/?$rid=b"
    assert json.loads(answer.payload)["errorCode"] == 412001


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"", b"1", b'{"a":NaN}', b"\xff", b'{"a":"' + b"x" * 5000 + b'"}']
)
async def test_a_bad_patch_is_told_so_and_the_session_stays(device: Device, body: bytes) -> None:
    client = await listening(device, RESPONSES)
    client.send(Publish((REPORTED + "7").encode(), body, 1, 3))
    await client.expect(Puback(3))
    answer = await client.publish()
    assert answer.topic == b"$iothub/twin/res/400/?$rid=7"
    error = json.loads(answer.payload)
    assert error["errorCode"] == 400004
    assert "G:0-TimeStamp" in error["trackingId"]
    assert error["message"]
    assert error["timestampUtc"].endswith("Z")
    client.send(get("8"))
    assert (await client.publish()).topic == b"$iothub/twin/res/200/?$rid=8"


async def test_trouble_of_the_server_is_told_too(bench: Bench, device: Device) -> None:
    client = await listening(device, RESPONSES)
    bench.state.failing = True
    client.send(patch("1", {"x": 1}))
    answer = await client.publish()
    assert answer.topic == b"$iothub/twin/res/503/?$rid=1"
    assert json.loads(answer.payload)["errorCode"] == 503001


async def test_without_a_subscription_nothing_is_answered_but_it_is_done(
    bench: Bench, device: Device
) -> None:
    client = await device.connect()
    client.send(patch("1", {"x": 1}), get("2"))
    await client.silence()
    assert (await bench.hub.twins.get(device.ref)).reported == {"x": 1}


async def test_subscribe_and_ask_in_one_breath(device: Device) -> None:
    client = await device.connect()
    client.send(Subscribe(1, ((RESPONSES, 0),)), get("1"))
    await client.expect(Suback(1, (0,)))
    assert (await client.publish()).topic == b"$iothub/twin/res/200/?$rid=1"


async def test_desired_properties_come_while_subscribed(bench: Bench, device: Device) -> None:
    client = await listening(device, DESIRED)
    twins = bench.hub.twins
    await twins.patch(device.ref, {"properties": {"desired": {"a": 1, "b": None}}})
    notice = await client.publish()
    assert notice.topic == b"$iothub/twin/PATCH/properties/desired/?$version=2"
    assert notice.qos == 0
    assert json.loads(notice.payload) == {"a": 1, "b": None, "$version": 2}
    await twins.patch(device.ref, {"tags": {"t": 1}})
    await client.silence()
    await client.leave()
    await twins.patch(device.ref, {"properties": {"desired": {"a": 2}}})
    client = await device.connect()
    await client.silence()


async def test_unsubscribing_stops_them(bench: Bench, device: Device) -> None:
    client = await listening(device, DESIRED)
    client.send(b"\xa2" + bytes((4 + len(DESIRED),)) + b"\0\1\0" + bytes((len(DESIRED),))
                + DESIRED.encode())  # fmt: skip
    await client.packet()
    await bench.hub.twins.patch(device.ref, {"properties": {"desired": {"a": 1}}})
    await client.silence()


async def test_a_module_s_twin(bench: Bench) -> None:
    module = await bench.device("d1", "m1")
    client = await listening(module, RESPONSES, DESIRED)
    client.send(patch("1", {"x": 1}))
    assert (await client.publish()).topic == b"$iothub/twin/res/204/?$rid=1&$version=2"
    await bench.hub.twins.patch(module.ref, {"properties": {"desired": {"a": 1}}})
    assert json.loads((await client.publish()).payload) == {"a": 1, "$version": 2}


async def test_many_requests_stop_reading_and_all_are_answered(
    bench: Bench, device: Device
) -> None:
    client = await listening(device, RESPONSES)
    bench.state.gate = asyncio.Event()
    for number in range(LIMIT):
        assert client.pipe.reading
        client.send(get(str(number)))
    assert not client.pipe.reading
    client.send(get("last"))
    await rest()
    bench.state.gate.set()
    for number in [*map(str, range(LIMIT)), "last"]:
        assert (await client.publish()).topic.endswith(f"=${number}".replace("$", "").encode())
    assert client.pipe.reading


@pytest.mark.parametrize(
    "large",
    [patch("1", b'{"a":"' + b" " * 100_000 + b'"}'), Subscribe(1, ((RESPONSES, 0),) * 1000)],
    ids=["patch", "subscribe"],
)
async def test_a_large_request_counts_for_many(
    bench: Bench, device: Device, large: Publish | Subscribe
) -> None:
    client = await listening(device, DESIRED)
    bench.state.gate = asyncio.Event()
    client.send(patch("0", {"a": 1}))
    await rest()
    assert client.pipe.reading
    client.send(large)
    await rest()
    assert not client.pipe.reading
    bench.state.gate.set()
    await client.until(client.pipe.is_reading)


async def test_a_request_of_a_client_that_went(bench: Bench, device: Device) -> None:
    client = await listening(device, RESPONSES)
    bench.state.gate = asyncio.Event()
    client.send(patch("1", {"x": 1}), patch("2", {"x": 2}))
    await rest()
    await client.vanish()
    bench.state.gate.set()
    await rest()
    assert (await bench.hub.twins.get(device.ref)).reported == {"x": 1}
