"""Telemetry: one record per message, as azure-eventhub decodes it."""

import struct
from dataclasses import dataclass, field
from typing import Any

import pytest
from azure.eventhub import EventData
from azure.eventhub._pyamqp._decode import decode_payload
from hypothesis import given
from hypothesis import strategies as st

from mooring.errors import ArgumentInvalid, MessageTooLarge
from mooring.hub import events
from mooring.hub.access import Principal
from mooring.hub.identity import Ref
from mooring.hub.policies import Right
from mooring.hub.settings import HubSettings
from mooring.hub.telemetry import Channel, Telemetry, parse_time, partition_of

AUTH = '{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}'
NOW = 1_700_000_000.123


@dataclass
class Log:
    """As much of an event log as appending needs."""

    partition_count: int = 4
    congested: bool = False
    appended: list[tuple[int, bytes, Any, Any]] = field(default_factory=list)

    def append(self, partition: int, record: bytes, sink: Any, token: Any) -> bool:
        self.appended.append((partition, record, sink, token))
        return not self.congested

    @property
    def record(self) -> bytes:
        return self.appended[-1][1]


D1 = Ref("d1")


def channel(log: Log, ref: Ref = D1, *, model_id: str = "", **settings: Any) -> Channel:
    principal = Principal(
        hub="localhost",
        rights=Right.DEVICE_CONNECT,
        ref=ref,
        generation_id="637051167384630591",
        auth_method=AUTH,
    )
    telemetry = Telemetry(log, HubSettings(**settings), now=lambda: NOW)  # type: ignore[arg-type]
    return telemetry.channel(principal, model_id=model_id)


def send(log: Log, to: Channel, body: bytes = b"x", system: Any = None, **properties: Any) -> Any:
    assert to.accept(to.prepare(system or {}, properties), body, None, None) is True  # type: ignore[arg-type]
    return decode_payload(memoryview(log.record))


def test_stamps_of_the_hub() -> None:
    log = Log()
    message = send(log, channel(log))
    assert message.message_annotations == {
        b"x-opt-sequence-number": 0,
        b"x-opt-offset": b"0" * 16,
        b"x-opt-enqueued-time": 0,
        b"iothub-connection-device-id": b"d1",
        b"iothub-connection-auth-method": AUTH.encode(),
        b"iothub-connection-auth-generation-id": b"637051167384630591",
        b"iothub-message-source": b"Telemetry",
        b"x-opt-partition-key": b"d1",
        b"iothub-enqueuedtime": 1_700_000_000_123,
    }
    assert message.properties == (None,) * 13
    assert message.data == [b"x"]


def test_the_log_finds_its_slots() -> None:
    log = Log()
    send(log, channel(log))
    record = bytearray(log.record)
    struct.pack_into(">q", record, events.SEQUENCE_AT, 7)
    record[events.OFFSET_AT : events.OFFSET_AT + events.OFFSET_DIGITS] = b"1000000000000042"
    struct.pack_into(">q", record, events.TIME_AT, 1_700_000_000_200)
    event = EventData.from_bytes(bytes(record))
    assert event.sequence_number == 7
    assert event.offset == "1000000000000042"
    assert event.enqueued_time is not None
    assert event.enqueued_time.timestamp() == pytest.approx(1_700_000_000.2)
    assert event.partition_key == b"d1"


def test_modules_and_models_are_stamped() -> None:
    log = Log()
    annotations = send(
        log, channel(log, Ref("d1", "m1"), model_id="dtmi:example:Thing;1")
    ).message_annotations
    assert annotations[b"iothub-connection-module-id"] == b"m1"
    assert annotations[b"dt-dataschema"] == b"dtmi:example:Thing;1"


def test_properties_reach_their_sections() -> None:
    log = Log()
    system = {
        "message-id": "m-1",
        "correlation-id": "c-1",
        "user-id": "someone",
        "to": "/devices/d1/messages/events",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "absolute-expiry-time": "2030-01-02T03:04:05.006Z",
        "iothub-creation-time-utc": "2024-01-01T00:00:00Z",
        "iothub-interface-id": "urn:azureiot:Security:SecurityAgent:1",
        "dt-subject": "thermostat1",
        "iothub-outputname": "out",
        "no-such-property": "dropped",
    }
    message = send(log, channel(log), b'{"a":1}', system, plain="ö", empty="", nothing=None)
    properties = message.properties
    assert properties.message_id == b"m-1"
    assert properties.correlation_id == b"c-1"
    assert properties.user_id == b"someone"
    assert properties.to == b"/devices/d1/messages/events"
    assert properties.content_type == b"application/json"
    assert properties.content_encoding == b"utf-8"
    assert properties.absolute_expiry_time == 1_893_553_445_006
    annotations = message.message_annotations
    assert annotations[b"iothub-creation-time-utc"] == b"2024-01-01T00:00:00Z"
    assert annotations[b"iothub-interface-id"] == b"urn:azureiot:Security:SecurityAgent:1"
    assert annotations[b"dt-subject"] == b"thermostat1"
    assert annotations[b"iothub-outputname"] == b"out"
    assert b"no-such-property" not in annotations
    assert message.application_properties == {
        b"plain": "ö".encode(),
        b"empty": b"",
        b"nothing": None,
    }


