"""Back ends send cloud-to-device messages: `/messages/devicebound`.

A message names its target in `to`. It is accepted when it is on disk, and rejected with the hub's
error otherwise; the link stays up either way (service-apis reference §4.2).
"""

import asyncio
import uuid
from collections import deque
from typing import Any, Final

import structlog

from mooring.errors import (
    ArgumentInvalid,
    DeserializationError,
    MooringError,
    ServerError,
    hub_error,
)
from mooring.gateway.amqp.handler import Opening
from mooring.gateway.amqp.refusals import amqp_error
from mooring.hub.commands import Command
from mooring.wire.amqp.engine_events import Disposed
from mooring.wire.amqp.link import Delivery
from mooring.wire.amqp.messages import (
    BATCH_FORMAT,
    Message,
    decode_batch,
    decode_message,
)
from mooring.wire.amqp.performatives import Accepted, Rejected
from mooring.wire.errors import WireError

log = structlog.get_logger(__name__)

CREDIT: Final = 32
MAX_QUEUED: Final = 8  # messages that wait before reading stops
ACK: Final = "iothub-ack"


class CommandSender:
    """One link of a back end; its messages are stored one after another, as they came."""

    def __init__(self, opening: Opening) -> None:
        self._connection = opening.connection
        self._hub = opening.hub
        self._deliveries: deque[Delivery] = deque()
        self._task: asyncio.Task[None] | None = None
        self._gone = False

    def delivered(self, delivery: Delivery) -> None:
        self._deliveries.append(delivery)
        if len(self._deliveries) >= MAX_QUEUED:
            self._connection.hold(self)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def credited(self) -> None:
        """Nothing is sent on this link."""

    def disposed(self, event: Disposed) -> None:
        """Nothing is sent on this link."""

    def closed(self) -> None:
        self._gone = True  # what is being stored is stored; nobody hears of it

    async def _run(self) -> None:
        while self._deliveries and not self._gone:
            delivery = self._deliveries.popleft()
            try:
                await self._store(delivery)
            except Exception as error:
                failure: MooringError
                if isinstance(error, MooringError):
                    failure = error
                else:
                    log.exception("command_send_failed")
                    failure = ServerError(reason=f"unexpected {type(error).__name__}")
                refusal = hub_error(failure)
                log.warning(
                    "command_refused",
                    peer=self._connection.peer,
                    error=refusal.name,
                    reason=refusal.reason,
                    tracking_id=refusal.tracking_id,
                )
                delivery.link.settle([delivery], Rejected(amqp_error(refusal)))
            else:
                delivery.link.settle([delivery], Accepted())
            self._connection.flush()
        self._task = None
        self._connection.release(self)

    async def _store(self, delivery: Delivery) -> None:
        try:
            if delivery.format == BATCH_FORMAT:
                messages = decode_batch(delivery.payload)
            else:
                messages = [decode_message(delivery.payload)]
            commands = [_command(message) for message in messages]
        except WireError as error:
            raise DeserializationError(f"The message cannot be read: {error}.") from None
        for to, command in commands:
            ref = await self._hub.commands.resolve(to)
            await self._hub.commands.send(
                Command(device_id=ref.device_id, module_id=ref.module_id, **command)
            )


def _command(message: Message) -> tuple[str, dict[str, Any]]:
    """Whom a message is for, and the fields of the command that it becomes."""
    properties = message.properties
    if not properties.to:
        raise ArgumentInvalid("The message's 'to' is missing.")
    application = {
        _key(name): _text(value) for name, value in message.application_properties.items()
    }
    ack = application.pop(ACK, "") or "none"
    return str(properties.to), {
        "message_id": _text(properties.message_id),
        "correlation_id": _text(properties.correlation_id),
        "user_id": _text(properties.user_id),
        "to": str(properties.to),
        "content_type": _text(properties.content_type),
        "content_encoding": _text(properties.content_encoding),
        "expires": int(properties.absolute_expiry_time or 0),
        "ack": ack.lower(),
        "properties": application,
        "body": message.body(),
    }


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise ArgumentInvalid("The name of an application property is not text.")
    return str(name)


def _text(value: Any) -> str:
    """A scalar as text: ids come as strings, numbers, UUIDs and octets (Node sends UUIDs)."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | uuid.UUID):
        return str(value)
    raise ArgumentInvalid("A message property is neither text nor a number.")
