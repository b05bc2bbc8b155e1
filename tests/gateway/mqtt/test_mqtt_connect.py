"""Chapter 1: CONNECT, what is let in and what is turned away."""

import asyncio

import pytest
import structlog.testing
from mqtt_dialogue import Bench, Client, Device, rest

from mooring.hub.identity import Ref
from mooring.hub.registry import IdentityRequest
from mooring.wire import mqtt, sas
from mooring.wire.mqtt import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
)


async def test_a_device_connects_and_leaves(bench: Bench, device: Device) -> None:
    client = await device.connect()
    assert bench.hub.sessions.of(device.ref) is not None
    client.send(Pingreq())
    await client.expect(Pingresp())
    await client.leave()
    assert bench.hub.sessions.of(device.ref) is None


@pytest.mark.parametrize(
    "username",
    [
        "localhost/d1/?api-version=2019-10-01&DeviceClientType=py%2F1",
        "LOCALHOST/d1/api-version=2016-11-14&DeviceClientType=c",
        "hub.test/d1/?api-version=2021-04-12",
        "localhost/d1",
        "localhost/d1/",
    ],
)
async def test_user_names(bench: Bench, device: Device, username: str) -> None:
    await device.connect(username=username)


async def test_a_module_connects_with_its_own_key(bench: Bench) -> None:
    module = await bench.device("d1", "m1")
    client = await module.connect()
    assert bench.hub.sessions.of(Ref("d1", "m1")) is not None
    await client.leave()


async def test_a_policy_opens_a_device(bench: Bench, device: Device) -> None:
    policy = bench.hub.policies.get("device")
    assert policy is not None
    token = sas.generate(policy.secondary_key, "localhost/devices", 4 * 10**9, policy="device")
    client = await device.connect(password=token.encode())
    await client.leave()


async def refused(bench: Bench, hello: Connect, code: int = 5) -> dict[str, object]:
    """What the log says of it."""
    client = Client(bench.endpoint)
    with structlog.testing.capture_logs() as logs:
        client.send(hello)
        await client.expect(Connack(code))
        await client.closed()
    (entry,) = [each for each in logs if each["event"] == "mqtt_connect_refused"]
    assert "G:0-TimeStamp" in entry["tracking_id"]
    if hello.password:
        signature = hello.password.partition(b"sig=")[2].partition(b"&")[0].decode()
        assert not signature or signature not in repr(logs)
    return dict(entry)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"password": None, "username": "localhost/d1"}, "no token"),
        ({"password": b""}, "no token"),
        ({"password": b"secret"}, "does not begin"),
        ({"password": b"\xff\xfe"}, "not UTF-8"),
        ({"username": None, "password": None}, "names no host"),
        ({"username": "localhost/d2/?api-version=1"}, "different identities"),
        ({"client_id": "d2", "username": "localhost/d2"}, "no identity d2"),
        ({"client_id": "", "username": "localhost/"}, "neither"),
        ({"client_id": "d1/m1", "username": "localhost/d1/m1"}, "no identity d1/m1"),
        ({"username": "elsewhere/d1"}, "no hub"),
        ({"username": "localhost/d1/?model-id=" + "x" * 3000}, "model id"),
    ],
)
async def test_refused_with_5_and_the_reason_in_the_log(
    bench: Bench, device: Device, changes: dict[str, object], reason: str
) -> None:
    entry = await refused(bench, device.hello(**changes))
    assert reason in str(entry["reason"])
    assert bench.hub.sessions.of(device.ref) is None


async def test_wrong_key_expired_token_and_disabled(bench: Bench, device: Device) -> None:
    other = await bench.device("d2")
    wrong = device.token(key=other.identity.primary_key)
    assert "made the sig" in str((await refused(bench, device.hello(password=wrong)))["reason"])
    old = device.token(expires=1_600_000_000)
    assert "is past" in str((await refused(bench, device.hello(password=old)))["reason"])
    await bench.hub.registry.update(IdentityRequest(device_id="d1", status="disabled"))
    assert "disabled" in str((await refused(bench, device.hello()))["reason"])


async def test_two_hubs_must_not_conflict(bench: Bench, device: Device) -> None:
    other = await Bench.open()
    find = {"localhost": bench.hub, "other": other.hub}.get
    bench.endpoint.hubs = type("Two", (), {"find": staticmethod(find)})()
    for sni, code in (("other", 5), ("localhost", 0), ("gateway.example", 0), (None, 0)):
        client = Client(bench.endpoint, sni=sni)
        client.send(device.hello())
        await client.expect(Connack(code))
    await other.hub.close()


async def test_trouble_of_the_server_is_3(bench: Bench, device: Device) -> None:
    bench.state.failing = True
    hello = device.hello(username="localhost/d1/?api-version=1&model-id=dtmi%3Aa%3B1")
    await refused(bench, hello, code=3)
    bench.state.failing = False

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    bench.hub.access.connect = broken  # type: ignore[method-assign,assignment]
    await refused(bench, device.hello(), code=3)


