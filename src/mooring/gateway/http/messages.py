"""The routes of back ends to cloud-to-device messages and their feedback (service-apis §4.5).

Official clients send over AMQP; over HTTPS Azure has an undocumented way of sending, with the
message's properties as headers, which is here as well."""

import re
import uuid
from typing import Any

from litestar import Request, Response, Router, delete, get, post
from litestar.params import FromPath, RawBody

from mooring.errors import DeviceMessageLockLost, InvalidMessageExpiryTime
from mooring.hub.commands import Command
from mooring.hub.feedback import CONTENT_TYPE
from mooring.hub.telemetry import parse_time

from .call import TheHub, TheRef
from .replies import reply

_APPLICATION = "iothub-app-"
_MILLISECONDS = re.compile(r"[0-9]{10,14}")

FEEDBACK = "/messages/serviceBound/feedback"


@delete("/devices/{device_id:str}/commands", status_code=200)
async def purge_commands(hub: TheHub, ref: TheRef) -> Response[bytes]:
    """Drop everything in a device's queue."""
    count = await hub.commands.purge(ref)
    answer = {"totalMessagesPurged": count, "deviceId": ref.device_id, "moduleId": None}
    return reply(answer)


@post("/messages/deviceBound", status_code=204)
async def send_command(hub: TheHub, request: Request[Any, Any, Any], body: RawBody) -> None:
    """Queue a message for the device that the header `iothub-to` addresses."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    to = headers.get("iothub-to", "")
    ref = await hub.commands.resolve(to)
    await hub.commands.send(
        Command(
            device_id=ref.device_id,
            module_id=ref.module_id,
            to=to,
            message_id=headers.get("iothub-messageid", ""),
            correlation_id=headers.get("iothub-correlationid", ""),
            user_id=headers.get("iothub-userid", ""),
            content_type=headers.get("iothub-contenttype", ""),
            content_encoding=headers.get("iothub-contentencoding", ""),
            ack=headers.get("iothub-ack", "").lower() or "none",
            expires=_expiry(headers.get("iothub-expiry", "")),
            properties={
                name.removeprefix(_APPLICATION): value
                for name, value in headers.items()
                if name.startswith(_APPLICATION)
            },
            body=body,
        )
    )


@get(FEEDBACK)
async def receive_feedback(hub: TheHub) -> Response[bytes]:
    """A batch of feedback under a lock, whose token is the ETag; 204 if none is due."""
    batch = await hub.feedback.receive()
    if batch is None:
        return Response(b"", status_code=204)
    return Response(
        batch.body,
        media_type=CONTENT_TYPE,
        headers={"ETag": f'"{_text(batch.lock_token)}"'},
    )


@delete(f"{FEEDBACK}/{{lock_token:str}}", status_code=204)
async def complete_feedback(hub: TheHub, lock_token: FromPath[str]) -> None:
    """The batch was taken."""
    await hub.feedback.complete(_token(lock_token))


@post(f"{FEEDBACK}/{{lock_token:str}}/abandon", status_code=204)
async def abandon_feedback(hub: TheHub, lock_token: FromPath[str]) -> None:
    """The batch goes back."""
    await hub.feedback.abandon(_token(lock_token))


def _expiry(text: str) -> int:
    """Milliseconds since 1970 of a header that is ISO 8601 or already that number."""
    if not text:
        return 0
    moment = int(text) if _MILLISECONDS.fullmatch(text) else parse_time(text)
    if not moment:
        raise InvalidMessageExpiryTime("'iothub-expiry' is not a time.")
    return moment


def _text(lock_token: bytes) -> str:
    """A token as .NET writes the GUID of these bytes, the same as for an AMQP delivery tag."""
    return str(uuid.UUID(bytes_le=lock_token))


def _token(text: str) -> bytes:
    try:
        return uuid.UUID(text.strip('"')).bytes_le
    except ValueError:
        raise DeviceMessageLockLost("The lock on the message is lost.") from None


router = Router(
    path="/",
    route_handlers=[
        purge_commands,
        send_command,
        receive_feedback,
        complete_feedback,
        abandon_feedback,
    ],
)
