"""Direct methods over HTTPS."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway.http_dialogue import Dialogue, dialogue, refused

from mooring.hub.identity import Ref


class Device:
    """Answers each call at once with what it is told to, or with what it was sent."""

    def __init__(self, talk: Dialogue, ref: Ref) -> None:
        self.methods = talk.hub.methods
        self.ref = ref
        self.status = 200
        self.answer: bytes | None = None
        self.called: list[tuple[str, bytes]] = []
        self.methods.attach(ref, self)

    def call(self, request_id: str, name: str, payload: bytes) -> None:
        self.called.append((name, payload))
        answer = payload if self.answer is None else self.answer
        self.methods.respond(self.ref, request_id, self.status, answer)


@pytest.fixture
async def talk() -> AsyncIterator[Dialogue]:
    async with dialogue() as talk:
        yield talk


async def invoke(talk: Dialogue, path: str = "/twins/d1/methods", **body: Any) -> Any:
    return await talk.ask("POST", path, json={"methodName": "reboot", **body})


@pytest.mark.parametrize(
    ("path", "ref"),
    [
        ("/twins/d1/methods", Ref("d1")),
        ("/twins/d1/modules/m1/methods", Ref("d1", "m1")),
        ("/Twins%2Fd1%2Fmethods/", Ref("d1")),
    ],
)
async def test_a_call_and_its_answer(talk: Dialogue, path: str, ref: Ref) -> None:
    device = Device(talk, ref)
    device.status = -7
    response = await invoke(
        talk, path, payload={"a": [1, None]}, responseTimeoutInSeconds=10, connectTimeoutInSeconds=0
    )
    assert response.status_code == 200
    assert response.json() == {"status": -7, "payload": {"a": [1, None]}}
    assert response.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("payload", "seen"),
    [
        (b'""', b'""'),
        (b"null", b"null"),
        (b"12345678901234567890123456789.10", b"12345678901234567890123456789.10"),
        (b'"\\u00e9"', b'"\\u00e9"'),
    ],
)
async def test_payloads_are_verbatim(talk: Dialogue, payload: bytes, seen: bytes) -> None:
    device = Device(talk, Ref("d1"))
    response = await talk.ask(
        "POST", "/twins/d1/methods", content=b'{"methodName":"m","payload":' + payload + b"}"
    )
    assert device.called == [("m", seen)]
    assert response.content == b'{"status":200,"payload":' + seen + b"}"


async def test_no_payload_is_null(talk: Dialogue) -> None:
    device = Device(talk, Ref("d1"))
    device.answer = b""
    assert (await invoke(talk)).json() == {"status": 200, "payload": None}
    assert device.called == [("reboot", b"null")]


async def test_offline_and_unknown(talk: Dialogue) -> None:
    response = await invoke(talk)
    refused(response, 404, "DeviceNotOnline")
    assert "Timed out waiting for device to connect." in response.json()["Message"]
    refused(await invoke(talk, "/twins/d2/methods"), 404, "DeviceNotFound")
    refused(await invoke(talk, "/twins/d1/modules/m2/methods"), 404, "ModuleNotFound")


async def test_an_answer_that_is_not_json(talk: Dialogue) -> None:
    Device(talk, Ref("d1")).answer = b"{'a':1}"
    refused(await invoke(talk), 502, "GenericBadGateway")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"methodName":1}',
        b'{"methodName":""}',
        b'{"methodName":"a/b"}',
        b'{"methodName":"m","payload":{}',
        b'{"methodName":"m","payload":"\xff"}',
        b'{"methodName":"m","payload":' + b"[" * 50_000,
        b'{"methodName":"m","responseTimeoutInSeconds":4}',
        b'{"methodName":"m","timeoutInSeconds":301}',
        b'{"methodName":"m","connectTimeoutInSeconds":301}',
    ],
)
async def test_bad_requests(talk: Dialogue, body: bytes) -> None:
    device = Device(talk, Ref("d1"))
    response = await talk.ask("POST", "/twins/d1/methods", content=body)
    refused(response, 400, "ArgumentInvalid")
    assert device.called == []


async def test_a_payload_that_is_too_long(talk: Dialogue) -> None:
    Device(talk, Ref("d1"))
    refused(await invoke(talk, payload="x" * 128 * 1024), 413, "MessageTooLarge")
