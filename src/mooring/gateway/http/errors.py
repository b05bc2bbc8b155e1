"""Refusals over HTTP: every error leaves in one shape and is logged once.

The body is Azure's classic shape, the code also stands in `iothub-errorcode`: that pair satisfies
the parsers of all SDKs (service-apis reference §0.1).

    {"Message": "ErrorCode:DeviceNotFound;d1", "ExceptionMessage": "Tracking ID:…-TimeStamp:…"}
"""

import traceback
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import Scope

from mooring.errors import (
    ArgumentInvalid,
    FeatureNotSupported,
    GenericBadRequest,
    GenericRequestEntityTooLarge,
    GenericUnsupportedMediaType,
    HubError,
    MooringError,
    ServerError,
    hub_error,
)

from .call import call_of
from .replies import JSON

log = structlog.get_logger(__name__)


def body_of(error: HubError) -> bytes:
    """The error's JSON."""
    return msgspec.json.encode(
        {
            "Message": f"ErrorCode:{error.name};{error.message}",
            "ExceptionMessage": f"Tracking ID:{error.tracking_id}",
        }
    )


def headers_of(error: HubError) -> dict[str, str]:
    """The headers that go with it."""
    return {"iothub-errorcode": error.name}


def respond(request: Request[Any, Any, Any], exception: Exception) -> Response[bytes]:
    """The answer to whatever a handler raised; Litestar calls this for each exception."""
    error = as_hub_error(exception)
    note(error, request.scope, exception)
    return Response(
        content=body_of(error),
        status_code=error.status,
        media_type=JSON,
        headers=headers_of(error),
    )


def note(error: HubError, scope: Scope, cause: BaseException | None = None) -> None:
    """Log a refusal. Paths and tokens are left out: some tools put signatures into queries."""
    call = call_of(scope)
    known = {
        "tracking_id": error.tracking_id,
        "error": error.name,
        "reason": error.reason,
        "operation": call.operation if call is not None else scope.get("method", ""),
    }
    if call is not None:
        known |= {key: value for key, value in call.described().items() if value}
    if error.status >= 500:
        # As text: renderers of exceptions may show local variables, and with them tokens.
        trace = "".join(traceback.format_exception(cause)) if cause not in (None, error) else ""
        log.error("request_failed", **known, traceback=trace)
    else:
        log.info("request_refused", **known)


def as_hub_error(exception: Exception) -> HubError:
    """What a client is told about any exception."""
    if isinstance(exception, MooringError):
        return hub_error(exception)
    if isinstance(exception, HTTPException):
        return _of_framework(exception)
    if isinstance(exception, msgspec.MsgspecError):
        return ServerError("An unexpected error", reason="a document could not be encoded")
    return ServerError("An unexpected error", reason=type(exception).__name__)


def _of_framework(exception: HTTPException) -> HubError:
    """What Litestar raises by itself."""
    match exception.status_code:
        case 400:
            return ArgumentInvalid(_detail(exception), reason="the request does not parse")
        case 404 | 405:
            # The table of operations knows it, but there is no route for it.
            return FeatureNotSupported("This operation is not supported")
        case 413:
            return GenericRequestEntityTooLarge("The body is too large")
        case 415:
            return GenericUnsupportedMediaType("The content type is not supported")
        case status if status < 500:
            return GenericBadRequest("The request is not valid", reason=f"HTTP {status}")
    return ServerError("An unexpected error", reason=f"HTTP {exception.status_code}")


def _detail(exception: HTTPException) -> str:
    """Which parameter is wrong; names and types only, never the value sent."""
    extra = exception.extra
    if isinstance(extra, list):
        parts = [
            f"{part.get('key') or 'request'}: {part.get('message', 'not valid')}"
            for part in extra
            if isinstance(part, dict)
        ]
        if parts:
            return "; ".join(parts)
    return "The request is not what this operation takes"
