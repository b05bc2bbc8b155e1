"""The registry: what may be written, what the server sets, and what a lookup may still know."""

import asyncio
import base64

import pytest
from tests.state import MemoryState

from mooring.errors import (
    ArgumentInvalid,
    DeviceAlreadyExists,
    DeviceNotFound,
    InvalidDeviceScope,
    ModuleAlreadyExistsOnDevice,
    ModuleNotFound,
    PreconditionFailed,
    SystemModuleModifyUnauthorizedAccess,
    TooManyModulesOnDevice,
    Unavailable,
)
from mooring.hub.identity import Identity, Ref
from mooring.hub.presence import Presence
from mooring.hub.registry import IdentityRequest, Registry
from mooring.hub.settings import HubSettings

D1, M1 = Ref("d1"), Ref("d1", "m1")
KEY_A = base64.b64encode(b"a" * 32).decode()
KEY_B = base64.b64encode(b"b" * 32).decode()
PRINT = "AB" * 20


class Clock:
    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state() -> MemoryState:
    return MemoryState()


@pytest.fixture
def registry(state: MemoryState, clock: Clock) -> Registry:
    settings = HubSettings(identity_cache=3)
    return Registry(state, Presence(state, now=clock), settings, now=clock)


def request(ref: Ref = D1, **fields: object) -> IdentityRequest:
    return IdentityRequest(device_id=ref.device_id, module_id=ref.module_id, **fields)  # type: ignore[arg-type]


# Creating


async def test_a_new_device_gets_keys_a_generation_and_a_twin(
    registry: Registry, state: MemoryState
) -> None:
    device = await registry.create(request())
    assert (device.status, device.auth_type) == ("enabled", "sas")
    assert len(base64.b64decode(device.primary_key or "")) == 32
    assert len(base64.b64decode(device.secondary_key or "")) == 32
    assert device.primary_key != device.secondary_key
    assert len(device.generation_id) == 18
    assert device.generation_id.isdigit()
    twin = state.tables.twins[D1]
    assert (twin.etag, twin.version, twin.desired_version) == (1, 2, 1)
    assert await registry.get(D1) == device


async def test_generations_differ_even_in_the_same_moment(registry: Registry) -> None:
    made = [await registry.create(request(Ref(f"d{n}"))) for n in range(20)]
    assert len({device.generation_id for device in made}) == 20


async def test_a_device_made_anew_has_another_generation_and_etag(registry: Registry) -> None:
    old = await registry.create(request())
    await registry.delete(D1)
    new = await registry.create(request())
    assert new.generation_id != old.generation_id
    assert new.etag != old.etag
    assert new.primary_key != old.primary_key


async def test_an_id_is_taken_once_and_in_its_own_case(registry: Registry) -> None:
    await registry.create(request())
    with pytest.raises(DeviceAlreadyExists) as refused:
        await registry.create(request())
    assert refused.value.message == "d1"
    await registry.create(request(Ref("D1")))


@pytest.mark.parametrize("device_id", ["", "a/b", "x" * 129, "a b"])
async def test_ids_that_cannot_be(registry: Registry, device_id: str) -> None:
    with pytest.raises(ArgumentInvalid):
        await registry.create(request(Ref(device_id)))


async def test_given_keys_are_kept(registry: Registry) -> None:
    device = await registry.create(request(auth_type="SAS", primary_key=KEY_A, secondary_key=KEY_B))
    assert device.keys == (KEY_A, KEY_B)
    assert device.auth_type == "sas"


@pytest.mark.parametrize(
    "fields",
    [
        {"auth_type": "sas", "primary_key": KEY_A},
        {"auth_type": "sas", "secondary_key": KEY_A, "primary_key": ""},
        {"auth_type": "sas", "primary_key": "short", "secondary_key": KEY_A},
        {"auth_type": "selfSigned"},
        {"auth_type": "selfSigned", "primary_thumbprint": "AB"},
        {"auth_type": "password"},
        {"status": "paused"},
        {"status_reason": "x" * 129},
    ],
)
async def test_fields_that_cannot_be(
    registry: Registry, state: MemoryState, fields: dict[str, object]
) -> None:
    with pytest.raises(ArgumentInvalid):
        await registry.create(request(**fields))
    assert state.tables.identities == {}


async def test_a_device_with_thumbprints_has_no_keys(registry: Registry) -> None:
    device = await registry.create(
        request(auth_type="selfSigned", primary_thumbprint=PRINT.lower(), primary_key=KEY_A)
    )
    assert device.primary_thumbprint == PRINT
    assert (device.primary_key, device.secondary_key, device.keys) == (None, None, ())


