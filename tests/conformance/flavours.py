"""azure-iot-device comes blocking and with coroutines; a dialogue is written once and runs on both.

`Flavour.device(…)` gives a client whose calls are all awaited: those of the blocking client run
in a thread, as they would in an application's.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.device.aio import IoTHubDeviceClient as AioDeviceClient
from azure.iot.device.aio import IoTHubModuleClient as AioModuleClient

from .cloud import SECRETS, Account, Inbox


class Client:
    """One official client; attributes are its own, and every call is awaited."""

    def __init__(self, official: Any) -> None:
        self.official = official

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.official, name)
        if not callable(attribute):
            return attribute
        return lambda *arguments: _call(attribute, *arguments)

    async def on(self, handler: str, function: Callable[..., Any] | None = None) -> Inbox:
        """Set `on_{handler}`; without a function, to an inbox, which is returned."""
        inbox = Inbox()
        await asyncio.to_thread(setattr, self.official, f"on_{handler}", function or inbox)
        return inbox

    async def answers_methods(self, answer: Callable[[Any], tuple[int, Any]]) -> None:
        """Answer each method request with the status and payload that `answer` makes of it."""
        from azure.iot.device import MethodResponse

        def blocking(request: Any) -> None:
            status, payload = answer(request)
            self.official.send_method_response(
                MethodResponse.create_from_method_request(request, status, payload)
            )

        async def awaited(request: Any) -> None:
            status, payload = answer(request)
            await self.official.send_method_response(
                MethodResponse.create_from_method_request(request, status, payload)
            )

        is_aio = inspect.iscoroutinefunction(self.official.connect)
        await self.on("method_request_received", awaited if is_aio else blocking)


async def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    result = await asyncio.to_thread(function, *arguments)
    return await result if isinstance(result, Awaitable) else result


@dataclass
class Flavour:
    """Makes clients of one flavour, which trust the hub's CA, and shuts them down at the end."""

    name: str
    ca_pem: str
    clients: list[Client]

    def device(self, account: Account, **options: Any) -> Client:
        """A client from the account's connection string."""
        SECRETS.update((account.primary, account.secondary))
        return self._keep(
            self._kind(account).create_from_connection_string(
                account.connection_string, server_verification_cert=self.ca_pem, **options
            )
        )

    def from_token(self, account: Account, token: str, **options: Any) -> Client:
        """A client from a ready-made token."""
        return self._keep(
            self._kind(account).create_from_sastoken(
                token, server_verification_cert=self.ca_pem, **options
            )
        )

    def _kind(self, account: Account) -> Any:
        if self.name == "aio":
            return AioModuleClient if account.module_id else AioDeviceClient
        return IoTHubModuleClient if account.module_id else IoTHubDeviceClient

    def _keep(self, official: Any) -> Client:
        client = Client(official)
        self.clients.append(client)
        return client

    async def close(self) -> None:
        await asyncio.gather(*(client.shutdown() for client in self.clients))
