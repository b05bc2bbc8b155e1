"""Performatives, frames and messages: golden bytes, and the decoder of azure-eventhub as judge."""

import uuid
from typing import Any

import pytest
from azure.eventhub._pyamqp import _decode as pyamqp
from hypothesis import given
from hypothesis import strategies as st

from mooring.wire.amqp import messages
from mooring.wire.amqp.frames import FrameDecoder, encode_frame
from mooring.wire.amqp.messages import Header, Message, Properties, decode_batch, decode_message
from mooring.wire.amqp.performatives import (
    FRAME_PERFORMATIVES,
    Accepted,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Modified,
    Open,
    Received,
    Rejected,
    Released,
    SaslChallenge,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    SaslResponse,
    Source,
    Target,
    Transfer,
    decode_performative,
    encode_composite,
)
from mooring.wire.amqp.types import Array, Described, Symbol, Timestamp, ULong, encode
from mooring.wire.errors import WireError

ERROR = Error("amqp:not-found", "gone", {Symbol("k"): "v"})

PERFORMATIVES = [
    Open("c"),
    Open("c", "h", 65536, 1023, 240000, ("en",), (), ("a", "b"), (), {Symbol("p"): 1}),
    Begin(None, 0, 1, 2),
    Begin(7, 1, 2, 3, 4, ("a",), ("b", "c"), {Symbol("p"): "q"}),
    Attach("n", 0, True, 1, 1, Source("s"), Target("t"), None, False, None, 1048576),
    Attach(
        "n",
        1,
        False,
        source=Source(
            "s",
            filter={Symbol("f"): Described(Symbol("f"), "x > '1'")},
            outcomes=("amqp:accepted:list",),
            default_outcome=Described(ULong(0x26), []),
        ),
        target=Target("t", capabilities=("x",)),
        initial_delivery_count=0,
    ),
    Flow(None, 1, 2, 3),
    Flow(1, 2, 3, 4, 5, 6, 7, 8, True, True, {Symbol("x"): 1}),
    Transfer(0, 1, b"tag", 0, True),
    Transfer(0, more=True, state=Received(1, 2), settled=False),
    Disposition(True, 1, 2, True, Accepted()),
    Disposition(True, 1, None, False, Rejected(ERROR)),
    Disposition(False, 1, 1, True, Released()),
    Disposition(False, 1, 1, True, Modified(True, False, {Symbol("x"): None})),
    Detach(3, True),
    Detach(3, True, ERROR),
    End(),
    Close(),
    Close(Error("amqp:connection:forced")),
]
SASL = [
    SaslMechanisms(("PLAIN", "ANONYMOUS")),
    SaslMechanisms(("PLAIN",)),
    SaslInit("PLAIN", b"\0u\0p", "h"),
    SaslInit("ANONYMOUS"),
    SaslChallenge(b"c"),
    SaslResponse(b"r"),
    SaslOutcome(0),
    SaslOutcome(1, b"why"),
]


@pytest.mark.parametrize("performative", PERFORMATIVES, ids=repr)
def test_performatives_survive_the_way_there_and_back(performative: Any) -> None:
    wire = encode_composite(performative)
    decoded, end = decode_performative(wire + b"payload")
    assert (decoded, end) == (performative, len(wire))
    assert repr(decoded) == repr(performative)  # Accepted() == Released(), their reprs differ


@pytest.mark.parametrize("performative", SASL, ids=repr)
def test_sasl_frames_survive_the_way_there_and_back(performative: Any) -> None:
    wire = encode_composite(performative)
    assert decode_performative(wire, sasl=True) == (performative, len(wire))
    with pytest.raises(WireError):
        decode_performative(wire)


