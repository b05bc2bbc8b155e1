"""What commands ask of the running hub beyond the service REST API: status, policies, groups.

An ASGI application for the private Unix socket alone; it takes `/control/…` and hands everything
else to the hub's own HTTP application. Whoever can open the socket (0600 in a 0700 folder) is the
operator and has all rights: there is no further check here, so it must never be served elsewhere.

    GET    /control/status                        where it listens, what it carries
    GET    /control/policies                      names and rights, no keys
    GET    /control/policies/{name}               with its keys
    POST   /control/policies/{name}/regenerate    {"key": "primary" | "secondary"}
    GET    /control/consumer-groups               names
    PUT    /control/consumer-groups/{name}
    DELETE /control/consumer-groups/{name}

The host name in `Host` picks the hub.
"""

import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import unquote

import msgspec

from .. import __version__
from ..errors import ArgumentInvalid, GenericMethodNotAllowed, GenericNotFound
from ..hub.hub import Hub
from ..hub.hubs import Hubs
from ..hub.policies import Policy, Right, format_rights
from .http.errors import as_hub_error, body_of, headers_of, note
from .http.replies import JSON, parse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[..., Awaitable[None]]

T = TypeVar("T")
_MAX_BODY = 64 * 1024


class Listening(NamedTuple):
    """One open port."""

    protocol: str  # "mqtt" | "amqp" | "https" | "amqp-plain" | "metrics"
    address: str
    port: int


class _Regenerate(msgspec.Struct, forbid_unknown_fields=True):
    key: Literal["primary", "secondary"]


class Control:
    """The application; `app` serves every other path."""

    def __init__(self, hubs: Hubs, listening: Callable[[], list[Listening]], app: App) -> None:
        self._hubs = hubs
        self._listening = listening
        self._app = app
        self._started = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            # A name that is wrong must not act on the default hub, on no path.
            hub = self._hub(scope)
            ours = f"{scope['path']}/".startswith("/control/")
            answer = await self._answer(hub, scope, receive) if ours else None
        except Exception as error:
            refusal = as_hub_error(error)
            note(refusal, cast(Any, scope), error)
            headers = [(name.encode(), text.encode()) for name, text in headers_of(refusal).items()]
            await _respond(send, refusal.status, body_of(refusal), *headers)
            return
        if not ours:
            await self._app(scope, receive, send)
        elif answer is None:
            await _respond(send, 204)
        else:
            await _respond(send, 200, msgspec.json.encode(answer))

    async def _answer(self, hub: Hub, scope: Scope, receive: Receive) -> Any:
        # The raw path, so that a name may hold an encoded slash.
        raw = scope.get("raw_path") or scope["path"].encode()
        words = [unquote(word) for word in raw.partition(b"?")[0].decode("ascii").split("/")[2:]]
        match scope["method"], words:
            case "GET", ["status"]:
                return await self._status(hub)
            case "GET", ["policies"]:
                return [_policy(policy, keys=False) for policy in hub.policies.all()]
            case "GET", ["policies", name]:
                return _policy(_found(hub, name), keys=True)
            case "POST", ["policies", name, "regenerate"]:
                slot = await _body(receive, _Regenerate)
                _found(hub, name)
                return _policy(await hub.policies.regenerate(name, slot.key), keys=True)
            case "GET", ["consumer-groups"]:
                return list(await hub.consumer_groups.list())
            case "PUT", ["consumer-groups", name]:
                await hub.consumer_groups.create(name)
                return None
            case "DELETE", ["consumer-groups", name]:
                await hub.consumer_groups.delete(name)
                return None
            case _, ["status"] | ["policies", *_] | ["consumer-groups", *_]:
                raise GenericMethodNotAllowed(f"{scope['method']} cannot be done here")
        raise GenericNotFound(f"there is no {scope['path']}")

    def _hub(self, scope: Scope) -> Hub:
        for name, value in scope["headers"]:
            if name == b"host":
                found = self._hubs.find(value.decode("latin-1"))
                if found is None:
                    raise GenericNotFound(f"there is no hub {value.decode('latin-1')} here")
                return found
        return self._hubs.default

    async def _status(self, hub: Hub) -> Any:
        counts = await hub.registry.counts()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptimeSeconds": int(time.monotonic() - self._started),
            "listening": [each._asdict() for each in self._listening()],
            "hub": {
                "name": hub.name,
                "aliases": sorted(self._hubs.aliases(hub)),
                "eventsPath": hub.events_path,
                "partitions": hub.events.partition_count,
                "devices": counts.total,
                "connected": hub.sessions.connected_count,
            },
            "otherHubs": [each.name for each in self._hubs if each is not hub],
        }


def _found(hub: Hub, name: str) -> Policy:
    policy = hub.policies.get(name)
    if policy is None:
        names = ", ".join(each.name for each in hub.policies.all())
        raise GenericNotFound(f"there is no policy {name}; there are {names}")
    return policy


def _policy(policy: Policy, *, keys: bool) -> Any:
    shown = {"name": policy.name, "rights": format_rights(Right(policy.rights))}
    if keys:
        shown |= {"primaryKey": policy.primary_key, "secondaryKey": policy.secondary_key}
    return shown


async def _body(receive: Receive, kind: type[T]) -> T:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MAX_BODY:
            raise ArgumentInvalid("the request is too large")
        if not message.get("more_body"):
            break
    return parse(body, kind)


async def _respond(
    send: Send, status: int, body: bytes = b"", *headers: tuple[bytes, bytes]
) -> None:
    kind = ((b"content-type", JSON.encode()),) if body else ()
    await send({"type": "http.response.start", "status": status, "headers": [*kind, *headers]})
    await send({"type": "http.response.body", "body": body})
