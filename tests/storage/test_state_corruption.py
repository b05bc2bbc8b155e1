"""A flipped bit anywhere in the state: refused or reported, never served as something else."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mooring.errors import MooringError
from mooring.hub.commands import Command
from mooring.hub.identity import Identity, Ref
from mooring.hub.policies import Policy
from mooring.hub.state import Tx
from mooring.hub.twins import Twin
from mooring.storage.state import SqliteState

DEVICES = [f"device-{number}" for number in range(12)]


def write(tx: Tx) -> None:
    for name in DEVICES:
        identity = Identity(
            device_id=name, generation_id=name, primary_key=f"key of {name}", secondary_key="k"
        )
        tx.put_identity(identity)
        tx.put_twin(Twin(device_id=name, tags={"of": name}, reported={"text": name * 30}))
        tx.enqueue(Command(device_id=name, message_id=name, body=name.encode(), expires=5))
        tx.put_presence({Ref(name): (True, 1, 2)})
    tx.put_policy(Policy(name="p", rights=3, primary_key="one", secondary_key="two"))
    tx.put_setting("s", "value")


def questions() -> dict[str, Any]:
    """Everything that can be asked for, each for itself."""
    asked: dict[str, Any] = {
        "policies": lambda tx: tx.policies(),
        "setting": lambda tx: tx.setting("s"),
        "devices": lambda tx: tx.devices(99),
    }
    for name in DEVICES:
        ref = Ref(name)
        asked |= {
            f"identity {name}": lambda tx, ref=ref: tx.identity(ref),
            f"twin {name}": lambda tx, ref=ref: tx.twin(ref),
            f"commands {name}": lambda tx, ref=ref: tx.commands(ref, 9),
            f"presence {name}": lambda tx, ref=ref: tx.presence(ref),
        }
    return asked


class Written:
    def __init__(self, folder: Path, answers: dict[str, Any]) -> None:
        self.folder, self.answers = folder, answers


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("state")

    async def run() -> dict[str, Any]:
        state = await SqliteState.open(folder, fsync=False)
        hub = state.for_hub("localhost")
        await hub.write(write)
        answers = {name: await hub.read(unit) for name, unit in questions().items()}
        await state.close()
        return answers

    return Written(folder, asyncio.run(run()))


def is_part(found: Any, expected: Any) -> bool:
    """Nothing, or some of what was written, but nothing else."""
    if isinstance(expected, list):
        return isinstance(found, list) and all(one in expected for one in found)
    return found is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_reported(
    written: Written, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    content = bytearray((written.folder / "state.db").read_bytes())
    position = data.draw(st.integers(0, len(content) - 1), label="byte")
    content[position] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copyfile(written.folder / "data.key", folder / "data.key")
    (folder / "state.db").write_bytes(content)

    async def run() -> list[str]:
        """The questions that were answered with less than was written."""
        try:
            state = await SqliteState.open(folder, fsync=False)
        except MooringError:
            return []
        hub = state.for_hub("localhost")
        less = []
        for name, unit in questions().items():
            try:
                found = await hub.read(unit)
            except MooringError:
                continue
            if found != written.answers[name]:
                assert is_part(found, written.answers[name]), name
                less.append(name)
        await state._examination._worker.call(lambda: None)
        await state.close()
        return less

    with capture_logs() as logs:
        less = asyncio.run(run())
    assert not less or logs, f"{less} vanished in silence"
    shutil.rmtree(folder)
