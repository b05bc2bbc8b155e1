"""Nothing is acknowledged before it is on disk: proved from the server's system calls.

A `kill -9` leaves the page cache alone and proves nothing about fsync. Here the server runs under
strace, from its first start on, and two things are held against the record of its calls:

- Order. Between the write of a message into the WAL and the write of its acknowledgement into the
  socket, a flush of that WAL began and came back. Acknowledgements are encrypted, but their number
  can be read from the length of a TLS 1.3 record, and they come in the order of the messages.
- Loss. The files are rebuilt as a power cut would leave them, at moments in which acknowledgements
  were just leaving: everything acknowledged until then must be in them.

Both must find fault with a server whose fsync is switched off, or they would prove nothing.
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from mooring.wire import sas
from mooring.wire.amqp.engine_events import Opened
from mooring.wire.amqp.messages import Message, Properties
from mooring.wire.amqp.performatives import Accepted

from ..gateway.amqp_dialogue import Client
from ..served import FREE, Served
from .disk import Disk
from .publisher import MARKER, Publisher, report, tls
from .stored import check_events, events_of, stored_devices
from .strace import Call, Strace, requires_strace

pytestmark = [pytest.mark.fault, requires_strace]

DEVICE = "publisher"
SINGLE = 40  # messages one at a time
PARALLEL = 400  # messages with 16 in flight
WRITES = 8  # devices made, each with a twin and a command, over HTTPS
COMMANDS = 8  # over AMQP
REPORTS = 8  # patches of reported properties over MQTT

OUT = {"write", "writev", "sendto", "sendmsg"}
IN = {"read", "recvfrom", "recvmsg"}
FLUSH = {"fsync", "fdatasync"}
API = {"api-version": "2021-04-12"}

# A record of n bytes is n + 17 long in TLS 1.3: the content type and the tag.
OVERHEAD = 17
PUBACK = 4
APPLICATION_DATA = 23
REQUEST = 150
DISPOSITION = b"\x00\x53\x15"


class Acknowledged(NamedTuple):
    """Something that a client was told, and the place in the trace where that began to leave."""

    marker: bytes
    place: int


class Recorded(NamedTuple):
    """A server's life under strace, and what its clients were told."""

    data: Path
    calls: list[Call]
    messages: list[Acknowledged]
    writes: list[Acknowledged]
    devices: list[str]


def marker(device: str, number: int) -> bytes:
    return MARKER.format(device=device, number=number).encode()


def record(folder: Path, *, fsync: bool) -> Recorded:
    """First start, telemetry and registry writes, kill -9."""
    trace = Strace(folder / "trace")
    environ = {} if fsync else {"MOORING_STORAGE_FSYNC": "false"}
    served = Served(
        folder, "--amqp-plain-port", "0", ports=FREE, wrapper=trace.wrapper, environ=environ
    )
    served.start()
    try:
        with served.control() as http:
            key = make_device(http, DEVICE)
        single, parallel = asyncio.run(publish(served, key))
        patches = [
            json.dumps({f"r{number}": text("report", number) * 2}).encode()
            for number in range(REPORTS)
        ]
        report_port = asyncio.run(report(DEVICE, key, served.mqtt_port, served.ca, patches))
        port, markers, devices = write_state(served)
        amqp_port, commands = asyncio.run(send_commands(served))
    finally:
        served.kill()
    calls = trace.calls()
    messages = [
        *acknowledgements(calls, single),
        *acknowledgements(calls, parallel),
    ]
    assert len(messages) == SINGLE + PARALLEL
    writes = [
        Acknowledged(text, place) for text, place in zip(markers, answers(calls, port), strict=True)
    ]
    reports = [marker("report", number) for number in range(REPORTS)]
    _connack, *answered = answers(calls, report_port)
    writes += [Acknowledged(one, place) for one, place in zip(reports, answered, strict=True)]
    writes += dispositions(calls, amqp_port, commands)
    return Recorded(served.data, calls, messages, writes, [*devices, DEVICE])


def make_device(http: httpx.Client, device: str) -> str:
    answer = http.put(f"/devices/{device}", params=API, json={"deviceId": device})
    key: str = answer.raise_for_status().json()["authentication"]["symmetricKey"]["primaryKey"]
    return key


async def publish(served: Served, key: str) -> tuple[Publisher, Publisher]:
    single = Publisher(DEVICE, key, window=1, first=0, limit=SINGLE)
    await single.connect(served.mqtt_port, served.ca)
    await asyncio.wait_for(single.ended, 60)
    parallel = Publisher(DEVICE, key, window=16, first=SINGLE, limit=PARALLEL)
    await parallel.connect(served.mqtt_port, served.ca)
    await asyncio.wait_for(parallel.ended, 60)
    return single, parallel


