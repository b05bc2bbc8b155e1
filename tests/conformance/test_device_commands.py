"""Cloud-to-device messages: azure-iot-hub or a plain AMQP client sends, azure-iot-device takes."""

import asyncio
import time
from datetime import UTC, datetime

import pytest
import uamqp
from azure.iot.hub import IoTHubRegistryManager

from .cloud import Account, eventually
from .flavours import Flavour


@pytest.fixture
def sender(service: IoTHubRegistryManager) -> uamqp.SendClient:
    """The AMQP client inside azure-iot-hub: it can set what the SDK's own call cannot."""
    return service.amqp_svc_client.amqp_client


async def test_every_property_reaches_the_device(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    inbox = await client.on("message_received")
    expiry = int(time.time() * 1000) + 600_000
    service.send_c2d_message(
        device.device_id,
        "Grüße ☃",
        {
            "messageId": "message 1/2",
            "correlationId": "correlation+1",
            "contentType": "text/plain; charset=utf-8",
            "contentEncoding": "utf-8",
            "expiryTimeUtc": expiry,
            "iothub-ack": "full",
            "plain": "value",
            "space": "a b",
            "slash": "a/b",
            "query": "?x=1&y=2#z",
            "percent": "100%25",
            "plus": "1+1",
            "empty": "",
            "unicode": "世界 🚀",
            "key with space": "1",
            "key/slash": "2",
            "key=equals": "3",
        },
    )

    message = inbox.take()
    assert message.data == "Grüße ☃".encode()
    assert message.message_id == "message 1/2"
    assert message.correlation_id == "correlation+1"
    assert message.content_type == "text/plain; charset=utf-8"
    assert message.content_encoding == "utf-8"
    assert message.ack == "full"
    assert datetime.fromisoformat(message.expiry_time_utc) == datetime.fromtimestamp(
        expiry / 1000, tz=UTC
    )
    assert message.custom_properties == {
        "plain": "value",
        "space": "a b",
        "slash": "a/b",
        "query": "?x=1&y=2#z",
        "percent": "100%25",
        "plus": "1+1",
        "empty": "",
        "unicode": "世界 🚀",
        "key with space": "1",
        "key/slash": "2",
        "key=equals": "3",
    }


async def test_a_bare_message(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    inbox = await aio.device(device).on("message_received")
    service.send_c2d_message(device.device_id, "bare")

    message = inbox.take()
    assert message.data == b"bare"
    assert message.message_id  # azure-iot-hub always makes one
    assert message.custom_properties == {}
    assert message.ack is None


async def test_typed_ids_and_user_id_come_as_text(
    aio: Flavour, device: Account, sender: uamqp.SendClient
) -> None:
    inbox = await aio.device(device).on("message_received")
    properties = uamqp.message.MessageProperties(
        to=f"/devices/{device.device_id}/messages/devicebound",
        message_id=uamqp.types.AMQPuLong(7),
        correlation_id="c",
        user_id=b"operator",
    )
    sender.queue_message(
        uamqp.Message(
            b"typed",
            properties=properties,
            application_properties={"count": 3, "open": True, "rate": 0.5},
        )
    )
    assert sender.send_all_messages(close_on_done=False) == [
        uamqp.constants.MessageState.SendComplete
    ]

    message = inbox.take()
    assert message.data == b"typed"
    assert message.message_id == "7"
    assert message.correlation_id == "c"
    assert message.user_id == "operator"
    assert message.custom_properties == {"count": "3", "open": "true", "rate": "0.5"}


async def test_bytes_and_large_bodies(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    inbox = await aio.device(device).on("message_received")
    for body in (b"", b"\x00\xff\x80", bytes(range(256)) * 240):
        service.send_c2d_message(device.device_id, body)
        assert inbox.take().data == body


async def test_more_than_64_kib_is_refused(device: Account, service: IoTHubRegistryManager) -> None:
    with pytest.raises(Exception, match="C2D message send failure"):
        service.send_c2d_message(device.device_id, b"x" * (64 * 1024 + 1))
    service.send_c2d_message(device.device_id, b"still here")
    assert queued(service, device) == 1


async def test_messages_wait_for_the_device_in_order(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    for number in range(5):
        service.send_c2d_message(device.device_id, str(number))
    assert queued(service, device) == 5

    inbox = await flavour.device(device).on("message_received")
    assert [inbox.take().data for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    eventually(lambda: queued(service, device) == 0, "the queue is empty once all are acknowledged")


async def test_a_known_session_receives_without_subscribing_again(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device)
    inbox = await client.on("message_received")
    await client.disconnect()
    service.send_c2d_message(device.device_id, "while you were away")
    await client.connect()

    assert inbox.take().data == b"while you were away"


async def test_an_expired_message_is_not_delivered(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    soon = int(time.time() * 1000) + 1000
    service.send_c2d_message(device.device_id, "short-lived", {"expiryTimeUtc": soon})
    eventually(lambda: time.time() * 1000 > soon, "its time has passed")
    service.send_c2d_message(device.device_id, "fresh")

    inbox = await aio.device(device).on("message_received")
    assert inbox.take().data == b"fresh"


async def test_the_queue_holds_50(
    device: Account, service: IoTHubRegistryManager, sender: uamqp.SendClient
) -> None:
    for number in range(50):
        properties = uamqp.message.MessageProperties(
            message_id=str(number), to=f"/devices/{device.device_id}/messages/devicebound"
        )
        sender.queue_message(uamqp.Message(b"queued", properties=properties))
    states = sender.send_all_messages(close_on_done=False)
    assert states == [uamqp.constants.MessageState.SendComplete] * 50

    with pytest.raises(Exception, match="C2D message send failure"):
        service.send_c2d_message(device.device_id, "one too many")
    assert queued(service, device) == 50


def test_an_unknown_device_gets_nothing(service: IoTHubRegistryManager) -> None:
    with pytest.raises(Exception, match="C2D message send failure"):
        service.send_c2d_message("nobody-knows-me", "hello")


async def test_the_receive_call_of_older_programs(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    with pytest.deprecated_call():
        waiting = asyncio.ensure_future(client.receive_message())
        service.send_c2d_message(device.device_id, "hello")
        assert (await waiting).data == b"hello"


def queued(service: IoTHubRegistryManager, device: Account) -> int:
    return service.get_device(device.device_id).cloud_to_device_message_count
