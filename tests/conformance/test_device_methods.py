"""Direct methods: azure-iot-hub calls, azure-iot-device answers."""

import asyncio
from typing import Any

import pytest
from azure.iot.device import MethodResponse
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.protocol.models import CloudToDeviceMethod, CloudToDeviceMethodResult
from msrest.exceptions import HttpOperationError

from .cloud import Account
from .flavours import Flavour
from .service_http import post
from .standing import Hub

PAYLOADS: list[Any] = [
    True,
    False,
    0,
    -7,
    2**53,
    3.25,
    -1e-7,
    "",
    "text",
    'Grüße, 世界 ☃ 🚀 "quoted" \\ \n\t',
    [],
    [1, "two", [3.5, []], {"four": 4}],
    {},
    {"a": {"b": {"c": [1, {"d": "e"}]}}, "ü": "ö", "empty": "", "list": []},
    "x" * 100_000,
    {"key": "y" * 100_000},
]


async def invoke(
    service: IoTHubRegistryManager,
    account: Account,
    name: str,
    payload: Any = None,
    *,
    response_timeout: int = 30,
    connect_timeout: int = 0,
) -> CloudToDeviceMethodResult:
    request = CloudToDeviceMethod(
        method_name=name,
        payload=payload,
        response_timeout_in_seconds=response_timeout,
        connect_timeout_in_seconds=connect_timeout,
    )
    if account.module_id:
        return await asyncio.to_thread(
            service.invoke_device_module_method, account.device_id, account.module_id, request
        )
    return await asyncio.to_thread(service.invoke_device_method, account.device_id, request)


