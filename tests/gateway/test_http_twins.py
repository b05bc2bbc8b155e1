"""Twins over HTTPS, as back ends read and write them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway.http_dialogue import Dialogue, dialogue, refused

AT = {"$lastUpdated": "2023-11-14T22:13:20.0000000Z"}


@pytest.fixture
async def talk() -> AsyncIterator[Dialogue]:
    async with dialogue() as talk:
        yield talk


async def test_a_new_twin(talk: Dialogue) -> None:
    response = await talk.ask("GET", "/twins/d1")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.headers["etag"] == '"AAAAAAAAAAE="'
    body = response.json()
    assert list(body)[:2] == ["deviceId", "etag"]
    assert body["properties"] == {
        "desired": {"$metadata": AT, "$version": 1},
        "reported": {"$metadata": AT, "$version": 1},
    }
    assert (body["version"], body["connectionState"]) == (2, "Disconnected")
    assert "tags" not in body


async def test_patch_and_replace(talk: Dialogue) -> None:
    response = await talk.ask(
        "PATCH",
        "/twins/d1",
        json={"tags": {"a": 1, "b": 2}, "properties": {"desired": {"x": {"y": 1}}}},
        headers={"If-Match": '"*"'},
    )
    assert response.status_code == 200
    assert response.headers["etag"] == '"AAAAAAAAAAI="'
    assert response.json()["tags"] == {"a": 1, "b": 2}
    assert response.json()["properties"]["desired"]["$version"] == 2
    response = await talk.ask("PATCH", "/twins/d1", json={"tags": {"a": None}})
    assert response.json()["tags"] == {"b": 2}
    # Clients send back what they got.
    whole = response.json()
    whole["properties"]["desired"] = {"z": 1}
    response = await talk.ask("PUT", "/twins/d1", json=whole, headers={"If-Match": whole["etag"]})
    assert response.status_code == 200
    body = response.json()
    assert body["tags"] == {"b": 2}
    assert body["properties"]["desired"]["z"] == 1
    assert "x" not in body["properties"]["desired"]


async def test_modules_have_their_own(talk: Dialogue) -> None:
    response = await talk.ask("PATCH", "/twins/d1/modules/m1", json={"tags": {"a": 1}})
    assert response.status_code == 200
    assert list(response.json())[:3] == ["deviceId", "moduleId", "etag"]
    response = await talk.ask("PUT", "/twins/d1/modules/m1", json={"tags": {"b": 1}})
    assert response.json()["tags"] == {"b": 1}
    response = await talk.ask("GET", "/twins/d1/modules/m1")
    assert response.json()["tags"] == {"b": 1}
    assert (await talk.ask("GET", "/twins/d1")).json()["version"] == 2


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT"])
async def test_unknown_identities(talk: Dialogue, method: str) -> None:
    body: dict[str, Any] = {} if method == "GET" else {"json": {}}
    refused(await talk.ask(method, "/twins/d2", **body), 404, "DeviceNotFound")
    refused(await talk.ask(method, "/twins/d1/modules/m2", **body), 404, "ModuleNotFound")


async def test_a_stale_etag(talk: Dialogue) -> None:
    await talk.ask("PATCH", "/twins/d1", json={"tags": {"a": 1}})
    for method in ("PATCH", "PUT"):
        response = await talk.ask(
            method, "/twins/d1", json={"tags": {}}, headers={"If-Match": '"AAAAAAAAAAE="'}
        )
        refused(response, 412, "PreconditionFailed")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"tags":{"a":1,"a":2}}',
        b'{"tags":{"a":NaN}}',
        b'{"tags":{"a.b":1}}',
        b'{"tags":' + b'{"a":' * 400 + b"1" + b"}" * 401,
        b'{"properties":{"desired":1}}',
    ],
)
async def test_bad_bodies_change_nothing(talk: Dialogue, body: bytes) -> None:
    for method in ("PATCH", "PUT"):
        refused(await talk.ask(method, "/twins/d1", content=body), 400, "ArgumentInvalid")
    assert (await talk.ask("GET", "/twins/d1")).json()["version"] == 2
