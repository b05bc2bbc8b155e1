"""A hub: opened over what was there before, closed with nothing left to write."""

from tests.events import MemoryEvents
from tests.state import MemoryState

from mooring.errors import HubError, ServiceUnavailable
from mooring.hub.access import Principal
from mooring.hub.hosts import bare_host
from mooring.hub.hub import Hub
from mooring.hub.identity import Ref
from mooring.hub.policies import Right
from mooring.hub.registry import IdentityRequest


class FakeSession:
    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.protocol = "mqtt"
        self.ended: list[HubError] = []

    def end(self, error: HubError) -> None:
        self.ended.append(error)


async def test_a_restart_finds_everything_and_nobody_connected() -> None:
    state = MemoryState()
    hub = await Hub.open("Hub.Example.org", state, MemoryEvents(), consumer_groups=["alarms"])
    assert (hub.name, hub.events_path) == ("hub.example.org", "hub")
    device = await hub.registry.create(IdentityRequest(device_id="d1"))
    session = FakeSession(Principal(hub.name, Right.DEVICE_CONNECT, Ref("d1")))
    hub.sessions.open(session)
    policies = hub.policies.all()
    await hub.close()

    (error,) = session.ended
    assert isinstance(error, ServiceUnavailable)
    assert state.tables.presence[Ref("d1")][0] is False

    again = await Hub.open("hub.example.org", MemoryState(state.tables), MemoryEvents())
    assert again.policies.all() == policies
    assert await again.registry.get(Ref("d1")) == device
    assert again.consumer_groups.find("alarms") == "alarms"
    assert (await again.presence.of(Ref("d1"))).connected is False
    await again.close()


def test_hosts_as_clients_write_them() -> None:
    for text, bare in (
        ("LocalHost", "localhost"),
        ("localhost:8883", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]:443", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("127.0.0.1:5671", "127.0.0.1"),
        ("", ""),
    ):
        assert bare_host(text) == bare
