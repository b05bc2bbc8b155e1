"""Twins: dialogues of a back end, a device and the store."""

import asyncio
import json
from typing import Any

import pytest
from tests.state import MemoryState

from mooring.errors import (
    ArgumentInvalid,
    DeviceNotFound,
    ModuleNotFound,
    PreconditionFailed,
    SystemModuleModifyUnauthorizedAccess,
    Unavailable,
)
from mooring.hub.etags import matches, twin_etag
from mooring.hub.identity import Identity, Ref
from mooring.hub.presence import Status
from mooring.hub.settings import HubSettings
from mooring.hub.twins import Twins, document, new_twin

D1, M1 = Ref("d1"), Ref("d1", "m1")
AT = "2023-11-14T22:13:20.0000000Z"
LATER = "2023-11-14T22:13:21.0000000Z"


class Clock:
    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def state(clock: Clock) -> MemoryState:
    state = MemoryState()
    await add(state, D1, clock)
    return state


@pytest.fixture
def twins(state: MemoryState, clock: Clock) -> Twins:
    return Twins(state, HubSettings(), now=clock)


async def add(state: MemoryState, ref: Ref, clock: Clock) -> None:
    identity = Identity(device_id=ref.device_id, module_id=ref.module_id, generation_id="g1")

    def unit(tx: Any) -> None:
        tx.put_identity(identity)
        tx.put_twin(new_twin(ref, int(clock() * 1000)))

    await state.write(unit)


def desired(**values: Any) -> dict[str, Any]:
    return {"properties": {"desired": values}}


# what a twin begins with


async def test_a_new_twin(twins: Twins) -> None:
    twin = await twins.get(D1)
    assert (twin.version, twin.desired_version, twin.reported_version) == (2, 1, 1)
    assert twin_etag(twin.etag) == "AAAAAAAAAAE="
    assert await twins.device_view(D1) == b'{"desired":{"$version":1},"reported":{"$version":1}}'


async def test_unknown_identities(twins: Twins) -> None:
    for call in (
        twins.get,
        twins.device_view,
        lambda ref: twins.patch(ref, {}),
        lambda ref: twins.replace(ref, {}),
        lambda ref: twins.patch_reported(ref, b"{}"),
        lambda ref: twins.set_model_id(ref, "dtmi:a;1"),
    ):
        with pytest.raises(DeviceNotFound, match=r"^d2$"):
            await call(Ref("d2"))
        with pytest.raises(ModuleNotFound):
            await call(M1)


# a back end patches


async def test_patch_merges_and_counts(twins: Twins, clock: Clock) -> None:
    await twins.patch(D1, {"tags": {"a": {"b": 1}}, **desired(x={"y": 1, "z": 2})})
    clock.time += 1
    twin = await twins.patch(D1, {"tags": {"a": {"c": 2}}, **desired(x={"y": None, "w": [1]})})
    assert twin.tags == {"a": {"b": 1, "c": 2}}
    assert twin.desired == {"x": {"z": 2, "w": [1]}}
    assert (twin.version, twin.desired_version, twin.etag) == (4, 3, 3)
    assert twin.desired_meta == {
        "$lastUpdated": LATER,
        "$lastUpdatedVersion": 3,
        "x": {
            "$lastUpdated": LATER,
            "$lastUpdatedVersion": 3,
            "z": {"$lastUpdated": AT, "$lastUpdatedVersion": 2},
            "w": {"$lastUpdated": LATER, "$lastUpdatedVersion": 3},
        },
    }
    assert await twins.get(D1) == twin


async def test_tags_leave_desired_alone(twins: Twins) -> None:
    heard = []
    twins.watch(D1, lambda version, patch: heard.append(version))
    twin = await twins.patch(D1, {"tags": {"a": 1}, "properties": {"desired": {}}})
    assert (twin.desired_version, twin.etag, twin.version) == (1, 2, 3)
    assert heard == []


async def test_a_patch_of_nothing_changes_nothing(twins: Twins, state: MemoryState) -> None:
    before = await twins.get(D1)
    echoed = {
        "deviceId": "d1",
        "etag": "x",
        "properties": {"reported": {"a": 1}, "desired": {"$version": 7, "$metadata": {}}},
    }
    assert await twins.patch(D1, echoed) == before


async def test_null_clears_a_section(twins: Twins) -> None:
    await twins.patch(D1, {"tags": {"a": 1}, **desired(x=1, y=2)})
    heard = []
    twins.watch(D1, lambda version, patch: heard.append(json.loads(patch)))
    twin = await twins.patch(D1, {"tags": None, "properties": {"desired": None}})
    assert (twin.tags, twin.desired) == ({}, {})
    assert heard == [{"x": None, "y": None, "$version": 3}]


