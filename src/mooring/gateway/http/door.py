"""The door of the HTTP APIs: an ASGI application in front of the routes.

Order of the checks: the hub (Host), the operation (path and method), the API version, the
credential, its right and scope. Only then a byte of the body is read and a route is called. Who
comes over the private Unix socket is the operator and needs neither version nor credential.
"""

import re
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qsl

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from mooring.errors import (
    HubError,
    InvalidProtocolVersion,
    IotHubNotFound,
    IotHubUnauthorized,
    MooringError,
    hub_error,
)
from mooring.hub.access import Principal, local_operator
from mooring.hub.hub import Hub
from mooring.hub.hubs import Hubs
from mooring.hub.policies import Right

from . import operations
from .call import Call, attach
from .errors import body_of, headers_of, note
from .replies import JSON

_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?")
_MAX_PARAMETERS = 32


class Door:
    """Lets requests through to `routes` that may pass, in the spelling that routes are written."""

    def __init__(self, hubs: Hubs, routes: ASGIApp) -> None:
        self._hubs = hubs
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":  # type: ignore[comparison-overlap]
            await self._routes(scope, receive, send)
        # WebSockets leave HTTP before they come here.

    async def _http(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        call = Call(request_id=str(uuid.uuid4()), operation=scope["method"])
        attach(scope, call)
        send = _with_request_id(send, call.request_id)
        try:
            inner = await self._admit(scope, call)
        except MooringError as refusal:
            error = hub_error(refusal)
            note(error, scope, refusal)
            await _refuse(send, error)
            return
        await self._routes(inner, receive, send)

    async def _admit(self, scope: HTTPScope, call: Call) -> HTTPScope:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        local = bool(scope.get("state", {}).get("local"))
        hub = call.hub = self._hub(headers.get(b"host", ""), local=local)
        match = operations.match(scope["method"], scope.get("raw_path") or scope["path"].encode())
        call.operation, call.ref = match.operation.name, match.ref
        if local:
            principal = local_operator(hub.name)
        else:
            _require_version(scope["query_string"])
            principal = await self._principal(hub, headers)
        call.principal = principal  # a refusal is logged with it
        call.principal = await _authorized(hub, principal, match)
        # A scope of its own: the path is the routes', the raw path would lead around the match.
        inner: dict[str, Any] = {**scope, "path": match.path, "raw_path": match.path.encode()}
        return inner  # type: ignore[return-value]

    def _hub(self, host: str, *, local: bool) -> Hub:
        hub = self._hubs.find(host)
        if hub is None and local:
            return self._hubs.default
        if hub is None:
            raise IotHubNotFound("IoT Hub not found", reason="Host names no hub of this server")
        return hub

    async def _principal(self, hub: Hub, headers: Mapping[bytes, str]) -> Principal:
        token = headers.get(b"authorization")
        if not token:
            raise IotHubUnauthorized("Authorization header missing")
        return await hub.access.authenticate(token)


async def _authorized(hub: Hub, principal: Principal, match: operations.Match) -> Principal:
    right = match.operation.right
    hub.access.require(principal, right, match.resource)
    if right is Right.DEVICE_CONNECT and match.ref is not None:
        return await hub.access.act_for(principal, match.ref)
    return principal


def _require_version(query: bytes) -> None:
    try:
        parameters = parse_qsl(query.decode("latin-1"), max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise InvalidProtocolVersion("The query has too many parameters") from None
    versions = [value for name, value in parameters if name.lower() == "api-version"]
    if len(versions) != 1 or _VERSION.fullmatch(versions[0]) is None:
        raise InvalidProtocolVersion("The query parameter api-version must be one date")


def _with_request_id(send: Send, request_id: str) -> Callable[[Message], Coroutine[Any, Any, None]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"x-ms-request-id", request_id.encode()),
            ]
        await send(message)

    return sending


async def _refuse(send: Send, error: HubError) -> None:
    body = body_of(error)
    headers = [(name.encode(), value.encode()) for name, value in headers_of(error).items()]
    headers += [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
