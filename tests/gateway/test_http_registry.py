"""The registry over HTTP: dialogues with the ASGI application, as clients hold them."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from tests.events import MemoryEvents
from tests.state import MemoryState

from mooring.errors import ConfigError, CorruptRecord
from mooring.gateway.http.app import build_app
from mooring.gateway.http.devices import MAX_BULK_BODY
from mooring.gateway.http.documents import Authentication, SymmetricKey
from mooring.gateway.http.operations import OPERATIONS
from mooring.gateway.http.server import HttpLimits
from mooring.hub.hub import Hub
from mooring.hub.hubs import Hubs
from mooring.hub.identity import Identity, Ref
from mooring.hub.registry import IdentityRequest
from mooring.hub.settings import HubSettings
from mooring.wire import sas

KEY_A = base64.b64encode(b"a" * 32).decode()
KEY_B = base64.b64encode(b"b" * 32).decode()
SOON = int(time.time()) + 3600
VERSION = "api-version=2021-04-12"

Ask = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def state() -> MemoryState:
    return MemoryState()


@pytest.fixture
async def hub(state: MemoryState) -> AsyncIterator[Hub]:
    hub = await Hub.open("hub.example.org", state, MemoryEvents(), aliases=["localhost"])
    yield hub
    await hub.close()


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=build_app(Hubs([hub])))
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as client:
        yield client


def token(hub: Hub, policy: str = "iothubowner", **options: Any) -> str:
    held = hub.policies.get(policy)
    assert held is not None
    resource = options.get("resource", "localhost")
    return sas.generate(held.primary_key, resource, options.get("expires", SOON), policy=policy)


@pytest.fixture
def ask(hub: Hub, client: httpx.AsyncClient) -> Ask:
    """Asks as the owner unless told otherwise; adds the API version if there is no query."""

    async def asking(method: str, path: str, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if "token" in options:
            if (text := options.pop("token")) is not None:
                headers["Authorization"] = text
        else:
            headers["Authorization"] = token(hub, options.pop("policy", "iothubowner"))
        url = path if "?" in path else f"{path}?{VERSION}"
        return await client.request(method, url, headers=headers, **options)

    return asking


def code_of(response: httpx.Response) -> str:
    """The error's name, after checking that the whole answer has Azure's shape."""
    body = response.json()
    assert set(body) == {"Message", "ExceptionMessage"}
    name = response.headers["iothub-errorcode"]
    # Azure's Node SDK splits it like this.
    assert body["Message"].split(";")[0].split(":") == ["ErrorCode", name]
    assert body["ExceptionMessage"].startswith("Tracking ID:")
    assert "-TimeStamp:" in body["ExceptionMessage"]
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.headers["x-ms-request-id"]
    return name


# Devices


async def test_a_device_from_create_to_delete(ask: Ask) -> None:
    made = await ask("PUT", "/devices/d1", json={"deviceId": "d1"})
    assert made.status_code == 200
    document = made.json()
    assert made.headers["etag"] == f'"{document["etag"]}"'
    keys = document["authentication"]["symmetricKey"]
    assert {len(base64.b64decode(key)) for key in keys.values()} == {32}
    assert document == {
        "deviceId": "d1",
        "generationId": document["generationId"],
        "etag": document["etag"],
        "connectionState": "Disconnected",
        "status": "enabled",
        "statusReason": None,
        "connectionStateUpdatedTime": "0001-01-01T00:00:00Z",
        "statusUpdatedTime": "0001-01-01T00:00:00Z",
        "lastActivityTime": "0001-01-01T00:00:00Z",
        "cloudToDeviceMessageCount": 0,
        "authentication": {
            "symmetricKey": keys,
            "x509Thumbprint": {"primaryThumbprint": None, "secondaryThumbprint": None},
            "type": "sas",
        },
        "capabilities": {"iotEdge": False},
        "parentScopes": [],
    }
    assert (await ask("GET", "/devices/d1")).json() == document

    # Clients send the whole document back with what they change.
    changed = await ask(
        "PUT",
        "/devices/d1",
        json={**document, "status": "disabled", "statusReason": "lost"},
        headers={"If-Match": f'"{document["etag"]}"'},
    )
    assert changed.status_code == 200
    assert changed.json()["status"] == "disabled"
    assert changed.json()["authentication"]["symmetricKey"] == keys
    assert changed.json()["statusUpdatedTime"] > document["statusUpdatedTime"]

    gone = await ask("DELETE", "/devices/d1", headers={"If-Match": "*"})
    assert (gone.status_code, gone.content) == (204, b"")
    absent = await ask("GET", "/devices/d1")
    assert (absent.status_code, code_of(absent)) == (404, "DeviceNotFound")
    assert absent.json()["Message"] == "ErrorCode:DeviceNotFound;d1"


async def test_creating_what_exists(ask: Ask) -> None:
    await ask("PUT", "/devices/d1", json={})
    again = await ask("PUT", "/devices/d1", json={})
    assert (again.status_code, code_of(again)) == (409, "DeviceAlreadyExists")


@pytest.mark.parametrize("form", ["*", '"*"', "{}", '"{}"', 'W/"{}"', ""])
async def test_updates_that_match(ask: Ask, form: str) -> None:
    etag = (await ask("PUT", "/devices/d1", json={})).json()["etag"]
    headers = {"If-Match": form.format(etag)}
    assert (await ask("PUT", "/devices/d1", json={}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("method", "header", "status", "code"),
    [
        ("PUT", '"MA=="', 412, "PreconditionFailed"),
        ("DELETE", '"MA=="', 412, "PreconditionFailed"),
    ],
)
async def test_updates_that_do_not_match(
    ask: Ask, method: str, header: str, status: int, code: str
) -> None:
    await ask("PUT", "/devices/d1", json={})
    options = {"json": {}} if method == "PUT" else {}
    answer = await ask(method, "/devices/d1", headers={"If-Match": header}, **options)
    assert (answer.status_code, code_of(answer)) == (status, code)


async def test_updating_what_is_not_there(ask: Ask) -> None:
    for path, code in (("/devices/d1", "DeviceNotFound"), ("/devices/d1/modules/m", None)):
        answer = await ask("PUT", path, json={}, headers={"If-Match": "*"})
        assert answer.status_code == 404
        assert code_of(answer) == (code or "DeviceNotFound")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"deviceId": "other"}, "deviceId"),
        ({"status": "paused"}, "status"),
        ({"status": 5}, "status"),
        ({"authentication": {"type": "magic"}}, "authentication.type"),
        ({"authentication": {"symmetricKey": {"primaryKey": KEY_A}}}, "both"),
        ({"authentication": {"symmetricKey": {"primaryKey": "no", "secondaryKey": KEY_A}}}, "64"),
        ({"authentication": {"type": "selfSigned"}}, "thumbprint"),
        ({"deviceScope": "ms-azure-iot-edge://nobody-1"}, "scope"),
        ([], "not valid"),
        ("text", "not valid"),
    ],
)
async def test_documents_that_cannot_be(ask: Ask, body: Any, said: str) -> None:
    answer = await ask("PUT", "/devices/d1", json=body)
    assert answer.status_code == 400
    assert code_of(answer) in ("ArgumentInvalid", "InvalidDeviceScope")
    assert said in answer.json()["Message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"deviceId":"\xff"}',
        b'{"tags":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"null",
        b"{}{}",
    ],
)
async def test_bodies_that_are_no_document(ask: Ask, body: bytes) -> None:
    answer = await ask("PUT", "/devices/d1", content=body)
    if body.startswith(b'{"tags"'):
        assert answer.status_code in (200, 400)  # deep, but in a field that is ignored
        return
    assert (answer.status_code, code_of(answer)) == (400, "ArgumentInvalid")


async def test_a_body_that_is_too_large(ask: Ask) -> None:
    answer = await ask("PUT", "/devices/d1", content=b" " * (600 * 1024))
    assert (answer.status_code, code_of(answer)) == (413, "GenericRequestEntityTooLarge")


async def test_a_device_with_certificates(ask: Ask) -> None:
    body = {
        "authentication": {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "ab" * 20}}
    }
    shown = (await ask("PUT", "/devices/d1", json=body)).json()["authentication"]
    assert shown == {
        "symmetricKey": {"primaryKey": None, "secondaryKey": None},
        "x509Thumbprint": {"primaryThumbprint": "AB" * 20, "secondaryThumbprint": None},
        "type": "selfSigned",
    }


async def test_connection_state_and_activity_show(ask: Ask, hub: Hub) -> None:
    await ask("PUT", "/devices/d1", json={})
    hub.presence.connected(Ref("d1"))
    shown = (await ask("GET", "/devices/d1")).json()
    assert shown["connectionState"] == "Connected"
    for name in ("connectionStateUpdatedTime", "lastActivityTime"):
        assert shown[name].startswith(time.strftime("%Y-"))


async def test_lists_and_statistics(ask: Ask) -> None:
    for name in ("c", "a", "b"):
        await ask("PUT", f"/devices/{name}", json={})
    await ask("PUT", "/devices/b", json={"status": "disabled"}, headers={"If-Match": "*"})

    async def ids(query: str) -> list[str]:
        answer = await ask("GET", f"/devices/?{VERSION}{query}")
        return [document["deviceId"] for document in answer.json()]

    assert await ids("") == ["a", "b", "c"]
    assert await ids("&top=2") == ["a", "b"]
    assert await ids("&top=0") == ["a", "b", "c"]
    assert await ids("&top=5000") == ["a", "b", "c"]
    bad = await ask("GET", f"/devices?{VERSION}&top=many")
    assert (bad.status_code, code_of(bad)) == (400, "ArgumentInvalid")
    assert (await ask("GET", "/statistics/devices")).json() == {
        "totalDeviceCount": 3,
        "enabledDeviceCount": 2,
        "disabledDeviceCount": 1,
    }
    assert (await ask("GET", "/statistics/service")).json() == {"connectedDeviceCount": 0}


async def test_modules(ask: Ask) -> None:
    missing = await ask("PUT", "/devices/d1/modules/m1", json={})
    assert (missing.status_code, code_of(missing)) == (404, "DeviceNotFound")
    await ask("PUT", "/devices/d1", json={})
    body = {"deviceId": "d1", "moduleId": "m1", "managedBy": "me"}
    made = await ask("PUT", "/devices/d1/modules/m1", json=body)
    assert made.status_code == 200
    assert set(made.json()) == {
        "moduleId",
        "managedBy",
        "deviceId",
        "generationId",
        "etag",
        "connectionState",
        "connectionStateUpdatedTime",
        "lastActivityTime",
        "cloudToDeviceMessageCount",
        "authentication",
    }
    assert (await ask("GET", "/devices/d1/modules")).json() == [made.json()]
    again = await ask("PUT", "/devices/d1/modules/m1", json=body)
    assert (again.status_code, code_of(again)) == (409, "ModuleAlreadyExistsOnDevice")
    gone = await ask("DELETE", "/devices/d1/modules/m1", headers={"If-Match": '"*"'})
    assert gone.status_code == 204
    absent = await ask("GET", "/devices/d1/modules/m1")
    assert (absent.status_code, code_of(absent)) == (404, "ModuleNotFound")
    none = await ask("GET", "/devices/absent/modules")
    assert (none.status_code, code_of(none)) == (404, "DeviceNotFound")


async def test_an_edge_device_and_its_system_modules(ask: Ask) -> None:
    made = (await ask("PUT", "/devices/e1", json={"capabilities": {"iotEdge": True}})).json()
    assert made["deviceScope"] == f"ms-azure-iot-edge://e1-{made['generationId']}"
    agent = await ask("GET", "/devices/e1/modules/%24edgeAgent")
    assert agent.json()["managedBy"] == "iotEdge"
    for method in ("PUT", "DELETE"):
        options = {"json": {}} if method == "PUT" else {}
        answer = await ask(method, "/devices/e1/modules/%24edgeHub", **options)
        assert answer.status_code == 401
        assert code_of(answer) == "SystemModuleModifyUnauthorizedAccess"


# Bulk


async def test_bulk_that_succeeds(ask: Ask, state: MemoryState) -> None:
    answer = await ask(
        "POST",
        "/devices",
        json=[
            {"id": "b1", "importMode": "create", "tags": {"site": "x"}},
            {"id": "b1", "moduleId": "m1", "importMode": "Create"},
            {"id": "b2", "properties": {"desired": {"n": 1, "$version": 9}}},
        ],
    )
    assert answer.status_code == 200
    assert answer.json() == {"isSuccessful": True, "errors": [], "warnings": []}
    assert state.tables.twins[Ref("b1")].tags == {"site": "x"}
    assert state.tables.twins[Ref("b2")].desired == {"n": 1}
    assert Ref("b1", "m1") in state.tables.identities


async def test_bulk_that_fails_in_part(ask: Ask, state: MemoryState) -> None:
    etag = (await ask("PUT", "/devices/old", json={})).json()["etag"]
    await ask("PUT", "/devices/gone", json={})
    answer = await ask(
        "POST",
        "/devices",
        json=[
            {"id": "old", "importMode": "create"},
            {"id": "new", "importMode": "CREATE"},
            {"id": "absent", "importMode": "Update"},
            {"id": "gone", "importMode": "Delete"},
            {"id": "twice", "importMode": "create"},
            {"id": "twice", "importMode": "create"},
            {"id": "odd", "importMode": "explode"},
            {"id": "late", "importMode": "UpdateIfMatchETag"},
        ],
    )
    assert answer.status_code == 400
    body = answer.json()
    assert body["isSuccessful"] is False
    assert [(one["deviceId"], one["errorCode"], one["operation"]) for one in body["errors"]] == [
        ("old", "DeviceAlreadyExists", "create"),
        ("absent", "DeviceNotFound", "update"),
        ("twice", "DeviceDefinedMultipleTimes", "create"),
        ("odd", "ArgumentInvalid", "unknown"),
        ("late", "ArgumentInvalid", "updateIfMatchETag"),
    ]
    assert Ref("new") in state.tables.identities
    assert Ref("gone") not in state.tables.identities
    item = {"id": "old", "importMode": "updateIfMatchETag", "eTag": etag, "status": "disabled"}
    assert (await ask("POST", "/devices", json=[item])).status_code == 200
    stale = await ask("POST", "/devices", json=[{**item, "importMode": "deleteIfMatchETag"}])
    assert stale.json()["errors"][0]["errorCode"] == "PreconditionFailed"


async def test_bulk_whose_disk_fills_up_tells_what_was_done(
    ask: Ask, hub: Hub, state: MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = hub.registry.create

    async def until_full(request: IdentityRequest) -> Identity:
        state.failing = request.device_id == "b2"
        if request.device_id == "b3":
            raise CorruptRecord("identity b3: the checksum does not match")
        return await create(request)

    monkeypatch.setattr(hub.registry, "create", until_full)
    items = [{"id": f"b{number}", "importMode": "create"} for number in (1, 2, 3, 4)]
    answer = await ask("POST", "/devices", json=items)
    assert answer.status_code == 400
    assert [(one["deviceId"], one["errorCode"]) for one in answer.json()["errors"]] == [
        ("b2", "ServiceUnavailable"),
        ("b3", "ServerError"),
    ]
    assert "checksum" not in answer.text
    assert set(state.tables.identities) == {Ref("b1"), Ref("b4")}


async def test_bulk_twins(ask: Ask, state: MemoryState) -> None:
    await ask("PUT", "/devices/d1", json={})
    item = {"id": "d1", "importMode": "updateTwin", "tags": {"a": 1}}
    assert (await ask("POST", "/devices", json=[item])).status_code == 200
    assert state.tables.twins[Ref("d1")].tags == {"a": 1}
    stale = {**item, "importMode": "updateTwinIfMatchETag", "twinETag": "AAAAAAAAAAE="}
    answer = await ask("POST", "/devices", json=[stale])
    assert answer.json()["errors"][0]["errorCode"] == "PreconditionFailed"
    await ask("POST", "/devices", json=[{**stale, "twinETag": "AAAAAAAAAAI=", "tags": {"b": 2}}])
    assert state.tables.twins[Ref("d1")].tags == {"a": 1, "b": 2}


async def test_a_device_without_the_twin_it_came_with(ask: Ask, state: MemoryState) -> None:
    item = {"id": "d1", "importMode": "create", "tags": {"big": "x" * 9000}}
    answer = await ask("POST", "/devices", json=[item])
    assert answer.status_code == 200
    (warning,) = answer.json()["warnings"]
    assert warning["warningCode"] == "DeviceRegisteredWithoutTwin"
    assert Ref("d1") in state.tables.identities


async def test_bulk_has_limits(ask: Ask) -> None:
    many = await ask("POST", "/devices", json=[{"id": f"d{n}"} for n in range(101)])
    assert (many.status_code, code_of(many)) == (413, "GenericRequestEntityTooLarge")
    none = await ask("POST", "/devices", json=[])
    assert (none.status_code, code_of(none)) == (400, "BulkRegistryOperationFailure")


async def test_regenerating_keys(ask: Ask) -> None:
    old = (await ask("PUT", "/devices/d1", json={})).json()["authentication"]["symmetricKey"]
    await ask("PUT", "/devices/d1/modules/m1", json={})

    async def regenerate(policy_key: str, *devices: dict[str, str]) -> httpx.Response:
        body = {"policyKey": policy_key, "devices": list(devices)}
        return await ask("POST", "/devices/keys/regenerate", json=body)

    answer = await regenerate("primaryKey", {"id": "d1"}, {"id": "d1", "moduleId": "m1"})
    assert answer.status_code == 200
    first, second = answer.json()["rotatedKeys"]
    assert (first["id"], first["moduleId"], second["moduleId"]) == ("d1", None, "m1")
    assert first["primaryKey"] != old["primaryKey"]
    assert first["secondaryKey"] == old["secondaryKey"]
    assert (await regenerate("both", {"id": "d1"}, {"id": "absent"})).status_code == 207
    twice = (await regenerate("both", {"id": "d1"}, {"id": "d1"})).json()
    assert twice["rotatedKeys"] == []
    assert [one["errorCode"] for one in twice["errors"]] == ["DeviceDefinedMultipleTimes"]
    failed = await regenerate("both", {"id": "absent"})
    assert failed.status_code == 400
    assert failed.json()["errors"][0]["errorCode"] == "DeviceNotFound"
    assert code_of(await regenerate("third", {"id": "d1"})) == "ArgumentInvalid"


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/devices/d1",
        "/Devices/d1",
        "/DEVICES/d1/",
        "/devices%2Fd1",
        "/devices%2fd1",
        "//devices//d1",
    ],
)
async def test_spellings_of_a_path(ask: Ask, path: str) -> None:
    await ask("PUT", "/devices/d1", json={})
    answer = await ask("GET", f"https://localhost{path}")
    assert answer.json()["deviceId"] == "d1"


async def test_ids_keep_their_case_and_are_decoded_once(ask: Ask) -> None:
    for sent, meant in (
        ("Query", "Query"),
        ("query", "query"),
        ("keys", "keys"),
        ("modules", "modules"),
        ("a%2541", "a%41"),
        ("a+b%2Bc", "a+b+c"),
        ("%24%3D%40%3B%27!*%23%3F", "$=@;'!*#?"),
        ("..%2e", "..."),
    ):
        assert (await ask("PUT", f"/devices/{sent}", json={})).json()["deviceId"] == meant
        assert (await ask("GET", f"/devices/{sent}")).json()["deviceId"] == meant
        assert (await ask("GET", f"/devices/{sent}/modules")).json() == []
        assert (await ask("DELETE", f"/devices/{sent}")).status_code == 204


async def test_the_query_operation_is_not_a_device(ask: Ask) -> None:
    answer = await ask("POST", "/devices/Query/", json={"query": "SELECT * FROM devices"})
    assert (answer.status_code, code_of(answer)) == (404, "FeatureNotSupported")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "GenericNotFound"),
        ("GET", "/nothing", 404, "GenericNotFound"),
        ("GET", "/devices/d1/modules/m1/more", 404, "GenericNotFound"),
        ("GET", "/" + "a/" * 100, 404, "GenericNotFound"),
        ("GET", "/devices/~query", 404, "DeviceNotFound"),
        ("GET", "/devices/%ff", 400, "ArgumentInvalid"),
        ("PATCH", "/devices/d1", 405, "GenericMethodNotAllowed"),
        ("OPTIONS", "/devices", 405, "GenericMethodNotAllowed"),
        ("GET", "/jobs", 404, "FeatureNotSupported"),
        ("GET", "/configurations/c1", 404, "FeatureNotSupported"),
    ],
)
async def test_paths_that_lead_nowhere(
    ask: Ask, method: str, path: str, status: int, code: str
) -> None:
    answer = await ask(method, f"https://localhost{path}")
    assert (answer.status_code, code_of(answer)) == (status, code)


# The door


@pytest.mark.parametrize(
    "query", ["?", "?api-version=", "?api-version=latest", "?api-version=2021-04-12&api-version=1"]
)
async def test_the_api_version_is_required(ask: Ask, query: str) -> None:
    answer = await ask("GET", f"/devices/d1{query}")
    assert (answer.status_code, code_of(answer)) == (400, "InvalidProtocolVersion")


@pytest.mark.parametrize("query", ["?API-Version=2016-11-14", "?api-version=2025-08-01-preview"])
async def test_any_date_is_a_version(ask: Ask, query: str) -> None:
    assert (await ask("GET", f"/devices{query}")).status_code == 200


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_every_operation_asks_for_a_credential_and_its_right(
    ask: Ask, hub: Hub, operation: Any
) -> None:
    path = operation.pattern.replace("~", "").replace("{", "").replace("}", "")
    nobody = await ask(operation.method, path, token=None)
    assert (nobody.status_code, code_of(nobody)) == (401, "IotHubUnauthorized")
    assert nobody.json()["Message"].endswith(";Authorization header missing")
    for policy in ("registryRead", "registryReadWrite", "service", "device"):
        held = hub.policies.get(policy)
        assert held is not None
        if operation.right in held.granted:
            continue
        answer = await ask(operation.method, path, policy=policy)
        assert (answer.status_code, code_of(answer)) == (401, "IotHubUnauthorizedAccess")
        assert f"Authorization rule '{policy}' does not allow" in answer.json()["Message"]


async def test_bad_tokens(ask: Ask, hub: Hub) -> None:
    for text, code in (
        ("Bearer eyJhbGciOiJub25lIn0.e30.", "IotHubUnauthorized"),
        ("SharedAccessSignature nonsense", "IotHubUnauthorized"),
        (token(hub, expires=int(time.time()) - 10), "IotHubUnauthorized"),
        (token(hub, resource="other.example.org"), "IotHubUnauthorized"),
        (
            sas.generate(KEY_A, "localhost", SOON, policy="iothubowner"),
            "IotHubUnauthorized",
        ),
        (token(hub, resource="localhost/devices/d2"), "IotHubUnauthorizedAccess"),
    ):
        answer = await ask("GET", "/devices/d1", token=text)
        assert (answer.status_code, code_of(answer)) == (401, code)


async def test_a_narrow_scope_opens_what_lies_under_it(ask: Ask, hub: Hub) -> None:
    await ask("PUT", "/devices/d1", json={})
    narrow = token(hub, "registryRead", resource="LOCALHOST/devices/d1")
    assert (await ask("GET", "/devices/d1", token=narrow)).status_code == 200
    assert (await ask("GET", "/devices/d1/modules", token=narrow)).status_code == 200
    assert (await ask("GET", "/devices", token=narrow)).status_code == 401


async def test_a_device_may_not_read_the_registry(ask: Ask, hub: Hub) -> None:
    keys = (await ask("PUT", "/devices/d1", json={})).json()["authentication"]["symmetricKey"]
    own = sas.generate(keys["primaryKey"], "localhost/devices/d1", SOON)
    answer = await ask("GET", "/devices/d1", token=own)
    assert (answer.status_code, code_of(answer)) == (401, "IotHubUnauthorizedAccess")


async def test_a_disabled_device_is_told_so_after_its_key(ask: Ask) -> None:
    keys = (await ask("PUT", "/devices/d1", json={"status": "disabled"})).json()["authentication"]
    for key, status, code in (
        (keys["symmetricKey"]["primaryKey"], 403, "DeviceDisabled"),
        (KEY_A, 401, "IotHubUnauthorized"),
    ):
        own = sas.generate(key, "localhost/devices/d1", SOON)
        answer = await ask("GET", "/devices/d1", token=own)
        assert (answer.status_code, code_of(answer)) == (status, code)


async def test_refusals_are_logged_once_with_their_tracking_id_and_no_secret(
    ask: Ask, hub: Hub
) -> None:
    policy = hub.policies.get("service")
    assert policy is not None
    good, bad = token(hub, "service"), sas.generate(KEY_A, "localhost", SOON, policy="service")
    device = {"authentication": {"symmetricKey": {"primaryKey": KEY_A, "secondaryKey": "bad!"}}}
    with capture_logs() as logs:
        answers = [
            await ask("GET", "/devices/d1", token=good),
            await ask("GET", "/devices/d1", token=bad),
            await ask("PUT", "/devices/d1", json=device),
            await ask("GET", "/devices/d1", token=None),
            await ask("GET", "/nothing"),
        ]
    assert len(logs) == len(answers)
    for answer, entry in zip(answers, logs, strict=True):
        assert entry["event"] == "request_refused"
        assert answer.json()["ExceptionMessage"] == f"Tracking ID:{entry['tracking_id']}"
        assert entry["request_id"] == answer.headers["x-ms-request-id"]
        assert entry["error"] == answer.headers["iothub-errorcode"]
        assert entry["reason"]
    assert [entry["operation"] for entry in logs] == [
        "GET /devices/{device_id}",
        "GET /devices/{device_id}",
        "PUT /devices/{device_id}",
        "GET /devices/{device_id}",
        "GET",
    ]
    assert (logs[0]["policy"], logs[0]["device"]) == ("service", "d1")
    everything = repr(logs) + "".join(answer.text for answer in answers)
    for secret in (
        policy.primary_key,
        KEY_A,
        "bad!",
        *(text.split("sig=")[1] for text in (good, bad)),
    ):
        assert secret.partition("&")[0] not in everything


async def test_what_nobody_foresaw_is_one_log_entry_and_no_secret(
    ask: Ask, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(ref: Ref) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(hub.registry, "get", broken)
    text = token(hub)
    with capture_logs() as logs:
        answer = await ask("GET", "/devices/d1", token=text)
    assert (answer.status_code, code_of(answer)) == (500, "ServerError")
    assert "a bug" not in answer.text
    (entry,) = logs
    assert entry["event"] == "request_failed"
    assert entry["tracking_id"] in answer.json()["ExceptionMessage"]
    assert "a bug" in entry["traceback"]
    assert text.split("sig=")[1].partition("&")[0] not in repr(entry)


async def test_a_disk_that_takes_nothing(ask: Ask, state: MemoryState) -> None:
    state.failing = True
    answer = await ask("PUT", "/devices/d1", json={})
    state.failing = False
    assert (answer.status_code, code_of(answer)) == (503, "ServiceUnavailable")


async def test_a_damaged_record_is_reported_and_not_served(
    ask: Ask, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(ref: Ref) -> None:
        raise CorruptRecord("identity d1: the checksum does not match")

    monkeypatch.setattr(hub.registry, "get", damaged)
    with capture_logs() as logs:
        answer = await ask("GET", "/devices/d1")
    assert (answer.status_code, code_of(answer)) == (500, "ServerError")
    assert "checksum" not in answer.text
    assert "checksum" in logs[0]["reason"]


async def test_a_client_that_hangs_up_does_not_stop_a_revocation(
    hub: Hub, state: MemoryState
) -> None:
    """The commit runs when the request is cancelled; the cache must still forget."""
    app = build_app(Hubs([hub]))
    transport = httpx.ASGITransport(app=app)
    headers = {"Authorization": token(hub)}
    async with httpx.AsyncClient(
        transport=transport, base_url="https://localhost", headers=headers
    ) as client:
        await client.put(f"/devices/d1?{VERSION}", json={})
        assert (await hub.registry.lookup(Ref("d1"))) is not None
        writes, state.gate = state.writes, asyncio.Event()
        request = asyncio.create_task(client.delete(f"/devices/d1?{VERSION}"))
        while state.writes == writes:
            await asyncio.sleep(0)
        request.cancel()
        state.gate.set()
        await hub.registry.close()
    assert await hub.registry.lookup(Ref("d1")) is None


# Hosts and the local operator


async def test_the_host_picks_the_hub() -> None:
    hubs = [
        await Hub.open(
            "one.example.org", MemoryState(), MemoryEvents(), aliases=["localhost", "::1"]
        ),
        await Hub.open("two.example.org", MemoryState(), MemoryEvents()),
    ]
    app = build_app(Hubs(hubs))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:

        async def status(host: str, credential: str) -> tuple[int, str]:
            answer = await client.get(
                f"https://{host}/devices?{VERSION}", headers={"Authorization": credential}
            )
            return answer.status_code, answer.headers.get("iothub-errorcode", "")

        one = token(hubs[0], resource="one.example.org")
        two = token(hubs[1], resource="two.example.org")
        assert await status("one.example.org", one) == (200, "")
        assert await status("ONE.example.org:8443", one) == (200, "")
        assert await status("localhost", one) == (200, "")
        assert await status("[::1]:8443", one) == (200, "")
        assert await status("two.example.org", two) == (200, "")
        assert await status("two.example.org", one) == (401, "IotHubUnauthorized")
        assert await status("three.example.org", one) == (401, "IotHubNotFound")
    for hub in hubs:
        await hub.close()


def test_names_of_hubs_do_not_clash() -> None:
    def make(name: str, *aliases: str) -> Hub:
        return Hub(name, MemoryState(), MemoryEvents(), HubSettings(), aliases=aliases)

    one, two = make("one", "localhost", "two"), make("TWO")
    hubs = Hubs([one, two])
    assert hubs.find("two:443") is two  # its own name comes before another's alias
    assert hubs.find("LocalHost.") is one
    assert hubs.aliases(one) == {"localhost"}
    assert hubs.default is one
    for clash in ([], [make("one"), make("One")], [make("one", "x"), make("two", "x")]):
        with pytest.raises(ConfigError):
            Hubs(clash)


async def test_the_local_operator_needs_no_credential(hub: Hub) -> None:
    routes = build_app(Hubs([hub]))

    async def local(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {"local": True}
        await routes(scope, receive, send)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=local), base_url="http://whatever"
    ) as client:
        made = await client.put("/devices/d1", content=json.dumps({}))
        assert made.status_code == 200
        assert (await client.get("/twins/d1")).status_code == 200
        assert (await client.get("/nothing")).status_code == 404


async def test_whom_a_call_is_about_stands_in_the_path_alone(ask: Ask, hub: Hub) -> None:
    """The rights were checked for the path: a query must not lead elsewhere."""
    for path in ("/devices/d1", "/devices/d1/modules/m1", "/devices/d2"):
        await ask("PUT", path, json={})
    query = f"?{VERSION}&module_id=m1&device_id=d2&ref=d2"
    answer = await ask("GET", f"/twins/d1{query}")
    assert answer.json()["deviceId"] == "d1"
    assert "moduleId" not in answer.json()
    assert (await ask("GET", f"/devices/d1{query}")).json()["deviceId"] == "d1"


async def test_twins_are_reached_through_the_same_door(ask: Ask) -> None:
    await ask("PUT", "/devices/d1", json={})
    answer = await ask("PATCH", "/Twins/d1", json={"tags": {"a": 1}}, policy="service")
    assert answer.json()["tags"] == {"a": 1}


def test_the_largest_bulk_operation_passes_the_host() -> None:
    assert HttpLimits().body_bytes >= MAX_BULK_BODY


def test_no_repr_of_a_document_shows_a_key() -> None:
    document = Authentication(symmetric_key=SymmetricKey("Zmlyc3Q=", "c2Vjb25k"))
    assert not any(key in repr(document) for key in ("Zmlyc3Q=", "c2Vjb25k"))