def test_an_expiry_that_is_no_time_is_left_out() -> None:
    log = Log()
    message = send(log, channel(log), system={"absolute-expiry-time": "tomorrow"})
    assert message.properties.absolute_expiry_time is None


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T00:00:01", 1000),
        ("1970-01-01T01:00:00.5+01:00", 500),
        ("2018-01-02T19:17:44.4383997Z", 1_514_920_664_438),
        ("", None),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000),
        ("1700000000000", None),
    ],
)
def test_times(text: str, milliseconds: int | None) -> None:
    assert parse_time(text) == milliseconds


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 255 * 1024])
def test_bodies_are_verbatim(size: int) -> None:
    log = Log()
    body = bytes(index % 256 for index in range(size))
    assert send(log, channel(log), body, system={"message-id": "1"}).data == [body]


def test_a_prepared_message_serves_many_bodies() -> None:
    log = Log()
    to = channel(log)
    prepared = to.prepare({"message-id": "1"}, {"k": "v"})
    for body in (b"a", b"b" * 300, b""):
        to.accept(prepared, body, None, None)  # type: ignore[arg-type]
        assert decode_payload(memoryview(log.record)).data == [body]


def test_the_limit_counts_body_and_properties() -> None:
    log = Log()
    to = channel(log, max_device_message=100)
    prepared = to.prepare({"message-id": "12345"}, {"key": "value"})
    to.accept(prepared, bytes(87), None, None)  # type: ignore[arg-type]
    with pytest.raises(MessageTooLarge, match="101 bytes, at most 100"):
        to.accept(prepared, bytes(88), None, None)  # type: ignore[arg-type]
    assert len(log.appended) == 1
    with pytest.raises(MessageTooLarge):
        to.prepare({}, {"k": "v" * 100})


@pytest.mark.parametrize(
    ("system", "properties"),
    [
        ({"content-type": "text/ö"}, {}),
        ({"message-id": "\ud800"}, {}),
        ({}, {"\ud800": "v"}),
        ({}, {"k": "\ud800"}),
    ],
)
def test_what_cannot_be_encoded_is_refused(system: Any, properties: Any) -> None:
    with pytest.raises(ArgumentInvalid):
        channel(Log()).prepare(system, properties)


def test_sink_token_and_congestion_pass_through() -> None:
    log = Log(congested=True)
    to = channel(log)
    sink, token = object(), object()
    assert to.accept(to.prepare({}, {}), b"", sink, token) is False  # type: ignore[arg-type]
    assert log.appended[0][2] is sink
    assert log.appended[0][3] is token


def test_partitions_never_move() -> None:
    # Golden values: events of before an upgrade and after it must stay in one order.
    assert [partition_of(name, 4) for name in ("d1", "d2", "sensor-17", "ä")] == [2, 0, 3, 3]
    log = Log()
    send(log, channel(log, Ref("sensor-17")))
    send(log, channel(log, Ref("sensor-17", "m1")))
    assert log.appended[0][0] == log.appended[1][0] == partition_of("sensor-17", 4)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(
    system=st.dictionaries(
        st.sampled_from(["message-id", "correlation-id", "user-id", "to", "dt-subject"]), TEXTS
    ),
    properties=st.dictionaries(TEXTS, TEXTS | st.none(), max_size=20),
    body=st.binary(max_size=600),
)
def test_any_message_decodes_to_what_was_sent(
    system: dict[str, str], properties: dict[str, str | None], body: bytes
) -> None:
    log = Log()
    to = channel(log)
    to.accept(to.prepare(system, properties), body, None, None)  # type: ignore[arg-type]
    message = decode_payload(memoryview(log.record))
    assert message.data == [body]
    assert (message.application_properties or {}) == {
        key.encode(): None if value is None else value.encode() for key, value in properties.items()
    }
    assert (message.properties.message_id or b"") == system.get("message-id", "").encode()
    assert (message.properties.user_id or b"") == system.get("user-id", "").encode()
    if "dt-subject" in system:
        assert message.message_annotations[b"dt-subject"] == system["dt-subject"].encode()
