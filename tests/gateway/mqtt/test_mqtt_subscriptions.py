"""Chapter 4: subscribing, and sessions that outlive their connection."""

import asyncio
import time

import pytest
import structlog.testing
from mqtt_dialogue import Bench, Device, rest

from mooring.hub.identity import Ref
from mooring.hub.registry import IdentityRequest
from mooring.hub.subscriptions import Subscriptions
from mooring.wire.mqtt import Pingreq, Pingresp, Suback, Subscribe, Unsuback, Unsubscribe

TWIN = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"
METHODS = "$iothub/methods/POST/#"


def kept(bench: Bench) -> list[str]:
    """The subscriptions that are on disk."""
    return [name for name in bench.state.tables.settings if name.startswith("subscriptions/")]


async def test_what_is_granted_and_what_is_not(device: Device) -> None:
    client = await device.connect()
    client.send(
        Subscribe(
            5,
            (
                (device.devicebound + "#", 2),
                ("devices/d2/messages/devicebound/#", 1),
                (TWIN, 0),
                ("#", 0),
                (METHODS, 1),
            ),
        )
    )
    with structlog.testing.capture_logs() as logs:
        await client.expect(Suback(5, (1, 0x80, 0, 0x80, 1)))
    (entry,) = [each for each in logs if each["event"] == "mqtt_subscription_refused"]
    assert entry["count"] == 2
    assert "d2" in entry["reason"]
    client.send(Pingreq())
    await client.expect(Pingresp())


async def test_the_sixth_subscription_is_refused(device: Device) -> None:
    client = await device.connect()
    five = [device.devicebound + "#", TWIN, DESIRED, METHODS, "$iothub/methods/POST/a/#"]
    await client.subscribe(*five)
    client.send(Subscribe(1, ((TWIN, 1), ("$iothub/methods/POST/b/#", 1))))
    await client.expect(Suback(1, (1, 0x80)))
    client.send(Unsubscribe(2, (TWIN,)), Subscribe(3, (("$iothub/methods/POST/b/#", 1),)))
    await client.expect(Unsuback(2), Suback(3, (1,)))


async def test_unsubscribing_from_what_was_never_subscribed(device: Device) -> None:
    client = await device.connect()
    client.send(Unsubscribe(9, ("x", TWIN)))
    await client.expect(Unsuback(9))


async def test_module_filters(bench: Bench) -> None:
    module = await bench.device("d1", "m1")
    client = await module.connect()
    await client.subscribe(f"{module.base}/#", f"{module.base}/inputs/#", TWIN)


async def test_a_persistent_session_is_there_again(bench: Bench, device: Device) -> None:
    first = await device.connect(clean_session=False)
    await first.subscribe(METHODS)
    await first.leave()
    assert not bench.hub.methods.is_online(device.ref)
    second = await device.connect(clean_session=False, present=True)
    assert bench.hub.methods.is_online(device.ref)
    await second.vanish()
    third = await device.connect(clean_session=False, present=True)
    third.send(Unsubscribe(1, (METHODS,)))
    await third.expect(Unsuback(1))
    await third.leave()
    await device.connect(clean_session=False, present=True)
    assert not bench.hub.methods.is_online(device.ref)


async def test_a_taken_over_one_too(bench: Bench, device: Device) -> None:
    first = await device.connect(clean_session=False)
    await first.subscribe(METHODS)
    await device.connect(clean_session=False, present=True)
    assert bench.hub.methods.is_online(device.ref)


async def test_a_clean_session_forgets(bench: Bench, device: Device) -> None:
    first = await device.connect(clean_session=False)
    await first.subscribe(METHODS)
    await first.leave()
    second = await device.connect(clean_session=True)
    assert not bench.hub.methods.is_online(device.ref)
    await second.subscribe(METHODS)
    await second.leave()
    await device.connect(clean_session=False, present=False)
    assert not bench.hub.methods.is_online(device.ref)


async def test_it_outlives_the_server(bench: Bench, device: Device) -> None:
    first = await device.connect(clean_session=False)
    await first.subscribe(METHODS, TWIN)
    again = await Bench.open(tables=bench.state.tables)  # as after a crash: nothing was closed
    back = await again.device("d1")
    await back.connect(clean_session=False, present=True)
    assert again.hub.methods.is_online(device.ref)
    await again.hub.close()


