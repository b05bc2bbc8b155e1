"""Sessions: one for each identity, found by identity and policy, ended when their time is up."""

import pytest
from tests.state import MemoryState

from mooring.errors import (
    ConnectionForcefullyClosedOnNewConnection,
    HubError,
    IotHubUnauthorized,
    ServiceUnavailable,
)
from mooring.hub.access import Principal
from mooring.hub.identity import Ref
from mooring.hub.policies import Right
from mooring.hub.presence import Presence
from mooring.hub.sessions import Sessions

D1, D2, M1 = Ref("d1"), Ref("d2"), Ref("d1", "m1")


class FakeSession:
    """Closes itself as soon as it is ended, as an adapter does."""

    def __init__(self, sessions: Sessions, principal: Principal, protocol: str = "mqtt") -> None:
        self.principal = principal
        self.protocol = protocol
        self.ended: list[HubError] = []
        self._sessions = sessions

    def end(self, error: HubError) -> None:
        self.ended.append(error)
        self._sessions.close(self)


class Clock:
    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(Presence(MemoryState(), now=clock), now=clock)


def device(ref: Ref = D1, *, policy: str = "", expires: float | None = None) -> Principal:
    return Principal("localhost", Right.DEVICE_CONNECT, ref, policy=policy, expires=expires)


def service(policy: str = "service", *, expires: float | None = None) -> Principal:
    return Principal("localhost", Right.SERVICE_CONNECT, None, policy=policy, expires=expires)


def test_a_newer_session_of_the_same_identity_ends_the_older(sessions: Sessions) -> None:
    older, newer = (FakeSession(sessions, device(), protocol) for protocol in ("mqtt", "amqp"))
    sessions.open(older)
    sessions.open(newer)

    (error,) = older.ended
    assert isinstance(error, ConnectionForcefullyClosedOnNewConnection)
    assert newer.ended == []
    assert sessions.of(D1) is newer
    assert list(sessions) == [newer]
    assert sessions.connected_count == 1


def test_a_late_close_of_the_older_leaves_the_newer(sessions: Sessions) -> None:
    older, newer = FakeSession(sessions, device()), FakeSession(sessions, device())
    sessions.open(older)
    sessions.open(newer)
    sessions.close(older)
    assert sessions.of(D1) is newer
    assert sessions.connected_count == 1


def test_identities_do_not_end_each_other(sessions: Sessions) -> None:
    opened = [FakeSession(sessions, device(ref)) for ref in (D1, D2, M1)]
    for one in opened:
        sessions.open(one)
    assert all(not one.ended for one in opened)
    assert sessions.connected_count == 2  # modules do not count
    assert set(sessions.of_device("d1")) == {opened[0], opened[2]}


def test_back_ends_live_side_by_side(sessions: Sessions) -> None:
    pair = [FakeSession(sessions, service()) for _ in range(2)]
    for one in pair:
        sessions.open(one)
    assert set(sessions.of_policy("service")) == set(pair)
    assert sessions.connected_count == 0


def test_opening_twice_is_opening_once(sessions: Sessions) -> None:
    one = FakeSession(sessions, device())
    sessions.open(one)
    sessions.open(one)
    assert one.ended == []
    assert len(sessions) == 1


def test_closing_leaves_nothing_behind(sessions: Sessions) -> None:
    opened = [
        FakeSession(sessions, device(M1, policy="device", expires=1_700_000_100.5)),
        FakeSession(sessions, device(D1)),
        FakeSession(sessions, service()),
    ]
    for one in opened:
        sessions.open(one)
    for one in opened:
        sessions.close(one)
    indices = ("_open", "_by_ref", "_modules", "_by_policy", "_expiring")
    assert [getattr(sessions, name) for name in indices] == [{}] * len(indices)
    assert sessions.connected_count == 0


def test_a_session_ends_once_its_token_is_past_its_time(sessions: Sessions, clock: Clock) -> None:
    short = FakeSession(sessions, device(D1, expires=clock.at + 10))
    long = FakeSession(sessions, device(D2, expires=clock.at + 20))
    for one in (short, long):
        sessions.open(one)

    clock.at += 10
    sessions.expire()
    assert short.ended == []

    clock.at += 1
    sessions.expire()
    (error,) = short.ended
    assert isinstance(error, IotHubUnauthorized)
    assert error.reason == "the token has expired"
    assert long.ended == []
    assert list(sessions) == [long]


def test_a_clock_that_jumps_far_misses_nothing(sessions: Sessions, clock: Clock) -> None:
    opened = [
        FakeSession(sessions, device(Ref(f"d{n}"), expires=clock.at + n)) for n in range(1, 50)
    ]
    for one in opened:
        sessions.open(one)
    clock.at += 10**9
    sessions.expire()
    assert all(one.ended for one in opened)


def test_a_clock_that_jumps_back_ends_nothing(sessions: Sessions, clock: Clock) -> None:
    one = FakeSession(sessions, device(expires=clock.at + 10))
    sessions.open(one)
    clock.at -= 10_000
    sessions.expire()
    assert one.ended == []
    clock.at += 10_011
    sessions.expire()
    assert one.ended


def test_a_token_that_is_past_its_time_at_opening_ends_at_the_next_look(
    sessions: Sessions, clock: Clock
) -> None:
    one = FakeSession(sessions, device(expires=clock.at - 30))
    sessions.open(one)
    clock.at += 2
    sessions.expire()
    assert one.ended


def test_a_renewed_token_counts_instead_of_the_old_one(sessions: Sessions, clock: Clock) -> None:
    one = FakeSession(sessions, device(policy="device", expires=clock.at + 10))
    sessions.open(one)
    sessions.renew(one, device(policy="iothubowner", expires=clock.at + 100))
    clock.at += 50
    sessions.expire()
    assert one.ended == []
    assert sessions.of_policy("device") == []
    assert sessions.of_policy("iothubowner") == [one]
    assert sessions.of(D1) is one


def test_a_renewed_token_must_be_for_the_same_identity(sessions: Sessions) -> None:
    one = FakeSession(sessions, device(D1))
    sessions.open(one)
    with pytest.raises(IotHubUnauthorized):
        sessions.renew(one, device(D2))
    assert one.principal.ref == D1


def test_a_principal_of_an_older_revision_is_looked_at_again(sessions: Sessions) -> None:
    looked: list[object] = []
    sessions.recheck = looked.append
    fresh = FakeSession(sessions, device(D1))
    sessions.open(fresh)
    sessions.revision += 1
    stale = FakeSession(sessions, device(D2))
    sessions.open(stale)
    assert looked == [stale]


async def test_stopping_ends_all_with_the_reason(sessions: Sessions) -> None:
    sessions.start()
    opened = [FakeSession(sessions, device()), FakeSession(sessions, service())]
    for one in opened:
        sessions.open(one)
    error = ServiceUnavailable("The server is shutting down")
    await sessions.stop(error)
    assert [one.ended for one in opened] == [[error], [error]]
    late = FakeSession(sessions, device())
    sessions.open(late)
    assert late.ended == [error]
    assert len(sessions) == 0
