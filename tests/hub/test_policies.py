"""Policies: the five defaults, their keys and rights, and changes that survive a restart."""

import asyncio
import base64

import pytest
from tests.state import MemoryState

from mooring.errors import ArgumentInvalid, GenericNotFound, Unavailable
from mooring.hub.policies import ALL_RIGHTS, Policies, Right, format_rights, parse_rights


@pytest.fixture
def state() -> MemoryState:
    return MemoryState()


@pytest.fixture
async def policies(state: MemoryState) -> Policies:
    policies = Policies(state, limit=7)
    await policies.open()
    return policies


async def test_a_first_start_makes_the_defaults(policies: Policies) -> None:
    rights = {policy.name: format_rights(Right(policy.rights)) for policy in policies.all()}
    assert rights == {
        "iothubowner": "RegistryWrite, ServiceConnect, DeviceConnect",
        "service": "ServiceConnect",
        "device": "DeviceConnect",
        "registryRead": "RegistryRead",
        "registryReadWrite": "RegistryWrite",
    }
    keys = [key for one in policies.all() for key in (one.primary_key, one.secondary_key)]
    assert len(set(keys)) == 10
    assert {len(base64.b64decode(key)) for key in keys} == {32}


async def test_write_implies_read(policies: Policies) -> None:
    owner, reader = policies.get("iothubowner"), policies.get("registryRead")
    assert owner is not None
    assert owner.granted == ALL_RIGHTS
    assert reader is not None
    assert reader.granted == Right.REGISTRY_READ


async def test_a_second_start_finds_the_same_keys(policies: Policies, state: MemoryState) -> None:
    again = Policies(MemoryState(state.tables))
    await again.open()
    assert again.all() == policies.all()


@pytest.mark.parametrize(
    ("slot", "primary_changes", "secondary_changes"),
    [("primary", True, False), ("secondary", False, True), ("both", True, True)],
)
async def test_regenerating_changes_that_slot_only(
    policies: Policies,
    state: MemoryState,
    slot: str,
    primary_changes: bool,
    secondary_changes: bool,
) -> None:
    before = policies.get("service")
    assert before is not None
    after = await policies.regenerate("service", slot)
    assert (after.primary_key != before.primary_key) is primary_changes
    assert (after.secondary_key != before.secondary_key) is secondary_changes
    assert policies.get("service") == after == state.tables.policies["service"]


async def test_swapping_exchanges_the_slots(policies: Policies) -> None:
    before = policies.get("service")
    after = await policies.regenerate("service", "swap")
    assert before is not None
    assert (after.primary_key, after.secondary_key) == (before.secondary_key, before.primary_key)


async def test_what_changes_is_told_after_the_commit(
    policies: Policies, state: MemoryState
) -> None:
    told: list[str] = []

    async def changed(name: str) -> None:
        assert state.tables.policies.get(name) == policies.get(name)
        told.append(name)

    policies.changed = changed
    await policies.regenerate("service", "primary")
    await policies.put("mine", Right.SERVICE_CONNECT)
    await policies.delete("mine")
    assert told == ["service", "mine", "mine"]


async def test_a_caller_who_goes_away_does_not_stop_what_follows(
    policies: Policies, state: MemoryState
) -> None:
    told = asyncio.Event()

    async def changed(name: str) -> None:
        told.set()

    policies.changed = changed
    state.gate = asyncio.Event()
    task = asyncio.create_task(policies.regenerate("service", "primary"))
    while state.writes < 2:
        await asyncio.sleep(0)
    task.cancel()
    state.gate.set()
    await told.wait()
    assert policies.get("service") == state.tables.policies["service"]


async def test_a_commit_that_fails_changes_nothing(policies: Policies, state: MemoryState) -> None:
    before = policies.get("service")
    state.failing = True
    with pytest.raises(Unavailable):
        await policies.regenerate("service", "both")
    assert policies.get("service") == before


async def test_changing_rights_keeps_the_keys(policies: Policies) -> None:
    before = policies.get("service")
    after = await policies.put("service", Right.REGISTRY_READ)
    assert before is not None
    assert (after.rights, after.primary_key) == (Right.REGISTRY_READ.value, before.primary_key)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a/b", "ä"])
async def test_bad_names(policies: Policies, name: str) -> None:
    with pytest.raises(ArgumentInvalid):
        await policies.put(name, Right.SERVICE_CONNECT)


async def test_what_cannot_be(policies: Policies) -> None:
    with pytest.raises(ArgumentInvalid):
        await policies.put("mine", Right(0))
    with pytest.raises(ArgumentInvalid):
        await policies.put("mine", Right.SERVICE_CONNECT, primary_key="short")
    with pytest.raises(ArgumentInvalid):
        await policies.regenerate("service", "tertiary")
    with pytest.raises(GenericNotFound):
        await policies.regenerate("absent", "primary")
    with pytest.raises(GenericNotFound):
        await policies.delete("absent")


async def test_there_is_a_limit(policies: Policies) -> None:
    await policies.put("sixth", Right.SERVICE_CONNECT)
    await policies.put("seventh", Right.SERVICE_CONNECT)
    with pytest.raises(ArgumentInvalid):
        await policies.put("eighth", Right.SERVICE_CONNECT)


def test_rights_are_written_as_azure_writes_them() -> None:
    assert parse_rights("registrywrite,ServiceConnect") == (
        Right.REGISTRY_WRITE | Right.SERVICE_CONNECT
    )
    for text in ("", "Everything", "RegistryRead,"):
        with pytest.raises(ArgumentInvalid):
            parse_rights(text)


async def test_the_repr_shows_no_key(policies: Policies) -> None:
    policy = policies.get("service")
    assert policy is not None
    assert policy.primary_key not in repr(policy)
    assert policy.secondary_key not in repr(policy)
