"""Telemetry of azure-iot-device, as azure-eventhub reads it."""

import asyncio
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from azure.iot.device import Message
from azure.iot.hub import IoTHubRegistryManager

from .cloud import Account, EventTap, properties, stamp
from .flavours import Flavour

AWKWARD = {
    "plain": "value",
    "empty": "",
    "space": "a b  c",
    "plus": "1+1",
    "slash": "a/b/c/",
    "query": "?x=1&y=2#z",
    "percent": "100%25",
    "dollar": "$.mid",
    "quotes": "\"single'",
    "unicode": "Grüße, 世界 ☃ 🚀",
    "key with space": "1",
    "key/slash": "2",
    "key=equals&and": "3",
    "schlüssel": "4",
    "$dollar": "5",
    "number": "42",
}


async def test_every_property_reaches_the_back_end(
    flavour: Flavour, device: Account, events: EventTap
) -> None:
    client = flavour.device(device)
    message = Message(
        '{"temperature": 21.5}',
        message_id="message 1/2",
        content_encoding="utf-8",
        content_type="application/json",
    )
    message.correlation_id = "correlation+1"
    message.user_id = "ußer"
    message.expiry_time_utc = datetime(2037, 5, 6, 7, 8, 9)
    message.custom_properties = dict(AWKWARD)

    await client.send_message(message)

    (event,) = events.of(device.device_id)
    assert event.body_as_json() == {"temperature": 21.5}
    assert properties(event) == AWKWARD
    assert stamp(event, "message-id") == "message 1/2"
    assert stamp(event, "correlation-id") == "correlation+1"
    assert stamp(event, "user-id") == "ußer"
    assert stamp(event, "content-type") == "application/json"
    assert stamp(event, "content-encoding") == "utf-8"
    expiry = datetime(2037, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert stamp(event, "absolute-expiry-time") == int(expiry.timestamp() * 1000)


async def test_the_hub_says_who_sent_it(aio: Flavour, device: Account, events: EventTap) -> None:
    await aio.device(device).send_message("hello")

    (event,) = events.of(device.device_id)
    assert event.body_as_str() == "hello"
    assert event.partition_key == device.device_id.encode()
    assert stamp(event, "iothub-connection-device-id") == device.device_id
    assert stamp(event, "iothub-connection-auth-generation-id") == device.generation_id
    assert json.loads(stamp(event, "iothub-connection-auth-method")) == {
        "scope": "device",
        "type": "sas",
        "issuer": "iothub",
        "acceptingIpFilterRule": None,
    }
    assert stamp(event, "iothub-message-source") == "Telemetry"
    received = stamp(event, "iothub-enqueuedtime")
    assert received <= stamp(event, "x-opt-enqueued-time")
    assert b"iothub-connection-module-id" not in event.system_properties


@pytest.mark.parametrize(
    "body",
    ["", "text", "Grüße 🚀", b"\x00\xff\x80 binary", bytes(range(256)) * 4, bytearray(b"array")],
    ids=["empty", "text", "unicode", "binary", "all-bytes", "bytearray"],
)
async def test_a_body_arrives_as_it_was_sent(
    aio: Flavour, device: Account, events: EventTap, body: str | bytes
) -> None:
    await aio.device(device).send_message(Message(body))

    (event,) = events.of(device.device_id)
    sent = body.encode() if isinstance(body, str) else bytes(body)
    assert b"".join(event.body) == sent


async def test_a_body_of_255_kib(flavour: Flavour, device: Account, events: EventTap) -> None:
    body = random.Random(device.device_id).randbytes(255 * 1024)
    client = flavour.device(device)
    await client.send_message(Message(body, message_id="large"))
    await client.send_message(Message("small", message_id="after it"))

    large, small = events.of(device.device_id, 2)
    assert b"".join(large.body) == body
    assert stamp(large, "message-id") == "large"
    assert small.body_as_str() == "small"


async def test_a_security_message_names_its_interface(
    aio: Flavour, device: Account, events: EventTap
) -> None:
    message = Message("alert")
    message.set_as_security_message()
    await aio.device(device).send_message(message)

    (event,) = events.of(device.device_id)
    assert stamp(event, "iothub-interface-id") == "urn:azureiot:Security:SecurityAgent:1"


async def test_messages_keep_their_order(
    flavour: Flavour, device: Account, events: EventTap
) -> None:
    client = flavour.device(device)
    for number in range(50):
        await client.send_message(str(number))

    received = events.of(device.device_id, 50)
    assert [event.body_as_str() for event in received] == [str(n) for n in range(50)]
    numbers = [event.sequence_number for event in received]
    assert numbers == sorted(set(numbers))


async def test_many_in_flight_arrive_once_each(
    aio: Flavour, device: Account, events: EventTap
) -> None:
    client = aio.device(device)
    await client.connect()
    await asyncio.gather(*(client.send_message(str(number)) for number in range(200)))
    await client.send_message("last")

    received = [event.body_as_str() for event in events.of(device.device_id, 201)]
    assert sorted(received[:-1], key=int) == [str(number) for number in range(200)]
    assert received[-1] == "last"


async def test_devices_send_side_by_side(
    aio: Flavour, new_device: Callable[[], Account], events: EventTap
) -> None:
    devices = [new_device() for _ in range(5)]
    clients = [aio.device(device) for device in devices]
    await asyncio.gather(*(client.connect() for client in clients))
    await asyncio.gather(
        *(
            client.send_message(f"{number} of {device.device_id}")
            for device, client in zip(devices, clients, strict=True)
            for number in range(10)
        )
    )

    for device in devices:
        bodies = [event.body_as_str() for event in events.of(device.device_id, 10)]
        assert sorted(bodies) == [f"{number} of {device.device_id}" for number in range(10)]


async def test_a_model_id_is_kept_and_stamped(
    aio: Flavour, device: Account, events: EventTap, service: IoTHubRegistryManager
) -> None:
    model = "dtmi:com:example:Thermostat;1"
    client = aio.device(device, product_info=model)
    await client.send_message("21.5")

    (event,) = events.of(device.device_id)
    assert stamp(event, "dt-dataschema") == model
    assert service.get_twin(device.device_id).additional_properties["modelId"] == model


async def test_product_info_and_keep_alive_do_not_disturb(
    aio: Flavour, device: Account, events: EventTap
) -> None:
    client = aio.device(device, product_info="Möbel & Co/1.0 (a=b)", keep_alive=5)
    await client.send_message("hello")

    (event,) = events.of(device.device_id)
    assert event.body_as_str() == "hello"