async def test_a_suback_means_that_it_is_durable(bench: Bench, device: Device) -> None:
    client = await device.connect(clean_session=False)
    bench.state.failing = True
    with structlog.testing.capture_logs() as logs:
        client.send(Subscribe(1, ((METHODS, 1),)))
        await client.closed()
    assert any("disk is full" in str(each.get("reason")) for each in logs)


async def test_a_later_device_of_the_same_name_inherits_nothing(
    bench: Bench, device: Device
) -> None:
    first = await device.connect(clean_session=False)
    await first.subscribe(METHODS)
    await bench.hub.registry.delete(device.ref)
    await first.closed()
    assert kept(bench) == []
    await bench.hub.registry.create(IdentityRequest(device_id="d1"))
    later = await bench.device("d1")
    assert later.identity.generation_id != device.identity.generation_id
    await later.connect(clean_session=False, present=False)


async def test_nothing_stays_of_what_nobody_keeps_any_more(bench: Bench) -> None:
    for name in ("unsubscribed", "clean", "deleted with its device"):
        device, module = await bench.device(name[:5]), await bench.device(name[:5], "m1")
        client = await module.connect(clean_session=False)
        await client.subscribe(METHODS)
        assert kept(bench) == [f"subscriptions/{module.ref}"]
        if name == "unsubscribed":
            client.send(Unsubscribe(1, (METHODS,)))
            await client.expect(Unsuback(1))
        elif name == "clean":
            await module.connect(clean_session=True)
        else:
            await bench.hub.registry.delete(device.ref)
        assert kept(bench) == []


async def test_a_session_that_ends_while_its_subscription_is_written_has_an_end() -> None:
    now = time.time()
    bench = await Bench.open(now=lambda: now, session_expiry=3600)
    device = await bench.device()
    client = await device.connect(clean_session=False)
    bench.state.gate = asyncio.Event()
    client.send(Subscribe(1, ((METHODS, 1),)))
    await rest()
    await client.vanish()
    bench.state.gate.set()
    await rest()
    now += 3700
    await device.connect(clean_session=False, present=False)
    await bench.hub.close()


async def test_subscribing_to_the_same_again_costs_no_write(bench: Bench, device: Device) -> None:
    client = await device.connect(clean_session=False)
    await client.subscribe(METHODS)
    await client.leave()
    writes = bench.state.writes
    client = await device.connect(clean_session=False, present=True)
    await client.subscribe(METHODS)
    assert bench.state.writes == writes


async def test_a_session_is_forgotten_after_its_time() -> None:
    now = time.time()
    bench = await Bench.open(now=lambda: now, session_expiry=3600)
    device = await bench.device()
    client = await device.connect(clean_session=False)
    await client.subscribe(METHODS)
    for _ in range(2):
        now += 7200  # it is connected: nothing runs out
        client = await device.connect(clean_session=False, present=True)
    await client.leave()
    now += 3500
    client = await device.connect(clean_session=False, present=True)
    await client.leave()
    now += 3700
    await device.connect(clean_session=False, present=False)
    assert not bench.hub.methods.is_online(device.ref)
    await bench.hub.close()


@pytest.mark.parametrize(("away", "present"), [(3500, True), (3700, False)])
async def test_and_also_if_the_server_was_restarted_meanwhile(away: int, present: bool) -> None:
    now = time.time()
    bench = await Bench.open(now=lambda: now)
    client = await (await bench.device()).connect(clean_session=False)
    await client.subscribe(METHODS)
    await client.leave()
    await bench.hub.close()
    now += away
    bench = await Bench.open(tables=bench.state.tables, now=lambda: now, session_expiry=3600)
    await (await bench.device()).connect(clean_session=False, present=present)
    await bench.hub.close()


@pytest.mark.parametrize("limit", [1, 2])
async def test_the_store_remembers_no_more_than_its_limit(bench: Bench, limit: int) -> None:
    store = Subscriptions(bench.state, bench.hub.presence, limit=limit)
    for name in ("a", "b", "c"):
        await store.save(Ref(name), "1", {"f": 1})
    assert len(store._known) == limit
    assert await store.resume(Ref("a"), "1") == {"f": 1}
    await store.discard(Ref("a"))
    assert await Subscriptions(bench.state, bench.hub.presence).resume(Ref("a"), "1") is None
