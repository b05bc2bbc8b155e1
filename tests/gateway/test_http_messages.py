"""Cloud-to-device messages and feedback over HTTPS."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.gateway.http_dialogue import Dialogue, dialogue, refused

from mooring.hub.commands import Command
from mooring.hub.identity import Ref

D1 = Ref("d1")
FEEDBACK = "/messages/serviceBound/feedback"


@pytest.fixture
async def talk() -> AsyncIterator[Dialogue]:
    async with dialogue() as talk:
        yield talk


async def send(talk: Dialogue, body: bytes = b"x", **headers: Any) -> httpx.Response:
    named = {f"iothub-{name.replace('_', '-')}": value for name, value in headers.items()}
    to = {"iothub-to": "/devices/d1/messages/deviceBound"}
    return await talk.ask("POST", "/messages/deviceBound", content=body, headers=to | named)


async def told(talk: Dialogue, message_id: str) -> None:
    """Make a record of feedback."""
    await talk.hub.commands.send(Command(device_id="d1", message_id=message_id, ack="full"))
    (delivery,) = await talk.hub.commands.receive(D1, 1)
    await talk.hub.commands.complete(delivery.lock_token)


async def test_send_with_all_properties(talk: Dialogue) -> None:
    response = await send(
        talk,
        b"\x00\xff",
        messageid="m",
        correlationid="c",
        userid="u",
        contenttype="text/plain",
        contentencoding="utf-8",
        ack="Full",
        app_color="red",
    )
    assert response.status_code == 204
    ((command, _),) = await talk.hub.commands.receive(D1, 10)
    assert command.body == b"\x00\xff"
    assert command.to == "/devices/d1/messages/deviceBound"
    assert (command.message_id, command.correlation_id, command.user_id) == ("m", "c", "u")
    assert (command.content_type, command.content_encoding) == ("text/plain", "utf-8")
    assert (command.ack, command.properties) == ("full", {"color": "red"})


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"to": "/devices/d2/messages/devicebound"}, 404, "DeviceNotFound"),
        ({"to": "/devices/d1/modules/m2/messages/devicebound"}, 404, "ModuleNotFound"),
        ({"to": "d1"}, 400, "ArgumentInvalid"),
        ({"ack": "maybe"}, 400, "ArgumentInvalid"),
        ({"expiry": "tomorrow"}, 403, "InvalidMessageExpiryTime"),
        ({"expiry": "2001-01-01T00:00:00Z"}, 403, "InvalidMessageExpiryTime"),
    ],
)
async def test_refusals(talk: Dialogue, headers: Any, status: int, code: str) -> None:
    refused(await send(talk, **headers), status, code)


async def test_full_queues_and_large_messages(talk: Dialogue) -> None:
    refused(await send(talk, bytes(64 * 1024)), 413, "MessageTooLarge")
    for _ in range(50):
        await send(talk)
    refused(await send(talk), 403, "DeviceMaximumQueueDepthExceeded")


async def test_purge(talk: Dialogue) -> None:
    for _ in range(3):
        await send(talk)
    assert (await talk.ask("GET", "/twins/d1")).json()["cloudToDeviceMessageCount"] == 3
    response = await talk.ask("DELETE", "/devices/d1/commands")
    assert response.status_code == 200
    assert response.json() == {"totalMessagesPurged": 3, "deviceId": "d1", "moduleId": None}
    refused(await talk.ask("DELETE", "/devices/d2/commands"), 404, "DeviceNotFound")


async def test_feedback_is_taken_and_completed(talk: Dialogue) -> None:
    response = await talk.ask("GET", FEEDBACK)
    assert (response.status_code, response.content) == (204, b"")
    await told(talk, "m")
    response = await talk.ask("GET", FEEDBACK)
    assert response.status_code == 200
    (record,) = response.json()
    assert (record["originalMessageId"], record["statusCode"]) == ("m", "Success")
    token = response.headers["etag"].strip('"')
    assert str(uuid.UUID(token)) == token
    response = await talk.ask("DELETE", f"{FEEDBACK}/{token}")
    assert response.status_code == 204
    refused(await talk.ask("DELETE", f"{FEEDBACK}/{token}"), 412, "DeviceMessageLockLost")
    assert (await talk.ask("GET", FEEDBACK)).status_code == 204


async def test_feedback_is_abandoned(talk: Dialogue) -> None:
    await told(talk, "m")
    token = (await talk.ask("GET", FEEDBACK)).headers["etag"].strip('"')
    assert (await talk.ask("POST", f"{FEEDBACK}/{token}/abandon")).status_code == 204
    refused(await talk.ask("POST", f"{FEEDBACK}/{token}/abandon"), 412, "DeviceMessageLockLost")
    refused(await talk.ask("DELETE", f"{FEEDBACK}/no-token"), 412, "DeviceMessageLockLost")
    assert [one.delivery_count for one in talk.state.tables.feedback.values()] == [1]
