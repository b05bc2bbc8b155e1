"""The route of direct methods (service-apis reference §3).

Payloads pass verbatim in both directions: a number that a double cannot hold arrives as written.
"""

import msgspec
from litestar import Response, Router, post
from litestar.params import RawBody

from .call import TheHub, TheRef
from .replies import JSON, parse


class MethodRequest(msgspec.Struct, rename="camel"):
    """What a back end asks. The shorter names are those of 2016 and of the C SDK's modules."""

    method_name: str
    payload: msgspec.Raw = msgspec.Raw(b"")
    response_timeout_in_seconds: float | None = None
    connect_timeout_in_seconds: float | None = None
    timeout_in_seconds: float | None = None
    timeout: float | None = None

    @property
    def response_timeout(self) -> float | None:
        """Seconds, None for the default."""
        given = (self.response_timeout_in_seconds, self.timeout_in_seconds, self.timeout)
        return next((value for value in given if value is not None), None)


@post(
    [
        "/twins/{device_id:str}/methods",
        "/twins/{device_id:str}/modules/{module_id:str}/methods",
    ],
    status_code=200,
)
async def invoke_method(hub: TheHub, ref: TheRef, body: RawBody) -> Response[bytes]:
    """Call a method on a connected device and wait for its answer."""
    request = parse(body, MethodRequest)
    answer = await hub.methods.invoke(
        ref,
        request.method_name,
        bytes(request.payload),
        response_timeout=request.response_timeout,
        connect_timeout=request.connect_timeout_in_seconds or 0,
    )
    return Response(
        b'{"status":%d,"payload":%b}' % (answer.status, answer.payload), media_type=JSON
    )


router = Router(path="/", route_handlers=[invoke_method])
