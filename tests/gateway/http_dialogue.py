"""A back end in a dialogue with the whole HTTP application, without a socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from tests.events import MemoryEvents
from tests.state import MemoryState

from mooring.gateway.http.app import build_app
from mooring.hub.hub import Hub
from mooring.hub.hubs import Hubs
from mooring.hub.identity import Identity, Ref
from mooring.hub.settings import HubSettings
from mooring.hub.twins import new_twin


@dataclass
class Dialogue:
    """`client` speaks as the operator does over the private socket."""

    hub: Hub
    state: MemoryState
    client: httpx.AsyncClient

    async def add(self, ref: Ref) -> None:
        """Register an identity."""
        identity = Identity(
            device_id=ref.device_id, module_id=ref.module_id, generation_id="637051167384630591"
        )

        def unit(tx: Any) -> None:
            tx.put_identity(identity)
            tx.put_twin(new_twin(ref, 1_700_000_000_000))

        await self.state.write(unit)

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""
        return await self.client.request(method, path, **options)


@asynccontextmanager
async def dialogue(**settings: Any) -> AsyncIterator[Dialogue]:
    """A hub with the devices d1 and its module m1."""
    state = MemoryState()
    hub = await Hub.open("localhost", state, MemoryEvents(), HubSettings(**settings))
    app = build_app(Hubs([hub]))

    async def local(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"local": True}}, receive, send)  # type: ignore[typeddict-item]

    transport = httpx.ASGITransport(app=local)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            talk = Dialogue(hub, state, client)
            await talk.add(Ref("d1"))
            await talk.add(Ref("d1", "m1"))
            yield talk
    finally:
        await hub.close()


def refused(response: httpx.Response, status: int, code: str) -> None:
    """Assert that a request was refused with Azure's code, in both places that clients look."""
    assert response.status_code == status, response.text
    assert response.headers["iothub-errorcode"] == code
    assert response.json()["Message"].startswith(f"ErrorCode:{code};")
