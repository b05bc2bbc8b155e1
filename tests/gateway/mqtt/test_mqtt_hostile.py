"""Chapter 8: clients that mean no good, and what must hold whatever is sent."""

import asyncio
import random

import pytest
import structlog.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mqtt_dialogue import Bench, Client, Device, rest

from mooring.wire import mqtt
from mooring.wire.mqtt import Connack, Packet, Pingreq, Pingresp, Publish, Subscribe, Unsubscribe

TOPICS = st.sampled_from(
    [
        "devices/d1/messages/events/",
        "devices/d1/messages/events/$.ct=a&b=c",
        "devices/d1/messages/events/%24.ct=%C3%A9",
        "devices/d2/messages/events/",
        "$iothub/twin/GET/?$rid=1",
        "$iothub/twin/PATCH/properties/reported/?$rid=1",
        "$iothub/methods/res/200/?$rid=1",
        "x",
    ]
)
FILTERS = st.sampled_from(
    [
        "#",
        "$iothub/twin/res/#",
        "$iothub/methods/POST/#",
        "$iothub/twin/PATCH/properties/desired/#",
        "devices/d1/messages/devicebound/#",
        "a/#/b",
    ]
)
IDS = st.integers(1, 20)
PACKETS = st.one_of(
    st.builds(
        Publish,
        TOPICS.map(str.encode),
        st.sampled_from([b"", b"{}", b"{", b'{"a":1}', b"x" * 3000]),
        st.just(1),
        IDS,
        st.booleans(),
        st.booleans(),
    ),
    st.builds(Publish, TOPICS.map(str.encode), st.binary(max_size=20)),
    st.builds(
        Subscribe, IDS, st.lists(st.tuples(FILTERS, st.integers(0, 2)), min_size=1).map(tuple)
    ),
    st.builds(Unsubscribe, IDS, st.lists(FILTERS, min_size=1).map(tuple)),
    st.builds(mqtt.Puback, IDS),
    st.just(Pingreq()),
)


async def play(packets: list[Packet], noise: bytes, end: str) -> None:
    """Whatever a client sends, nothing is raised and nothing of its session stays."""
    loop = asyncio.get_running_loop()
    raised: list[object] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    bench = await Bench.open()
    device = await bench.device()
    await device.send_command(b"1")
    client = await device.connect(clean_session=end != "kept")
    client.send(*packets, noise)
    await rest()
    if end == "vanish":
        await client.vanish()
    else:
        client.pipe.close()
    await rest()
    assert bench.hub.sessions.of(device.ref) is None
    assert not bench.hub.methods.is_online(device.ref)
    assert not bench.hub.twins._watchers
    assert not bench.hub.commands._watchers
    assert not bench.hub.commands._locks.held(device.ref)
    await bench.hub.close()
    assert raised == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(PACKETS, max_size=12),
    st.binary(max_size=40),
    st.sampled_from(["vanish", "close", "kept"]),
)
def test_whatever_a_session_is_sent(packets: list[Packet], noise: bytes, end: str) -> None:
    with structlog.testing.capture_logs() as logs:
        asyncio.run(play(packets, noise, end))
    assert not [each for each in logs if each["log_level"] in ("error", "critical")]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100))
def test_whatever_comes_first(data: bytes) -> None:
    async def main() -> None:
        bench = await Bench.open()
        client = Client(bench.endpoint)
        client.send(data)
        await rest()
        client._read()
        # At most a refusal is answered.
        assert all(isinstance(each, Connack) and each.return_code for each in client.received)
        assert len(client.received) <= 1
        client.pipe.close()
        await rest()
        assert len(bench.hub.sessions) == 0
        await bench.hub.close()

    asyncio.run(main())


async def test_a_flood_of_takeovers(bench: Bench, device: Device) -> None:
    clients = []
    for _ in range(50):
        clients.append(Client(bench.endpoint))
        clients[-1].send(device.hello(clean_session=False))
    await rest()
    left = [client for client in clients if not client.pipe.closed.is_set()]
    assert len(left) == 1
    assert len(bench.hub.sessions) == 1
    assert bench.hub.sessions.of(device.ref) is left[0].connection.session


async def test_a_subscribe_of_thousands_of_filters(device: Device) -> None:
    client = await device.connect()
    filters = tuple((f"devices/d1/messages/{number}/#", 1) for number in range(8000))
    with structlog.testing.capture_logs() as logs:
        client.send(Subscribe(1, filters), Pingreq())
        await client.until(lambda: len(client.received) == 2)
    assert len(logs) <= 2
    suback = next(each for each in client.received if isinstance(each, mqtt.Suback))
    assert suback.codes == (0x80,) * 8000


async def test_slow_bytes_are_packets_too(device: Device) -> None:
    client = Client(device.bench.endpoint)
    for byte in mqtt.encode(device.hello()):
        client.send(bytes((byte,)))
    await client.expect(Connack(0))
    for byte in mqtt.encode(Publish(device.events.encode(), b"x" * 300, 1, 3)):
        client.send(bytes((byte,)))
    await client.expect(mqtt.Puback(3))


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_on_a_session_ends_it(device: Device, seed: int) -> None:
    client = await device.connect()
    client.send(b"\x00" + random.Random(seed).randbytes(1000))
    await client.closed()


async def test_a_neighbour_notices_nothing(bench: Bench, device: Device) -> None:
    good = await device.connect()
    for number in range(30):
        bad = await (await bench.device(f"bad{number}")).connect()
        bad.send(b"\xf0\xff\xff\xff\xff\xff")
        await bad.closed()
        good.send(Pingreq())
        await good.expect(Pingresp())
