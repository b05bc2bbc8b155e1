"""Hub errors as AMQP errors: the one place where the translation happens.

The description is JSON text, as Azure's hub writes it and its SDKs parse it (service-apis
reference §4.2); the tracking id in it and in the info map is the one in the log.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from mooring.errors import HubError
from mooring.wire.amqp import conditions
from mooring.wire.amqp.performatives import Error
from mooring.wire.amqp.types import Int, Symbol

TRACKING_ID = Symbol("com.microsoft:tracking-id")
ERROR_CODE = Symbol("com.microsoft:error-code")


class TooManyReceivers(HubError):
    """A partition and consumer group have as many readers as they may."""

    number, condition = 403002, conditions.RESOURCE_LIMIT_EXCEEDED


class ReceiverStolen(HubError):
    """Another receiver with at least this epoch holds the partition."""

    number, condition = 409002, conditions.LINK_STOLEN


def amqp_error(error: HubError) -> Error:
    """What the client is told."""
    description = msgspec.json.encode(
        {
            "errorCode": error.number,
            "trackingId": error.tracking_id,
            "message": error.message,
            "timestampUtc": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
    ).decode()
    info: dict[Any, Any] = {TRACKING_ID: error.tracking_id, ERROR_CODE: Int(error.number)}
    return Error(error.condition, description, info)