async def test_replace_takes_what_is_there(twins: Twins) -> None:
    await twins.patch(D1, {"tags": {"a": 1}, **desired(x=1)})
    heard = []
    twins.watch(D1, lambda version, patch: heard.append(json.loads(patch)))
    twin = await twins.replace(D1, desired(y={"z": 1, "gone": None}))
    assert (twin.tags, twin.desired) == ({"a": 1}, {"y": {"z": 1}})
    assert "x" not in twin.desired_meta
    assert heard == [{"y": {"z": 1}, "$version": 3}]
    twin = await twins.replace(D1, {"tags": {}, "properties": {"desired": {}}})
    assert (twin.tags, twin.desired, twin.desired_version) == ({}, {}, 4)
    assert heard[1:] == [{"$version": 4}]


async def test_if_match(twins: Twins) -> None:
    twin = await twins.patch(D1, {"tags": {"a": 1}}, if_match='"AAAAAAAAAAE="')
    for call in (twins.patch, twins.replace):
        with pytest.raises(PreconditionFailed):
            await call(D1, {"tags": {"a": 2}}, if_match='"AAAAAAAAAAE="')
    assert await twins.get(D1) == twin


async def test_reporting_does_not_change_the_etag(twins: Twins) -> None:
    assert await twins.patch_reported(D1, b'{"a":1}') == 2
    twin = await twins.patch(D1, {"tags": {"a": 1}}, if_match="AAAAAAAAAAE=")
    assert twin.version == 4


@pytest.mark.parametrize(
    ("header", "fits"),
    [
        (None, True),
        ("*", True),
        ('"*"', True),
        ("AAAAAAAAAAE=", True),
        ('"AAAAAAAAAAE="', True),
        ('W/"AAAAAAAAAAE="', True),
        ('""', True),
        ('"AAAAAAAAAAI="', False),
        ("aaaaaaaaaae=", False),
    ],
)
def test_forms_of_if_match(header: str | None, fits: bool) -> None:
    assert matches(header, "AAAAAAAAAAE=") is fits


@pytest.mark.parametrize(
    "body", [{"tags": 1}, {"tags": []}, {"properties": 1}, desired(x=1) | {"tags": "a"}]
)
async def test_sections_are_objects(twins: Twins, body: dict[str, Any]) -> None:
    before = await twins.get(D1)
    for call in (twins.patch, twins.replace):
        with pytest.raises(ArgumentInvalid, match="must be a JSON object"):
            await call(D1, body)
    assert await twins.get(D1) == before


# a device reports


async def test_reported_merges(twins: Twins, clock: Clock) -> None:
    assert await twins.patch_reported(D1, b'{"a":{"b":1,"c":[1,{"d":2}]},"$version":9}') == 2
    clock.time += 1
    assert await twins.patch_reported(D1, b'{"a":{"b":null},"e":true}', 2) == 3
    twin = await twins.get(D1)
    assert twin.reported == {"a": {"c": [1, {"d": 2}]}, "e": True}
    assert twin.reported_meta == {
        "$lastUpdated": LATER,
        "a": {"$lastUpdated": LATER, "c": {"$lastUpdated": AT}},
        "e": {"$lastUpdated": LATER},
    }
    assert json.loads(await twins.device_view(D1)) == {
        "desired": {"$version": 1},
        "reported": {"a": {"c": [1, {"d": 2}]}, "e": True, "$version": 3},
    }


async def test_a_wrong_base_version_is_refused(twins: Twins) -> None:
    before = await twins.get(D1)
    with pytest.raises(PreconditionFailed):
        await twins.patch_reported(D1, b'{"a":1}', 7)
    assert await twins.get(D1) == before


async def test_modules_have_twins_of_their_own(
    twins: Twins, state: MemoryState, clock: Clock
) -> None:
    await add(state, M1, clock)
    await twins.patch(M1, {"tags": {"a": 1}, **desired(x=1)})
    assert await twins.patch_reported(M1, b'{"a":1}') == 2
    assert (await twins.get(D1)).version == 2
    assert (await twins.get(M1)).version == 4


@pytest.mark.parametrize("module_id", ["$edgeAgent", "$edgeHub"])
async def test_system_modules_are_for_deployments(
    twins: Twins, state: MemoryState, clock: Clock, module_id: str
) -> None:
    ref = Ref("d1", module_id)
    await add(state, ref, clock)
    for call in (twins.patch, twins.replace):
        with pytest.raises(SystemModuleModifyUnauthorizedAccess):
            await call(ref, desired(a=1))
    assert await twins.patch_reported(ref, b'{"a":1}') == 2