GOLDEN = [
    (Close(), "005318c0020140"),
    (End(), "005317c0020140"),
    (Detach(3, True), "005316c00503" + "520341" + "40"),
    (
        Disposition(True, 1, None, True, Accepted()),
        "005315c00d06" + "4152014041005324c00100" + "42",
    ),
    (Flow(0, 1, 0, 1), "005313c00e0b" + "43520143" + "5201" + "40404040" + "4242" + "40"),
    (SaslOutcome(0), "005344c00402" + "500040"),
    (SaslMechanisms(("A", "BC")), "005340c00a01" + "e00702a3014102" + "4243"),
]


@pytest.mark.parametrize(("performative", "octets"), GOLDEN)
def test_golden_bytes(performative: Any, octets: str) -> None:
    assert encode_composite(performative).hex() == octets


@pytest.mark.parametrize("performative", PERFORMATIVES, ids=repr)
def test_azure_eventhub_finds_every_field_in_its_place(performative: Any) -> None:
    wire = encode_composite(performative)
    code, fields = pyamqp.decode_frame(memoryview(wire + b"payload"))
    assert code == wire[2]
    if isinstance(performative, Transfer):
        assert bytes(fields.pop()) == b"payload"
    assert len(fields) == len(performative)
    for ours, theirs in zip(performative, fields, strict=True):
        if isinstance(ours, str):
            assert theirs == ours.encode()
        elif isinstance(ours, bool | int | bytes):
            assert theirs == ours
        elif ours is None or (type(ours) is tuple and not ours):
            assert theirs is None
        elif isinstance(ours, Error):
            assert theirs[0] == ours.condition.encode()
            assert len(theirs) == 3
        elif isinstance(ours, Source | Target):
            assert theirs[0] == (ours.address or "").encode()


LENIENT = [
    ("005318" + "45", Close()),
    ("005318c00100", Close()),
    ("00800000000000000018" + "45", Close()),
    ("00a30f" + b"amqp:close:list".hex() + "45", Close()),
    ("005310c00401a30163", Open("c")),
]


def test_shorter_forms_of_others() -> None:
    for octets, expected in LENIENT:
        assert decode_performative(bytes.fromhex(octets))[0] == expected
    # A single symbol or a plain list where an array of symbols belongs.
    fields = ["c", None, None, None, None, None, None, Symbol("x"), [Symbol("y"), "z"]]
    opened, _ = decode_performative(encode(Described(ULong(0x10), fields)))
    assert opened.offered_capabilities == ("x",)
    assert opened.desired_capabilities == ("y", "z")


BROKEN = {
    "no descriptor": encode(["c"]),
    "unknown descriptor": encode(Described(ULong(0x99), [])),
    "a delivery state": encode_composite(Accepted()),
    "compound descriptor": encode(Described([], [])),
    "no list": encode(Described(ULong(0x10), "c")),
    "mandatory field left out": encode(Described(ULong(0x10), [])),
    "mandatory field null": encode(Described(ULong(0x10), [None])),
    "wrong type": encode(Described(ULong(0x10), [1])),
    "boolean for a number": encode(Described(ULong(0x16), [True])),
    "number below its range": encode(Described(ULong(0x16), [-1])),
    "number above its range": encode(Described(ULong(0x16), [1 << 32])),
    "settle mode of 7": encode(Described(ULong(0x12), ["n", 0, True, 7])),
    "symbols that are numbers": encode(Described(ULong(0x10), ["c"] + [None] * 4 + [5])),
    "error that is no error": encode(Described(ULong(0x18), [Described(ULong(0x24), [])])),
    "source that is a target": encode(
        Described(ULong(0x12), ["n", 0, True, None, None, Described(ULong(0x29), [])])
    ),
    "too many fields": encode(Described(ULong(0x18), [None] * 100)),
}


@pytest.mark.parametrize("wire", BROKEN.values(), ids=BROKEN.keys())
def test_broken_performatives(wire: bytes) -> None:
    with pytest.raises(WireError):
        decode_performative(wire)


def test_no_token_in_a_repr() -> None:
    assert "secret" not in repr(SaslInit("PLAIN", b"\0u\0secret"))
    assert "secret" not in repr(SaslResponse(b"secret"))


