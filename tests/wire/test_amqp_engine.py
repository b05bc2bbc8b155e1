"""The AMQP engine in dialogues: our client with our server, then a rude peer with our server."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.wire.amqp.connection import Connection, Limits, Settings, State
from mooring.wire.amqp.engine_events import (
    Attached,
    Begun,
    Closed,
    Credited,
    Delivered,
    Detached,
    Disposed,
    Ended,
    Opened,
    SaslAnswered,
    SaslRequested,
)
from mooring.wire.amqp.frames import AMQP_HEADER, SASL_HEADER, FrameDecoder, encode_frame
from mooring.wire.amqp.link import Link, LinkState
from mooring.wire.amqp.performatives import (
    RECEIVER,
    SENDER,
    Accepted,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Open,
    Rejected,
    SaslInit,
    Source,
    Target,
    Transfer,
    decode_performative,
    encode_composite,
)
from mooring.wire.amqp.session import INCOMING_WINDOW, MAX_UNSETTLED, Session
from mooring.wire.amqp.types import Symbol

MECHANISMS = ("MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL")


def server(**limits: Any) -> Connection:
    return Connection(Settings("server", MECHANISMS, limits=Limits(**limits)))


def events(connection: Connection, data: bytes = b"") -> list[Any]:
    if data:
        connection.receive_data(data)
    found = []
    while (event := connection.next_event()) is not None:
        found.append(event)
    return found


class Pair:
    """A client and a server, with what each has seen; `run` carries bytes until all is said."""

    def __init__(self, *, client: Settings | None = None, sasl: SaslInit | None = None) -> None:
        self.server = server()
        self.client = Connection(client or Settings("client"))
        self.seen_by_server: list[Any] = []
        self.seen_by_client: list[Any] = []
        self.client.connect(hostname="hub", sasl=sasl)
        self.run()

    def run(self) -> None:
        moved = True
        while moved:
            up = self.client.data_to_send()
            down = self.server.data_to_send()
            for event in events(self.server, up):
                self.seen_by_server.append(event)
                if isinstance(event, SaslRequested):
                    self.server.sasl_outcome(0)
            self.seen_by_client += events(self.client, down)
            moved = bool(up or down)

    def saw(self, kind: type, by: str = "server") -> list[Any]:
        seen = self.seen_by_server if by == "server" else self.seen_by_client
        return [event for event in seen if isinstance(event, kind)]

    def session(self) -> tuple[Session, Session]:
        mine = self.client.begin()
        self.run()
        return mine, self.saw(Begun)[-1].session

    def link(self, role: bool, **attach: Any) -> tuple[Link, Link]:
        """Attach from the client, in `role`; not accepted yet."""
        session = self.client.sessions[0] if self.client.sessions else self.session()[0]
        attach.setdefault("name", f"link-{len(self.seen_by_server)}")
        mine = session.attach(
            Attach(handle=0, role=role, source=Source("here"), target=Target("there"), **attach)
        )
        self.run()
        return mine, self.saw(Attached)[-1].link

    def sending_client(self, *, credit: int = 10, size: int = 0) -> tuple[Link, Link]:
        mine, theirs = self.link(SENDER, initial_delivery_count=0)
        theirs.accept(
            source=theirs.attach.source,
            target=theirs.attach.target,
            credit=credit,
            max_message_size=size,
        )
        self.run()
        return mine, theirs

    def receiving_client(self, *, mode: int = 2, settled: bool = False) -> tuple[Link, Link]:
        mine, theirs = self.link(RECEIVER, snd_settle_mode=mode)
        theirs.accept(source=theirs.attach.source, target=theirs.attach.target, settled=settled)
        self.run()
        return mine, theirs


# ---- opening -------------------------------------------------------------------------------


@pytest.mark.parametrize("sasl", [None, SaslInit("ANONYMOUS"), SaslInit("PLAIN", b"\0u\0p")])
def test_open_with_and_without_sasl(sasl: SaslInit | None) -> None:
    pair = Pair(sasl=sasl)
    assert pair.server.state is State.OPENED
    assert pair.client.state is State.OPENED
    assert pair.saw(Opened)[0].open.hostname == "hub"
    assert pair.client.peer is not None
    assert pair.client.peer.idle_time_out == 240_000
    assert len(pair.saw(SaslRequested)) == (0 if sasl is None else 1)


def test_nothing_is_read_while_sasl_is_undecided() -> None:
    connection = server()
    ahead = AMQP_HEADER + encode_frame(0, encode_composite(Open("c")))
    init = encode_frame(0, encode_composite(SaslInit("PLAIN", b"\0u\0p")), 1)
    assert events(connection, SASL_HEADER + init + ahead) == [
        SaslRequested("PLAIN", b"\0u\0p", None)
    ]
    assert connection.buffered == len(ahead)
    assert events(connection) == []
    connection.sasl_outcome(0)
    assert [type(event) for event in events(connection)] == [Opened]


def test_failed_sasl_ends_it() -> None:
    connection = server()
    init = encode_frame(0, encode_composite(SaslInit("PLAIN", b"\0u\0p")), 1)
    events(connection, SASL_HEADER + init)
    connection.sasl_outcome(1)
    assert [type(event) for event in events(connection)] == [Closed]
    assert connection.data_to_send().endswith(bytes.fromhex("005344c00402500140"))


def test_sasl_challenge_and_response() -> None:
    connection = server()
    init = encode_frame(0, encode_composite(SaslInit("EXTERNAL")), 1)
    events(connection, SASL_HEADER + init)
    connection.sasl_challenge(b"nonce")
    answer = encode_frame(0, bytes.fromhex("005343c00401a00161"), 1)
    assert events(connection, answer) == [SaslAnswered(b"a")]


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"AMQP\x00\x00\x09\x01", SASL_HEADER),  # AMQP 0-9-1
        (b"AMQP\x02\x01\x00\x00", SASL_HEADER),  # TLS inside
        (b"\x16\x03\x01\x02\x00", b""),
        (SASL_HEADER + b"\x00\x00\xff\xff", None),
        (SASL_HEADER + encode_frame(0, encode_composite(Open("c")), 1), None),
        (SASL_HEADER + encode_frame(0, encode_composite(SaslInit("CRAM-MD5")), 1), None),
        (AMQP_HEADER + b"\x00\x01\x00\x00\x02\x00\x00\x00", None),
        (AMQP_HEADER + encode_frame(0, encode_composite(SaslInit("PLAIN")), 1), None),
        (AMQP_HEADER + encode_frame(0, encode_composite(Begin(None, 0, 1, 1))), None),
        (AMQP_HEADER + encode_frame(0, b"garbage"), None),
    ],
)
def test_whoever_does_not_speak_amqp_is_closed(octets: bytes, answer: bytes | None) -> None:
    connection = server()
    found = events(connection, octets)
    assert [type(event) for event in found] == [Closed]
    assert not found[0].by_peer
    if answer is not None:
        assert connection.data_to_send() == answer
    assert events(connection, b"more") == []


# ---- transfers -----------------------------------------------------------------------------


def test_a_client_sends_and_is_settled_in_ranges() -> None:
    pair = Pair()
    mine, theirs = pair.sending_client(credit=4)
    for index in range(4):
        assert mine.send(b"m%d" % index) is not None
    assert mine.send(b"no credit") is None
    pair.run()
    deliveries = [event.delivery for event in pair.saw(Delivered)]
    assert [delivery.payload for delivery in deliveries] == [b"m0", b"m1", b"m2", b"m3"]
    assert not any(delivery.settled for delivery in deliveries)
    theirs.settle([deliveries[0], deliveries[1], deliveries[3]], Accepted())
    pair.run()
    disposed = pair.saw(Disposed, "client")
    assert [[o.id for o in event.deliveries] for event in disposed] == [[0, 1], [3]]
    assert all(isinstance(event.state, Accepted) and event.settled for event in disposed)
    assert list(mine.session.unsettled) == [2]
    assert mine.sendable == 3  # three of four credits came back


def test_credit_is_held_until_a_settled_delivery_is_given_back() -> None:
    pair = Pair()
    mine, theirs = pair.sending_client(credit=2)
    mine.send(b"1", settled=True)
    mine.send(b"2", settled=True)
    pair.run()
    assert mine.sendable == 0
    theirs.settle([event.delivery for event in pair.saw(Delivered)], None)
    pair.run()
    assert mine.sendable == 2
    assert pair.saw(Disposed, "client") == []


def test_the_server_sends_settled_in_bulk_within_credit() -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client(settled=True)
    assert theirs.settled
    assert theirs.send_settled([b"x"]) == 0
    mine.flow(3)
    pair.run()
    assert [event.link for event in pair.saw(Credited)] == [theirs]
    assert theirs.send_settled([b"a", b"b", b"c", b"d"], b"<") == 3
    assert theirs.sendable == 0
    pair.run()
    received = [event.delivery for event in pair.saw(Delivered, "client")]
    assert [delivery.payload for delivery in received] == [b"<a", b"<b", b"<c"]
    assert [delivery.id for delivery in received] == [0, 1, 2]
    assert [delivery.tag for delivery in received] == [bytes((0, 0, 0, i)) for i in range(3)]
    assert all(delivery.settled for delivery in received)


def test_settle_mode_second_waits_for_our_word() -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client(mode=0)
    mine.flow(1)
    pair.run()
    sent = theirs.send(b"c2d", b"0123456789abcdef")
    pair.run()
    delivery = pair.saw(Delivered, "client")[0].delivery
    assert (delivery.tag, delivery.settled) == (b"0123456789abcdef", False)
    mine.session.send(Disposition(RECEIVER, delivery.id, None, False, Rejected(None)))
    pair.run()
    (disposed,) = pair.saw(Disposed)
    assert disposed.deliveries == [sent]
    assert not disposed.settled
    assert isinstance(disposed.state, Rejected)
    assert theirs.session.unsettled
    theirs.confirm(disposed.deliveries, disposed.state)
    assert not theirs.session.unsettled
    data = pair.server.data_to_send()
    answer, _ = decode_performative(data[8:])
    assert answer == Disposition(SENDER, 0, 0, True, Rejected(None))


@pytest.mark.parametrize("frame_size", [512, 4096])
@pytest.mark.parametrize("settled", [True, False])
def test_fragments_to_the_peers_frame_size(frame_size: int, settled: bool) -> None:
    pair = Pair(client=Settings("java", max_frame_size=frame_size))
    mine, theirs = pair.receiving_client(settled=settled)
    mine.flow(10)
    pair.run()
    payloads = [b"small", bytes(range(256)) * 40, b"small too", b"x" * 9000]
    if settled:
        assert theirs.send_settled(payloads) == 4
    else:
        for payload in payloads:
            assert theirs.send(payload) is not None
    pair.run()
    received = [event.delivery for event in pair.saw(Delivered, "client")]
    assert [delivery.payload for delivery in received] == payloads
    assert [delivery.id for delivery in received] == [0, 1, 2, 3]
    assert theirs.session.next_outgoing_id > 20 if frame_size == 512 else True


def test_a_shut_session_window_holds_the_rest_of_one_message_back() -> None:
    pair = Pair(client=Settings("client", max_frame_size=512))
    mine, theirs = pair.receiving_client(settled=True)
    mine.flow(10)
    pair.run()
    theirs.session.remote_incoming_window = 2
    assert theirs.send_settled([b"x" * 2000, b"next"]) == 1
    assert theirs.sendable == 0
    assert theirs.send(b"refused") is None
    pair.run()
    assert pair.saw(Delivered, "client") == []
    mine.send_flow()
    pair.seen_by_server.clear()
    pair.run()
    assert [event.delivery.payload for event in pair.saw(Delivered, "client")] == [b"x" * 2000]
    assert pair.saw(Credited)
    assert theirs.send_settled([b"next"]) == 1


@pytest.mark.parametrize("window", [3, 2**31 - 1, 2**32 - 1])
def test_what_is_under_way_takes_of_any_session_window(window: int) -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client(settled=True)
    mine.flow(10)
    pair.run()
    assert theirs.send_settled([b"0", b"1"]) == 2
    session = theirs.session
    session.on_flow(Flow(0, window, 0, 100))  # written before it saw either
    assert session.remote_incoming_window == window - 2
    session.on_flow(Flow(2, window, 0, 100))
    assert session.remote_incoming_window == window
    session.on_flow(Flow(0, 1, 0, 100))
    assert session.remote_incoming_window == 0


@pytest.mark.parametrize("credit", [3, 2**31 - 1, 2**32 - 1])
def test_what_is_under_way_takes_of_any_credit(credit: int) -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client(settled=True)
    mine.flow(10)
    pair.run()
    assert theirs.send_settled([b"0", b"1"]) == 2
    flow = Flow(0, 100, 0, 100, handle=mine.handle, link_credit=credit)
    theirs.on_flow(flow._replace(delivery_count=0))  # written before it saw either
    assert theirs.credit == credit - 2
    theirs.on_flow(flow._replace(delivery_count=2))
    assert theirs.credit == credit
    theirs.on_flow(flow._replace(delivery_count=0, link_credit=1))
    assert theirs.credit == 0


def test_detaching_drops_the_rest_of_a_message() -> None:
    pair = Pair(client=Settings("client", max_frame_size=512))
    mine, theirs = pair.receiving_client(settled=True)
    mine.flow(10)
    pair.run()
    theirs.session.remote_incoming_window = 2
    theirs.send_settled([b"x" * 2000])
    theirs.detach(Error("amqp:link:stolen"))
    mine.send_flow()
    pair.run()
    assert pair.saw(Delivered, "client") == []
    assert pair.saw(Detached, "client")[0].error.condition == "amqp:link:stolen"
    assert theirs.state is LinkState.DETACHED
    assert pair.server.state is State.OPENED


def test_drain_and_echo() -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client(settled=True)
    mine.flow(5, drain=True, echo=True)
    pair.run()
    theirs.send_settled([b"only one"])
    theirs.drained()
    pair.run()
    assert (mine.credit, mine.delivery_count) == (0, 5)
    assert theirs.credit == 0


def test_unsettled_deliveries_are_limited() -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client(mode=0)
    mine.flow(MAX_UNSETTLED * 2)
    pair.run()
    sent = 0
    while theirs.send(b"x") is not None:
        sent += 1
        if sent % 500 == 0:
            pair.run()
    assert sent == MAX_UNSETTLED
    pair.run()
    mine.session.send(Disposition(RECEIVER, 0, MAX_UNSETTLED + 100, True, Accepted()))
    pair.seen_by_server.clear()
    pair.run()
    assert len(pair.saw(Disposed)[0].deliveries) == MAX_UNSETTLED
    assert pair.saw(Credited)
    assert theirs.sendable > 0


def test_the_session_window_of_a_busy_sender_is_refreshed() -> None:
    pair = Pair()
    mine, theirs = pair.sending_client(credit=100)
    for index in range(INCOMING_WINDOW * 2):
        assert mine.send(b"x", settled=True) is not None
        if index % 50 == 49:
            pair.run()
            batch = [event.delivery for event in pair.saw(Delivered)]
            pair.seen_by_server.clear()
            theirs.settle(batch, None)
            pair.run()
    assert pair.server.state is State.OPENED


# ---- links and sessions end ----------------------------------------------------------------


def test_refused_attach_has_neither_source_nor_target() -> None:
    pair = Pair()
    mine, theirs = pair.link(RECEIVER)
    theirs.refuse(Error("amqp:not-found", "no such address"))
    pair.run()
    assert mine.attach is not None
    assert mine.attach.source is None
    assert mine.attach.target is None
    assert pair.saw(Detached, "client")[0].error == Error("amqp:not-found", "no such address")
    assert pair.server.link_count == 0


def test_equal_names_in_different_sessions_are_different_links() -> None:
    pair = Pair()
    pair.link(SENDER, name="TwinSenderLink", initial_delivery_count=0)
    session, _ = pair.session()
    session.attach(
        Attach("TwinSenderLink", 0, SENDER, target=Target("t"), initial_delivery_count=0)
    )
    pair.run()
    assert pair.server.link_count == 2
    assert pair.saw(Detached, "client") == []


def test_the_same_name_in_one_session_steals() -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client()
    session = mine.session
    again = Attach(mine.name, 7, RECEIVER, source=Source("s"), target=Target("t"))
    session.send(again)
    pair.run()
    assert pair.saw(Detached)[0].link is theirs
    assert pair.saw(Detached)[0].error.condition == "amqp:link:stolen"
    assert pair.saw(Attached)[-1].link is not theirs


def test_handles_are_used_again() -> None:
    pair = Pair()
    for _ in range(3):
        mine, theirs = pair.receiving_client()
        assert theirs.handle == 0
        mine.detach()
        pair.run()
        assert theirs.state is LinkState.DETACHED
    assert pair.server.link_count == 0


def test_ending_a_session_takes_its_links_along() -> None:
    pair = Pair()
    mine, theirs = pair.receiving_client()
    mine.session.end()
    pair.run()
    (ended,) = pair.saw(Ended)
    assert ended.links == [theirs]
    assert theirs.state is LinkState.DETACHED
    assert pair.server.link_count == 0
    assert pair.server.sessions == []
    assert theirs.send(b"late") is None
    theirs.detach()


def test_closing_is_answered() -> None:
    pair = Pair()
    pair.link(RECEIVER)
    pair.server.close(Error("amqp:connection:forced", "bye"))
    pair.run()
    assert pair.saw(Closed, "client") == [Closed(Error("amqp:connection:forced", "bye"), True)]
    assert pair.saw(Closed) == [Closed(None, True)]
    assert pair.server.state is State.CLOSED


# ---- a rude peer ---------------------------------------------------------------------------


class Rude:
    """A peer that writes single frames and looks at what comes back."""

    def __init__(self, *, sessions: int = 1, **limits: Any) -> None:
        self.server = server(**limits)
        self.decoder = FrameDecoder(1 << 20)
        self.events: list[Any] = []
        self.said = AMQP_HEADER
        self.say(Open("rude"))
        for channel in range(sessions):
            self.say(Begin(None, 0, 100, 100), channel)
        assert self.decoder.header() == AMQP_HEADER
        self.heard()

    def say(self, performative: Any, channel: int = 0, payload: bytes = b"") -> list[Any]:
        data = self.said + encode_frame(channel, encode_composite(performative) + payload)
        self.said = b""
        found = events(self.server, data)
        self.decoder.feed(self.server.data_to_send())
        self.events += found
        return found

    def heard(self) -> list[Any]:
        found = []
        self.decoder.feed(self.server.data_to_send())
        while (frame := self.decoder.frame()) is not None:
            found.append(decode_performative(frame.body)[0])
        return found

    def sender(self, *, credit: int = 5, size: int = 0) -> Link:
        (attached,) = self.say(Attach("s", 0, SENDER, target=Target("t"), initial_delivery_count=0))
        attached.link.accept(source=None, target=Target("t"), credit=credit, max_message_size=size)
        self.heard()
        return attached.link


def conditions(heard: list[Any]) -> list[tuple[str, str]]:
    return [
        (type(performative).__name__, performative.error.condition)
        for performative in heard
        if isinstance(performative, Detach | End | Close) and performative.error
    ]


@pytest.mark.parametrize(
    ("performative", "channel", "expected"),
    [
        (Open("again"), 0, ("Close", "amqp:not-allowed")),
        (Begin(None, 0, 1, 1), 0, ("Close", "amqp:not-allowed")),
        (Begin(5, 0, 1, 1), 5, ("Close", "amqp:not-allowed")),
        (Begin(None, 0, 1, 1), 5000, ("Close", "amqp:connection:framing-error")),
        (Flow(0, 1, 0, 1), 9, ("Close", "amqp:not-allowed")),
        (Flow(0, 1, 0, 1, handle=4), 0, ("End", "amqp:session:unattached-handle")),
        (Transfer(4, 0, b"t"), 0, ("End", "amqp:session:unattached-handle")),
        (Detach(4), 0, ("End", "amqp:session:unattached-handle")),
        (Attach("x", 100_000, SENDER), 0, ("End", "amqp:not-allowed")),
        (SaslInit("PLAIN"), 0, ("Close", "amqp:decode-error")),
        (Accepted(), 0, ("Close", "amqp:decode-error")),
    ],
    ids=repr,
)
def test_wrong_order(performative: Any, channel: int, expected: tuple[str, str]) -> None:
    rude = Rude()
    rude.say(performative, channel)
    assert conditions(rude.heard()) == [expected]


def test_too_small_a_frame_size_and_too_short_a_time_out() -> None:
    for bad in (Open("c", max_frame_size=511), Open("c", idle_time_out=10)):
        connection = server()
        found = events(connection, AMQP_HEADER + encode_frame(0, encode_composite(bad)))
        assert [type(event) for event in found] == [Closed]
        assert b"amqp:invalid-field" in connection.data_to_send()


def test_frames_after_open_may_be_as_large_as_announced_and_no_larger() -> None:
    rude = Rude()
    rude.sender(credit=5)
    rude.say(Transfer(0, 0, b"t"), payload=b"x" * 60_000)
    assert isinstance(rude.events[-1], Delivered)
    rude.say(Transfer(0, 1, b"u"), payload=b"x" * 66_000)
    assert conditions(rude.heard()) == [("Close", "amqp:decode-error")]


def test_what_is_kept_of_a_peer_is_small() -> None:
    """A list of nothings takes sixty times its wire size in memory, and an attach is kept."""
    attach = Attach("n", 0, RECEIVER, properties={Symbol("p"): [[]] * 500})
    rude = Rude()
    rude.say(attach)
    assert isinstance(rude.events[-1], Attached)
    rude = Rude(max_performative=1000)
    rude.say(Attach("n", 0, RECEIVER))
    rude.say(attach)
    assert conditions(rude.heard()) == [("Close", "amqp:resource-limit-exceeded")]
    rude = Rude(max_performative=1000)
    rude.sender(credit=5)
    rude.say(Transfer(0, 0, b"t"), payload=b"x" * 60_000)
    assert isinstance(rude.events[-1], Delivered)


def test_transfer_without_credit() -> None:
    rude = Rude()
    rude.sender(credit=1)
    rude.say(Transfer(0, 0, b"t"))
    rude.say(Transfer(0, 1, b"u"))
    assert conditions(rude.heard()) == [("Detach", "amqp:link:transfer-limit-exceeded")]
    assert isinstance(rude.events[-1], Detached)
    rude.say(Transfer(0, 2, b"v"))  # dropped while our detach is on its way
    assert rude.heard() == []
    rude.say(Detach(0, True))
    assert rude.server.link_count == 0
    assert rude.server.state is State.OPENED


def test_a_message_above_the_links_limit() -> None:
    rude = Rude()
    rude.sender(size=1000)
    rude.say(Transfer(0, 0, b"t", more=True), payload=b"x" * 600)
    rude.say(Transfer(0, more=True), payload=b"x" * 600)
    assert conditions(rude.heard()) == [("Detach", "amqp:link:message-size-exceeded")]
    assert rude.server.reassembling == 0


def test_reassembly_is_limited_for_the_connection() -> None:
    rude = Rude(max_reassembly=100_000)
    rude.sender()
    rude.say(Transfer(0, 0, b"t", more=True), payload=b"x" * 60_000)
    rude.say(Transfer(0, more=True), payload=b"x" * 60_000)
    assert conditions(rude.heard()) == [("Close", "amqp:resource-limit-exceeded")]


def test_aborted_and_interleaved_deliveries() -> None:
    rude = Rude()
    rude.sender()
    rude.say(Transfer(0, 0, b"t", more=True), payload=b"one")
    rude.say(Transfer(0, 0, aborted=True))
    assert rude.server.reassembling == 0
    rude.say(Transfer(0, 1, b"u", more=True), payload=b"two")
    rude.say(Transfer(0), payload=b"+")
    assert rude.events[-1].delivery.payload == b"two+"
    rude.say(Transfer(0, 2, b"v", more=True), payload=b"three")
    rude.say(Transfer(0, 3, b"w"), payload=b"four")
    assert conditions(rude.heard()) == [("Detach", "amqp:not-allowed")]


def test_transfer_on_a_link_that_we_send_on() -> None:
    rude = Rude()
    (attached,) = rude.say(Attach("r", 0, RECEIVER, source=Source("s")))
    attached.link.accept(source=Source("s"), target=None)
    rude.say(Transfer(0, 0, b"t"))
    assert conditions(rude.heard()) == [("End", "amqp:session:errant-link")]
    assert isinstance(rude.events[-1], Ended)
    rude.say(Transfer(0, 1, b"t"))
    assert rude.heard() == []
    rude.say(End())
    assert rude.server.sessions == []
    assert rude.server.link_count == 0


def test_more_than_the_session_window() -> None:
    rude = Rude()
    rude.sender(credit=INCOMING_WINDOW * 2)
    session = rude.server.sessions[0]
    session.incoming_window = 0
    rude.say(Transfer(0, 0, b"t"))
    assert conditions(rude.heard()) == [("End", "amqp:session:window-violation")]


def test_limits_on_sessions_links_and_handles() -> None:
    rude = Rude(max_links=2, max_sessions=2)
    rude.say(Begin(None, 0, 1, 1), 1)
    for handle in range(3):
        rude.say(Attach(f"l{handle}", handle, RECEIVER, source=Source("s")))
    assert ("End", "amqp:resource-limit-exceeded") in conditions(rude.heard())
    rude.say(Begin(None, 0, 1, 1), 2)
    assert ("Close", "amqp:resource-limit-exceeded") in conditions(rude.heard())


def test_frames_after_the_end_of_a_session_are_dropped() -> None:
    rude = Rude()
    rude.sender()
    rude.say(End())
    assert [type(performative) for performative in rude.heard()] == [End]
    rude.say(Detach(0, True))
    assert rude.heard() == []
    rude.say(Begin(None, 0, 10, 10))
    assert isinstance(rude.events[-1], Begun)


def test_handle_in_use() -> None:
    rude = Rude()
    rude.say(Attach("a", 0, RECEIVER, source=Source("s")))
    rude.say(Attach("b", 0, RECEIVER, source=Source("s")))
    assert conditions(rude.heard()) == [("End", "amqp:session:handle-in-use")]


def test_detach_before_the_attach_was_answered() -> None:
    rude = Rude()
    (attached,) = rude.say(Attach("a", 0, RECEIVER, source=Source("s")))
    rude.say(Detach(0, True))
    assert [type(p) for p in rude.heard()] == [Attach, Detach]
    assert not attached.link.accept(source=Source("s"), target=None)
    assert rude.heard() == []
    assert rude.server.link_count == 0


def test_dispositions_of_nothing_and_backwards_ranges() -> None:
    rude = Rude()
    rude.say(Disposition(RECEIVER, 0, (1 << 32) - 1, True, Accepted()))
    rude.say(Disposition(SENDER, 5, 2, True, Accepted()))
    assert rude.heard() == []
    (attached,) = rude.say(Attach("r", 0, RECEIVER, snd_settle_mode=0, source=Source("s")))
    attached.link.accept(source=Source("s"), target=None)
    rude.say(Flow(0, 100, 0, 100, 0, 0, 10))
    attached.link.send(b"x")
    rude.say(Disposition(RECEIVER, 5, 2, True, Accepted()))
    assert conditions(rude.heard()) == [("End", "amqp:invalid-field")]


# ---- time ----------------------------------------------------------------------------------


def test_heartbeats_and_silence() -> None:
    pair = Pair(client=Settings("client", idle_time_out=8000))
    connection = pair.server
    assert connection.tick(0.0) == 2.0
    assert connection.data_to_send() == b""
    assert connection.tick(2.0) == 4.0
    assert connection.data_to_send() == bytes.fromhex("0000000802000000")
    connection.tick(4.0)  # the heartbeat counts as a sign of life
    assert connection.data_to_send() == b""
    connection.tick(200.0)
    connection.data_to_send()
    events(connection, bytes.fromhex("0000000802000000"))
    connection.tick(300.0)
    assert connection.state is State.OPENED
    connection.tick(540.0)
    assert [type(event) for event in events(connection)] == [Closed]
    assert b"idle" in connection.data_to_send()
    connection.tick(1000.0)
    assert events(connection) == []


# ---- anything at all -----------------------------------------------------------------------

performatives = st.sampled_from(
    [
        Open("c"),
        Begin(None, 0, 10, 10),
        Begin(0, 0, 10, 10),
        Attach("a", 0, SENDER, target=Target("t"), initial_delivery_count=0),
        Attach("a", 1, RECEIVER, source=Source("s")),
        Attach("b", 0, RECEIVER, source=Source("s")),
        Flow(0, 10, 0, 10),
        Flow(None, 0, 0, 0, 0, 0, 100, echo=True),
        Flow(5, (1 << 32) - 1, 7, 1, 1, 0, (1 << 32) - 1, drain=True),
        Transfer(0, 0, b"t"),
        Transfer(0, 1, b"t", more=True),
        Transfer(0, aborted=True),
        Transfer(1, 2, b"t", settled=True),
        Disposition(RECEIVER, 0, 100, True, Accepted()),
        Disposition(RECEIVER, 0, 0, False, Rejected()),
        Disposition(SENDER, 0, 0),
        Detach(0, True),
        Detach(1),
        End(),
        Close(),
    ]
)


@given(
    st.lists(st.tuples(performatives, st.integers(0, 1), st.binary(max_size=40)), max_size=30),
    st.data(),
)
@settings(deadline=None)
def test_any_performatives_in_any_order_and_chunking(
    frames: list[tuple[Any, int, bytes]], data: st.DataObject
) -> None:
    connection = server()
    stream = AMQP_HEADER + b"".join(
        encode_frame(channel, encode_composite(performative) + payload)
        for performative, channel, payload in [(Open("c"), 0, b""), *frames]
    )
    closed = 0
    at = 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        for event in events(connection, stream[at : at + step]):
            assert not closed, "Closed is the last event"
            closed += isinstance(event, Closed)
            if isinstance(event, Attached):
                peer = event.link.attach
                assert peer is not None
                event.link.accept(source=peer.source, target=peer.target, credit=2)
            elif isinstance(event, Delivered):
                event.delivery.link.settle([event.delivery], Accepted())
            elif isinstance(event, Credited):
                event.link.send_settled([b"s", b"x" * 2000])
                event.link.send(b"u", settled=False)
                event.link.drained()
            elif isinstance(event, Disposed) and not event.settled:
                event.link.confirm(event.deliveries, event.state)
        at += step
    assert connection.link_count == sum(len(s._own) for s in connection.sessions)
    assert connection.reassembling >= 0
    decoder = FrameDecoder(1 << 20)
    decoder.feed(connection.data_to_send())
    decoder.header()
    while (frame := decoder.frame()) is not None:
        decode_performative(frame.body)


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes(octets: bytes, inside: bool) -> None:
    connection = server()
    start = AMQP_HEADER + encode_frame(0, encode_composite(Open("c"))) if inside else b""
    for event in events(connection, start + octets):
        assert isinstance(event, Opened | Closed | SaslRequested | Begun)


@given(performatives, st.data())
def test_one_flipped_byte_never_raises(performative: Any, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(0, encode_composite(performative)))
    at = data.draw(st.integers(4, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    rude = Rude()
    rude.sender()
    events(rude.server, bytes(frame))
