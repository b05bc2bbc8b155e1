"""The operator's own requests over the private socket: answers, refusals, and failures as such."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from tests.events import MemoryEvents
from tests.gateway.http_dialogue import refused
from tests.state import MemoryState

from mooring.gateway.control import Control
from mooring.gateway.http.app import build_app
from mooring.hub.hub import Hub
from mooring.hub.hubs import Hubs


@pytest.fixture
def state() -> MemoryState:
    return MemoryState()


@pytest.fixture
async def hub(state: MemoryState) -> AsyncIterator[Hub]:
    hub = await Hub.open("localhost", state, MemoryEvents())
    yield hub
    await hub.close()


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    hubs = Hubs([hub])
    control: Any = Control(hubs, list, build_app(hubs))

    async def local(scope: Any, receive: Any, send: Any) -> None:
        await control({**scope, "state": {"local": True}}, receive, send)

    transport = httpx.ASGITransport(app=local)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_a_key_is_made_anew(client: httpx.AsyncClient, hub: Hub) -> None:
    before = hub.policies.get("service")
    answer = await client.post("/control/policies/service/regenerate", json={"key": "primary"})
    after = hub.policies.get("service")
    assert before is not None and after is not None  # noqa: PT018
    assert answer.json()["primaryKey"] == after.primary_key != before.primary_key
    assert answer.json()["secondaryKey"] == before.secondary_key


async def test_names_and_rights_are_listed_without_keys(
    client: httpx.AsyncClient, hub: Hub
) -> None:
    answer = await client.get("/control/policies")
    assert {one["name"] for one in answer.json()} == {policy.name for policy in hub.policies.all()}
    assert all(set(one) == {"name", "rights"} for one in answer.json())


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/control/policies/nobody", 404, "GenericNotFound"),
        ("PATCH", "/control/status", 405, "GenericMethodNotAllowed"),
        ("GET", "/control/nothing", 404, "GenericNotFound"),
        ("DELETE", "/control/consumer-groups/$Default", 400, "ArgumentInvalid"),
        ("POST", "/control/policies/service/regenerate", 400, "ArgumentInvalid"),
    ],
)
async def test_refusals_are_those_of_the_service(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    refused(await client.request(method, path), status, code)


async def test_another_host_is_no_hub_of_ours(client: httpx.AsyncClient) -> None:
    refused(await client.get("/devices", headers={"Host": "elsewhere"}), 404, "GenericNotFound")


async def test_everything_else_is_the_service(client: httpx.AsyncClient) -> None:
    assert (await client.get("/devices")).json() == []


async def test_a_disk_that_takes_nothing(client: httpx.AsyncClient, state: MemoryState) -> None:
    state.failing = True
    with capture_logs() as logs:
        answer = await client.post("/control/policies/service/regenerate", json={"key": "primary"})
    state.failing = False
    refused(answer, 503, "ServiceUnavailable")
    assert logs[-1]["tracking_id"] in answer.json()["ExceptionMessage"]


async def test_a_defect_is_reported_and_not_shown(
    client: httpx.AsyncClient, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.registry, "counts", lambda: 1 / 0)
    with capture_logs() as logs:
        answer = await client.get("/control/status")
    refused(answer, 500, "ServerError")
    assert "division" not in answer.text
    assert "division" in logs[-1]["traceback"]