fields = [
    st.sampled_from(["43", "5207", "7000000107", "40", "41", "8000"]),
    st.sampled_from(["43", "52ff", "70ffffffff", "40", "a000"]),
    st.sampled_from(["40", "a000", "a003616263", "b000000001ff", "a1026869"]),
    st.sampled_from(["40", "43", "7080013700"]),
    st.sampled_from(["40", "41", "42", "5601"]),
    st.sampled_from(["40", "41", "42", "5600"]),
    st.sampled_from(["40", "5001", "5009"]),
    st.sampled_from(["40", "00532445"]),
    st.sampled_from(["40", "41", "42"]),
    st.sampled_from(["40", "41", "42", "43"]),
    st.sampled_from(["40", "41", "42"]),
]


@given(st.tuples(*fields), st.integers(0, 12), st.integers(-2, 2), st.integers(-1, 1))
def test_the_short_way_of_transfers_agrees_with_the_long_one(
    chosen: tuple[str, ...], count: int, more_size: int, more_count: int
) -> None:
    body = bytes.fromhex("".join(chosen[:count]))
    head = bytes.fromhex("005314c0")
    size, said = len(body) + 1 + more_size, min(count, 11) + more_count
    if not 0 <= size < 256 or not 0 <= said < 256:
        return
    short = head + bytes((size, said)) + body + b"payload"
    wide = bytes.fromhex("00800000000000000014c0") + short[4:]  # a descriptor of the long way
    try:
        expected, end = decode_performative(wide)
    except WireError:
        with pytest.raises(WireError):
            decode_performative(short)
    else:
        assert decode_performative(short) == (expected, end - 7)


# ---- frames --------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=300))), st.data())
def test_frames_in_any_chunking(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(channel, body) for channel, body in frames)
    decoder = FrameDecoder(1024)
    found = []
    at = 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        decoder.feed(stream[at : at + step])
        at += step
        while (frame := decoder.frame()) is not None:
            found.append((frame.channel, frame.body))
    assert found == frames
    assert decoder.buffered == 0


@pytest.mark.parametrize(
    "head",
    [
        "00000007",  # shorter than its own header
        "00000401",  # longer than 1024
        "0000000801000000",  # data offset before the end of the header
        "0000000803000000",  # data offset behind the frame
        "0000000802070000",  # unknown type
    ],
)
def test_broken_frames(head: str) -> None:
    decoder = FrameDecoder(1024)
    decoder.feed(bytes.fromhex(head))
    with pytest.raises(WireError):
        decoder.frame()


def test_an_extended_frame_header_is_skipped() -> None:
    decoder = FrameDecoder(1024)
    decoder.feed(bytes.fromhex("0000000e03000001") + b"extdXY")
    frame = decoder.frame()
    assert frame is not None
    assert (frame.channel, frame.body) == (1, b"XY")


# ---- messages ------------------------------------------------------------------------------

FULL = Message(
    header=Header(True, 3, 1000, True, 2),
    delivery_annotations={Symbol("d"): 1},
    message_annotations={Symbol("m"): Timestamp(5)},
    properties=Properties(
        uuid.UUID(int=5),
        b"u",
        "/to",
        "subject",
        "reply",
        ULong(9),
        "application/json",
        "utf-8",
        1700000000000,
        1700000000001,
        "g",
        7,
        "rg",
    ),
    application_properties={"a": "b", "n": None},
    data=[b"one", b"two"],
    footer={Symbol("f"): "x"},
)


def test_a_full_message_there_and_back() -> None:
    decoded = decode_message(FULL.encode())
    assert decoded == FULL
    assert type(decoded.properties.correlation_id) is ULong
    assert decoded.body() == b"onetwo"


