"""The state over SQLite does what the state in memory does, for any sequence of units."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.hub.commands import Command, FeedbackRecord
from mooring.hub.identity import Identity, Ref
from mooring.hub.policies import Policy
from mooring.hub.state import Tx
from mooring.hub.twins import Twin
from mooring.storage.state import SqliteState

from ..state import MemoryState

Step = tuple[str, Callable[[Tx], Any]]

devices = st.sampled_from(["a", "b", "B", "ä'\"%_"])
refs = st.builds(Ref, devices, st.sampled_from(["", "", "m", "n"]))
numbers = st.integers(0, 6)
texts = st.text(max_size=5)
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**52), 2**52) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


class Undo(Exception):
    pass


@st.composite
def steps(draw: st.DrawFn) -> Step:
    ref, number, other = draw(refs), draw(numbers), draw(numbers)
    keys = {"primary_key": draw(texts), "secondary_key": None}
    identity = Identity(
        device_id=ref.device_id, module_id=ref.module_id, generation_id="g",
        status=draw(st.sampled_from(["enabled", "disabled"])), version=number + 1, **keys,
    )  # fmt: skip
    twin = Twin(
        device_id=ref.device_id, module_id=ref.module_id,
        tags=draw(st.dictionaries(texts, json, max_size=3)), version=number,
    )  # fmt: skip
    command = Command(
        device_id=ref.device_id, module_id=ref.module_id, expires=other, sequence=number,
        body=draw(st.binary(max_size=5)), properties={draw(texts): draw(texts)},
    )  # fmt: skip
    record = FeedbackRecord(
        id=number, message_id=draw(texts), device_id=ref.device_id, module_id=ref.module_id,
        generation_id="g", status="Success", enqueued=1, expires=other,
    )  # fmt: skip
    policy = Policy(name=draw(devices), rights=number, primary_key="p", secondary_key="s")
    presence = (draw(st.booleans()), number, other)

    def enqueue(tx: Tx) -> Any:
        # The port leaves open what happens to a command for nobody.
        return tx.enqueue(command) if tx.identity(ref) else None

    units: dict[str, Callable[[Tx], Any]] = {
        "put_identity": lambda tx: tx.put_identity(identity),
        "delete_identity": lambda tx: tx.delete_identity(ref),
        "modules": lambda tx: tx.modules(ref.device_id),
        "put_twin": lambda tx: tx.put_twin(twin),
        "put_policy": lambda tx: tx.put_policy(policy),
        "delete_policy": lambda tx: tx.delete_policy(policy.name),
        "enqueue": enqueue,
        "commands": lambda tx: tx.commands(ref, other, number),
        "put_command": lambda tx: tx.put_command(command),
        "delete_command": lambda tx: tx.delete_command(ref, number),
        "add_feedback": lambda tx: tx.add_feedback(record),
        "feedback": lambda tx: tx.feedback(number, other),
        "put_feedback": lambda tx: tx.put_feedback(record),
        "delete_feedback": lambda tx: tx.delete_feedback([number, other]),
        "expire_feedback": lambda tx: tx.expire_feedback(number),
        "put_presence": lambda tx: tx.put_presence({ref: presence, Ref("b"): presence}),
        "reset_presence": lambda tx: tx.reset_presence(number),
        "put_setting": lambda tx: tx.put_setting(f"s{number}", policy.name),
        "delete_setting": lambda tx: tx.delete_setting(f"s{number}"),
    }
    name = draw(st.sampled_from(sorted(units)))
    unit = units[name]

    def undone(tx: Tx) -> Any:
        unit(tx)
        raise Undo

    return (f"{name} undone", undone) if draw(st.integers(0, 9)) == 0 else (name, unit)


def everything(tx: Tx) -> Any:
    """All that a hub's state can be asked for."""
    names = ("a", "b", "B", "ä'\"%_")
    every = [Ref(name, module) for name in names for module in ("", "m", "n")]
    return {
        "identities": [tx.identity(ref) for ref in every],
        "devices": tx.devices(99),
        "page": tx.devices(1, "B"),
        "modules": [tx.modules(name) for name in names],
        "counts": tx.counts(),
        "twins": [tx.twin(ref) for ref in every],
        "policies": sorted(tx.policies(), key=lambda policy: policy.name),
        "commands": [tx.commands(ref, 99) for ref in every],
        "one": [tx.command(ref, 2) for ref in every],
        "depths": [tx.queue_depth(ref) for ref in every],
        "expired": sorted(map(repr, tx.expired_commands(3, 99))),
        "feedback": tx.feedback(99),
        "presence": [tx.presence(ref) for ref in every],
        "settings": [tx.setting(f"s{number}") for number in range(7)],
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(steps(), min_size=1, max_size=40), st.integers(1, 7))
def test_any_units_leave_the_same_state_and_give_the_same_answers(
    planned: list[Step], at_once: int
) -> None:
    async def run() -> None:
        model = MemoryState()
        with tempfile.TemporaryDirectory() as folder:
            state = await SqliteState.open(Path(folder), fsync=False)
            hub = state.for_hub("localhost")
            for start in range(0, len(planned), at_once):
                units = [unit for _, unit in planned[start : start + at_once]]
                expected = [await attempt(model.write(unit)) for unit in units]
                assert await asyncio.gather(*[attempt(hub.write(u)) for u in units]) == expected
            expected_end = await model.read(everything)
            assert await hub.read(everything) == expected_end
            await state.close()
            state = await SqliteState.open(Path(folder), fsync=False)
            assert await state.for_hub("localhost").read(everything) == expected_end
            await state.close()

    async def attempt(work: Any) -> Any:
        try:
            return await work
        except Undo:
            return Undo

    asyncio.run(run())
