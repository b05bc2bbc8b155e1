"""Twins between azure-iot-device and azure-iot-hub."""

import asyncio
import json
from typing import Any

import pytest
from azure.iot.device.exceptions import ClientError
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.protocol.models import Twin, TwinProperties

from .cloud import Account
from .flavours import Flavour
from .test_service_twins import nested

DOCUMENT: dict[str, Any] = {
    "text": "Grüße, 世界 🚀",
    "empty": "",
    "int": 42,
    "negative": -4503599627370496,
    "float": 21.5,
    "true": True,
    "false": False,
    "list": [1, "two", {"three": 3}, []],
    "object": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": "deep"}}}}}}}},
    "with-dash_and:colon": 1,
}


def desire(service: IoTHubRegistryManager, device: Account, desired: dict[str, Any]) -> int:
    """Patch the desired properties; returns their new version."""
    patch = Twin(properties=TwinProperties(desired=desired))
    return service.update_twin(device.device_id, patch).properties.desired["$version"]


def reported(service: IoTHubRegistryManager, device: Account) -> dict[str, Any]:
    section = service.get_twin(device.device_id).properties.reported
    return {key: value for key, value in section.items() if not key.startswith("$")}


async def test_a_new_twin(flavour: Flavour, device: Account) -> None:
    twin = await flavour.device(device).get_twin()
    assert twin == {"desired": {"$version": 1}, "reported": {"$version": 1}}


async def test_reported_properties_reach_the_back_end(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    await client.patch_twin_reported_properties(DOCUMENT)
    assert reported(service, device) == DOCUMENT
    assert (await client.get_twin())["reported"] == DOCUMENT | {"$version": 2}

    metadata = service.get_twin(device.device_id).properties.reported["$metadata"]
    assert set(metadata) == {*DOCUMENT, "$lastUpdated"}
    assert "$lastUpdated" in metadata["object"]["a"]["b"]


async def test_a_patch_merges_and_null_deletes(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    await client.patch_twin_reported_properties(
        {"a": 1, "b": {"c": 2, "d": 3}, "e": [1, 2, 3], "f": "gone soon"}
    )
    await client.patch_twin_reported_properties(
        {"a": 10, "b": {"d": None, "x": {"y": 1}}, "e": [4], "f": None, "never-was": None}
    )
    assert reported(service, device) == {"a": 10, "b": {"c": 2, "x": {"y": 1}}, "e": [4]}

    await client.patch_twin_reported_properties({"a": None, "b": None, "e": None})
    assert (await client.get_twin())["reported"] == {"$version": 4}


async def test_desired_properties_reach_the_device(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    patches = await client.on("twin_desired_properties_patch_received")

    version = desire(service, device, DOCUMENT)
    assert patches.take() == DOCUMENT | {"$version": version}
    assert (await client.get_twin())["desired"] == DOCUMENT | {"$version": version}

    version = desire(service, device, {"object": {"a": None, "z": 1}, "int": None})
    assert patches.take() == {"object": {"a": None, "z": 1}, "int": None, "$version": version}
    desired = (await client.get_twin())["desired"]
    assert desired["object"] == {"z": 1}
    assert "int" not in desired


async def test_a_replaced_twin_notifies_with_all_of_it(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    desire(service, device, {"a": 1, "b": 2})
    client = aio.device(device)
    patches = await client.on("twin_desired_properties_patch_received")

    service.replace_twin(
        device.device_id, Twin(tags={}, properties=TwinProperties(desired={"c": 3}))
    )
    patch = patches.take()
    assert patch["c"] == 3
    assert (await client.get_twin())["desired"] == {"c": 3, "$version": patch["$version"]}


async def test_notifications_come_in_order(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    patches = await aio.device(device).on("twin_desired_properties_patch_received")
    versions = [desire(service, device, {"step": step}) for step in range(20)]

    received = [patches.take() for _ in versions]
    assert [patch["step"] for patch in received] == list(range(20))
    assert [patch["$version"] for patch in received] == versions


async def test_tags_are_not_for_the_device(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device)
    patches = await client.on("twin_desired_properties_patch_received")
    service.update_twin(device.device_id, Twin(tags={"site": "north"}))
    version = desire(service, device, {"a": 1})

    assert patches.take() == {"a": 1, "$version": version}  # and none for the tags
    assert await client.get_twin() == {
        "desired": {"a": 1, "$version": version},
        "reported": {"$version": 1},
    }


async def test_changes_while_away_are_synthesised_on_return(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    await client.get_twin()  # else the client never subscribes to the answers that it waits for
    patches = await client.on("twin_desired_properties_patch_received")
    desire(service, device, {"a": 1})
    assert patches.take()["a"] == 1

    await client.disconnect()
    desire(service, device, {"b": 2})
    version = desire(service, device, {"a": None, "c": 3})
    await client.connect()

    assert patches.take() == {"b": 2, "c": 3, "$version": version}
    version = desire(service, device, {"d": 4})
    assert patches.take() == {"d": 4, "$version": version}


@pytest.mark.parametrize(
    "patch",
    [
        {"a.b": 1},
        {"$a": 1},
        {"a b": 1},
        {"a": nested(12)},
        {"a": "x" * 4097},
        {"a" * 1025: 1},
        {"a": 2**52},
        {f"k{n}": "x" * 4000 for n in range(9)},
    ],
    ids=["dot", "dollar", "space", "deep", "long-value", "long-key", "big-int", "32-kib"],
)
async def test_a_patch_beyond_the_limits_is_refused(
    aio: Flavour, device: Account, service: IoTHubRegistryManager, patch: dict[str, Any]
) -> None:
    client = aio.device(device)
    with pytest.raises(ClientError) as refused:
        await client.patch_twin_reported_properties(patch)
    assert "status 4" in str(refused.value.__cause__)
    assert reported(service, device) == {}

    await client.patch_twin_reported_properties({"a": 1})
    assert reported(service, device) == {"a": 1}


async def test_patches_of_several_at_once_are_all_kept(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device)
    await client.connect()
    await asyncio.gather(
        *(client.patch_twin_reported_properties({f"p{n}": n}) for n in range(20)),
        *(asyncio.to_thread(desire, service, device, {f"d{n}": n}) for n in range(5)),
    )
    twin = await client.get_twin()
    assert twin["reported"] == {f"p{n}": n for n in range(20)} | {"$version": 21}
    assert twin["desired"] == {f"d{n}": n for n in range(5)} | {"$version": 6}
    assert json.dumps(twin)


async def test_the_receive_call_of_older_programs(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    await client.get_twin()
    with pytest.deprecated_call():
        waiting = asyncio.ensure_future(client.receive_twin_desired_properties_patch())
        while not waiting.done():  # the patch counts once the client has subscribed
            await asyncio.to_thread(desire, service, device, {"a": 1})
            await asyncio.wait([waiting], timeout=1)
        assert (await waiting)["a"] == 1
