"""Devices without an SDK: paho-mqtt, a SAS token, and the hub's topics written by hand."""

import asyncio
import json
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import paho.mqtt.client as paho
import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.protocol.models import CloudToDeviceMethod, Twin, TwinProperties

from .cloud import PATIENCE, Account, EventTap, properties, stamp
from .service_http import call
from .standing import Hub


class Device:
    """One paho client, whose packets are taken one by one."""

    def __init__(self, hub: Hub, account: Account, *, clean: bool = True, **credentials: str):
        self.id = account.device_id
        self.client = paho.Client(
            credentials.get("client_id", account.client_id), clean, protocol=paho.MQTTv311
        )
        self.client.tls_set_context(ssl.create_default_context(cafile=str(hub.ca)))
        self.client.username_pw_set(
            credentials.get("user_name", account.user_name),
            credentials.get("password") or account.token(),
        )
        self._connacks: queue.Queue[tuple[int, bool]] = queue.Queue()
        self._messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._granted: queue.Queue[tuple[int, ...]] = queue.Queue()
        self.gone = threading.Event()
        self.client.on_connect = lambda _c, _u, flags, code: self._connacks.put(
            (code, bool(flags["session present"]))
        )
        self.client.on_message = lambda _c, _u, m: self._messages.put((m.topic, m.payload))
        self.client.on_subscribe = lambda _c, _u, _m, granted: self._granted.put(tuple(granted))
        self.client.on_disconnect = lambda *_: self.gone.set()
        self.client.reconnect_delay_set(3600)
        self._port = hub.mqtt_port

    def connect(self) -> tuple[int, bool]:
        """CONNECT; the return code and whether a session was present."""
        self.client.connect("localhost", self._port)
        self.client.loop_start()
        return self._connacks.get(timeout=PATIENCE)

    def subscribe(self, topic: str, qos: int = 1) -> tuple[int, ...]:
        self.client.subscribe(topic, qos)
        return self._granted.get(timeout=PATIENCE)

    def publish(self, topic: str, payload: bytes | str = b"", qos: int = 1, **more: bool) -> None:
        """PUBLISH, and wait for the acknowledgement if there is one."""
        sent = self.client.publish(topic, payload, qos, **more)
        sent.wait_for_publish(PATIENCE)
        assert sent.is_published()

    def take(self) -> tuple[str, bytes]:
        """Topic and payload of the next PUBLISH from the hub."""
        return self._messages.get(timeout=PATIENCE)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def connect(hub: Hub, device: Account) -> Iterator[Callable[..., Device]]:
    """Makes clients for the device; by default connected."""
    made: list[Device] = []

    def make(account: Account = device, *, connected: bool = True, **options: Any) -> Device:
        made.append(Device(hub, account, **options))
        if connected:
            assert made[-1].connect()[0] == 0
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_telemetry(connect: Callable[..., Device], device: Account, events: EventTap) -> None:
    client = connect()
    topic = f"devices/{device.device_id}/messages/events/"
    client.publish(
        f"{topic}$.mid=m%201&$.ct=text%2Fplain&plus=1%2B1&slash=a/b&empty=&null", "hello"
    )
    client.publish(topic.rstrip("/"), "no slash")
    client.publish(topic + "a=1/", "a slash behind")
    client.publish(topic, "retained", retain=True)
    client.publish(topic, "at most once", qos=0)
    client.publish(topic, b"")

    first, bare, slashed, retained, unsure, empty = events.of(device.device_id, 6)
    assert stamp(first, "message-id") == "m 1"
    assert stamp(first, "content-type") == "text/plain"
    sent = properties(first)
    assert (sent["plus"], sent["slash"], sent["empty"]) == ("1+1", "a/b", "")
    assert sent["null"] is None
    assert (bare.body_as_str(), properties(bare)) == ("no slash", {})
    assert properties(slashed) == {"a": "1"}
    assert properties(retained) == {"mqtt-retain": "true"}
    assert unsure.body_as_str() == "at most once"
    assert empty.body_as_str() == ""


def test_commands(
    connect: Callable[..., Device], device: Account, service: IoTHubRegistryManager
) -> None:
    client = connect()
    assert client.subscribe(f"devices/{device.device_id}/messages/devicebound/#") == (1,)
    service.send_c2d_message(
        device.device_id, "hello", {"messageId": "m/1", "correlationId": "c", "key": "a b"}
    )
    topic, payload = client.take()
    assert payload == b"hello"
    start = f"devices/{device.device_id}/messages/devicebound/"
    assert topic.startswith(start + "%24.mid=m%2F1&")
    to = f"%2Fdevices%2F{device.device_id}%2Fmessages%2Fdevicebound"
    bag = set(topic.removeprefix(start).split("&"))
    assert {"%24.cid=c", f"%24.to={to}", "key=a%20b"} <= bag


def test_a_session_is_kept_for_a_client_that_wants_it(
    connect: Callable[..., Device], device: Account, service: IoTHubRegistryManager
) -> None:
    client = connect(clean=False)
    client.subscribe(f"devices/{device.device_id}/messages/devicebound/#")
    client.close()
    service.send_c2d_message(device.device_id, "while you were away")

    again = connect(connected=False, clean=False)
    assert again.connect() == (0, True)
    assert again.take()[1] == b"while you were away"
    again.close()

    clean = connect(connected=False, clean=True)
    assert clean.connect() == (0, False)
    service.send_c2d_message(device.device_id, "for whoever subscribes")
    clean.subscribe(f"devices/{device.device_id}/messages/devicebound/#")
    assert clean.take()[1] == b"for whoever subscribes"