# limits


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"leaf": 1}
    for _ in range(levels):
        value = {"k": value}
    return value


GOOD = {
    "ten levels": nested(10),
    "integers": {"low": -4503599627370496, "high": 4503599627370495},
    "floats": {"f": 1e300},
    "a text of 4 KiB": {"s": "a" * 4096},
    "a key of 1 KiB": {"k" * 1024: 1},
    "letters": {"ключ": "значение", "azureiot*com^dtracing^1": {"sampling_mode": 1}, "__t": "c"},
    "exactly 8 KiB": {f"{n:04}": "x" * 4092 for n in range(2)},
    "controls do not count": {f"{n:04}": "x" * 3000 + "\n" * 1000 for n in range(2)},
    "arrays": {"a": [1, [2, {"b": []}]]},
}
BAD = {
    "eleven levels": nested(11),
    "levels of arrays": {"a": [[[[[[[[[[[1]]]]]]]]]]]},
    "very many levels": nested(300),
    "integer too low": {"i": -4503599627370497},
    "integer too high": {"i": 4503599627370496},
    "long text": {"s": "a" * 4097},
    "long text in bytes": {"s": "ä" * 2049},
    "long key": {"k" * 1025: 1},
    "key with a dollar": {"a": {"$b": 1}},
    "key with a dot": {"a.b": 1},
    "key with a space": {"a b": 1},
    "key with a control": {"a\x1fb": 1},
    "key with a C1 control": {"a\x85b": 1},
    "empty key": {"": 1},
    "null in an array": {"a": [None]},
    "null below an array": {"a": [{"b": None}]},
    "metadata of somebody": {"$lastUpdated": "x"},
    "8 KiB and one": {"0000": "x" * 4092, "0001": "x" * 4093},
}


@pytest.mark.parametrize("section", GOOD.values(), ids=GOOD.keys())
async def test_within_the_limits(twins: Twins, section: dict[str, Any]) -> None:
    twin = await twins.patch(D1, {"tags": section, "properties": {"desired": section}})
    await twins.patch_reported(D1, json.dumps(section).encode())
    assert twin.tags == twin.desired == (await twins.get(D1)).reported == section


@pytest.mark.parametrize("section", BAD.values(), ids=BAD.keys())
async def test_beyond_the_limits(twins: Twins, section: dict[str, Any]) -> None:
    before = await twins.get(D1)
    for call in (twins.patch, twins.replace):
        with pytest.raises(ArgumentInvalid, match="tags"):
            await call(D1, {"tags": section, "properties": {"desired": {"fine": 1}}})
    if len(section) == 1:
        with pytest.raises(ArgumentInvalid, match="desired"):
            await twins.patch(D1, {"tags": {"fine": 1}, "properties": {"desired": section}})
        with pytest.raises(ArgumentInvalid, match="reported"):
            await twins.patch_reported(D1, json.dumps(section).encode())
    assert await twins.get(D1) == before


async def test_size_is_of_the_whole_section(twins: Twins) -> None:
    # 32 KiB: eight keys of four letters with texts of 4092.
    for n in range(8):
        await twins.patch_reported(D1, json.dumps({f"{n:04}": "x" * 4092}).encode())
    with pytest.raises(ArgumentInvalid, match="32769"):
        await twins.patch_reported(D1, b'{"0000":"' + b"x" * 4093 + b'"}')
    with pytest.raises(ArgumentInvalid):
        await twins.patch_reported(D1, b'{"b":true}')
    assert await twins.patch_reported(D1, b'{"0000":null,"b":true}') == 10


async def test_depth_is_of_the_whole_section(twins: Twins) -> None:
    await twins.patch_reported(D1, json.dumps(nested(10)).encode())
    deeper = {"leaf": {"one": "more"}}
    for _ in range(10):
        deeper = {"k": deeper}
    with pytest.raises(ArgumentInvalid):
        await twins.patch_reported(D1, json.dumps(deeper).encode())


# notifications


async def test_watchers_hear_the_patch_as_applied(twins: Twins) -> None:
    heard = []
    stop = twins.watch(D1, lambda version, patch: heard.append((version, json.loads(patch))))
    await twins.patch(D1, desired(a={"b": 1}, c=None))
    assert heard == [(2, {"a": {"b": 1}, "c": None, "$version": 2})]
    stop()
    stop()
    await twins.patch(D1, desired(a=None))
    assert len(heard) == 1