def write_state(served: Served) -> tuple[int, list[bytes], list[str]]:
    """Registry, twin and queue writes over HTTPS, one after another on one connection."""
    token = owners_token(served)
    context = tls(served.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    markers, devices = [], []
    with httpx.Client(
        base_url=f"https://localhost:{served.https_port}", verify=context,
        headers={"Authorization": token}, params=API, timeout=30,
    ) as http:  # fmt: skip
        for number in range(WRITES):
            device = f"written-{number:04}-device"
            answers = [
                http.put(f"/devices/{device}", json={"deviceId": device}),
                http.patch(f"/twins/{device}", json={"tags": {"marker": text("twin", number)}}),
                http.post(
                    "/messages/deviceBound", content=b"x",
                    headers={
                        "iothub-to": f"/devices/{device}/messages/deviceBound",
                        "iothub-messageid": text("command", number),
                    },
                ),
            ]  # fmt: skip
            for answer in answers:
                answer.raise_for_status()
            markers += [device.encode(), marker("twin", number), marker("command", number)]
            devices.append(device)
        stream = answers[-1].extensions["network_stream"]
        port = stream.get_extra_info("client_addr")[1]
    return port, markers, devices


async def send_commands(served: Served) -> tuple[int, list[bytes]]:
    """Commands over AMQP, one after another, on the port without TLS: there a trace can be read."""
    client = Client()
    await asyncio.get_running_loop().create_connection(
        lambda: client, "127.0.0.1", served.amqp_plain_port
    )
    client.engine.connect(hostname="localhost")
    client.flush()
    await client.expect(lambda event: isinstance(event, Opened))
    await client.put_token(owners_token(served))
    link = await client.sender("/messages/devicebound")
    for number in range(COMMANDS):
        properties = Properties(
            to=f"/devices/{DEVICE}/messages/devicebound", message_id=text("dispose", number)
        )
        assert isinstance(await client.send(link, Message(properties=properties)), Accepted)
    assert client.transport is not None
    port: int = client.transport.get_extra_info("sockname")[1]
    client.close()
    return port, [marker("dispose", number) for number in range(COMMANDS)]


def owners_token(served: Served) -> str:
    policy = dict(part.split("=", 1) for part in served.connection_string().split(";"))
    return sas.generate(
        policy["SharedAccessKey"], "localhost", int(time.time()) + 3600,
        policy=policy["SharedAccessKeyName"],
    )  # fmt: skip


def text(kind: str, number: int) -> str:
    # Several times, so that one of them is whole wherever a page ends.
    return MARKER.format(device=kind, number=number) * 4


# Reading the trace ---------------------------------------------------------------------------


def connection(calls: Iterable[Call], port: int) -> list[Call]:
    """The calls on the server's end of a client's connection that moved bytes."""
    ending = re.compile(rf"->\[?[0-9a-f.:]+\]?:{port}\]$")
    return [
        call
        for call in calls
        if call.name in OUT | IN and call.result > 0 and ending.search(call.fd)
    ]


def acknowledgements(calls: list[Call], publisher: Publisher) -> Iterator[Acknowledged]:
    """Each PUBACK, with the place of the write in which it began to leave."""
    places: list[int] = []
    buffered = b""
    began = 0
    for call in connection(calls, publisher.local_port):
        if call.name in IN:
            continue
        if not buffered:
            began = call.began
        buffered += call.data
        while len(buffered) >= 5 and len(buffered) >= (end := 5 + record_length(buffered)):
            size = end - 5 - OVERHEAD
            if buffered[0] == APPLICATION_DATA and size % PUBACK == 0:
                places += [began] * (size // PUBACK)
            buffered = buffered[end:]
            began = call.began
    # What the handshake sends, and the CONNACK, come before.
    assert len(places) > len(publisher.acknowledged)
    places = places[-len(publisher.acknowledged) :]
    for number, place in zip(publisher.acknowledged, places, strict=True):
        yield Acknowledged(marker(publisher.device, number), place)


def record_length(data: bytes) -> int:
    return int.from_bytes(data[3:5], "big")


def answers(calls: list[Call], port: int) -> list[int]:
    """The places where the server began to answer, one request after another on a connection."""
    places = []
    asked = 0
    for call in connection(calls, port):
        if call.name in IN:
            asked += call.result
        else:
            # The end of the handshake is shorter than any request with its token.
            if asked > REQUEST:
                places.append(call.began)
            asked = 0
    return places[1:]  # the first was the beginning of the handshake


def dispositions(calls: list[Call], port: int, markers: list[bytes]) -> Iterator[Acknowledged]:
    """Each AMQP disposition, one transfer after another, as it is to be read on the wire."""
    # The client waits for each answer before it sends the next, and what $cbs settled came before
    # the first transfer: from there on, every disposition is the next transfer's.
    waiting = list(markers)
    asked = False
    for call in connection(calls, port):
        if call.name in IN:
            asked = asked or waiting[0] in call.data
        elif asked:
            for _ in range(call.data.count(DISPOSITION)):
                yield Acknowledged(waiting.pop(0), call.began)
            if not waiting:
                break
    assert not waiting, f"no disposition was traced of {waiting}"


def out_of_order(recorded: Recorded) -> list[str]:
    """Acknowledgements that began to leave without a flush that covers what they acknowledge."""
    told = [*recorded.messages, *recorded.writes]
    written: dict[bytes, Call] = {}
    pattern = re.compile(rb"<[^|<>]+\|\d{8}>|written-\d{4}-device")
    flushes: dict[str, list[Call]] = {}
    for call in recorded.calls:
        if call.name == "pwrite64" and call.fd.endswith("db-wal"):
            for found in set(pattern.findall(call.data)):
                written.setdefault(found, call)
        elif call.name in FLUSH:
            flushes.setdefault(call.fd, []).append(call)
    wrong = []
    for one in told:
        write = written.get(one.marker)
        if write is None or write.ended > one.place:
            wrong.append(f"{one.marker!r} was acknowledged before it was written")
        elif not any(
            flush.began > write.ended and flush.ended < one.place
            for flush in flushes.get(write.fd, ())
        ):
            wrong.append(f"{one.marker!r} was acknowledged before it was flushed")
    return wrong


def lost(recorded: Recorded, folder: Path, moments: int) -> list[str]:
    """What power cuts would lose at moments in which acknowledgements were just leaving."""
    told = sorted([*recorded.messages, *recorded.writes], key=lambda one: one.place)
    chosen = sorted(
        {told[index * (len(told) - 1) // (moments - 1)].place for index in range(moments)}
    )
    disk = Disk(recorded.data)
    calls = iter(sorted(recorded.calls, key=lambda call: call.ended))
    call = next(calls, None)
    wrong = []
    for count, place in enumerate(chosen):
        while call is not None and call.ended < place:
            disk.apply(call)
            call = next(calls, None)
        cut = folder / f"cut-{count}"
        disk.restore(cut)
        wrong += missing(cut, [one.marker for one in told if one.place <= place], recorded.devices)
    return wrong


def missing(data: Path, told: list[bytes], devices: list[str]) -> list[str]:
    """What of `told` a folder does not hold."""
    numbers = [int(one.rstrip(b">").rsplit(b"|")[1]) for one in told if one.startswith(b"<pub")]
    if not (data / "events" / "localhost.db").exists() or not (data / "state.db").exists():
        return ["the databases are not there at all"] if told else []
    wrong = check_events(events_of(data), {DEVICE: numbers})
    found = asyncio.run(stored_devices(data, devices))
    state = {device for device, one in found.items() if one.exists}
    for one in found.values():
        values = [*one.commands, *one.reported.values(), *([one.tag] if one.tag else [])]
        state |= {value[: value.index(">") + 1] for value in values}
    wanted = {one.decode() for one in told if not one.startswith(b"<pub")}
    return wrong + [f"{one} was acknowledged and is lost" for one in sorted(wanted - state)]


# Tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flushing(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("flushing"), fsync=True)


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("careless"), fsync=False)


def test_every_acknowledgement_leaves_after_the_flush_that_covers_it(flushing: Recorded) -> None:
    assert out_of_order(flushing) == []


def test_a_power_cut_at_any_acknowledgement_loses_nothing_acknowledged(
    flushing: Recorded, tmp_path: Path
) -> None:
    assert lost(flushing, tmp_path, 60) == []


def test_without_fsync_the_order_is_found_wrong(careless: Recorded) -> None:
    assert len(out_of_order(careless)) == len(careless.messages) + len(careless.writes)


def test_without_fsync_the_loss_is_found(careless: Recorded, tmp_path: Path) -> None:
    assert lost(careless, tmp_path, 2) != []


def test_a_server_restarted_from_what_was_flushed_serves_it(
    flushing: Recorded, tmp_path: Path
) -> None:
    disk = Disk(flushing.data)
    for call in sorted(flushing.calls, key=lambda call: call.ended):
        disk.apply(call)
    disk.restore(tmp_path / "data")
    with Served(tmp_path, ports=FREE) as served, served.control() as http:
        for number, device in enumerate(flushing.devices[:-1]):
            assert http.get(f"/devices/{device}", params=API).status_code == 200
            twin = http.get(f"/twins/{device}", params=API).json()
            assert twin["tags"] == {"marker": text("twin", number)}
        key = make_device(http, "afterwards")
        asyncio.run(publish_afterwards(served, key))
    told = [one.marker for one in flushing.messages + flushing.writes]
    assert [event.device for event in events_of(served.data)].count("afterwards") == 5
    assert missing(served.data, told, flushing.devices) == []


async def publish_afterwards(served: Served, key: str) -> None:
    publisher = Publisher("afterwards", key, window=2, first=0, limit=5)
    await publisher.connect(served.mqtt_port, served.ca)
    await asyncio.wait_for(publisher.ended, 60)
    assert publisher.acknowledged == list(range(5))
