"""`$cbs`: clients prove who they are, and go on proving it, by putting tokens on the connection.

What a token opens is judged from its own `sr`; the audience that the request names is not looked
at, since every SDK writes it differently (device-protocols reference §3.3).
"""

from typing import TYPE_CHECKING, Final

from mooring.errors import ArgumentInvalid, DeviceDisabled, IotHubUnauthorized, MooringError
from mooring.gateway.amqp.request_response import Reply, failure
from mooring.wire.amqp.messages import Message
from mooring.wire.errors import WireError

if TYPE_CHECKING:
    from mooring.gateway.amqp.connection import Connection

PUT_TOKEN: Final = "put-token"  # noqa: S105 - the name of the operation
SAS_TYPES: Final = frozenset(
    {"servicebus.windows.net:sastoken", "azure-devices.net:sastoken", "sastoken"}
)
MAX_TOKEN: Final = 16 * 1024


async def answer(connection: "Connection", message: Message) -> Reply:
    """Put a token. The status is 200 and nothing else for success: Node's SDK compares.

    A failure goes without its condition: azure-eventhub 5.15 would look at that alone, and tell
    its user neither status nor description."""
    try:
        return await _put(connection, message)
    except MooringError as error:
        return failure(error)._replace(condition="")


async def _put(connection: "Connection", message: Message) -> Reply:
    properties = message.application_properties
    if properties.get("operation") != PUT_TOKEN:
        raise ArgumentInvalid(f"The only operation of $cbs is {PUT_TOKEN}.")
    kind = properties.get("type")
    if not isinstance(kind, str) or kind.lower() not in SAS_TYPES:
        raise ArgumentInvalid("The token's type is not that of a shared access signature.")
    try:
        await connection.put_token(_token(message))
    except DeviceDisabled as error:
        # A status of 403 means an exceeded quota to .NET's client.
        raise IotHubUnauthorized("Unauthorized", reason=error.reason) from None
    return Reply(200, "OK")


def _token(message: Message) -> str:
    try:
        octets = message.body()
    except WireError as error:
        raise ArgumentInvalid(f"The token cannot be read: {error}.") from None
    if len(octets) > MAX_TOKEN:
        raise ArgumentInvalid("The token is too long.")
    return octets.decode("utf-8", "replace")