@pytest.mark.parametrize("auth_type", ["certificateAuthority", "none"])
async def test_types_without_credentials_of_their_own(registry: Registry, auth_type: str) -> None:
    device = await registry.create(request(auth_type=auth_type))
    assert device.auth_type == auth_type
    assert (device.primary_key, device.primary_thumbprint) == (None, None)


# Updating


async def test_an_update_bumps_the_etag_and_keeps_what_the_server_set(
    registry: Registry, clock: Clock
) -> None:
    old = await registry.create(request())
    clock.at += 5
    new = await registry.update(request(status="Disabled", status_reason="lost"))
    assert (new.status, new.status_reason) == ("disabled", "lost")
    assert new.status_updated == int(clock.at * 1000)
    assert new.version == old.version + 1
    assert new.generation_id == old.generation_id
    again = await registry.update(request(status="disabled"))
    assert again.status_reason is None
    assert again.status_updated == new.status_updated


async def test_an_update_that_is_silent_about_keys_keeps_them(registry: Registry) -> None:
    old = await registry.create(request())
    assert (await registry.update(request())).keys == old.keys


async def test_an_update_that_is_silent_about_what_it_does_not_know_keeps_it(
    registry: Registry,
) -> None:
    scope = (await registry.create(request(Ref("edge"), iot_edge=True))).device_scope or ""
    for fields in (
        {"status": "disabled", "device_scope": scope},
        {"iot_edge": True, "parent_scopes": [scope]},
    ):
        old = await registry.create(request(**fields))
        new = await registry.update(request(status_reason="x"))
        for name in ("status", "iot_edge", "device_scope", "parent_scopes"):
            assert getattr(new, name) == getattr(old, name)
        await registry.delete(D1)


async def test_empty_keys_ask_for_new_ones(registry: Registry) -> None:
    old = await registry.create(request())
    new = await registry.update(request(auth_type="sas", primary_key="", secondary_key=""))
    assert not set(new.keys) & set(old.keys)
    assert len(new.keys) == 2


async def test_changing_the_type_drops_the_old_credentials(registry: Registry) -> None:
    await registry.create(request())
    device = await registry.update(request(auth_type="selfSigned", primary_thumbprint=PRINT))
    assert (device.primary_key, device.secondary_key) == (None, None)
    device = await registry.update(request(auth_type="sas"))
    assert device.primary_thumbprint is None
    assert len(device.keys) == 2


@pytest.mark.parametrize("form", ["{}", '"{}"', 'W/"{}"', "*", '"*"', ""])
async def test_forms_of_if_match(registry: Registry, form: str) -> None:
    device = await registry.create(request())
    await registry.update(request(), if_match=form.format(device.etag))


async def test_an_old_etag_is_refused(registry: Registry, state: MemoryState) -> None:
    old = await registry.create(request())
    new = await registry.update(request())
    for write in (
        registry.update(request(status="disabled"), if_match=f'"{old.etag}"'),
        registry.delete(D1, if_match=f'"{old.etag}"'),
        registry.regenerate_keys(D1, "both", if_match=f'"{old.etag}"'),
    ):
        with pytest.raises(PreconditionFailed):
            await write
    assert state.tables.identities[D1] == new


async def test_what_is_not_there(registry: Registry) -> None:
    for work in (registry.get(D1), registry.update(request()), registry.delete(D1)):
        with pytest.raises(DeviceNotFound) as refused:
            await work
        assert refused.value.message == "d1"
    await registry.create(request())
    for work in (registry.get(M1), registry.update(request(M1)), registry.delete(M1)):
        with pytest.raises(ModuleNotFound):
            await work


@pytest.mark.parametrize(
    ("slot", "kept"), [("primary", {"secondary"}), ("secondary", {"primary"}), ("both", set())]
)
async def test_regenerating_keys(registry: Registry, slot: str, kept: set[str]) -> None:
    old = await registry.create(request())
    new = await registry.regenerate_keys(D1, slot)
    assert (new.primary_key == old.primary_key) is ("primary" in kept)
    assert (new.secondary_key == old.secondary_key) is ("secondary" in kept)
    assert new.version == old.version + 1


async def test_only_keys_can_be_regenerated(registry: Registry) -> None:
    await registry.create(request(auth_type="none"))
    with pytest.raises(ArgumentInvalid):
        await registry.regenerate_keys(D1, "primary")


# Modules


