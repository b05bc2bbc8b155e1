"""One served hub on the ports that the SDKs fix, for all conformance tests.

8883, 5671 and 443 exist once on a machine, so a session holds a machine-wide lock while it runs.
"""

import fcntl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from azure.iot.hub import IoTHubHttpRuntimeManager, IoTHubRegistryManager

from .cloud import SECRETS, Account, EventTap, fresh
from .flavours import Flavour
from .standing import Hub

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.conformance)
        # Not the fixtures: the first one waits for its turn on the standard ports.
        item.add_marker(pytest.mark.timeout(90, func_only=True))
    # The README's tour is for a fresh hub: its reader expects JSON of every device, from the start.
    ours.sort(key=lambda item: item.path.name != "test_readme.py")
    turns = iter(ours)
    items[:] = [next(turns) if HERE in item.path.parents else item for item in items]


@pytest.fixture(scope="package")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub as `localhost` on the standard ports, trusted by the SDKs that read the environment.

    requests reads REQUESTS_CA_BUNDLE, uamqp SSL_CERT_FILE."""
    lock = Path(tempfile.gettempdir()) / "mooring-standard-ports.lock"
    with lock.open("w") as held, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(held, fcntl.LOCK_EX)
        served = Hub(tmp_path_factory.mktemp("hub"))
        served.start()
        try:
            patch.setenv("REQUESTS_CA_BUNDLE", str(served.ca))
            patch.setenv("SSL_CERT_FILE", str(served.ca))
            yield served
            log = served.log()
        finally:
            served.stop()
        leaked = [secret for secret in SECRETS if secret in log]
        assert not leaked, "secrets of the tests are in the hub's log"


@pytest.fixture
def service(hub: Hub) -> IoTHubRegistryManager:
    """The back end's azure-iot-hub client, as iothubowner."""
    return IoTHubRegistryManager.from_connection_string(hub.policy_string())


@pytest.fixture
def runtime(hub: Hub) -> IoTHubHttpRuntimeManager:
    """azure-iot-hub's client of feedback and of device queues over HTTP."""
    return IoTHubHttpRuntimeManager.from_connection_string(hub.policy_string())


@pytest.fixture(scope="package")
def events(hub: Hub) -> Iterator[EventTap]:
    """A back end that has read all events since the hub's start."""
    tap = EventTap(hub.events_string(), str(hub.ca))
    yield tap
    tap.close()


@pytest.fixture
def new_device(service: IoTHubRegistryManager) -> Callable[[], Account]:
    """Registers a device with keys of the hub's making."""

    def register(device_id: str = "") -> Account:
        known = service.create_device_with_sas(device_id or fresh("device"), "", "", "enabled")
        keys = known.authentication.symmetric_key
        SECRETS.update((keys.primary_key, keys.secondary_key))
        return Account(
            "localhost",
            known.device_id,
            keys.primary_key,
            keys.secondary_key,
            known.generation_id,
        )

    return register


@pytest.fixture
def device(new_device: Callable[[], Account]) -> Account:
    """A device that no other test knows."""
    return new_device()


@pytest.fixture
def new_module(service: IoTHubRegistryManager) -> Callable[[Account], Account]:
    """Registers a module of a device."""

    def register(device: Account) -> Account:
        known = service.create_module_with_sas(device.device_id, fresh("module"), "", "", "")
        keys = known.authentication.symmetric_key
        SECRETS.update((keys.primary_key, keys.secondary_key))
        return Account(
            "localhost",
            known.device_id,
            keys.primary_key,
            keys.secondary_key,
            known.generation_id,
            known.module_id,
        )

    return register


@pytest.fixture
def module(device: Account, new_module: Callable[[Account], Account]) -> Account:
    """A module that no other test knows."""
    return new_module(device)


@pytest.fixture(params=["sync", "aio"])
async def flavour(request: pytest.FixtureRequest, hub: Hub) -> AsyncIterator[Flavour]:
    """azure-iot-device, blocking and with coroutines."""
    made = Flavour(request.param, hub.ca.read_text(), [])
    yield made
    await made.close()


@pytest.fixture
async def aio(hub: Hub) -> AsyncIterator[Flavour]:
    """azure-iot-device with coroutines, where the other flavour would show nothing more."""
    made = Flavour("aio", hub.ca.read_text(), [])
    yield made
    await made.close()
