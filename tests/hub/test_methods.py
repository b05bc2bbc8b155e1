"""Direct methods: dialogues of a back end and a device."""

import asyncio
import uuid
from typing import Any

import pytest
from tests.state import MemoryState

from mooring.errors import (
    ArgumentInvalid,
    DeviceConnectionClosedRemotely,
    DeviceMaximumInflightMethodExceeded,
    DeviceNotFound,
    DeviceNotOnline,
    GatewayTimeout,
    GenericBadGateway,
    MessageTooLarge,
    ModuleNotFound,
)
from mooring.hub.identity import Identity, Ref
from mooring.hub.methods import Answer, Methods
from mooring.hub.settings import HubSettings

D1 = Ref("d1")


class Device:
    """Takes calls, and answers those it is told to."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue()

    def call(self, request_id: str, name: str, payload: bytes) -> None:
        self.calls.put_nowait((request_id, name, payload))


@pytest.fixture
async def methods() -> Methods:
    state = MemoryState()
    identity = Identity(device_id="d1", generation_id="g1")
    await state.write(lambda tx: tx.put_identity(identity))
    return Methods(state, HubSettings(method_min_timeout=0, max_inflight_methods=3))


@pytest.fixture
def device(methods: Methods) -> Device:
    device = Device()
    methods.attach(D1, device)
    return device


def invoke(methods: Methods, payload: bytes = b"1", **options: Any) -> "asyncio.Task[Answer]":
    return asyncio.create_task(methods.invoke(D1, "reboot", payload, **options))


async def test_a_call_and_its_answer(methods: Methods, device: Device) -> None:
    caller = invoke(methods, b'{"delay": 5}')
    request_id, name, payload = await device.calls.get()
    assert (name, payload) == ("reboot", b'{"delay": 5}')
    assert str(uuid.UUID(request_id)) == request_id
    methods.respond(D1, request_id, 200, b'{"ok":true}')
    assert await caller == (200, b'{"ok":true}')


async def test_answers_find_their_callers(methods: Methods, device: Device) -> None:
    callers = [invoke(methods, b"%d" % n) for n in range(3)]
    calls = [await device.calls.get() for _ in callers]
    for request_id, _, payload in reversed(calls):
        methods.respond(D1, request_id, int(payload), payload)
    assert [await caller for caller in callers] == [(n, b"%d" % n) for n in range(3)]


@pytest.mark.parametrize("nothing", [b"", b" "])
async def test_nothing_is_null(methods: Methods, device: Device, nothing: bytes) -> None:
    caller = invoke(methods, b"")
    request_id, _, payload = await device.calls.get()
    assert payload == b"null"
    methods.respond(D1, request_id, -1, nothing)
    assert await caller == (-1, b"null")


async def test_unknown_identities(methods: Methods) -> None:
    with pytest.raises(DeviceNotFound):
        await methods.invoke(Ref("d2"), "m", b"")
    with pytest.raises(ModuleNotFound):
        await methods.invoke(Ref("d1", "m1"), "m", b"")


async def test_offline(methods: Methods) -> None:
    assert not methods.is_online(D1)
    with pytest.raises(DeviceNotOnline, match="Timed out waiting for device to connect"):
        await invoke(methods)
    with pytest.raises(DeviceNotOnline):
        await invoke(methods, connect_timeout=0.01)


async def test_waiting_for_the_device(methods: Methods) -> None:
    caller = invoke(methods, connect_timeout=60)
    await asyncio.sleep(0.01)
    device = Device()
    methods.attach(D1, device)
    request_id, _, _ = await device.calls.get()
    methods.respond(D1, request_id, 200, b"1")
    assert await caller == (200, b"1")


async def test_a_device_that_comes_and_goes_is_waited_for(methods: Methods) -> None:
    caller = invoke(methods, connect_timeout=60)
    await asyncio.sleep(0.01)
    gone, device = Device(), Device()
    methods.attach(D1, gone)
    methods.detach(D1, gone)
    await asyncio.sleep(0.01)
    assert gone.calls.empty()
    methods.attach(D1, device)
    methods.respond(D1, (await device.calls.get())[0], 200, b"1")
    assert (await caller).status == 200


async def test_no_answer_in_time(methods: Methods, device: Device) -> None:
    with pytest.raises(GatewayTimeout, match="Timed out waiting for the response from device"):
        await invoke(methods, response_timeout=0.01)
    methods.respond(D1, (await device.calls.get())[0], 200, b"1")
    assert methods._devices == {}


async def test_the_connection_closes(methods: Methods, device: Device) -> None:
    caller = invoke(methods)
    await device.calls.get()
    methods.detach(D1, device)
    with pytest.raises(DeviceConnectionClosedRemotely):
        await caller
    assert not methods.is_online(D1)


async def test_a_takeover_ends_the_calls_of_the_older(methods: Methods, device: Device) -> None:
    caller = invoke(methods)
    request_id = (await device.calls.get())[0]
    newer = Device()
    methods.attach(D1, newer)
    with pytest.raises(DeviceConnectionClosedRemotely):
        await caller
    methods.detach(D1, device)
    assert methods.is_online(D1)
    methods.respond(D1, request_id, 200, b"1")
    caller = invoke(methods)
    methods.respond(D1, (await newer.calls.get())[0], 200, b"2")
    assert (await caller).payload == b"2"


async def test_attaching_again_keeps_the_calls(methods: Methods, device: Device) -> None:
    caller = invoke(methods)
    request_id = (await device.calls.get())[0]
    methods.attach(D1, device)
    methods.respond(D1, request_id, 200, b"1")
    assert (await caller).status == 200


async def test_answers_of_others_are_dropped(methods: Methods, device: Device) -> None:
    caller = invoke(methods)
    request_id = (await device.calls.get())[0]
    methods.respond(Ref("d2"), request_id, 500, b'"forged"')
    methods.respond(D1, "1", 500, b'"guessed"')
    methods.respond(D1, request_id, 200, b"1")
    methods.respond(D1, request_id, 500, b'"late"')
    assert await caller == (200, b"1")


@pytest.mark.parametrize(
    ("status", "payload"),
    [
        (200, b"{"),
        (200, b"{'a':1}"),
        (200, b'"\xff"'),
        (200, b"[" * 100_000),
        (200, b'"' + b"x" * 128 * 1024 + b'"'),
        (2**31, b"1"),
        (-(2**31) - 1, b"1"),
    ],
)
async def test_bad_answers(methods: Methods, device: Device, status: int, payload: bytes) -> None:
    caller = invoke(methods)
    methods.respond(D1, (await device.calls.get())[0], status, payload)
    with pytest.raises(GenericBadGateway):
        await caller


async def test_too_many_at_once(methods: Methods, device: Device) -> None:
    callers = [invoke(methods) for _ in range(3)]
    calls = [await device.calls.get() for _ in callers]
    with pytest.raises(DeviceMaximumInflightMethodExceeded):
        await invoke(methods)
    callers[0].cancel()
    await asyncio.wait(callers[:1])
    methods.respond(D1, calls[0][0], 200, b"1")
    fourth = invoke(methods)
    methods.respond(D1, (await device.calls.get())[0], 204, b"")
    assert (await fourth).status == 204
    for request_id, _, _ in calls[1:]:
        methods.respond(D1, request_id, 200, b"")
    await asyncio.gather(*callers[1:])
    assert methods._devices == {}


@pytest.mark.parametrize("name", ["", "a" * 101, "a/b", "a#", "a+", "a?", "a\x00", "a\n"])
async def test_names_that_topics_cannot_carry(methods: Methods, device: Device, name: str) -> None:
    with pytest.raises(ArgumentInvalid):
        await methods.invoke(D1, name, b"")


@pytest.mark.parametrize("name", ["a" * 100, "thermostat1*getMaxMinReport", "naïve name", "$a.b-c"])
async def test_names_that_they_can(methods: Methods, device: Device, name: str) -> None:
    caller = asyncio.create_task(methods.invoke(D1, name, b""))
    request_id, called, _ = await device.calls.get()
    methods.respond(D1, request_id, 200, b"")
    await caller
    assert called == name


@pytest.mark.parametrize(
    "options", [{"response_timeout": 301}, {"connect_timeout": 301}, {"connect_timeout": -1}]
)
async def test_times_out_of_range(
    methods: Methods, device: Device, options: dict[str, float]
) -> None:
    with pytest.raises(ArgumentInvalid):
        await invoke(methods, **options)
    with pytest.raises(ArgumentInvalid):
        await Methods(MemoryState(), HubSettings()).invoke(D1, "m", b"", response_timeout=4)


async def test_bad_requests(methods: Methods, device: Device) -> None:
    with pytest.raises(ArgumentInvalid):
        await invoke(methods, b"{")
    with pytest.raises(MessageTooLarge):
        await invoke(methods, b'"' + b"x" * 128 * 1024 + b'"')
    assert device.calls.empty()


async def test_a_channel_that_fails_leaves_nothing_behind(methods: Methods) -> None:
    class Broken:
        def call(self, request_id: str, name: str, payload: bytes) -> None:
            raise ConnectionResetError

    methods.attach(D1, Broken())
    with pytest.raises(ConnectionResetError):
        await invoke(methods)
    assert methods._devices == {}
