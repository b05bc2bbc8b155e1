"""Chapter 6: direct methods."""

import asyncio

import pytest
from mqtt_dialogue import Bench, Client, Device, rest

from mooring.errors import DeviceConnectionClosedRemotely, DeviceNotOnline, GenericBadGateway
from mooring.hub.methods import Answer
from mooring.wire.mqtt import Puback, Publish, Unsuback, Unsubscribe

METHODS = "$iothub/methods/POST/#"


async def listening(device: Device, name: str = METHODS) -> Client:
    client = await device.connect()
    await client.subscribe(name)
    return client


def invoke(device: Device, name: str = "reboot", payload: bytes = b"{}") -> asyncio.Task[Answer]:
    methods = device.bench.hub.methods
    return asyncio.ensure_future(methods.invoke(device.ref, name, payload))


def rid_of(request: Publish, name: str = "reboot") -> str:
    head, _, rid = request.topic.decode().partition("?$rid=")
    assert head == f"$iothub/methods/POST/{name}/"
    return rid


async def test_a_call_and_its_answer(device: Device) -> None:
    client = await listening(device)
    call = invoke(device, payload=b'{"in":1}')
    request = await client.publish()
    assert (request.payload, request.qos) == (b'{"in":1}', 0)
    topic = f"$iothub/methods/res/200/?$rid={rid_of(request)}"
    client.send(Publish(topic.encode(), b'{"out":2}', 1, 9))
    await client.expect(Puback(9))
    assert await call == (200, b'{"out":2}')


@pytest.mark.parametrize(
    ("status", "payload", "answer"),
    [("404", b"", (404, b"null")), ("-1", b"[1]", (-1, b"[1]")), ("0", b'"x"', (0, b'"x"'))],
)
async def test_statuses_and_payloads(
    device: Device, status: str, payload: bytes, answer: tuple[int, bytes]
) -> None:
    client = await listening(device)
    call = invoke(device)
    rid = rid_of(await client.publish())
    client.send(Publish(f"$iothub/methods/res/{status}/?$rid={rid}".encode(), payload))
    assert await call == answer


async def test_an_answer_that_is_no_json(device: Device) -> None:
    client = await listening(device)
    call = invoke(device)
    rid = rid_of(await client.publish())
    client.send(Publish(f"$iothub/methods/res/200/?$rid={rid}".encode(), b"{"))
    with pytest.raises(GenericBadGateway):
        await call
    await client.silence()


async def test_an_answer_nobody_waits_for(device: Device) -> None:
    client = await listening(device)
    client.send(Publish(b"$iothub/methods/res/200/?$rid=nobody", b"{}", 1, 1))
    await client.expect(Puback(1))
    await client.silence()


async def test_nobody_else_can_answer(bench: Bench, device: Device) -> None:
    client = await listening(device)
    other = await (await bench.device("d2")).connect()
    call = invoke(device)
    rid = rid_of(await client.publish())
    other.send(Publish(f"$iothub/methods/res/500/?$rid={rid}".encode(), b"{}"))
    await other.silence()
    client.send(Publish(f"$iothub/methods/res/200/?$rid={rid}".encode(), b"{}"))
    assert (await call).status == 200


async def test_online_means_subscribed(device: Device) -> None:
    client = await device.connect()
    with pytest.raises(DeviceNotOnline):
        await invoke(device)
    await client.subscribe(METHODS)
    call = invoke(device)
    await client.publish()
    client.send(Unsubscribe(1, (METHODS,)))
    await client.expect(Unsuback(1))
    with pytest.raises(DeviceConnectionClosedRemotely):
        await call
    with pytest.raises(DeviceNotOnline):
        await invoke(device)


async def test_a_connection_that_goes_fails_its_calls(device: Device) -> None:
    client = await listening(device)
    call = invoke(device)
    await client.publish()
    await client.vanish()
    with pytest.raises(DeviceConnectionClosedRemotely):
        await call


async def test_a_takeover_keeps_methods_going(device: Device) -> None:
    await listening(device)
    second = await listening(device)
    call = invoke(device)
    rid = rid_of(await second.publish())
    second.send(Publish(f"$iothub/methods/res/200/?$rid={rid}".encode(), b""))
    assert (await call).status == 200


async def test_a_subscription_to_one_method(device: Device) -> None:
    client = await listening(device, "$iothub/methods/POST/reboot/#")
    with pytest.raises(DeviceNotOnline):
        await invoke(device, "explode")
    call = invoke(device)
    rid = rid_of(await client.publish())
    client.send(Publish(f"$iothub/methods/res/200/?$rid={rid}".encode(), b""))
    await call


async def test_a_component_s_method_and_a_module(bench: Bench) -> None:
    module = await bench.device("d1", "m1")
    client = await listening(module)
    call = invoke(module, "thermostat1*getMaxMin")
    rid = rid_of(await client.publish(), "thermostat1*getMaxMin")
    client.send(Publish(f"$iothub/methods/res/200/?$rid={rid}".encode(), b""))
    await call
    await rest()