async def test_modules_belong_to_a_device(registry: Registry, state: MemoryState) -> None:
    with pytest.raises(DeviceNotFound):
        await registry.create(request(M1))
    await registry.create(request())
    module = await registry.create(request(M1, managed_by="me"))
    assert module.managed_by == "me"
    assert len(module.keys) == 2
    assert M1 in state.tables.twins
    assert await registry.modules("d1") == [module]
    with pytest.raises(ModuleAlreadyExistsOnDevice):
        await registry.create(request(M1))
    with pytest.raises(DeviceNotFound):
        await registry.modules("absent")


async def test_a_deleted_device_takes_everything_along(
    registry: Registry, state: MemoryState
) -> None:
    for ref in (D1, M1):
        await registry.create(request(ref))
        registry._presence.connected(ref)
    await registry.delete(D1)
    await registry._presence.flush()
    tables = state.tables
    assert (tables.identities, tables.twins, tables.presence) == ({}, {}, {})


async def test_a_device_has_50_modules(registry: Registry) -> None:
    await registry.create(request(iot_edge=True))
    for number in range(50):
        await registry.create(request(Ref("d1", f"m{number}")))
    with pytest.raises(TooManyModulesOnDevice):
        await registry.create(request(Ref("d1", "one-more")))


# IoT Edge


async def test_an_edge_device_has_system_modules_and_a_scope(registry: Registry) -> None:
    device = await registry.create(request(iot_edge=True))
    assert device.device_scope == f"ms-azure-iot-edge://d1-{device.generation_id}"
    modules = await registry.modules("d1")
    assert [module.module_id for module in modules] == ["$edgeAgent", "$edgeHub"]
    assert {module.managed_by for module in modules} == {"iotEdge"}
    assert len({key for one in (device, *modules) for key in one.keys}) == 6
    again = await registry.update(request(iot_edge=True, device_scope="ignored"))
    assert again.device_scope == device.device_scope


async def test_system_modules_are_the_servers_own(registry: Registry) -> None:
    await registry.create(request(iot_edge=True))
    agent = Ref("d1", "$edgeAgent")
    for work in (
        registry.create(request(agent)),
        registry.update(request(agent)),
        registry.delete(agent),
    ):
        with pytest.raises(SystemModuleModifyUnauthorizedAccess):
            await work


async def test_becoming_edge_and_back(registry: Registry) -> None:
    await registry.create(request())
    assert (await registry.update(request(iot_edge=True))).device_scope
    assert len(await registry.modules("d1")) == 2
    plain = await registry.update(request(iot_edge=False))
    assert plain.device_scope is None
    assert await registry.modules("d1") == []


async def test_a_leaf_takes_its_parents_scope(registry: Registry) -> None:
    scope = (await registry.create(request(Ref("edge"), iot_edge=True))).device_scope
    leaf = await registry.create(request(device_scope=scope))
    assert (leaf.device_scope, leaf.parent_scopes) == (scope, [scope])
    free = await registry.update(request(device_scope=""))
    assert (free.device_scope, free.parent_scopes) == (None, [])


async def test_an_edge_device_may_have_one_parent(registry: Registry) -> None:
    top = (await registry.create(request(Ref("top"), iot_edge=True))).device_scope or ""
    child = await registry.create(request(iot_edge=True, parent_scopes=[top]))
    assert child.parent_scopes == [top]
    with pytest.raises(InvalidDeviceScope):
        await registry.update(request(iot_edge=True, parent_scopes=[top, top + "1"]))
    with pytest.raises(InvalidDeviceScope):
        await registry.update(request(iot_edge=True, parent_scopes=[child.device_scope or ""]))


@pytest.mark.parametrize("scope", ["edge", "ms-azure-iot-edge://edge-1", "ms-azure-iot-edge://"])
async def test_a_scope_must_be_an_edge_devices(registry: Registry, scope: str) -> None:
    await registry.create(request(Ref("edge"), iot_edge=True))
    with pytest.raises(InvalidDeviceScope):
        await registry.create(request(device_scope=scope))


async def test_a_leaf_whose_parent_is_gone_can_still_be_written(registry: Registry) -> None:
    scope = (await registry.create(request(Ref("edge"), iot_edge=True))).device_scope
    await registry.create(request(device_scope=scope))
    await registry.delete(Ref("edge"))
    leaf = await registry.update(request(device_scope=scope, status="disabled"))
    assert leaf.status == "disabled"


# Lists


async def test_devices_come_by_id(registry: Registry) -> None:
    for name in ("b", "a", "c"):
        await registry.create(request(Ref(name)))
    await registry.update(request(Ref("b"), status="disabled"))
    assert [device.device_id for device in await registry.devices()] == ["a", "b", "c"]
    assert [device.device_id for device in await registry.devices(2)] == ["a", "b"]
    for outside in (0, -1, 1001):
        assert len(await registry.devices(outside)) == 3
    assert await registry.counts() == (3, 2, 1)


