"""Revocation: a change ends exactly the sessions that it takes the ground from."""

import asyncio
import time

import pytest
from tests.events import MemoryEvents
from tests.state import MemoryState

from mooring.errors import DeviceDisabled, DeviceNotFound, HubError, IotHubUnauthorized
from mooring.hub.access import Principal
from mooring.hub.hub import Hub
from mooring.hub.identity import Ref
from mooring.hub.policies import Right
from mooring.hub.registry import IdentityRequest
from mooring.hub.settings import HubSettings
from mooring.wire import sas

D1, D2, M1 = Ref("d1"), Ref("d2"), Ref("d1", "m1")
SOON = int(time.time()) + 3600


class FakeSession:
    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.protocol = "mqtt"
        self.ended: list[HubError] = []

    def end(self, error: HubError) -> None:
        self.ended.append(error)


@pytest.fixture
def state() -> MemoryState:
    return MemoryState()


@pytest.fixture
async def hub(state: MemoryState) -> Hub:
    hub = Hub("localhost", state, MemoryEvents(), HubSettings())
    await hub.policies.open()
    for ref in (D1, D2, M1):
        await hub.registry.create(_request(ref))
    return hub


def _request(ref: Ref, **fields: object) -> IdentityRequest:
    return IdentityRequest(device_id=ref.device_id, module_id=ref.module_id, **fields)  # type: ignore[arg-type]


async def principal_of(hub: Hub, ref: Ref, slot: str = "primary") -> Principal:
    key = getattr(await hub.registry.get(ref), f"{slot}_key")
    return await hub.access.connect(ref, sas.generate(key, f"localhost/{ref.path}", SOON))


async def by_policy(
    hub: Hub, name: str, ref: Ref | None = None, slot: str = "primary"
) -> Principal:
    key = getattr(hub.policies.get(name), f"{slot}_key")
    token = sas.generate(key, "localhost", SOON, policy=name)
    if ref is not None:
        return await hub.access.connect(ref, token)
    return await hub.access.authenticate(token)


def opened(hub: Hub, principal: Principal) -> FakeSession:
    session = FakeSession(principal)
    hub.sessions.open(session)
    return session


async def test_disabling_a_device_ends_it_and_its_modules(hub: Hub) -> None:
    device, module = [opened(hub, await principal_of(hub, ref)) for ref in (D1, M1)]
    other = opened(hub, await principal_of(hub, D2))
    await hub.registry.update(_request(D1, status="disabled"))
    assert isinstance(device.ended[0], DeviceDisabled)
    assert isinstance(module.ended[0], DeviceDisabled)
    assert other.ended == []
    assert list(hub.sessions) == [other]


async def test_deleting_a_device_ends_it_and_its_modules(hub: Hub) -> None:
    device, module = [opened(hub, await principal_of(hub, ref)) for ref in (D1, M1)]
    await hub.registry.delete(D1)
    assert isinstance(device.ended[0], DeviceNotFound)
    assert module.ended
    assert not (await hub.presence.of(D1)).connected


async def test_deleting_a_module_leaves_its_device(hub: Hub) -> None:
    device, module = [opened(hub, await principal_of(hub, ref)) for ref in (D1, M1)]
    await hub.registry.delete(M1)
    assert device.ended == []
    assert module.ended


@pytest.mark.parametrize(
    ("regenerated", "used", "ends"),
    [
        ("primary", "primary", True),
        ("primary", "secondary", False),
        ("secondary", "secondary", True),
        ("secondary", "primary", False),
        ("both", "primary", True),
        ("both", "secondary", True),
    ],
)
async def test_a_regenerated_key_ends_those_who_used_it(
    hub: Hub, regenerated: str, used: str, ends: bool
) -> None:
    device = opened(hub, await principal_of(hub, D1, used))
    service = opened(hub, await by_policy(hub, "service", slot=used))
    acting = opened(hub, await by_policy(hub, "device", D2, used))
    await hub.registry.regenerate_keys(D1, regenerated)
    for name in ("service", "device"):
        await hub.policies.regenerate(name, regenerated)
    assert [bool(one.ended) for one in (device, service, acting)] == [ends] * 3
    for one in (device, service, acting):
        assert all(isinstance(error, IotHubUnauthorized) for error in one.ended)