@pytest.mark.parametrize("level", [3, 5])
async def test_other_versions_of_mqtt(bench: Bench, level: int) -> None:
    client = Client(bench.endpoint)
    client.send(Connect(client_id="", level=level))
    await client.expect(Connack(1))
    await client.closed()


@pytest.mark.parametrize(
    "first",
    [
        mqtt.encode(Pingreq()),
        mqtt.encode(Publish(b"devices/d1/messages/events/", b"")),
        mqtt.encode(Disconnect()),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\xff\xff\xff\x7f",
        b"\x00",
        bytes(range(100)),
    ],
)
async def test_anything_before_connect_closes_without_an_answer(bench: Bench, first: bytes) -> None:
    client = Client(bench.endpoint)
    client.send(first)
    if first == b"\x00":
        client.send(b"\x00")
    await client.closed()


async def test_a_second_connect_closes(bench: Bench, device: Device) -> None:
    client = await device.connect()
    client.send(device.hello())
    await client.closed()


async def test_packets_behind_the_connect_wait_for_it(bench: Bench, device: Device) -> None:
    client = Client(bench.endpoint)
    gate = asyncio.Event()
    connect = bench.hub.access.connect

    async def slow(ref: Ref, token: str | None) -> object:
        await gate.wait()
        return await connect(ref, token)

    bench.hub.access.connect = slow  # type: ignore[method-assign,assignment]
    big = Publish(device.events.encode(), bytes(200_000), 1, 9)
    client.send(device.hello(), Subscribe(1, (("$iothub/twin/res/#", 1),)), big)
    await rest()
    assert not client.pipe.reading
    assert len(await bench.messages()) == 0
    gate.set()
    await client.expect(Connack(0))
    assert {type(await client.packet()) for _ in range(2)} == {Suback, Puback}
    assert [message.body() for message in await bench.messages()] == [bytes(200_000)]
    assert client.pipe.reading


async def test_a_refused_client_s_packets_count_for_nothing(bench: Bench, device: Device) -> None:
    client = Client(bench.endpoint)
    client.send(device.hello(password=b"x"), Publish(device.events.encode(), b"", 1, 1))
    await client.expect(Connack(5))
    await client.closed()
    assert await bench.messages() == []


async def test_a_client_that_goes_while_it_is_judged(bench: Bench, device: Device) -> None:
    client = Client(bench.endpoint)
    client.send(device.hello())
    client.pipe.break_off()
    await rest()
    assert bench.hub.sessions.of(device.ref) is None
    assert not client.pipe.written


async def test_no_connect_in_time(bench: Bench) -> None:
    bench.endpoint.first_packet_time = 0.02
    client = Client(bench.endpoint)
    client.send(b"\x10")  # a byte now and then is no CONNECT
    await client.closed()


async def test_silence_beyond_the_keep_alive(bench: Bench, device: Device) -> None:
    bench.endpoint.max_keep_alive = 0.05
    client = await device.connect(keep_alive=0)
    await client.closed()
    assert bench.hub.sessions.of(device.ref) is None


@pytest.mark.parametrize(("asked", "granted"), [(0, 1767), (10, 15), (1177, 1765.5), (65535, 1767)])
async def test_keep_alive_is_one_and_a_half_times_but_capped(
    bench: Bench, device: Device, asked: int, granted: float
) -> None:
    client = await device.connect(keep_alive=asked)
    assert client.connection.patience == granted


async def test_a_token_that_expires_ends_the_session() -> None:
    now = 1_700_000_000.0
    bench = await Bench.open(now=lambda: now)
    device = await bench.device()
    client = await device.connect(password=device.token(expires=now + 10))
    now += 9
    bench.hub.sessions.expire()
    await client.silence()
    now += 3
    bench.hub.sessions.expire()
    await client.closed()
    await bench.hub.close()


async def test_revocation_ends_the_session(bench: Bench, device: Device) -> None:
    client = await device.connect()
    await bench.hub.registry.delete(device.ref)
    await client.closed()


async def test_a_shutdown_ends_the_session(device: Device) -> None:
    client = await device.connect()
    await device.bench.hub.close()
    await client.closed()


async def test_the_model_id_reaches_the_twin(bench: Bench, device: Device) -> None:
    model = "dtmi%3Acom%3Aexample%3AThermostat%3B1"
    username = f"localhost/d1/?api-version=2020-09-30&model-id={model}"
    client = await device.connect(username=username)
    twin = await bench.hub.twins.get(device.ref)
    assert twin.model_id == "dtmi:com:example:Thermostat;1"
    client.send(Publish(device.events.encode(), b"1", 1, 1))
    await client.expect(Puback(1))
    (message,) = await bench.messages()
    assert message.message_annotations["dt-dataschema"] == "dtmi:com:example:Thermostat;1"


async def test_a_malformed_packet_closes_after_what_came_before(
    bench: Bench, device: Device
) -> None:
    client = await device.connect()
    with structlog.testing.capture_logs() as logs:
        client.send(Pingreq(), b"\x36\x05\x00\x01t\x00\x01")
        await client.expect(Pingresp())
        await client.closed()
    (entry,) = [each for each in logs if each["event"] == "mqtt_session_ended"]
    assert "QoS 3" in entry["reason"]
