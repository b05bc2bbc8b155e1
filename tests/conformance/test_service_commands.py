"""What azure-iot-hub learns about cloud-to-device messages: feedback, and the purge of a queue."""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uamqp
from azure.iot.hub import IoTHubHttpRuntimeManager, IoTHubRegistryManager
from uamqp.authentication import SASLPlain

from .cloud import Account, eventually, fresh
from .flavours import Flavour
from .service_http import authorization
from .standing import Hub

FEEDBACK_PATIENCE = 45.0  # records are sent in batches, by default one each 15 seconds


class FeedbackTap:
    """A back end's AMQP receiver of feedback: SASL PLAIN, as older tools sign in."""

    def __init__(self, hub: Hub) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.batches: list[uamqp.Message] = []
        self._arrived = threading.Condition()
        self._closed = threading.Event()
        self._client = uamqp.ReceiveClient(
            "amqps://localhost/messages/serviceBound/feedback",
            auth=SASLPlain(
                "localhost",
                "iothubowner@sas.root.localhost",
                authorization(hub),
                verify=str(hub.ca),
            ),
        )
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while not self._closed.is_set():
            for batch in self._client.receive_message_batch(timeout=500):
                with self._arrived:
                    self.batches.append(batch)
                    for record in json.loads(b"".join(batch.get_data())):
                        self.records[record["originalMessageId"]] = record
                    self._arrived.notify_all()
        self._client.close()

    def wait_for(self, message_ids: set[str]) -> dict[str, dict[str, Any]]:
        with self._arrived:
            self._arrived.wait_for(lambda: message_ids <= set(self.records), FEEDBACK_PATIENCE)
            assert message_ids <= set(self.records)
            return self.records

    def close(self) -> None:
        self._closed.set()
        self._thread.join(FEEDBACK_PATIENCE)


@pytest.fixture
def feedback(hub: Hub) -> Iterator[FeedbackTap]:
    tap = FeedbackTap(hub)
    yield tap
    tap.close()


async def test_feedback_tells_what_became_of_a_message(
    aio: Flavour,
    new_device: Callable[[], Account],
    service: IoTHubRegistryManager,
    runtime: IoTHubHttpRuntimeManager,
    feedback: FeedbackTap,
) -> None:
    there, gone = new_device(), new_device()
    ids = {
        name: f"{name}-{uuid.uuid4()}"
        for name in ("full", "positive", "negative", "none", "expired", "purged", "silent")
    }

    def send(device: Account, name: str, ack: str, **more: Any) -> None:
        properties = {"messageId": ids[name], "iothub-ack": ack} | more
        service.send_c2d_message(device.device_id, name, properties)

    inbox = await aio.device(there).on("message_received")
    send(there, "negative", "negative")
    send(there, "none", "none")
    send(there, "full", "full")
    send(there, "positive", "positive")
    assert [inbox.take().data for _ in range(4)] == [b"negative", b"none", b"full", b"positive"]

    send(gone, "expired", "negative", expiryTimeUtc=int(time.time() * 1000) + 500)
    eventually(
        lambda: service.get_device(gone.device_id).cloud_to_device_message_count == 0,
        "the message has expired",
    )
    send(gone, "purged", "full")
    send(gone, "silent", "positive")
    runtime.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(gone.device_id)

    wanted = {ids[name] for name in ("full", "positive", "expired", "purged")}
    records = await asyncio.to_thread(feedback.wait_for, wanted)
    outcomes = {name: records[ids[name]] for name in ids if ids[name] in records}
    assert {name: record["statusCode"] for name, record in outcomes.items()} == {
        "full": "Success",
        "positive": "Success",
        "expired": "Expired",
        "purged": "Purged",
    }
    assert outcomes["full"]["deviceId"] == there.device_id
    assert outcomes["full"]["deviceGenerationId"] == there.generation_id
    assert outcomes["purged"]["deviceId"] == gone.device_id
    assert all(record["enqueuedTimeUtc"].endswith("Z") for record in outcomes.values())
    assert all(record["description"] for record in outcomes.values())

    batch = feedback.batches[-1]
    kind = batch.properties.content_type
    assert kind == b"application/vnd.microsoft.iothub.feedback.json"
    assert batch.properties.user_id == b"localhost"
    assert b"iothub-enqueuedtime" in batch.annotations


def test_feedback_over_http(
    device: Account, service: IoTHubRegistryManager, runtime: IoTHubHttpRuntimeManager
) -> None:
    operations = runtime.protocol.cloud_to_device_messages
    message_id = fresh("message")
    service.send_c2d_message(device.device_id, "x", {"messageId": message_id, "iothub-ack": "full"})
    runtime.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(device.device_id)

    def receive() -> Any:
        response = operations.receive_feedback_notification(raw=True).response
        return response if response.status_code == 200 else None

    def received(batches: list[Any]) -> Any:
        while (batch := receive()) is not None:
            batches.append(batch)
            if any(record["originalMessageId"] == message_id for record in batch.json()):
                return batch
            runtime.complete_feedback_notification(batch.headers["ETag"].strip('"'))
        return None

    batches: list[Any] = []
    deadline = time.monotonic() + FEEDBACK_PATIENCE
    while (batch := received(batches)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert batch is not None
    (record,) = (r for r in batch.json() if r["originalMessageId"] == message_id)
    assert record["statusCode"] == "Purged"

    runtime.abandon_feedback_notification(batch.headers["ETag"].strip('"'))
    again = eventually(receive, "the abandoned batch comes again")
    assert again.json() == batch.json()
    runtime.complete_feedback_notification(again.headers["ETag"].strip('"'))


def test_purge(
    device: Account, service: IoTHubRegistryManager, runtime: IoTHubHttpRuntimeManager
) -> None:
    purge = runtime.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue
    assert purge(device.device_id).total_messages_purged == 0
    for number in range(3):
        service.send_c2d_message(device.device_id, str(number))
    purged = purge(device.device_id)
    assert (purged.total_messages_purged, purged.device_id) == (3, device.device_id)
    assert service.get_device(device.device_id).cloud_to_device_message_count == 0