# Looking up


async def test_a_second_lookup_reads_nothing(registry: Registry, state: MemoryState) -> None:
    device = await registry.create(request())
    for _ in range(2):
        assert await registry.lookup(D1) == device
        assert await registry.lookup(Ref("absent")) is None
    assert state.reads == 2


async def test_lookups_at_once_read_once(registry: Registry, state: MemoryState) -> None:
    device = await registry.create(request())
    found = await asyncio.gather(*(registry.lookup(D1) for _ in range(10)))
    assert found == [device] * 10
    assert state.reads == 1


async def test_a_lookup_sees_every_write(registry: Registry) -> None:
    assert await registry.lookup(D1) is None
    device = await registry.create(request())
    assert await registry.lookup(D1) == device
    device = await registry.update(request(status="disabled"))
    assert await registry.lookup(D1) == device
    device = await registry.regenerate_keys(D1, "both")
    assert await registry.lookup(D1) == device
    await registry.create(request(M1))
    assert await registry.lookup(M1) is not None
    await registry.delete(D1)
    assert await registry.lookup(D1) is None
    assert await registry.lookup(M1) is None


async def test_what_is_remembered_has_a_limit(registry: Registry, state: MemoryState) -> None:
    for number in range(10):
        await registry.create(request(Ref(f"d{number}")))
        await registry.lookup(Ref(f"d{number}"))
        await registry.lookup(Ref(f"absent{number}"))
    assert len(registry._found._entries) == 3
    assert len(registry._absent._entries) == 3
    reads = state.reads
    await registry.lookup(Ref("d9"))
    assert state.reads == reads
    await registry.lookup(Ref("d0"))
    assert state.reads == reads + 1


async def test_names_that_nobody_can_have_are_not_remembered(registry: Registry) -> None:
    for ref in (Ref("d" * 129), Ref("a/b"), Ref("d1", "m" * 129), Ref("")):
        assert await registry.lookup(ref) is None
        assert not registry.remembers(ref)


async def test_a_load_that_a_write_overtook_is_not_remembered(
    registry: Registry, state: MemoryState
) -> None:
    old = await registry.create(request())
    state.gate = asyncio.Event()
    loading = asyncio.create_task(registry.lookup(D1))
    while not state.reads:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    # The read has its answer, but is not back yet, when a whole write goes past it.
    gate, state.gate = state.gate, None
    new = await registry.update(request(status="disabled"))
    gate.set()
    assert await loading == old
    assert await registry.lookup(D1) == new


async def test_a_deletion_is_not_undone_by_a_load(registry: Registry, state: MemoryState) -> None:
    await registry.create(request())
    state.gate = asyncio.Event()
    loading = asyncio.create_task(registry.lookup(D1))
    while not state.reads:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate, state.gate = state.gate, None
    await registry.delete(D1)
    gate.set()
    await loading
    assert await registry.lookup(D1) is None
    assert registry._loading == {}


async def test_a_caller_who_goes_away_does_not_leave_the_old_key_in_use(
    registry: Registry, state: MemoryState
) -> None:
    await registry.create(request())
    await registry.lookup(D1)
    state.gate = asyncio.Event()
    writing = asyncio.create_task(registry.regenerate_keys(D1, "both"))
    while state.writes < 2:
        await asyncio.sleep(0)
    writing.cancel()
    state.gate.set()
    await registry.close()
    assert await registry.lookup(D1) == state.tables.identities[D1]


async def test_a_commit_of_unknown_outcome_forgets_too(
    registry: Registry, state: MemoryState
) -> None:
    changed: list[str] = []

    async def note(device_id: str) -> None:
        changed.append(device_id)

    await registry.create(request())
    await registry.lookup(D1)
    registry.changed = note
    state.failing = True
    with pytest.raises(Unavailable):
        await registry.update(request(status="disabled"))
    assert changed == ["d1"]
    assert registry._found._entries == {}


async def test_nothing_shows_a_key(registry: Registry) -> None:
    wanted = request(auth_type="sas", primary_key=KEY_A, secondary_key=KEY_B)
    device: Identity = await registry.create(wanted)
    for text in (repr(wanted), repr(device), str(device)):
        assert KEY_A not in text
        assert KEY_B not in text


def test_no_repr_shows_a_key(registry: Registry) -> None:
    ready = registry._prepared(request(D1))
    assert not any(key in repr(ready) for key in ready.spare_keys)
