"""The registry as azure-iot-hub uses it."""

import base64
from collections.abc import Callable

import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.protocol.models import (
    AuthenticationMechanism,
    ExportImportDevice,
    SymmetricKey,
    TwinProperties,
)
from msrest.exceptions import HttpOperationError

from .cloud import Account, eventually, fresh, random_key
from .flavours import Flavour
from .service_http import call, get
from .standing import Hub

THUMBPRINT = "0123456789ABCDEF0123456789ABCDEF01234567"


class Refused:
    """`with refused(404, "DeviceNotFound"):` the call must fail with that."""

    def __init__(self, status: int, code: str) -> None:
        self._status, self._code = status, code

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert isinstance(error, HttpOperationError), "the call was not refused"
        response = error.response
        assert response.status_code == self._status, response.text
        assert response.headers["iothub-errorcode"] == self._code
        assert response.json()["Message"].startswith(f"ErrorCode:{self._code};")
        assert "Tracking ID:" in response.json()["ExceptionMessage"]
        return True


refused = Refused


def test_a_device_with_keys_of_its_own(service: IoTHubRegistryManager) -> None:
    name, primary, secondary = fresh("device"), random_key(), random_key()
    made = service.create_device_with_sas(
        name, primary, secondary, "enabled", status_reason="grüße"
    )
    assert made.device_id == name
    assert made.authentication.type == "sas"
    assert made.authentication.symmetric_key.primary_key == primary
    assert made.authentication.symmetric_key.secondary_key == secondary
    assert (made.status, made.status_reason) == ("enabled", "grüße")
    assert made.connection_state == "Disconnected"
    assert made.capabilities.iot_edge is False
    assert made.cloud_to_device_message_count == 0
    assert made.generation_id.isdigit()
    got = service.get_device(name)
    assert got.as_dict() == made.as_dict()


def test_a_device_without_keys_gets_them(service: IoTHubRegistryManager) -> None:
    for empty in ("", None):
        keys = service.create_device_with_sas(
            fresh("device"), empty, empty, "enabled"
        ).authentication.symmetric_key
        assert len(base64.b64decode(keys.primary_key)) >= 32
        assert len(base64.b64decode(keys.secondary_key)) >= 32
        assert keys.primary_key != keys.secondary_key


def test_certificate_devices(service: IoTHubRegistryManager) -> None:
    name = fresh("device")
    made = service.create_device_with_x509(name, THUMBPRINT, THUMBPRINT[::-1], "disabled")
    assert made.authentication.type == "selfSigned"
    assert made.authentication.x509_thumbprint.primary_thumbprint == THUMBPRINT
    assert made.authentication.x509_thumbprint.secondary_thumbprint == THUMBPRINT[::-1]
    assert made.status == "disabled"
    made = service.update_device_with_certificate_authority(name, made.etag, "enabled")
    assert made.authentication.type == "certificateAuthority"
    made = service.update_device_with_x509(name, made.etag, THUMBPRINT, None, "enabled")
    assert made.authentication.type == "selfSigned"
    by_authority = service.create_device_with_certificate_authority(fresh("device"), "enabled")
    assert by_authority.authentication.type == "certificateAuthority"


@pytest.mark.parametrize("name", ["a", "x" * 128, "A-:.+%_#*?!(),=@;$'z", "ÄÖ", "x" * 129, "a b"])
def test_ids(service: IoTHubRegistryManager, name: str) -> None:
    allowed = name.isascii() and len(name) <= 128 and " " not in name
    if not allowed:
        with refused(400, "ArgumentInvalid"):
            service.create_device_with_sas(name, "", "", "enabled")
        return
    try:
        assert service.create_device_with_sas(name, "", "", "enabled").device_id == name
        assert service.get_device(name).device_id == name
        assert service.get_twin(name).device_id == name
    finally:
        service.delete_device(name)


def test_ids_are_case_sensitive(service: IoTHubRegistryManager) -> None:
    name = fresh("device")
    service.create_device_with_sas(name, "", "", "enabled")
    service.create_device_with_sas(name.upper(), "", "", "disabled")
    assert service.get_device(name).status == "enabled"
    assert service.get_device(name.upper()).status == "disabled"


