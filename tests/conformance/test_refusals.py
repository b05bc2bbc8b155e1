"""Who is refused, with which code on each protocol; and what the log says, and does not say."""

import logging
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import uamqp
from azure.eventhub import EventHubConsumerClient
from azure.eventhub.exceptions import AuthenticationError, ConnectError, EventHubError
from azure.iot.device import IoTHubDeviceClient
from azure.iot.device.exceptions import CredentialError
from azure.iot.hub import IoTHubRegistryManager
from uamqp.authentication import SASLPlain, SASTokenAuth

from .cloud import Account, fresh, random_key, sign
from .readers import Reader
from .service_http import call, get
from .standing import Hub
from .test_paho import Device


class Case(NamedTuple):
    """A credential for `devices/{id}` and what the log must give as the reason."""

    token: Callable[[Hub, Account, Account], str]
    reason: str


CASES = {
    "wrong-key": Case(lambda hub, device, other: sign(device.scope, random_key()), "key"),
    "key-of-another": Case(lambda hub, device, other: sign(device.scope, other.primary), "key"),
    "expired": Case(lambda hub, device, other: device.token(expires=time.time() - 3600), "past"),
    "for-another-device": Case(lambda hub, device, other: sign(other.scope, device.primary), "sr"),
    "of-another-device": Case(lambda hub, device, other: other.token(), ""),
    "for-another-hub": Case(
        lambda hub, device, other: sign(
            f"elsewhere.example/devices/{device.device_id}", device.primary
        ),
        "host",
    ),
    "for-a-module": Case(
        lambda hub, device, other: sign(f"{device.scope}/modules/m", device.primary), "sr"
    ),
    "policy-without-the-right": Case(
        lambda hub, device, other: sign(device.scope, hub.policy_key("service"), policy="service"),
        "DEVICE_CONNECT",
    ),
    "policy-out-of-scope": Case(
        lambda hub, device, other: sign(other.scope, hub.policy_key("device"), policy="device"),
        "scope",
    ),
    "unknown-policy": Case(
        lambda hub, device, other: sign(device.scope, random_key(), policy="nobody"), "policy"
    ),
    "no-token": Case(lambda hub, device, other: "password", ""),
    "empty-signature": Case(
        lambda hub, device, other: (
            f"SharedAccessSignature sr={device.scope.replace('/', '%2F')}"
            f"&sig=&se={int(time.time()) + 600}"
        ),
        "",
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_mqtt_answers_return_code_5(
    hub: Hub, new_device: Callable[[], Account], case: Case
) -> None:
    device, other = new_device(), new_device()
    client = Device(hub, device, password=case.token(hub, device, other))
    try:
        assert client.connect() == (5, False)
    finally:
        client.close()
    entry = hub.logged(device.device_id, "tracking_id")
    assert "-TimeStamp:" in entry["tracking_id"]
    assert case.reason in entry["reason"]


def test_mqtt_refuses_identities_that_may_not_connect(
    hub: Hub,
    device: Account,
    module: Account,
    new_device: Callable[[], Account],
    service: IoTHubRegistryManager,
) -> None:
    unknown = Account("localhost", fresh("nobody"), random_key(), random_key(), "")
    disabled = new_device()
    service.update_device_with_sas(
        disabled.device_id, "*", disabled.primary, disabled.secondary, "disabled"
    )
    thumbprint = fresh("certificate")
    service.create_device_with_x509(thumbprint, "A" * 40, "B" * 40, "enabled")
    by_certificate = Account("localhost", thumbprint, random_key(), random_key(), "")
    unknown_module = Account(
        "localhost", device.device_id, device.primary, device.secondary, "", "nothing"
    )
    policy = sign("localhost", hub.policy_key("device"), policy="device")
    attempts: list[tuple[Account, dict[str, str]]] = [
        (unknown, {}),
        (unknown, {"password": policy}),
        (disabled, {}),
        (disabled, {"password": policy}),
        (by_certificate, {}),
        (unknown_module, {}),
        (module, {"password": device.token()}),
        (device, {"client_id": "another-id"}),
        (device, {"user_name": f"elsewhere.example/{device.device_id}/?api-version=2021-04-12"}),
        (device, {"user_name": device.device_id}),
    ]
    for account, credentials in attempts:
        client = Device(hub, account, **credentials)
        try:
            assert client.connect() == (5, False), (account.client_id, credentials.keys())
        finally:
            client.close()
        assert hub.logged(account.device_id, "tracking_id")["reason"]
    assert "disabled" in hub.logged(disabled.device_id, "tracking_id")["reason"]


def test_azure_iot_device_says_credential_error(hub: Hub, device: Account) -> None:
    wrong = Account("localhost", device.device_id, random_key(), "", "")
    client = IoTHubDeviceClient.create_from_connection_string(
        wrong.connection_string, server_verification_cert=hub.ca.read_text()
    )
    with pytest.raises(CredentialError):
        client.connect()
    client.shutdown()


def refused_http(answer: Any, status: int, code: str, hub: Hub) -> None:
    """The body in Azure's classic form, the code in the header, the reason in the log."""
    assert answer.status_code == status, answer.text
    assert answer.headers["iothub-errorcode"] == code
    assert answer.json()["Message"].startswith(f"ErrorCode:{code};")
    tracking_id = answer.json()["ExceptionMessage"].removeprefix("Tracking ID:")
    assert hub.logged(tracking_id)["reason"]


def test_http_answers_401(hub: Hub, device: Account) -> None:
    key = hub.policy_key("iothubowner")
    path = f"/devices/{device.device_id}"
    tokens = [
        "",
        "nonsense",
        "Basic dXNlcjpwYXNzd29yZA==",
        sign("localhost", random_key(), policy="iothubowner"),
        sign("localhost", key, policy="nobody"),
        sign("localhost", key, policy="iothubowner", expires=time.time() - 3600),
        sign("elsewhere.example", key, policy="iothubowner"),
        sign("localhost", hub.policy_key("service"), policy="iothubowner"),
    ]
    for token in tokens:
        refused_http(get(hub, path, token=token), 401, "IotHubUnauthorized", hub)


def test_http_checks_rights_and_scope(hub: Hub, device: Account) -> None:
    def token(policy: str, scope: str = "localhost") -> str:
        return sign(scope, hub.policy_key(policy), policy=policy)

    name = device.device_id
    new = {"deviceId": fresh("device")}
    attempts: list[tuple[str, str, Any, str]] = [
        ("GET", f"/devices/{name}", None, token("service")),
        ("GET", f"/devices/{name}", None, token("device")),
        ("GET", f"/devices/{name}", None, device.token()),
        ("PUT", f"/devices/{new['deviceId']}", new, token("registryRead")),
        ("DELETE", f"/devices/{name}", None, token("registryRead")),
        ("POST", "/devices", [], token("registryRead")),
        ("GET", f"/twins/{name}", None, token("registryReadWrite")),
        ("PATCH", f"/twins/{name}", {"tags": {}}, token("registryReadWrite")),
        ("POST", f"/twins/{name}/methods", {"methodName": "m"}, token("device")),
        ("GET", "/messages/serviceBound/feedback", None, token("registryRead")),
        ("GET", f"/devices/{name}", None, token("iothubowner", "localhost/devices/another")),
        ("GET", "/devices", None, token("iothubowner", f"localhost/devices/{name}")),
    ]
    for verb, path, body, authorization in attempts:
        answer = call(hub, verb, path, body, token=authorization)
        refused_http(answer, 401, "IotHubUnauthorizedAccess", hub)
    allowed: list[tuple[str, str, str]] = [
        ("GET", f"/devices/{name}", token("registryRead")),
        ("GET", f"/devices/{name}", token("registryReadWrite")),
        ("GET", f"/twins/{name}", token("service")),
        ("GET", f"/devices/{name}", token("iothubowner", f"localhost/devices/{name}")),
    ]
    for verb, path, authorization in allowed:
        assert call(hub, verb, path, token=authorization).status_code == 200


def test_http_answers_404_and_400_to_who_may_ask(hub: Hub) -> None:
    refused_http(get(hub, f"/devices/{fresh('nobody')}"), 404, "DeviceNotFound", hub)
    refused_http(get(hub, f"/twins/{fresh('nobody')}"), 404, "DeviceNotFound", hub)
    answer = call(hub, "PUT", "/devices/a", {"deviceId": "b"})
    refused_http(answer, 400, "ArgumentInvalid", hub)


def receive(source: str, auth: Any) -> None:
    """Open an AMQP receiver as far as it goes."""
    policy = uamqp.errors.ErrorPolicy(
        max_retries=0, on_error=lambda _: uamqp.errors.ErrorAction(retry=False)
    )
    client = uamqp.ReceiveClient(source, auth=auth, error_policy=policy)
    try:
        client.receive_message_batch(timeout=5000)
    finally:
        client.close()


FEEDBACK = "amqps://localhost/messages/serviceBound/feedback"


def cbs(hub: Hub, token: str) -> SASTokenAuth:
    return SASTokenAuth(
        "amqps://localhost",
        "amqps://localhost",
        token,
        expires_at=int(time.time()) + 600,
        verify=str(hub.ca),
    )


def test_cbs_answers_401(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    key = hub.policy_key("service")
    for token in (
        "nonsense",
        sign("localhost", random_key(), policy="service"),
        sign("localhost", key, policy="nobody"),
        sign("localhost", key, policy="service", expires=time.time() - 3600),
        sign("elsewhere.example", key, policy="service"),
    ):
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, "uamqp"),
            pytest.raises(uamqp.errors.AuthenticationException),
        ):
            receive(FEEDBACK, cbs(hub, token))
        # On its way to the exception, uamqp loses the description.
        told = re.search(r'status: 401, description: .*"trackingId":"([^"]+)"', caplog.text)
        assert told
        assert hub.logged(told[1])["reason"]


def test_a_link_without_the_right_is_detached(hub: Hub) -> None:
    for policy in ("device", "registryRead"):
        token = sign("localhost", hub.policy_key(policy), policy=policy)
        with pytest.raises(uamqp.errors.LinkDetach) as refused:
            receive(FEEDBACK, cbs(hub, token))
        assert refused.value.condition == uamqp.constants.ErrorCodes.UnauthorizedAccess
        tracking_id = refused.value.info[b"com.microsoft:tracking-id"].decode()
        assert policy in hub.logged(tracking_id)["reason"]


def test_an_unknown_link_is_detached(hub: Hub) -> None:
    token = sign("localhost", hub.policy_key("service"), policy="service")
    for address in ("messages/nothing", "", "localhost/ConsumerGroups/nothing/Partitions/0"):
        with pytest.raises(uamqp.errors.LinkDetach) as refused:
            receive(f"amqps://localhost/{address}", cbs(hub, token))
        assert refused.value.condition == uamqp.constants.ErrorCodes.NotFound


def test_sasl_plain_is_refused(hub: Hub) -> None:
    key = hub.policy_key("service")
    attempts = [
        ("service@sas.root.localhost", sign("localhost", random_key(), policy="service")),
        ("service@sas.root.elsewhere", sign("localhost", key, policy="service")),
        ("device@sas.root.localhost", sign("localhost", key, policy="service")),
        ("service@sas.root.localhost", "password"),
        (
            "service@sas.root.localhost",
            sign("localhost", key, policy="service", expires=time.time() - 3600),
        ),
    ]
    for user_name, password in attempts:
        with pytest.raises(uamqp.errors.AMQPConnectionError):
            receive(FEEDBACK, SASLPlain("localhost", user_name, password, verify=str(hub.ca)))
    refusals = [entry for entry in hub.entries() if entry["event"] == "amqp_sasl_refused"]
    assert len(refusals) == len(attempts)
    assert all(entry["reason"] and entry["tracking_id"] for entry in refusals)


@pytest.mark.parametrize(
    ("policy", "key"), [("iothubowner", "wrong"), ("device", ""), ("registryRead", "")]
)
def test_azure_eventhub_says_authentication_error(hub: Hub, policy: str, key: str) -> None:
    text = hub.events_string(policy)
    if key:
        text = text.replace(hub.policy_key(policy), random_key())
    with (
        EventHubConsumerClient.from_connection_string(
            text, "$Default", connection_verify=str(hub.ca), retry_total=0
        ) as client,
        pytest.raises((AuthenticationError, ConnectError)) as refused,
    ):
        client.get_eventhub_properties()
    assert "unauthorized" in str(refused.value).lower() or "401" in str(refused.value)


def test_azure_eventhub_and_what_is_not_there(hub: Hub) -> None:
    with (
        EventHubConsumerClient.from_connection_string(
            hub.events_string(),
            "$Default",
            connection_verify=str(hub.ca),
            retry_total=0,
        ) as client,
        pytest.raises(EventHubError),
    ):
        client.get_partition_properties("99")
    reader = Reader("sync", hub.events_string(), str(hub.ca), group="nothing", partition_id="0")
    try:
        assert "not-found" in str(reader.errors.take()).lower()
    finally:
        reader.close()


def test_no_secret_is_in_the_log(hub: Hub, device: Account) -> None:
    """The end of the session looks for every secret of every test; this one for the plain ones."""
    for password in ("hunter2-in-plain", device.token(), device.primary):
        client = Device(hub, device, password=password)
        client.connect()
        client.close()
        get(hub, f"/devices/{device.device_id}?key=hunter2-in-plain", token=password)
    log = hub.log()
    assert device.device_id in log
    assert "hunter2-in-plain" not in log
    assert device.primary not in log
    assert "sig=" not in log
