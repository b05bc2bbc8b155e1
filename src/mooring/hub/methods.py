"""Direct methods: a back end asks a connected device and waits for its answer.

Rules that hold here (service-apis reference §3, device-protocols reference §1.10):

- Nothing is stored. A call lives as long as whoever waits for it, and dies with the connection
  that carried it.
- A device is online for methods while a channel is attached, that is while it holds the MQTT
  method subscription or the AMQP method link; being connected is not enough.
- At most `max_inflight_methods` calls wait for one device, for its connection or its answer: a
  bound of ours that Azure does not publish, under Azure's code 403800.
- Request ids are random UUIDs, since AMQP carries one as such; who does not know it cannot answer.
"""

import asyncio
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog

from mooring.errors import (
    ArgumentInvalid,
    DeviceConnectionClosedRemotely,
    DeviceMaximumInflightMethodExceeded,
    DeviceNotOnline,
    GatewayTimeout,
    GenericBadGateway,
    HubError,
    MessageTooLarge,
)

from . import json_text
from .identity import Ref
from .lookup import known
from .settings import HubSettings

if TYPE_CHECKING:
    from .state import State

log = structlog.get_logger(__name__)

MAX_NAME: Final = 100
_MAX_STATUS: Final = 2**31 - 1

# What MQTT topics and their readers give a meaning to cannot be part of a name.
_NAME: Final = re.compile(rf"[^\x00-\x1f\x7f-\x9f/#+?]{{1,{MAX_NAME}}}")


class MethodChannel(Protocol):
    """A device's end: one subscription or link."""

    def call(self, request_id: str, name: str, payload: bytes) -> None:
        """Send a request; `payload` is JSON text, at least `null`. Must not block."""


class Answer(NamedTuple):
    """What a device answered; `payload` is JSON text, at least `null`."""

    status: int
    payload: bytes


class _Call(NamedTuple):
    channel: MethodChannel
    answer: "asyncio.Future[Answer]"