def test_create_twice(service: IoTHubRegistryManager, device: Account) -> None:
    with refused(409, "DeviceAlreadyExists"):
        service.create_device_with_sas(device.device_id, "", "", "enabled")
    assert service.get_device(device.device_id).generation_id == device.generation_id


def test_what_is_not_there(service: IoTHubRegistryManager) -> None:
    name = fresh("nobody")
    with refused(404, "DeviceNotFound"):
        service.get_device(name)
    with refused(404, "DeviceNotFound"):
        service.delete_device(name)
    with refused(404, "DeviceNotFound"):
        service.update_device_with_sas(name, "*", "", "", "enabled")
    with refused(404, "DeviceNotFound"):
        service.get_twin(name)
    with refused(404, "DeviceNotFound"):
        service.get_modules(name)


def test_etags_guard_updates_and_deletes(service: IoTHubRegistryManager, device: Account) -> None:
    keys = (device.primary, device.secondary)
    first = service.get_device(device.device_id).etag
    second = service.update_device_with_sas(device.device_id, first, *keys, "disabled").etag
    assert first != second
    with refused(412, "PreconditionFailed"):
        service.update_device_with_sas(device.device_id, first, *keys, "enabled")
    with refused(412, "PreconditionFailed"):
        service.delete_device(device.device_id, first)
    assert service.get_device(device.device_id).status == "disabled"
    service.delete_device(device.device_id, second)
    with refused(404, "DeviceNotFound"):
        service.get_device(device.device_id)


def test_a_device_made_again_is_another(
    service: IoTHubRegistryManager, device: Account, new_device: Callable[..., Account]
) -> None:
    service.delete_device(device.device_id)
    again = new_device(device.device_id)
    assert again.generation_id != device.generation_id
    assert again.primary != device.primary


def test_status_times(service: IoTHubRegistryManager, device: Account) -> None:
    before = service.get_device(device.device_id)
    assert before.last_activity_time.year == 1
    after = service.update_device_with_sas(
        device.device_id, None, device.primary, device.secondary, "disabled"
    )
    assert after.status_updated_time > before.status_updated_time


def test_list(service: IoTHubRegistryManager, new_device: Callable[[], Account]) -> None:
    names = {new_device().device_id for _ in range(3)}
    listed = {device.device_id for device in service.get_devices(1000)}
    assert names <= listed
    assert names <= {device.device_id for device in service.get_devices()}
    assert len(service.get_devices(2)) == 2


async def test_statistics(
    service: IoTHubRegistryManager, new_device: Callable[[], Account], aio: Flavour
) -> None:
    before = service.get_device_registry_statistics()
    known = new_device()
    service.create_device_with_sas(fresh("device"), "", "", "disabled")
    after = service.get_device_registry_statistics()
    assert after.total_device_count == before.total_device_count + 2
    assert after.enabled_device_count == before.enabled_device_count + 1
    assert after.disabled_device_count == before.disabled_device_count + 1

    def connected() -> int:
        return service.get_service_statistics().connected_device_count

    client = aio.device(known)
    await client.connect()
    eventually(lambda: connected() >= 1, "the device is counted")


def test_modules(service: IoTHubRegistryManager, device: Account) -> None:
    primary, secondary = random_key(), random_key()
    made = service.create_module_with_sas(device.device_id, "m1", "me", primary, secondary)
    assert (made.device_id, made.module_id, made.managed_by) == (device.device_id, "m1", "me")
    assert made.authentication.symmetric_key.primary_key == primary
    assert service.get_module(device.device_id, "m1").as_dict() == made.as_dict()
    service.create_module_with_x509(device.device_id, "m2", "", THUMBPRINT, None)
    service.create_module_with_certificate_authority(device.device_id, "m3", "")
    assert {module.module_id for module in service.get_modules(device.device_id)} == {
        "m1",
        "m2",
        "m3",
    }

    updated = service.update_module_with_sas(
        device.device_id, "m1", "you", made.etag, primary, secondary
    )
    assert updated.managed_by == "you"
    with refused(412, "PreconditionFailed"):
        service.update_module_with_sas(
            device.device_id, "m1", "they", made.etag, primary, secondary
        )
    with refused(409, "ModuleAlreadyExistsOnDevice"):
        service.create_module_with_sas(device.device_id, "m1", "me", "", "")
    service.delete_module(device.device_id, "m1", updated.etag)
    with refused(404, "ModuleNotFound"):
        service.get_module(device.device_id, "m1")
    with refused(404, "DeviceNotFound"):
        service.create_module_with_sas(fresh("nobody"), "m1", "", "", "")

    service.delete_device(device.device_id)
    with refused(404, "DeviceNotFound"):
        service.get_module(device.device_id, "m2")


