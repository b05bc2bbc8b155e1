"""Modules: azure-iot-device's module client does all that a device does, under its own identity."""

import asyncio
import json
from typing import Any

from azure.iot.device import Message
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.protocol.models import Twin, TwinProperties

from .cloud import Account, EventTap, properties, stamp
from .flavours import Flavour
from .test_device_methods import invoke


async def test_a_module_sends_to_an_output(
    flavour: Flavour, module: Account, events: EventTap
) -> None:
    client = flavour.device(module)
    message = Message("21.5", message_id="m-1", content_type="text/plain", content_encoding="utf-8")
    message.custom_properties = {"a b": "ü/&=", "empty": ""}
    await client.send_message_to_output(message, "temperature")
    await client.send_message("without an output")

    first, second = events.of(module.device_id, 2)
    assert first.body_as_str() == "21.5"
    assert properties(first) == {"a b": "ü/&=", "empty": ""}
    assert stamp(first, "message-id") == "m-1"
    assert stamp(first, "iothub-connection-device-id") == module.device_id
    assert stamp(first, "iothub-connection-module-id") == module.module_id
    assert stamp(first, "iothub-connection-auth-generation-id") == module.generation_id
    assert json.loads(stamp(first, "iothub-connection-auth-method"))["scope"] == "module"
    assert second.body_as_str() == "without an output"


async def test_large_bodies(aio: Flavour, module: Account, events: EventTap) -> None:
    body = bytes(range(256)) * 4 * 255
    await aio.device(module).send_message(Message(body))
    (event,) = events.of(module.device_id)
    assert b"".join(event.body) == body


async def test_a_module_answers_methods(
    flavour: Flavour, module: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(module)
    await client.answers_methods(lambda request: (201, [request.name, request.payload]))
    payloads: tuple[Any, ...] = (0, "ü", [], {}, {"a": [1, {"b": "c"}]}, "x" * 100_000)
    for payload in payloads:
        result = await invoke(service, module, "echo", payload)
        assert (result.status, result.payload) == (201, ["echo", payload])


async def test_a_module_has_a_twin_of_its_own(
    flavour: Flavour, device: Account, module: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(module)
    patches = await client.on("twin_desired_properties_patch_received")
    await client.patch_twin_reported_properties({"a": {"b": 1}, "c": None})

    patch = Twin(tags={"t": 1}, properties=TwinProperties(desired={"x": {"y": [1]}, "z": None}))
    updated = service.update_module_twin(device.device_id, module.module_id, patch)
    version = updated.properties.desired["$version"]
    received = patches.take()
    assert received["x"] == {"y": [1]}
    assert received["$version"] == version
    assert await client.get_twin() == {
        "desired": {"x": {"y": [1]}, "$version": version},
        "reported": {"a": {"b": 1}, "$version": 2},
    }
    twin = service.get_module_twin(device.device_id, module.module_id)
    assert twin.module_id == module.module_id
    assert twin.properties.reported["a"] == {"b": 1}
    assert service.get_twin(device.device_id).properties.reported["$version"] == 1


async def test_a_device_and_its_modules_are_connected_side_by_side(
    aio: Flavour, device: Account, module: Account, events: EventTap
) -> None:
    as_device, as_module = aio.device(device), aio.device(module)
    await asyncio.gather(as_device.connect(), as_module.connect())
    for _ in range(3):
        await as_device.send_message("device")
        await as_module.send_message("module")

    assert as_device.connected
    assert as_module.connected
    received = events.of(device.device_id, 6)
    assert [event.body_as_str() for event in received] == ["device", "module"] * 3


async def test_a_module_may_listen_to_its_inputs(
    flavour: Flavour, module: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(module)
    inbox = await client.on("message_received")  # only an edge hub ever routes to inputs
    await client.answers_methods(lambda request: (200, "still here"))
    assert (await invoke(service, module, "m", 1)).payload == "still here"
    assert inbox.is_empty


async def test_the_registry_shows_a_connected_module(
    aio: Flavour, module: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(module)
    await client.connect()
    seen = service.get_module(module.device_id, module.module_id)
    assert seen.connection_state == "Connected"
    await client.disconnect()
    seen = service.get_module(module.device_id, module.module_id)
    assert seen.connection_state == "Disconnected"