async def test_every_kind_of_payload_there_and_back(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    await client.answers_methods(lambda request: (200, request.payload))

    for payload in PAYLOADS:
        result = await invoke(service, device, "echo", payload)
        assert (result.status, result.payload) == (200, payload)
        assert type(result.payload) is type(payload)


async def test_null_and_absent_payloads(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager, hub: Hub
) -> None:
    got: list[Any] = []
    client = flavour.device(device)

    def answer(request: Any) -> tuple[int, Any]:
        got.append(request.payload)
        return 200, None

    await client.answers_methods(answer)
    for body in ({"methodName": "m", "payload": None}, {"methodName": "m"}):
        answered = await asyncio.to_thread(post, hub, f"/twins/{device.device_id}/methods", body)
        assert answered.status_code == 200
        assert answered.json() == {"status": 200, "payload": None}
    assert got == [None, None]

    # azure-iot-hub sends "" where the caller gave nothing.
    assert (await invoke(service, device, "m")).payload is None
    assert got[-1] == ""


async def test_names_and_statuses_are_the_devices_own_business(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    await client.answers_methods(lambda request: (request.payload, request.name))

    for status in (200, 404, 500, 0, 1, -1, 2**31 - 1, -(2**31)):
        assert (await invoke(service, device, "m", status)).status == status
    for name in ("reboot", "thermostat1*getMaxMinReport", "a.b-c_d:e", "with space", "größe"):
        assert (await invoke(service, device, name, 200)).payload == name


async def test_calls_are_answered_in_any_order(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device)
    requests = await client.on("method_request_received")
    calls = [asyncio.create_task(invoke(service, device, "m", number)) for number in range(3)]
    waiting = [await asyncio.to_thread(requests.take) for _ in calls]
    for request in reversed(waiting):
        await client.send_method_response(
            MethodResponse.create_from_method_request(request, request.payload, "done")
        )

    results = await asyncio.gather(*calls)
    assert [(result.status, result.payload) for result in results] == [
        (number, "done") for number in range(3)
    ]


async def test_a_second_answer_and_an_answer_to_nothing_do_no_harm(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device)
    requests = await client.on("method_request_received")
    call = asyncio.create_task(invoke(service, device, "m", 1))
    request = await asyncio.to_thread(requests.take)
    for status in (200, 201):
        await client.send_method_response(
            MethodResponse.create_from_method_request(request, status, status)
        )
    await client.send_method_response(MethodResponse("unknown", 200, None))

    assert (await call).status == 200
    assert client.connected


async def test_a_device_that_is_not_there(
    device: Account, service: IoTHubRegistryManager, aio: Flavour
) -> None:
    with pytest.raises(HttpOperationError) as refused:
        await invoke(service, device, "m")
    assert refused.value.response.status_code == 404
    assert refused.value.response.headers["iothub-errorcode"] == "DeviceNotOnline"

    await aio.device(device).connect()  # connected, but it takes no methods
    with pytest.raises(HttpOperationError) as refused:
        await invoke(service, device, "m")
    assert refused.value.response.status_code == 404
    assert refused.value.response.headers["iothub-errorcode"] == "DeviceNotOnline"


async def test_an_unknown_device(service: IoTHubRegistryManager) -> None:
    nobody = Account("localhost", "nobody-knows-me", "", "", "")
    with pytest.raises(HttpOperationError) as refused:
        await invoke(service, nobody, "m")
    assert refused.value.response.status_code == 404
    assert refused.value.response.headers["iothub-errorcode"] == "DeviceNotFound"


async def test_the_caller_may_wait_for_the_device(
    aio: Flavour, device: Account, service: IoTHubRegistryManager, hub: Hub
) -> None:
    call = asyncio.create_task(invoke(service, device, "m", 1, connect_timeout=30))
    client = aio.device(device)
    await client.answers_methods(lambda request: (200, "here I am"))

    assert (await call).payload == "here I am"


async def test_a_device_that_does_not_answer(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device)
    requests = await client.on("method_request_received")
    with pytest.raises(HttpOperationError) as refused:
        await invoke(service, device, "m", 1, response_timeout=5)
    assert refused.value.response.status_code == 504
    assert "504101" in refused.value.response.text or (
        refused.value.response.headers["iothub-errorcode"] == "GatewayTimeout"
    )

    late = await asyncio.to_thread(requests.take)
    await client.send_method_response(MethodResponse.create_from_method_request(late, 200, 1))
    await client.answers_methods(lambda request: (200, "in time"))
    assert (await invoke(service, device, "m", 1)).payload == "in time"


async def test_a_device_that_leaves_during_the_call(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device)
    requests = await client.on("method_request_received")
    call = asyncio.create_task(invoke(service, device, "m", 1))
    await asyncio.to_thread(requests.take)
    await client.disconnect()

    with pytest.raises(HttpOperationError) as refused:
        await call
    assert refused.value.response.status_code == 404
    assert refused.value.response.headers["iothub-errorcode"] == "DeviceConnectionClosedRemotely"


async def test_the_receive_call_of_older_programs(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device)
    await client.connect()
    with pytest.deprecated_call():
        # Without a name: a request that comes while the client subscribes misses a named inbox.
        waiting = asyncio.ensure_future(client.receive_method_request())
        call = asyncio.create_task(invoke(service, device, "m", 5, connect_timeout=30))
        request = await waiting
    await client.send_method_response(MethodResponse.create_from_method_request(request, 200, 6))
    assert (await call).payload == 6


async def test_limits_of_a_call(device: Account, hub: Hub, service: IoTHubRegistryManager) -> None:
    path = f"/twins/{device.device_id}/methods"
    wrong: list[dict[str, Any]] = [
        {},
        {"methodName": ""},
        {"methodName": "m", "responseTimeoutInSeconds": 4},
        {"methodName": "m", "responseTimeoutInSeconds": 301},
        {"methodName": "m", "connectTimeoutInSeconds": 301},
        {"methodName": 5},
    ]
    for body in wrong:
        refused = await asyncio.to_thread(post, hub, path, body)
        assert refused.status_code == 400, body
        assert refused.headers["iothub-errorcode"].startswith(("Argument", "Deserialization"))