def test_edge_devices(service: IoTHubRegistryManager) -> None:
    name = fresh("edge")
    edge = service.create_device_with_sas(name, "", "", "enabled", iot_edge=True)
    assert edge.capabilities.iot_edge is True
    assert edge.device_scope.startswith(f"ms-azure-iot-edge://{name}-")
    assert {module.module_id for module in service.get_modules(name)} == {
        "$edgeAgent",
        "$edgeHub",
    }
    leaf = service.create_device_with_sas(
        fresh("leaf"), "", "", "enabled", device_scope=edge.device_scope
    )
    assert leaf.device_scope == edge.device_scope
    assert leaf.parent_scopes == [edge.device_scope]


def bulk(name: str, mode: str, **more: object) -> ExportImportDevice:
    keys = SymmetricKey(primary_key=random_key(), secondary_key=random_key())
    return ExportImportDevice(
        id=name,
        import_mode=mode,
        status="enabled",
        authentication=AuthenticationMechanism(type="sas", symmetric_key=keys),
        **more,
    )


def test_bulk(service: IoTHubRegistryManager) -> None:
    names = [fresh("bulk") for _ in range(3)]
    result = service.bulk_create_or_update_devices(
        [
            bulk(
                name,
                "create",
                tags={"site": "north"},
                properties=TwinProperties(desired={"rate": 5}),
            )
            for name in names
        ]
    )
    assert result.is_successful is True
    twin = service.get_twin(names[0])
    assert twin.tags == {"site": "north"}
    assert twin.properties.desired["rate"] == 5

    disabling = bulk(names[0], "update")
    disabling.status = "disabled"
    result = service.bulk_create_or_update_devices([disabling, bulk(names[1], "delete")])
    assert result.is_successful is True
    assert service.get_device(names[0]).status == "disabled"
    with refused(404, "DeviceNotFound"):
        service.get_device(names[1])

    result = service.bulk_create_or_update_devices(
        [bulk(names[0], "create"), bulk(names[1], "update"), bulk(names[2], "delete")]
    )
    assert result.is_successful is False
    assert {(error.device_id, error.error_code) for error in result.errors} == {
        (names[0], "DeviceAlreadyExists"),
        (names[1], "DeviceNotFound"),
    }
    with refused(404, "DeviceNotFound"):
        service.get_device(names[2])


def test_keys_are_regenerated(service: IoTHubRegistryManager, device: Account, hub: Hub) -> None:
    answer = call(
        hub,
        "POST",
        "/devices/keys/regenerate",
        {"policyKey": "primaryKey", "devices": [{"id": device.device_id}]},
    )
    assert answer.status_code == 200, answer.text
    keys = service.get_device(device.device_id).authentication.symmetric_key
    assert keys.primary_key != device.primary
    assert keys.secondary_key == device.secondary
    (rotated,) = answer.json()["rotatedKeys"]
    assert rotated["id"] == device.device_id
    assert rotated["primaryKey"] == keys.primary_key


def test_paths_as_other_tools_spell_them(hub: Hub, device: Account) -> None:
    for path in (
        f"/devices/{device.device_id}",
        f"/DEVICES/{device.device_id}/",
        f"/devices%2F{device.device_id}",
    ):
        answer = get(hub, path)
        assert answer.status_code == 200, path
        assert answer.json()["deviceId"] == device.device_id
        assert answer.headers["ETag"] == f'"{answer.json()["etag"]}"'
    assert get(hub, "/devices/").status_code == 200
