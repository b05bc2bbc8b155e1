"""Connections of azure-iot-device: tokens and their renewal, takeover, loss and return."""

import asyncio
import time

import pytest
from azure.iot.device import IoTHubDeviceClient, Message
from azure.iot.device.exceptions import CredentialError
from azure.iot.hub import IoTHubRegistryManager

from .cloud import Account, EventTap, eventually, random_key, sign
from .flavours import Client, Flavour
from .standing import Hub
from .test_device_methods import invoke
from .test_device_twins import desire

# azure-iot-device renews a token two minutes before its end.
RENEWAL_MARGIN = 120


async def lost(client: Client) -> None:
    """Wait until the client has noticed that its connection is gone."""
    await asyncio.to_thread(eventually, lambda: not client.connected, "the client is disconnected")


async def back(client: Client) -> None:
    await asyncio.to_thread(eventually, lambda: client.connected, "the client is connected")


async def test_the_registry_follows_the_connection(
    flavour: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    def state() -> str:
        return service.get_device(device.device_id).connection_state

    assert state() == "Disconnected"
    client = flavour.device(device)
    await client.connect()
    eventually(lambda: state() == "Connected", "the registry shows the device connected")
    assert service.get_twin(device.device_id).connection_state == "Connected"
    await client.disconnect()
    eventually(lambda: state() == "Disconnected", "the registry shows the device gone")


async def test_connect_and_disconnect_again_and_again(
    flavour: Flavour, device: Account, events: EventTap
) -> None:
    client = flavour.device(device)
    for number in range(5):
        await client.connect()
        await client.send_message(str(number))
        await client.disconnect()
    received = events.of(device.device_id, 5)
    assert [event.body_as_str() for event in received] == ["0", "1", "2", "3", "4"]


async def test_the_secondary_key_is_as_good(
    aio: Flavour, device: Account, events: EventTap
) -> None:
    second = Account(
        device.host, device.device_id, device.secondary, device.primary, device.generation_id
    )
    await aio.device(second).send_message("signed by the secondary key")
    (event,) = events.of(device.device_id)
    assert event.body_as_str() == "signed by the secondary key"


async def test_a_ready_made_token(flavour: Flavour, device: Account, events: EventTap) -> None:
    await flavour.from_token(device, device.token()).send_message("hello")
    (event,) = events.of(device.device_id)
    assert event.body_as_str() == "hello"


async def test_a_ready_made_token_of_a_module(
    flavour: Flavour, module: Account, events: EventTap
) -> None:
    await flavour.from_token(module, module.token()).send_message("hello")
    (event,) = events.of(module.device_id)
    assert event.body_as_str() == "hello"


async def test_a_token_of_the_device_policy(
    aio: Flavour, device: Account, events: EventTap, hub: Hub
) -> None:
    token = sign(device.scope, hub.policy_key("device"), policy="device")
    await aio.from_token(device, token).send_message("hello")
    (event,) = events.of(device.device_id)
    assert b'"scope":"hub"' in event.system_properties[b"iothub-connection-auth-method"]


async def test_a_token_is_renewed_while_all_goes_on(
    flavour: Flavour, device: Account, events: EventTap, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device, sastoken_ttl=RENEWAL_MARGIN + 2)
    inbox = await client.on("message_received")
    patches = await client.on("twin_desired_properties_patch_received")
    await client.answers_methods(lambda request: (200, request.payload))
    changes = await client.on("connection_state_change")
    await client.send_message("before")

    for _ in range(2):  # disconnected, and connected with a new token
        await asyncio.to_thread(changes.take)
    await back(client)

    await client.send_message("after")
    service.send_c2d_message(device.device_id, "to you")
    assert (await asyncio.to_thread(inbox.take)).data == b"to you"
    version = desire(service, device, {"a": 1})
    patch = await asyncio.to_thread(patches.take_until, lambda patch: patch["$version"] == version)
    assert patch["a"] == 1
    assert (await invoke(service, device, "m", 7, connect_timeout=10)).payload == 7
    received = events.of(device.device_id, 2)
    assert [event.body_as_str() for event in received] == ["before", "after"]


async def test_a_new_token_is_asked_for_and_used(
    flavour: Flavour, device: Account, events: EventTap
) -> None:
    soon = device.token(expires=time.time() + RENEWAL_MARGIN + 1)
    client = flavour.from_token(device, soon)
    wanted = await client.on("new_sastoken_required")
    await client.send_message("with the first token")
    await asyncio.to_thread(wanted.take)
    await client.update_sastoken(device.token())
    await client.send_message("with the second token")

    received = events.of(device.device_id, 2)
    assert [event.body_as_str() for event in received] == [
        "with the first token",
        "with the second token",
    ]


async def test_a_session_ends_with_its_token(aio: Flavour, device: Account, hub: Hub) -> None:
    soon = device.token(expires=time.time() + 2)
    client = aio.from_token(device, soon, connection_retry=False)
    await client.connect()
    await lost(client)
    assert hub.logged(device.device_id, "expired")
    with pytest.raises(CredentialError):
        await client.connect()


async def test_the_newer_connection_wins(
    flavour: Flavour, device: Account, events: EventTap, hub: Hub
) -> None:
    older = flavour.device(device, connection_retry=False)
    await older.send_message("from the older")
    newer = flavour.device(device, connection_retry=False)
    await newer.send_message("from the newer")
    await lost(older)
    await newer.send_message("still here")

    received = events.of(device.device_id, 3)
    assert [event.body_as_str() for event in received] == [
        "from the older",
        "from the newer",
        "still here",
    ]
    assert hub.logged(device.device_id, "ConnectionForcefullyClosedOnNewConnection")


async def test_a_client_returns_by_itself_with_all_its_subscriptions(
    flavour: Flavour, device: Account, events: EventTap, service: IoTHubRegistryManager
) -> None:
    client = flavour.device(device, connection_retry_interval=1)
    inbox = await client.on("message_received")
    patches = await client.on("twin_desired_properties_patch_received")
    await client.answers_methods(lambda request: (200, request.payload))
    changes = await client.on("connection_state_change")

    await _interrupt(device, flavour)
    for _ in range(2):  # lost, and back
        await asyncio.to_thread(changes.take)
    await back(client)

    await client.send_message("back again")
    (event,) = events.of(device.device_id)
    assert event.body_as_str() == "back again"
    service.send_c2d_message(device.device_id, "to you")
    assert (await asyncio.to_thread(inbox.take)).data == b"to you"
    desire(service, device, {"a": 1})
    assert (await asyncio.to_thread(patches.take))["a"] == 1
    assert (await invoke(service, device, "m", 7, connect_timeout=10)).payload == 7


async def _interrupt(device: Account, flavour: Flavour) -> None:
    """Take the device's session over for a moment, which is how a hub drops one."""
    other = IoTHubDeviceClient.create_from_connection_string(
        device.connection_string, server_verification_cert=flavour.ca_pem, connection_retry=False
    )
    await asyncio.to_thread(other.connect)
    await asyncio.to_thread(other.shutdown)


async def test_a_client_survives_a_restart_of_the_hub(
    flavour: Flavour,
    device: Account,
    module: Account,
    events: EventTap,
    service: IoTHubRegistryManager,
    hub: Hub,
) -> None:
    clients = [flavour.device(account, connection_retry_interval=1) for account in (device, module)]
    inbox = await clients[0].on("message_received")
    for client in clients:
        await client.answers_methods(lambda request: (200, request.payload))
    patches = await clients[0].on("twin_desired_properties_patch_received")
    desire(service, device, {"a": 1})
    assert (await asyncio.to_thread(patches.take))["a"] == 1
    await clients[0].send_message("before")

    await asyncio.to_thread(hub.restart)
    for client in clients:
        await back(client)

    await clients[0].send_message(Message("after", message_id="m"))
    received = events.of(device.device_id, 2)
    assert [event.body_as_str() for event in received] == ["before", "after"]
    # azure-iot-device never subscribes again: the hub must have kept its session.
    back_end = IoTHubRegistryManager.from_connection_string(hub.policy_string())
    back_end.send_c2d_message(device.device_id, "to you")
    assert (await asyncio.to_thread(inbox.take)).data == b"to you"
    desire(service, device, {"b": 2})
    assert (await asyncio.to_thread(patches.take))["b"] == 2
    for account in (device, module):
        assert (await invoke(service, account, "m", 7, connect_timeout=10)).payload == 7


async def test_disabling_a_device_ends_its_session(
    aio: Flavour, device: Account, service: IoTHubRegistryManager, hub: Hub
) -> None:
    client = aio.device(device, connection_retry=False)
    await client.connect()
    keys = (device.primary, device.secondary)
    service.update_device_with_sas(device.device_id, "*", *keys, "disabled", status_reason="test")
    await lost(client)
    assert hub.logged(device.device_id, "DeviceDisabled")
    with pytest.raises(CredentialError):
        await client.connect()

    service.update_device_with_sas(device.device_id, "*", *keys, "enabled")
    await client.connect()


async def test_disabling_a_device_ends_its_modules_sessions(
    aio: Flavour, device: Account, module: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(module, connection_retry=False)
    await client.connect()
    service.update_device_with_sas(
        device.device_id, "*", device.primary, device.secondary, "disabled"
    )
    await lost(client)
    with pytest.raises(CredentialError):
        await client.connect()


async def test_deleting_a_device_ends_its_session(
    aio: Flavour, device: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device, connection_retry=False)
    await client.connect()
    service.delete_device(device.device_id)
    await lost(client)
    with pytest.raises(CredentialError):
        await client.connect()


async def test_a_new_key_ends_the_sessions_of_the_old_one_only(
    aio: Flavour, device: Account, module: Account, service: IoTHubRegistryManager
) -> None:
    client = aio.device(device, connection_retry=False)
    await client.connect()
    replaced = random_key()
    service.update_device_with_sas(device.device_id, "*", device.primary, replaced, "enabled")
    await client.send_message("the secondary key was not mine")
    assert client.connected

    service.update_device_with_sas(device.device_id, "*", random_key(), replaced, "enabled")
    await lost(client)
    with pytest.raises(CredentialError):
        await client.connect()