async def test_a_failing_watcher_fails_alone(twins: Twins) -> None:
    heard = []

    def fail(version: int, patch: bytes) -> None:
        raise RuntimeError("gone")

    twins.watch(D1, fail)
    twins.watch(D1, lambda version, patch: heard.append(version))
    assert (await twins.patch(D1, desired(a=1))).desired_version == 2
    assert heard == [2]


async def test_nothing_is_told_that_was_not_committed(twins: Twins, state: MemoryState) -> None:
    heard = []
    twins.watch(D1, lambda version, patch: heard.append(version))
    state.failing = True
    with pytest.raises(Unavailable):
        await twins.patch(D1, desired(a=1))
    state.failing = False
    with pytest.raises(ArgumentInvalid):
        await twins.patch(D1, desired(**{"a.b": 1}))
    assert heard == []


async def test_notifications_are_in_order(twins: Twins, state: MemoryState) -> None:
    heard = []
    twins.watch(D1, lambda version, patch: heard.append((version, json.loads(patch)["n"])))
    await asyncio.gather(*(twins.patch(D1, desired(n=n)) for n in range(50)))
    assert heard == [(n + 2, n) for n in range(50)]
    assert twins._turns == {}


async def test_what_a_device_reads_is_never_older_than_what_it_was_told(
    twins: Twins, state: MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    twins.watch(D1, lambda version, patch: heard.append(version))
    read, slow = state.read, asyncio.Event()

    async def read_slowly(unit: Any) -> Any:
        found = await read(unit)
        await slow.wait()
        return found

    async def look() -> None:
        heard.append(json.loads(await twins.device_view(D1))["desired"]["$version"])

    monkeypatch.setattr(state, "read", read_slowly)
    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    patching = asyncio.create_task(twins.patch(D1, desired(a=1)))
    for _ in range(20):
        await asyncio.sleep(0)
    slow.set()
    await asyncio.gather(looking, patching)
    assert heard == [1, 2]


async def test_who_hangs_up_does_not_silence_the_device(twins: Twins, state: MemoryState) -> None:
    heard = []
    twins.watch(D1, lambda version, patch: heard.append(version))
    state.gate = asyncio.Event()
    caller = asyncio.create_task(twins.patch(D1, desired(a=1)))
    while (await MemoryState(state.tables).read(lambda tx: tx.twin(D1))).desired_version == 1:
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    state.gate.set()
    await twins.close()
    assert heard == [2]


# what back ends see


async def test_the_document(twins: Twins) -> None:
    await twins.patch_reported(D1, b'{"a":1}')
    twin = await twins.patch(D1, desired(x=1))
    identity = Identity(
        device_id="d1",
        generation_id="g1",
        auth_type="selfSigned",
        primary_thumbprint="A" * 40,
        iot_edge=True,
        device_scope="ms-azure-iot-edge://d1-1",
    )
    found = document(twin, identity, Status(True, 1, 1_700_000_000_000), 3)
    assert found == {
        "deviceId": "d1",
        "etag": "AAAAAAAAAAI=",
        "deviceEtag": identity.etag,
        "status": "enabled",
        "statusReason": None,
        "statusUpdateTime": "0001-01-01T00:00:00Z",
        "connectionState": "Connected",
        "lastActivityTime": AT,
        "cloudToDeviceMessageCount": 3,
        "authenticationType": "selfSigned",
        "x509Thumbprint": {"primaryThumbprint": "A" * 40, "secondaryThumbprint": None},
        "modelId": "",
        "version": 4,
        "properties": {
            "desired": {
                "x": 1,
                "$metadata": {
                    "$lastUpdated": AT,
                    "$lastUpdatedVersion": 2,
                    "x": {"$lastUpdated": AT, "$lastUpdatedVersion": 2},
                },
                "$version": 2,
            },
            "reported": {
                "a": 1,
                "$metadata": {"$lastUpdated": AT, "a": {"$lastUpdated": AT}},
                "$version": 2,
            },
        },
        "capabilities": {"iotEdge": True},
        "deviceScope": "ms-azure-iot-edge://d1-1",
        "parentScopes": [],
    }


async def test_model_ids_are_kept(twins: Twins, state: MemoryState) -> None:
    await twins.set_model_id(D1, "dtmi:example:Thing;1")
    writes = state.writes
    await twins.set_model_id(D1, "dtmi:example:Thing;1")
    assert state.writes == writes
    assert (await twins.get(D1)).model_id == "dtmi:example:Thing;1"