async def test_swapping_the_slots_ends_nobody(hub: Hub) -> None:
    device = opened(hub, await principal_of(hub, D1))
    service = opened(hub, await by_policy(hub, "service"))
    identity = await hub.registry.get(D1)
    await hub.registry.update(
        _request(
            D1,
            auth_type="sas",
            primary_key=identity.secondary_key,
            secondary_key=identity.primary_key,
        )
    )
    await hub.policies.regenerate("service", "swap")
    assert device.ended == service.ended == []


async def test_changing_to_certificates_ends_a_session_of_a_key(hub: Hub) -> None:
    device = opened(hub, await principal_of(hub, D1))
    await hub.registry.update(_request(D1, auth_type="selfSigned", primary_thumbprint="AB" * 20))
    assert device.ended


async def test_an_update_that_changes_no_ground_ends_nobody(hub: Hub) -> None:
    device = opened(hub, await principal_of(hub, D1))
    await hub.registry.update(_request(D1, status_reason="fine"))
    await hub.registry.create(_request(Ref("d1", "m2")))
    assert device.ended == []


async def test_a_device_that_a_policy_connected_ends_when_it_is_disabled(hub: Hub) -> None:
    acting = opened(hub, await by_policy(hub, "device", D1))
    await hub.registry.regenerate_keys(D1, "both")
    assert acting.ended == []
    await hub.registry.update(_request(D1, status="disabled"))
    assert isinstance(acting.ended[0], DeviceDisabled)


async def test_a_policy_that_grants_less_ends_who_had_more(hub: Hub) -> None:
    service = opened(hub, await by_policy(hub, "service"))
    await hub.policies.put("service", Right.SERVICE_CONNECT | Right.REGISTRY_READ)
    assert service.ended == []
    await hub.policies.put("service", Right.REGISTRY_READ)
    assert service.ended


async def test_deleting_a_policy_ends_its_sessions(hub: Hub) -> None:
    service, other = [opened(hub, await by_policy(hub, n)) for n in ("service", "iothubowner")]
    await hub.policies.delete("service")
    assert service.ended
    assert other.ended == []


async def test_a_connect_that_the_change_overtook_ends_as_it_opens(hub: Hub) -> None:
    let_in = await principal_of(hub, D1)
    service = await by_policy(hub, "service")
    await hub.registry.update(_request(D1, status="disabled"))
    await hub.policies.regenerate("service", "both")
    late = [opened(hub, let_in), opened(hub, service)]
    await hub.revocation.close()
    assert all(one.ended for one in late)
    assert len(hub.sessions) == 0


async def test_a_connect_that_an_unrelated_change_overtook_goes_on(hub: Hub) -> None:
    let_in = await principal_of(hub, D1)
    await hub.registry.update(_request(D2, status="disabled"))
    session = opened(hub, let_in)
    await hub.revocation.close()
    assert session.ended == []
    assert hub.sessions.of(D1) is session


async def test_a_lookup_in_flight_does_not_carry_the_old_key_past_the_change(
    hub: Hub, state: MemoryState
) -> None:
    """The connect reads the old entry; the key changes wholly; then the session opens."""
    key = (await hub.registry.get(D1)).primary_key or ""
    token = sas.generate(key, "localhost/devices/d1", SOON)
    reads = state.reads
    state.gate = asyncio.Event()
    connecting = asyncio.create_task(hub.access.connect(D1, token))
    while state.reads == reads:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate, state.gate = state.gate, None
    await hub.registry.regenerate_keys(D1, "primary")
    gate.set()
    session = opened(hub, await connecting)
    await hub.revocation.close()
    assert isinstance(session.ended[0], IotHubUnauthorized)


async def test_it_ends_before_the_change_is_reported_done_even_if_nobody_waits(
    hub: Hub, state: MemoryState
) -> None:
    session = opened(hub, await principal_of(hub, D1))
    writes = state.writes
    state.gate = asyncio.Event()
    writing = asyncio.create_task(hub.registry.update(_request(D1, status="disabled")))
    while state.writes == writes:
        await asyncio.sleep(0)
    writing.cancel()
    state.gate.set()
    await hub.registry.close()
    assert isinstance(session.ended[0], DeviceDisabled)