def test_twin(
    connect: Callable[..., Device], device: Account, service: IoTHubRegistryManager
) -> None:
    client = connect()
    assert client.subscribe("$iothub/twin/res/#") == (1,)
    assert client.subscribe("$iothub/twin/PATCH/properties/desired/#") == (1,)
    client.publish("$iothub/twin/GET/?$rid=get-1")
    topic, payload = client.take()
    assert topic == "$iothub/twin/res/200/?$rid=get-1"
    assert json.loads(payload) == {"desired": {"$version": 1}, "reported": {"$version": 1}}

    client.publish("$iothub/twin/PATCH/properties/reported/?$rid=7", '{"a": {"b": 1}}')
    assert client.take() == ("$iothub/twin/res/204/?$rid=7&$version=2", b"")
    client.publish("$iothub/twin/PATCH/properties/reported/?$rid=8&$version=1", '{"a": 2}')
    topic, payload = client.take()
    assert topic == "$iothub/twin/res/412/?$rid=8"
    assert json.loads(payload)["errorCode"] == 412001
    for rid, wrong in enumerate(("{", "[]", '"text"', '{"a.b": 1}', '{"a": }')):
        client.publish(f"$iothub/twin/PATCH/properties/reported/?$rid=w{rid}", wrong)
        topic, payload = client.take()
        assert topic == f"$iothub/twin/res/400/?$rid=w{rid}"
        error = json.loads(payload)
        assert str(error["errorCode"]).startswith("400")
        assert "-TimeStamp:" in error["trackingId"]
        assert error["message"]
        assert error["timestampUtc"].endswith("Z")

    service.update_twin(device.device_id, Twin(properties=TwinProperties(desired={"x": 1})))
    topic, payload = client.take()
    assert topic == "$iothub/twin/PATCH/properties/desired/?$version=2"
    assert json.loads(payload) == {"x": 1, "$version": 2}
    assert service.get_twin(device.device_id).properties.reported["a"] == {"b": 1}


async def test_method(
    connect: Callable[..., Device], device: Account, service: IoTHubRegistryManager
) -> None:
    client = connect()
    assert client.subscribe("$iothub/methods/POST/#") == (1,)
    request = CloudToDeviceMethod(method_name="reboot", payload={"delay": 5})
    invoked = asyncio.create_task(
        asyncio.to_thread(service.invoke_device_method, device.device_id, request)
    )
    topic, payload = await asyncio.to_thread(client.take)
    start = "$iothub/methods/POST/reboot/?$rid="
    assert topic.startswith(start)
    assert json.loads(payload) == {"delay": 5}
    rid = topic.removeprefix(start)
    client.publish(f"$iothub/methods/res/202/?$rid={rid}", '{"ok": true}', qos=0)
    result = await invoked
    assert (result.status, result.payload) == (202, {"ok": True})


async def test_an_answer_that_is_no_json(
    connect: Callable[..., Device], device: Account, hub: Hub
) -> None:
    client = connect()
    client.subscribe("$iothub/methods/POST/#")
    body = {"methodName": "m", "payload": None}
    invoked = asyncio.create_task(
        asyncio.to_thread(call, hub, "POST", f"/twins/{device.device_id}/methods", body)
    )
    topic, _ = await asyncio.to_thread(client.take)
    client.publish(f"$iothub/methods/res/200/?{topic.partition('?')[2]}", "{not json")
    assert (await invoked).status_code == 502


@pytest.mark.parametrize(
    "user_name",
    [
        "localhost/{id}/?api-version=2021-04-12&DeviceClientType=x%2F1%20y",
        "localhost/{id}/api-version=2016-11-14&DeviceClientType=old",
        "localhost/{id}/?api-version=2018-06-30",
        "LOCALHOST/{id}/?api-version=2021-04-12",
        "localhost/{id}",
        "localhost/{id}/",
    ],
)
def test_user_names_that_old_clients_send(
    connect: Callable[..., Device], device: Account, events: EventTap, user_name: str
) -> None:
    client = connect(user_name=user_name.replace("{id}", device.device_id))
    client.publish(f"devices/{device.device_id}/messages/events/", "hello")
    (event,) = events.of(device.device_id)
    assert event.body_as_str() == "hello"


def test_subscriptions_that_are_not_for_it(
    connect: Callable[..., Device], device: Account, events: EventTap
) -> None:
    client = connect()
    for topic in ("#", "devices/+/messages/devicebound/#", "devices/other/messages/devicebound/#"):
        assert client.subscribe(topic) == (128,)
    assert client.subscribe("$iothub/twin/res/#", qos=2) == (1,)
    client.publish(f"devices/{device.device_id}/messages/events/", "still connected")
    assert events.of(device.device_id)[0].body_as_str() == "still connected"


@pytest.mark.parametrize(
    ("topic", "qos"),
    [
        ("devices/another/messages/events/", 1),
        ("some/topic", 0),
        ("$iothub/twin/PUT/?$rid=1", 1),
        ("devices/{id}/messages/events/", 2),
    ],
)
def test_publishes_that_end_the_connection(
    connect: Callable[..., Device], device: Account, hub: Hub, topic: str, qos: int
) -> None:
    client = connect()
    client.client.publish(topic.replace("{id}", device.device_id), "x", qos)
    assert client.gone.wait(PATIENCE)
    assert hub.logged(device.device_id, "tracking_id")["reason"]


def test_a_will_is_telemetry(
    connect: Callable[..., Device], device: Account, events: EventTap
) -> None:
    client = connect(connected=False)
    topic = f"devices/{device.device_id}/messages/events/cause=lost"
    client.client.will_set(topic, "gone", qos=1)
    assert client.connect()[0] == 0
    connect()  # takes the session over
    (event,) = events.of(device.device_id)
    assert event.body_as_str() == "gone"
    assert properties(event) == {"cause": "lost", "iothub-MessageType": "Will"}
