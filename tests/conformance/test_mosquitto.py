"""mosquitto_pub, mosquitto_sub and mosquitto_rr as devices, with a SAS token for a password."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.protocol.models import CloudToDeviceMethod
from msrest.exceptions import HttpOperationError

from .cloud import PATIENCE, Account, EventTap, eventually, properties, stamp
from .standing import Hub


class Mosquitto:
    """Runs the command-line clients as one device."""

    def __init__(self, hub: Hub, device: Account) -> None:
        self._options = (
            *("-h", "localhost", "-p", str(hub.mqtt_port), "--cafile", str(hub.ca)),
            *("-V", "mqttv311", "-i", device.device_id),
            *("-u", device.user_name, "-P", device.token()),
        )
        self._running: list[subprocess.Popen[str]] = []

    def run(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [command, *self._options, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def listen(self, *arguments: str) -> "subprocess.Popen[str]":
        """mosquitto_sub in the background, which ends with the first message."""
        listening = subprocess.Popen(
            ["mosquitto_sub", *self._options, "-C", "1", "-v", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(listening)
        return listening

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def mosquitto(hub: Hub, device: Account) -> Iterator[Mosquitto]:
    clients = Mosquitto(hub, device)
    yield clients
    clients.close()


def test_telemetry(mosquitto: Mosquitto, device: Account, events: EventTap) -> None:
    topic = f"devices/{device.device_id}/messages/events/$.ct=application%2Fjson&site=north"
    done = mosquitto.run("mosquitto_pub", "-q", "1", "-t", topic, "-m", '{"t": 21.5}')
    assert (done.returncode, done.stderr) == (0, "")
    (event,) = events.of(device.device_id)
    assert event.body_as_json() == {"t": 21.5}
    assert stamp(event, "content-type") == "application/json"
    assert properties(event) == {"site": "north"}


def test_commands(mosquitto: Mosquitto, device: Account, service: IoTHubRegistryManager) -> None:
    service.send_c2d_message(device.device_id, "hello", {"messageId": "m1", "key": "value"})
    listening = mosquitto.listen(
        "-q", "1", "-t", f"devices/{device.device_id}/messages/devicebound/#"
    )
    printed, _ = listening.communicate(timeout=PATIENCE)
    topic, _, payload = printed.strip().partition(" ")
    assert payload == "hello"
    assert topic.startswith(f"devices/{device.device_id}/messages/devicebound/%24.mid=m1&")
    assert topic.endswith("&key=value")


def test_twin(mosquitto: Mosquitto, device: Account, service: IoTHubRegistryManager) -> None:
    # mosquitto_rr takes no wildcard for the topic of the answer.
    patched = "$iothub/twin/res/204/?$rid=1&$version=2"
    patch = ("-t", "$iothub/twin/PATCH/properties/reported/?$rid=1", "-m", '{"colour": "red"}')
    done = mosquitto.run("mosquitto_rr", "-v", "-q", "1", "-e", patched, *patch)
    assert (done.stdout.strip(), done.stderr) == (f"{patched} (null)", "")
    reported = service.get_twin(device.device_id).properties.reported
    assert reported["colour"] == "red"

    got = "$iothub/twin/res/200/?$rid=2"
    get = ("-t", "$iothub/twin/GET/?$rid=2", "-n")
    done = mosquitto.run("mosquitto_rr", "-v", "-q", "1", "-e", got, *get)
    topic, _, payload = done.stdout.strip().partition(" ")
    assert (topic, done.stderr) == (got, "")
    assert json.loads(payload) == {
        "desired": {"$version": 1},
        "reported": {"colour": "red", "$version": 2},
    }


def test_method(mosquitto: Mosquitto, device: Account, service: IoTHubRegistryManager) -> None:
    """mosquitto_sub shows the request and leaves; answering takes a client that can do both."""
    listening = mosquitto.listen("-t", "$iothub/methods/POST/#")
    with pytest.raises(HttpOperationError) as refused:
        service.invoke_device_method(
            device.device_id,
            CloudToDeviceMethod(
                method_name="reboot", payload={"delay": 5}, connect_timeout_in_seconds=20
            ),
        )
    assert refused.value.response.headers["iothub-errorcode"] == "DeviceConnectionClosedRemotely"
    printed, _ = listening.communicate(timeout=PATIENCE)
    topic, _, payload = printed.strip().partition(" ")
    assert topic.startswith("$iothub/methods/POST/reboot/?$rid=")
    assert json.loads(payload) == {"delay": 5}


def test_a_wrong_password_is_not_authorised(
    hub: Hub, device: Account, mosquitto: Mosquitto
) -> None:
    topic = f"devices/{device.device_id}/messages/events/"
    done = mosquitto.run("mosquitto_pub", "-P", "not a token", "-t", topic, "-m", "x")
    assert done.returncode != 0
    assert "not authorised" in done.stderr.lower()


def test_a_keep_alive_keeps_a_silent_client(
    mosquitto: Mosquitto, device: Account, service: IoTHubRegistryManager
) -> None:
    mosquitto.listen("-k", "5", "-t", f"devices/{device.device_id}/messages/devicebound/#")
    eventually(
        lambda: service.get_device(device.device_id).connection_state == "Connected",
        "the device is connected",
    )