class _Device:
    """The calls of one device or module, kept while there are any."""

    __slots__ = ("arrivals", "calls", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self.calls: dict[str, _Call] = {}
        self.arrivals: set[asyncio.Future[None]] = set()


class Methods:
    """The direct methods of one hub."""

    def __init__(self, state: "State", settings: HubSettings) -> None:
        self._state = state
        self._settings = settings
        self._channels: dict[Ref, MethodChannel] = {}
        self._devices: dict[Ref, _Device] = {}
        self.invoked = 0
        """Calls since the start, for the metrics."""

    def attach(self, ref: Ref, channel: MethodChannel) -> None:
        """The device takes methods here from now on; ends the calls of an older channel."""
        older = self._channels.get(ref)
        if older is channel:
            return
        self._channels[ref] = channel
        device = self._devices.get(ref)
        if device is None:
            return
        if older is not None:
            self._drop(device, older)
        for arrival in device.arrivals:
            if not arrival.done():
                arrival.set_result(None)

    def detach(self, ref: Ref, channel: MethodChannel) -> None:
        """The channel has gone: its calls fail. Harmless for one that was replaced."""
        if self._channels.get(ref) is channel:
            del self._channels[ref]
        device = self._devices.get(ref)
        if device is not None:
            self._drop(device, channel)

    def is_online(self, ref: Ref) -> bool:
        """Whether the device takes methods now."""
        return ref in self._channels

    def respond(self, ref: Ref, request_id: str, status: int, payload: bytes) -> None:
        """The device's answer. One that nobody waits for, or of another device, is dropped."""
        device = self._devices.get(ref)
        call = device.calls.pop(request_id, None) if device is not None else None
        if call is None:
            log.info("method_response_dropped", device=str(ref), reason="nobody waits for it")
            return
        if call.answer.done():
            return
        try:
            call.answer.set_result(self._checked(status, payload))
        except HubError as error:
            call.answer.set_exception(error)

    async def invoke(
        self,
        ref: Ref,
        name: str,
        payload: bytes,
        *,
        response_timeout: float | None = None,
        connect_timeout: float = 0,
    ) -> Answer:
        """Call a method and wait for the answer; times are seconds, `payload` is JSON text.

        Raises ArgumentInvalid, MessageTooLarge, DeviceNotFound, ModuleNotFound,
        DeviceMaximumInflightMethodExceeded; DeviceNotOnline if there is no channel within
        `connect_timeout`; DeviceConnectionClosedRemotely if it goes while waiting; GatewayTimeout
        after `response_timeout`; GenericBadGateway if the answer is not JSON or too long.
        """
        settings = self._settings
        if response_timeout is None:
            response_timeout = settings.method_default_response_timeout
        self._check_request(name, payload, response_timeout, connect_timeout)
        self.invoked += 1
        await self._state.read(lambda tx: known(tx, ref))
        with self._in_flight(ref) as device:
            channel = self._channels.get(ref)
            if channel is None:
                channel = await self._arrival(ref, device, connect_timeout)
            request_id = str(uuid.uuid4())
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            device.calls[request_id] = _Call(channel, answer)
            try:
                channel.call(request_id, name, payload or b"null")
                async with asyncio.timeout(response_timeout):
                    return await answer
            except TimeoutError:
                raise GatewayTimeout(
                    "Timed out waiting for the response from device.",
                    reason=f"{ref} did not answer {name!r} within {response_timeout} s",
                ) from None
            finally:
                device.calls.pop(request_id, None)

    async def _arrival(self, ref: Ref, device: _Device, timeout: float) -> MethodChannel:
        """The channel that the device attaches within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                # Again if it has gone by the time that this wakes up.
                while (channel := self._channels.get(ref)) is None:
                    arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    device.arrivals.add(arrival)
                    try:
                        await arrival
                    finally:
                        device.arrivals.discard(arrival)
        except TimeoutError:
            raise DeviceNotOnline(
                "Timed out waiting for device to connect.",
                reason=f"{ref} takes no methods and did not come within {timeout} s",
            ) from None
        return channel

    @contextmanager
    def _in_flight(self, ref: Ref) -> Iterator[_Device]:
        device = self._devices.setdefault(ref, _Device())
        if device.in_flight >= self._settings.max_inflight_methods:
            raise DeviceMaximumInflightMethodExceeded(
                f"{device.in_flight} methods wait for this device already."
            )
        device.in_flight += 1
        try:
            yield device
        finally:
            device.in_flight -= 1
            if not device.in_flight:
                del self._devices[ref]

    def _check_request(
        self, name: str, payload: bytes, response_timeout: float, connect_timeout: float
    ) -> None:
        settings = self._settings
        if not _NAME.fullmatch(name):
            raise ArgumentInvalid(
                f"A method name has 1 to {MAX_NAME} characters, none of them a control character"
                " or one of / # + ?"
            )
        low, high = settings.method_min_timeout, settings.method_max_timeout
        if not low <= response_timeout <= high:
            raise ArgumentInvalid(f"The response timeout must be {low} to {high} seconds.")
        if not 0 <= connect_timeout <= high:
            raise ArgumentInvalid(f"The connect timeout must be 0 to {high} seconds.")
        if len(payload) > settings.max_method_payload:
            raise MessageTooLarge(
                f"The payload is longer than {settings.max_method_payload} bytes."
            )
        if payload:
            json_text.check(payload, max_bytes=settings.max_method_payload)

    def _checked(self, status: int, payload: bytes) -> Answer:
        """A device's answer as it can be handed on; its own mistakes are bad gateways."""
        if not -_MAX_STATUS - 1 <= status <= _MAX_STATUS:
            raise GenericBadGateway("The device's status is out of range.")
        limit = self._settings.max_method_payload
        if len(payload) > limit:
            raise GenericBadGateway(f"The device's response is longer than {limit} bytes.")
        if not payload.strip():
            return Answer(status, b"null")
        try:
            json_text.check(payload, max_bytes=limit)
        except ArgumentInvalid as error:
            raise GenericBadGateway(f"The device's response: {error.message}") from None
        return Answer(status, payload)

    def _drop(self, device: _Device, channel: MethodChannel) -> None:
        for request_id, call in list(device.calls.items()):
            if call.channel is channel:
                del device.calls[request_id]
                if not call.answer.done():
                    call.answer.set_exception(
                        DeviceConnectionClosedRemotely(
                            "The device's connection closed before it answered."
                        )
                    )
