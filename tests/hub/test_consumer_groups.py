"""Consumer groups: `$Default` and those that were made, in any case, after a restart too."""

import pytest
from tests.state import MemoryState

from mooring.errors import ArgumentInvalid, GenericConflict, GenericNotFound
from mooring.hub.consumer_groups import ConsumerGroups


@pytest.fixture
def state() -> MemoryState:
    return MemoryState()


@pytest.fixture
def groups(state: MemoryState) -> ConsumerGroups:
    return ConsumerGroups(state, limit=4)


async def test_there_is_always_a_default(groups: ConsumerGroups) -> None:
    await groups.open()
    assert await groups.list() == ["$Default"]
    assert groups.find("$default") == "$Default"
    with pytest.raises(ArgumentInvalid):
        await groups.delete("$DEFAULT")


async def test_made_groups_survive_a_restart(groups: ConsumerGroups, state: MemoryState) -> None:
    await groups.open()
    await groups.create("Billing")
    await groups.create("alarms")
    again = ConsumerGroups(MemoryState(state.tables))
    await again.open()
    assert await again.list() == ["$Default", "alarms", "Billing"]
    assert again.find("BILLING") == "Billing"
    await again.delete("billing")
    assert again.find("Billing") is None


async def test_configured_groups_are_made_once(groups: ConsumerGroups, state: MemoryState) -> None:
    for _ in range(2):
        await groups.open(("$Default", "alarms"))
    assert await groups.list() == ["$Default", "alarms"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "a.", "x" * 51, "$x", "ä"])
async def test_bad_names(groups: ConsumerGroups, name: str) -> None:
    with pytest.raises(ArgumentInvalid):
        await groups.create(name)


async def test_what_cannot_be(groups: ConsumerGroups) -> None:
    await groups.create("a")
    with pytest.raises(GenericConflict):
        await groups.create("A")
    with pytest.raises(GenericNotFound):
        await groups.delete("absent")
    await groups.create("b")
    await groups.create("c")
    with pytest.raises(ArgumentInvalid):
        await groups.create("one-more")
