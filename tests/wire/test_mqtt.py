"""MQTT 3.1.1 packets: the golden table both ways, and what holds for any bytes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.wire import mqtt
from mooring.wire.errors import WireError
from mooring.wire.mqtt import Decoder, MalformedPacket, Packet

from .mqtt_golden import BAD, GOOD, ODD

LIMIT = 100_000


def decode(chunks: list[bytes], limit: int = LIMIT) -> tuple[list[Packet], str]:
    """All packets of a stream that comes in these pieces, and why it ended early if it did."""
    decoder = Decoder(limit)
    packets: list[Packet] = []
    try:
        for chunk in chunks:
            got = decoder.feed(chunk)
            packets += got
            while got and isinstance(got[-1], mqtt.Connect):
                got = decoder.proceed(limit)
                packets += got
    except MalformedPacket as error:
        return [*packets, *error.before], str(error)
    return packets, ""


@pytest.mark.parametrize(("data", "packet"), GOOD.values(), ids=GOOD.keys())
def test_golden_both_ways(data: bytes, packet: Packet) -> None:
    assert decode([data]) == ([packet], "")
    assert mqtt.encode(packet) == data


@pytest.mark.parametrize(("data", "packet"), ODD.values(), ids=ODD.keys())
def test_legal_but_not_ours(data: bytes, packet: Packet) -> None:
    assert decode([data]) == ([packet], "")


@pytest.mark.parametrize(("data", "says"), BAD.values(), ids=BAD.keys())
def test_forbidden(data: bytes, says: str) -> None:
    with pytest.raises(MalformedPacket, match=says):
        Decoder(LIMIT).feed(data)


@pytest.mark.parametrize(("data", "says"), BAD.values(), ids=BAD.keys())
def test_forbidden_byte_by_byte_and_behind_a_good_packet(data: bytes, says: str) -> None:
    packets, error = decode([bytes((byte,)) for byte in b"\xc0\x00" + data])
    assert packets == [mqtt.Pingreq()]
    assert error
    packets, error = decode([b"\xc0\x00" + data])
    assert packets == [mqtt.Pingreq()]
    assert error


def test_whole_table_in_one_chunk_and_byte_by_byte() -> None:
    stream = b"".join(data for data, _ in (GOOD | ODD).values())
    expected = [packet for _, packet in (GOOD | ODD).values()]
    assert decode([stream]) == (expected, "")
    assert decode([stream[at : at + 1] for at in range(len(stream))]) == (expected, "")


def test_what_follows_a_connect_waits_and_meets_the_limit_of_the_session() -> None:
    connect, packet = GOOD["connect, as a device"]
    big = mqtt.encode_publish(b"t", bytes(200_000), 1, 7)
    decoder = Decoder()
    assert decoder.feed(connect + big[:100]) == [packet]
    assert decoder.feed(big[100:] + b"\xc0\x00") == []
    assert decoder.buffered == len(big) + 2
    publish, ping = decoder.proceed(mqtt.SESSION_LIMIT)
    assert publish == mqtt.Publish(b"t", bytes(200_000), 1, 7)
    assert ping == mqtt.Pingreq()
    assert decoder.buffered == 0


def test_nothing_behind_a_connect() -> None:
    decoder = Decoder()
    decoder.feed(GOOD["connect, smallest"][0])
    assert decoder.proceed(mqtt.SESSION_LIMIT) == []
    assert decoder.feed(b"\xc0\x00") == [mqtt.Pingreq()]


def test_bytes_after_a_connect_that_come_later_wait_too() -> None:
    decoder = Decoder()
    decoder.feed(GOOD["connect, smallest"][0])
    assert decoder.feed(b"\xc0") == []
    assert decoder.feed(b"\x00") == []
    assert decoder.proceed(mqtt.SESSION_LIMIT) == [mqtt.Pingreq()]


@pytest.mark.parametrize(
    ("length", "header"),
    [(65_534, b"\xfe\xff\x03"), (268_435_455, b"\xff\xff\xff\x7f")],
)
def test_an_oversize_packet_is_refused_by_its_header_alone(length: int, header: bytes) -> None:
    decoder = Decoder(mqtt.CONNECT_LIMIT)
    with pytest.raises(MalformedPacket, match="longer"):
        decoder.feed(b"\x10" + header)
    assert decoder.buffered == 0


def test_the_limit_counts_the_whole_packet() -> None:
    data = mqtt.encode_publish(b"t", bytes(200))
    assert len(Decoder(len(data)).feed(data)) == 1
    with pytest.raises(MalformedPacket, match="longer"):
        Decoder(len(data) - 1).feed(data)


def test_the_longest_legal_message_fits_a_session() -> None:
    data = mqtt.encode_publish(b"t" * 65_535, bytes(mqtt.MESSAGE_LIMIT), 1, 1)
    assert len(data) <= mqtt.SESSION_LIMIT
    assert len(Decoder(mqtt.SESSION_LIMIT).feed(data)) == 1


def test_a_truncated_packet_is_waited_for() -> None:
    for data, packet in GOOD.values():
        for cut in range(len(data)):
            decoder = Decoder(LIMIT)
            assert decoder.feed(data[:cut]) == []
            assert decoder.feed(data[cut:]) == [packet]


def test_topics_are_checked_however_many_there_were() -> None:
    decoder = Decoder(LIMIT)
    for number in range(100):
        assert len(decoder.feed(mqtt.encode_publish(b"t/%d" % number, b""))) == 1
    with pytest.raises(MalformedPacket):
        decoder.feed(mqtt.encode_publish(b"t/#", b""))


def test_encoders_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="65,535"):
        mqtt.encode_publish(b"t" * 65_536, b"")
    with pytest.raises(OverflowError):
        mqtt.encode_puback(65_536)


def test_no_password_in_a_repr() -> None:
    assert "sas" not in repr(GOOD["connect, as a device"][1])


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NAME = TEXT.filter(bool)
TOPIC = NAME.map(lambda t: t.replace("+", "p").replace("#", "h").encode())
ID = st.integers(1, 65535)


@st.composite
def publishes(draw: st.DrawFn, *, will: bool = False) -> mqtt.Publish:
    qos = draw(st.integers(0, 2))
    return mqtt.Publish(
        draw(TOPIC),
        draw(st.binary(max_size=300)),
        qos,
        draw(ID) if qos and not will else 0,
        draw(st.booleans()),
        draw(st.booleans()) if qos and not will else False,
    )


@st.composite
def connects(draw: st.DrawFn) -> mqtt.Connect:
    username = draw(st.none() | TEXT)
    return mqtt.Connect(
        client_id=draw(TEXT),
        username=username,
        password=draw(st.none() | st.binary(max_size=50)) if username is not None else None,
        will=draw(st.none() | publishes(will=True)),
        clean_session=draw(st.booleans()),
        keep_alive=draw(st.integers(0, 65535)),
    )


PACKETS = st.one_of(
    connects(),
    publishes(),
    st.builds(mqtt.Connack, st.integers(0, 5)),
    *(
        st.builds(kind, ID)
        for kind in (mqtt.Puback, mqtt.Pubrec, mqtt.Pubrel, mqtt.Pubcomp, mqtt.Unsuback)
    ),
    st.builds(
        mqtt.Subscribe,
        ID,
        st.lists(st.tuples(NAME, st.integers(0, 2)), min_size=1, max_size=5).map(tuple),
    ),
    st.builds(mqtt.Suback, ID, st.lists(st.sampled_from([0, 1, 2, 128]), min_size=1).map(tuple)),
    st.builds(mqtt.Unsubscribe, ID, st.lists(NAME, min_size=1, max_size=5).map(tuple)),
    st.sampled_from([mqtt.Pingreq(), mqtt.Pingresp(), mqtt.Disconnect()]),
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(PACKETS, max_size=8), st.lists(st.integers(0, 10**6), max_size=20))
def test_any_packets_in_any_pieces_come_back(packets: list[Packet], cuts: list[int]) -> None:
    stream = b"".join(map(mqtt.encode, packets))
    assert decode(cut(stream, cuts)) == (packets, "")


@given(st.binary(max_size=200), st.lists(st.integers(0, 10**6), max_size=10))
def test_any_bytes_are_packets_or_a_wire_error(data: bytes, cuts: list[int]) -> None:
    whole, error = decode([data])
    pieces, piece_error = decode(cut(data, cuts))
    assert pieces == whole
    assert piece_error == error


@given(
    st.sampled_from([data for table in (GOOD, ODD) for data, _ in table.values()]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.lists(st.integers(0, 10**6), max_size=10),
)
def test_damaged_packets_are_packets_or_a_wire_error(
    data: bytes, damage: list[tuple[int, int]], cuts: list[int]
) -> None:
    damaged = bytearray(data)
    for at, byte in damage:
        damaged[at % len(damaged)] = byte
    whole, error = decode([bytes(damaged)])
    pieces, piece_error = decode(cut(bytes(damaged), cuts))
    assert pieces == whole
    assert piece_error == error


@given(st.binary(max_size=100))
def test_any_payload_of_any_type_raises_wire_errors_only(body: bytes) -> None:
    for first in range(256):
        try:
            Decoder(LIMIT).feed(bytes((first, len(body))) + body)
        except WireError:
            pass