def test_azure_eventhub_reads_our_messages() -> None:
    theirs = pyamqp.decode_payload(memoryview(FULL.encode()))
    assert list(theirs.data) == [b"one", b"two"]
    assert theirs.properties.correlation_id == 9
    assert theirs.properties.message_id == uuid.UUID(int=5)
    assert theirs.application_properties == {b"a": b"b", b"n": None}
    value = Message(value={"partition_ids": ["0", "1"]}, properties=Properties(correlation_id="c"))
    theirs = pyamqp.decode_payload(memoryview(value.encode()))
    assert theirs.value == {b"partition_ids": [b"0", b"1"]}
    assert theirs.properties.correlation_id == b"c"


def test_sections_in_the_order_of_the_c_sdk() -> None:
    parts = {part[2]: part for part in _sections(FULL)}
    order = [
        messages.PROPERTIES,
        messages.APPLICATION_PROPERTIES,
        messages.MESSAGE_ANNOTATIONS,
        messages.DATA,
    ]
    message = decode_message(b"".join(parts[code] for code in order))
    assert message.properties == FULL.properties
    assert message.message_annotations == FULL.message_annotations


def _sections(message: Message) -> list[bytes]:
    return [
        Message(header=message.header).encode(),
        Message(message_annotations=message.message_annotations).encode(),
        Message(properties=message.properties).encode(),
        Message(application_properties=message.application_properties).encode(),
        Message(data=message.data[:1]).encode(),
    ]


def test_a_batch_is_messages_in_data_sections() -> None:
    batch = Message(data=[Message(data=[b"1"]).encode(), Message(data=[b"2"]).encode()]).encode()
    assert [message.body() for message in decode_batch(batch)] == [b"1", b"2"]


def test_bodies_that_are_values() -> None:
    assert decode_message(Message(value="text").encode()).body() == b"text"
    assert decode_message(Message(value=b"octets").encode()).body() == b"octets"
    assert decode_message(Message(value=None).encode()).body() == b""
    assert decode_message(b"").body() == b""
    for message in (Message(value=5), Message(sequences=[[1]])):
        with pytest.raises(WireError):
            decode_message(message.encode()).body()


BROKEN_MESSAGES = {
    "no section": encode("text"),
    "unknown section": encode(Described(ULong(0x79), [])),
    "named section that is unknown": encode(Described(Symbol("x"), [])),
    "two property sections": Message(properties=Properties("a")).encode() * 2,
    "data that is text": encode(Described(ULong(0x75), "text")),
    "annotations that are a list": encode(Described(ULong(0x72), [])),
    "properties that are a map": encode(Described(ULong(0x73), {})),
    "14 properties": encode(Described(ULong(0x73), [None] * 14)),
    "content type that is a number": encode(Described(ULong(0x73), [None] * 6 + [5])),
    "message id that is a list": encode(Described(ULong(0x73), [[1]])),
    "message id that is an array": encode(Described(ULong(0x73), [Array((1,), int)])),
    "header priority that is text": encode(Described(ULong(0x70), [True, "high"])),
    "sequence that is no list": encode(Described(ULong(0x76), 5)),
    "truncated": FULL.encode()[:-1],
    "array as properties": encode(Described(ULong(0x73), Array(("a",), str))),
}


@pytest.mark.parametrize("wire", BROKEN_MESSAGES.values(), ids=BROKEN_MESSAGES.keys())
def test_broken_messages(wire: bytes) -> None:
    with pytest.raises(WireError):
        decode_message(wire)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_a_wire_error(octets: bytes) -> None:
    for decode in (decode_message, decode_performative):
        try:
            decode(octets)
        except WireError:
            pass


@given(st.integers(0x10, 0x18), st.lists(st.none() | st.booleans() | st.integers() | st.text()))
def test_random_fields_are_a_performative_or_a_wire_error(code: int, fields: list[Any]) -> None:
    fields = [f for f in fields if not isinstance(f, int) or -(1 << 63) <= f < 1 << 63]
    try:
        performative, _ = decode_performative(encode(Described(ULong(code), fields)))
    except WireError:
        return
    assert isinstance(performative, FRAME_PERFORMATIVES)
    assert decode_performative(encode_composite(performative))[0] == performative
