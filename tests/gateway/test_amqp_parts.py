"""Parts of the AMQP adapter without a connection: addresses, selectors, epochs, SASL names."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.events import MemoryEvents
from tests.gateway.amqp_dialogue import serving

from mooring.errors import (
    AmqpAddressNotFound,
    ArgumentInvalid,
    HubError,
    IotHubNotFound,
    IotHubUnauthorized,
)
from mooring.gateway.amqp import sasl, selector
from mooring.gateway.amqp.addresses import match, readings
from mooring.gateway.amqp.readers import MAX_RECEIVERS, Readers
from mooring.gateway.amqp.refusals import ReceiverStolen, TooManyReceivers
from mooring.gateway.amqp.selector import Start
from mooring.hub.events import FIRST_OFFSET
from mooring.wire.amqp.types import Described, Symbol, ULong

# ---- addresses -----------------------------------------------------------------------------

ADDRESSES = [
    ("$cbs", [("$cbs",)]),
    ("/messages/devicebound", [("messages", "devicebound")]),
    ("amqps://hub.example.com:5671/messages/deviceBound", [("messages", "deviceBound")]),
    ("sb://hub/e/ConsumerGroups/g", [("e", "ConsumerGroups", "g")]),
    ("amqps://hub/a?x=/y", [("a",)]),
    ("/devices/a%2Fb/x/", [("devices", "a/b", "x")]),
    ("hub/messages/events", [("hub", "messages", "events"), ("messages", "events")]),
    ("/hub/messages", [("hub", "messages")]),
    ("$cbs/x", [("$cbs", "x")]),
    ("", [()]),
]


@pytest.mark.parametrize(("address", "expected"), ADDRESSES)
def test_addresses(address: str, expected: list[tuple[str, ...]]) -> None:
    assert list(readings(address, lambda text: text == "hub")) == expected


def test_an_endless_address() -> None:
    with pytest.raises(AmqpAddressNotFound):
        list(readings("x" * 5000, lambda _: False))


def test_patterns() -> None:
    pattern = ("messages", "{id}", "*")
    assert match(pattern, ("Messages", "X", "a", "B")) == {"id": "X", "*": "a/B"}
    assert match(pattern, ("messages", "x")) == {"id": "x", "*": ""}
    assert match(pattern, ("messages",)) is None
    assert match(("a",), ("a", "b")) is None


# ---- selectors -----------------------------------------------------------------------------

SELECTORS = [
    ("amqp.annotation.x-opt-offset > '-1'", Start("offset", -1)),
    ("amqp.annotation.x-opt-offset > '@latest'", Start(latest=True)),
    ("amqp.annotation.x-opt-offset >= '123'", Start("offset", 123, True)),
    ("amqp.annotation.x-opt-sequence-number > '5'", Start("sequence number", 5)),
    ("amqp.annotation.x-opt-sequence-number >= '5'", Start("sequence number", 5, True)),
    ("amqp.annotation.x-opt-sequence-number > 2995", Start("sequence number", 2995)),
    ("amqp.annotation.x-opt-enqueued-time > '17'", Start("enqueued time", 17)),
    ("amqp.annotation.x-opt-enqueued-time >= '17.25'", Start("enqueued time", 17, True)),
    ("amqp.annotation.x-opt-enqueuedtimeutc > 17", Start("enqueued time", 17)),
    ('  amqp.annotation.x-opt-offset>"9" ', Start("offset", 9)),
]


@pytest.mark.parametrize(("text", "expected"), SELECTORS)
def test_selectors(text: str, expected: Start) -> None:
    assert selector.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "amqp.annotation.x-opt-offset",
        "amqp.annotation.x-opt-offset < '5'",
        "amqp.annotation.x-opt-offset > ''",
        "amqp.annotation.x-opt-offset > 'five'",
        "amqp.annotation.x-opt-offset > '5",
        "amqp.annotation.x-opt-offset > '5.5'",
        "amqp.annotation.x-opt-offset > '5' OR 1=1",
        "amqp.annotation.x-opt-partition-key > '5'",
        "amqp.annotation.x-opt-sequence-number > '@latest'",
        "amqp.annotation.x-opt-sequence-number > '" + "9" * 600 + "'",
        "amqp.annotation.x-opt-sequence-number > '" + "9" * 30 + "'",
    ],
)
def test_broken_selectors(text: str) -> None:
    with pytest.raises(ArgumentInvalid):
        selector.parse(text)


def test_filter_maps() -> None:
    text = "amqp.annotation.x-opt-offset > '7'"
    expected = Start("offset", 7)
    name = Symbol(selector.FILTER)
    assert selector.from_filters(None) == Start()
    assert selector.from_filters({name: None}) == Start()
    assert selector.from_filters({name: Described(name, text)}) == expected
    assert selector.from_filters({name: Described(name, text.encode())}) == expected
    assert selector.from_filters({Symbol("x"): Described(ULong(selector.FILTER_CODE), text)})
    assert selector.from_filters({name: text}) == expected
    broken: list[dict[Any, Any]] = [
        {Symbol("other"): Described(Symbol("other"), text)},
        {name: Described(name, 5)},
    ]
    for filters in broken:
        with pytest.raises(ArgumentInvalid):
            selector.from_filters(filters)


async def test_where_a_start_lies() -> None:
    async with serving(partitions=1) as served:
        await served.write(*[b"%d" % number for number in range(5)])
        log = served.events
        offsets = [event.offset for event in await log.read(0, -1, max_events=9, max_bytes=9999)]

        async def after(start: Start) -> int:
            return await selector.resolve(start, log, 0)

        assert await after(Start()) == -1
        assert await after(Start(latest=True)) == 4
        assert await after(Start("offset", offsets[2])) == 2
        assert await after(Start("offset", offsets[2], True)) == 1
        assert await after(Start("offset", 5)) == -1  # before the first offset of any log
        assert await after(Start("offset", FIRST_OFFSET, True)) == -1
        assert await after(Start("sequence number", 2)) == 2
        assert await after(Start("sequence number", 2, True)) == 1
        assert await after(Start("sequence number", -1, True)) == -1
        assert await after(Start("sequence number", 5, True)) == 4
        assert await after(Start("enqueued time", -5)) == -1
        assert await after(Start("enqueued time", int((time.time() + 60) * 1000))) == 4
        for ahead in (Start("sequence number", 6), Start("offset", offsets[4] + 1)):
            with pytest.raises(ArgumentInvalid, match="The last"):
                await after(ahead)


async def test_an_empty_log_has_no_position_ahead() -> None:
    log = MemoryEvents(1)
    assert await selector.resolve(Start(latest=True), log, 0) == -1
    assert await selector.resolve(Start("sequence number", 0, True), log, 0) == -1


# ---- epochs --------------------------------------------------------------------------------


class Seat:
    """A reader that remembers why it was detached."""

    def __init__(self, epoch: int | None = None) -> None:
        self.epoch = epoch
        self.error: HubError | None = None

    def detach(self, error: HubError) -> None:
        self.error = error


PLACE = ("hub", "$default", 0)


@pytest.mark.parametrize(
    ("present", "newcomer", "enters", "stays"),
    [
        (None, None, True, True),
        (None, 0, True, False),
        (0, None, False, True),
        (0, 0, True, False),
        (1, 0, False, True),
        (1, 2, True, False),
    ],
)
def test_epochs(present: int | None, newcomer: int | None, enters: bool, stays: bool) -> None:
    readers = Readers()
    old, new = Seat(present), Seat(newcomer)
    readers.enter(PLACE, old)
    if enters:
        readers.enter(PLACE, new)
    else:
        with pytest.raises(ReceiverStolen):
            readers.enter(PLACE, new)
    assert (old.error is None) is stays
    assert new.error is None
    if old.error is not None:
        assert old.error.condition == "amqp:link:stolen"


def test_five_readers_without_an_epoch() -> None:
    readers = Readers()
    seats = [Seat() for _ in range(MAX_RECEIVERS)]
    for seat in seats:
        readers.enter(PLACE, seat)
    with pytest.raises(TooManyReceivers):
        readers.enter(PLACE, Seat())
    readers.enter(("hub", "other", 0), Seat())
    readers.leave(PLACE, seats[0])
    readers.leave(PLACE, seats[0])
    readers.enter(PLACE, Seat())
    owner = Seat(3)
    readers.enter(PLACE, owner)
    assert all(seat.error is not None for seat in seats[1:])
    readers.leave(PLACE, owner)
    readers.enter(PLACE, Seat())


# ---- SASL PLAIN ----------------------------------------------------------------------------


async def test_plain_names() -> None:
    async with serving() as served:
        token = served.token(resource="localhost", raw=False)
        for user in (
            "iothubowner@sas.root.localhost",
            "iothubowner@sas.root.hub",  # the first label of an alias
            "iothubowner@SAS.root.hub.example",
        ):
            response = f"\0{user}\0{token}".encode()
            hub, principal = await sasl.plain(response, served.hubs, (None, "localhost"))
            assert (hub, principal.policy) == (served.hub, "iothubowner")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", IotHubUnauthorized),
        (b"\0user", IotHubUnauthorized),
        (b"\0\xff\0x", IotHubUnauthorized),
        (b"\0user\0token", IotHubUnauthorized),
        (b"\0@sas.root.localhost\0token", IotHubUnauthorized),
        (b"\0iothubowner@sas.root.\0token", IotHubNotFound),
        (b"\0iothubowner@sas.root.local\0token", IotHubNotFound),
        (b"\0iothubowner@sas.root.localhost\0token", IotHubUnauthorized),
        (b"\0service@sas.root.localhost\0TOKEN", IotHubUnauthorized),
        (b"\0nobody@sas.localhost\0TOKEN", HubError),
        (b"\0nobody/modules/m@localhost\0TOKEN", HubError),
    ],
)
async def test_plain_refusals(response: bytes, error: type[HubError]) -> None:
    async with serving() as served:
        token = served.token(resource="localhost", raw=False).encode()
        with pytest.raises(error):
            await sasl.plain(response.replace(b"TOKEN", token), served.hubs, ())


# ---- anything at all -----------------------------------------------------------------------

near_selectors = st.lists(
    st.sampled_from(
        [
            "amqp.annotation.",
            "x-opt-offset",
            "x-opt-sequence-number",
            "x-opt-enqueued-time",
            ">",
            ">=",
            "'",
            '"',
            "-1",
            "@latest",
            "7",
            "1700000000000",
            ".5",
            "99999999999999999999",
            " ",
            "\x00",
        ]
    ),
    max_size=9,
).map("".join)


@given(st.text() | near_selectors)
def test_a_selector_means_a_start_or_is_refused(text: str) -> None:
    try:
        start = selector.parse(text)
    except ArgumentInvalid:
        return
    assert start.latest or str(abs(start.value)) in text


@given(
    st.sampled_from(["x-opt-offset", "x-opt-sequence-number", "x-opt-enqueued-time"]),
    st.booleans(),
    st.integers(-1, 10**18),
    st.sampled_from(["'{}'", '"{}"', "{}"]),
)
def test_every_spelling_of_a_selector_means_the_same(
    name: str, inclusive: bool, value: int, quotes: str
) -> None:
    operator = ">=" if inclusive else ">"
    start = selector.parse(f"amqp.annotation.{name} {operator} {quotes.format(value)}")
    assert (start.value, start.inclusive, start.latest) == (value, inclusive, False)


@given(st.text(max_size=40) | st.text("/%a:?*{}", max_size=40), st.booleans())
def test_any_address_has_readings_or_is_refused(text: str, is_host: bool) -> None:
    found = list(readings(text, lambda _: is_host))
    assert 1 <= len(found) <= 2
    for segments in found:
        captured = match(("{entity}", "*"), segments)
        assert (captured is not None) == bool(segments)
