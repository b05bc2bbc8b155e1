"""Twins as azure-iot-hub edits them."""

from collections.abc import Callable
from typing import Any

import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.protocol.models import Twin, TwinProperties

from .cloud import Account
from .test_service_registry import refused


def desired(**values: Any) -> Twin:
    return Twin(properties=TwinProperties(desired=values))


def plain(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if not key.startswith("$")}


def test_a_new_twin(service: IoTHubRegistryManager, device: Account) -> None:
    twin = service.get_twin(device.device_id)
    assert twin.device_id == device.device_id
    assert twin.etag == "AAAAAAAAAAE="
    assert twin.device_etag == service.get_device(device.device_id).etag
    assert twin.version == 2
    assert (twin.status, twin.connection_state) == ("enabled", "Disconnected")
    assert twin.authentication_type == "sas"
    assert twin.cloud_to_device_message_count == 0
    assert twin.capabilities.iot_edge is False
    for section in (twin.properties.desired, twin.properties.reported):
        assert section["$version"] == 1
        assert "$lastUpdated" in section["$metadata"]


def test_patch_merges(service: IoTHubRegistryManager, device: Account) -> None:
    patch = Twin(
        tags={"site": {"floor": 1, "room": "a"}},
        properties=TwinProperties(desired={"a": {"b": 1, "c": [1, {"d": 2}]}, "e": "ü"}),
    )
    first = service.update_twin(device.device_id, patch)
    assert first.tags == {"site": {"floor": 1, "room": "a"}}
    second = service.update_twin(
        device.device_id,
        Twin(
            tags={"site": {"room": None}, "line": 7},
            properties=TwinProperties(desired={"a": {"b": None, "x": 1}, "e": None}),
        ),
    )
    assert second.tags == {"site": {"floor": 1}, "line": 7}
    assert plain(second.properties.desired) == {"a": {"c": [1, {"d": 2}], "x": 1}}
    assert second.properties.desired["$version"] == 3
    assert second.version > first.version
    assert second.etag != first.etag
    assert service.get_twin(device.device_id).as_dict() == second.as_dict()


def test_metadata_mirrors_the_tree(service: IoTHubRegistryManager, device: Account) -> None:
    service.update_twin(device.device_id, desired(a={"b": 1}, c=2))
    twin = service.update_twin(device.device_id, desired(a={"d": 3}))
    metadata = twin.properties.desired["$metadata"]
    assert metadata["a"]["b"]["$lastUpdatedVersion"] == 2
    assert metadata["a"]["d"]["$lastUpdatedVersion"] == 3
    assert metadata["a"]["$lastUpdatedVersion"] == 3
    assert metadata["c"]["$lastUpdatedVersion"] == 2
    assert metadata["$lastUpdatedVersion"] == 3


def test_replace(service: IoTHubRegistryManager, device: Account) -> None:
    service.update_twin(device.device_id, Twin(tags={"a": 1, "b": 2}))
    service.update_twin(device.device_id, desired(a=1, b=2))
    twin = service.replace_twin(
        device.device_id, Twin(tags={"c": 3}, properties=TwinProperties(desired={"d": 4}))
    )
    assert twin.tags == {"c": 3}
    assert plain(twin.properties.desired) == {"d": 4}
    assert twin.properties.desired["$version"] == 3


def test_etags_guard(service: IoTHubRegistryManager, device: Account) -> None:
    first = service.get_twin(device.device_id)
    second = service.update_twin(device.device_id, desired(a=1), first.etag)
    with refused(412, "PreconditionFailed"):
        service.update_twin(device.device_id, desired(a=2), first.etag)
    with refused(412, "PreconditionFailed"):
        service.replace_twin(device.device_id, desired(a=2), first.etag)
    assert plain(service.get_twin(device.device_id).properties.desired) == {"a": 1}
    third = service.replace_twin(device.device_id, desired(a=3), second.etag)
    assert plain(third.properties.desired) == {"a": 3}


def test_the_whole_twin_may_be_sent_back(service: IoTHubRegistryManager, device: Account) -> None:
    service.update_twin(device.device_id, desired(a={"b": 1}))
    twin = service.get_twin(device.device_id)
    twin.properties.desired["a"]["b"] = 2
    updated = service.update_twin(device.device_id, twin, twin.etag)
    assert plain(updated.properties.desired) == {"a": {"b": 2}}


def nested(levels: int) -> dict[str, Any]:
    """An object that, as a property's value, reaches down to this level of the section."""
    value: Any = 1
    for level in range(levels, 1, -1):
        value = {str(level): value}
    return value


WRONG: dict[str, Callable[[], Twin]] = {
    "dot": lambda: desired(**{"a.b": 1}),
    "dollar": lambda: desired(**{"$a": 1}),
    "space": lambda: desired(**{"a b": 1}),
    "control": lambda: desired(**{"a\x01": 1}),
    "empty": lambda: desired(**{"": 1}),
    "long-key": lambda: desired(**{"k" * 1025: 1}),
    "long-value": lambda: desired(a="x" * 4097),
    "deep": lambda: desired(a=nested(12)),
    "tag-size": lambda: Twin(tags={f"t{n}": "x" * 3000 for n in range(3)}),
    "desired-size": lambda: desired(**{f"d{n}": "x" * 4000 for n in range(9)}),
    "tag-dot": lambda: Twin(tags={"a.b": 1}),
}


@pytest.mark.parametrize("case", WRONG)
def test_limits(service: IoTHubRegistryManager, device: Account, case: str) -> None:
    with refused(400, "ArgumentInvalid"):
        service.update_twin(device.device_id, WRONG[case]())
    twin = service.get_twin(device.device_id)
    assert twin.version == 2
    assert plain(twin.properties.desired) == {}


def test_up_to_the_limits(service: IoTHubRegistryManager, device: Account) -> None:
    twin = service.update_twin(
        device.device_id,
        Twin(
            tags={"t1": "x" * 4000, "t2": "x" * 4000},
            properties=TwinProperties(
                desired={
                    **{f"d{n}": "x" * 4000 for n in range(7)},
                    "k" * 1024: 1,
                    "deep": nested(11),
                    "azureiot*com^dtracing^1": {"sampling_mode": 1},
                }
            ),
        ),
    )
    assert len(twin.properties.desired["d6"]) == 4000


def test_module_twins(service: IoTHubRegistryManager, device: Account, module: Account) -> None:
    ids = (device.device_id, module.module_id)
    twin = service.get_module_twin(*ids)
    assert (twin.device_id, twin.module_id, twin.version) == (*ids, 2)
    patched = service.update_module_twin(*ids, Twin(tags={"a": 1}), twin.etag)
    assert patched.tags == {"a": 1}
    with refused(412, "PreconditionFailed"):
        service.update_module_twin(*ids, Twin(tags={"a": 2}), twin.etag)
    replaced = service.replace_module_twin(*ids, desired(b=2))
    assert plain(replaced.properties.desired) == {"b": 2}
    with refused(404, "ModuleNotFound"):
        service.get_module_twin(device.device_id, "nothing")
    assert service.get_twin(device.device_id).version == 2
