"""`$management` of the Event Hubs-compatible endpoint: what the hub and its partitions look like.

Requests are READ of `com.microsoft:eventhub` or `com.microsoft:partition`; the right to ask comes
from a token of the connection, or from the `security_token` that the request itself carries
(device-protocols reference §7.2).
"""

from typing import TYPE_CHECKING, Any, Final

from mooring.errors import ArgumentInvalid, GenericNotFound, IotHubUnauthorized
from mooring.gateway.amqp.request_response import Reply
from mooring.hub.access import EVENTS_PATH
from mooring.hub.policies import Right
from mooring.wire.amqp.messages import Message
from mooring.wire.amqp.types import Array, Int, Timestamp

if TYPE_CHECKING:
    from mooring.gateway.amqp.connection import Connection
    from mooring.hub.hub import Hub

EVENT_HUB: Final = "com.microsoft:eventhub"
PARTITION: Final = "com.microsoft:partition"


async def answer(connection: "Connection", hub: "Hub", message: Message) -> Reply:
    """Answer one request. Raises HubError."""
    properties = message.application_properties
    await _authorise(connection, hub, properties.get("security_token"))
    if properties.get("operation") != "READ":
        raise ArgumentInvalid("The only operation of $management is READ.")
    name = properties.get("name")
    if not isinstance(name, str) or name.lower() != hub.events_path:
        raise GenericNotFound("The messaging entity could not be found.")
    kind = properties.get("type")
    if kind == EVENT_HUB:
        return Reply(200, "OK", _event_hub(hub))
    if kind == PARTITION:
        return Reply(200, "OK", _partition(hub, properties.get("partition")))
    raise ArgumentInvalid(f"The type is neither {EVENT_HUB} nor {PARTITION}.")


async def _authorise(connection: "Connection", hub: "Hub", token: Any) -> None:
    try:
        connection.authorise(Right.SERVICE_CONNECT, EVENTS_PATH)
    except IotHubUnauthorized:
        # The connection has no token, or none that is still good.
        if not isinstance(token, str | bytes) or not token:
            raise
        text = token.decode("utf-8", "replace") if isinstance(token, bytes) else token
        principal = await connection.judge(hub, text)
        hub.access.require(principal, Right.SERVICE_CONNECT, EVENTS_PATH)


def _event_hub(hub: "Hub") -> dict[str, Any]:
    count = hub.events.partition_count
    return {
        "name": hub.events_path,
        "type": EVENT_HUB,
        "created_at": Timestamp(hub.events.created_ms),
        "partition_count": Int(count),
        "partition_ids": Array(tuple(map(str, range(count))), str),
        "georeplication_factor": Int(1),
    }


def _partition(hub: "Hub", partition: Any) -> dict[str, Any]:
    text = str(partition)
    if text not in map(str, range(hub.events.partition_count)):
        raise GenericNotFound(f"The partition '{text[:32]}' does not exist.")
    info = hub.events.info(int(text))
    return {
        "name": hub.events_path,
        "type": PARTITION,
        "partition": text,
        "begin_sequence_number": info.first_sequence_number,
        "last_enqueued_sequence_number": info.last_sequence_number,
        "last_enqueued_offset": str(info.last_offset),
        "last_enqueued_time_utc": Timestamp(info.last_enqueued_ms),
        "is_partition_empty": info.is_empty,
    }
