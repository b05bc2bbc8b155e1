"""Twenty times `kill -9` at a random moment, under full load, on the same data.

Devices publish with many messages in flight, and a back end writes registry entries, twins and
commands, until the server is killed. After each kill the files, and at the end the served hub,
must hold everything that was acknowledged: once, at its place, in the order of each device.
"""

import asyncio
import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.eventhub import EventHubConsumerClient

from mooring.wire import sas

from ..served import FREE, Served
from .publisher import Publisher, tls
from .stored import PARTITIONS, Stored, check_events, stored_devices, stored_events

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

KILLS = 20
DEVICES = 4
WINDOW = 32
STALLED = 15.0  # seconds without an event, of a reader that has not read all
API = {"api-version": "2021-04-12"}


@dataclass
class Account:
    """What clients were told, over all lives of the server."""

    keys: dict[str, str] = field(default_factory=dict)
    messages: dict[str, list[int]] = field(default_factory=dict)
    next: dict[str, int] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    twins: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    attempted: int = 0
    policy: str = ""


@pytest.fixture
def chance() -> random.Random:
    seed = time.time_ns()
    print(f"seed {seed}")
    return random.Random(seed)


def test_twenty_kills_lose_nothing_that_was_acknowledged(
    tmp_path: Path, chance: random.Random
) -> None:
    served = Served(tmp_path, "--amqp-plain-port", "0", ports=FREE)
    account = Account()
    for life in range(KILLS):
        served.start()
        try:
            if not account.keys:
                make_publishers(served, account)
            before = sum(map(len, account.messages.values()))
            asyncio.run(load_until_killed(served, account, chance))
        finally:
            served.kill()
        stored = asyncio.run(check_files(served.data, account))
        assert sum(map(len, account.messages.values())) > before, f"life {life} published nothing"
    assert account.twins
    assert account.commands
    served.start()
    try:
        check_served(served, account, stored)
    finally:
        assert served.stop() == 0


def make_publishers(served: Served, account: Account) -> None:
    account.policy = served.connection_string()
    with served.control() as http:
        for number in range(DEVICES):
            device = f"publisher-{number}"
            answer = http.put(f"/devices/{device}", params=API, json={"deviceId": device})
            keys = answer.raise_for_status().json()["authentication"]["symmetricKey"]
            account.keys[device] = keys["primaryKey"]
            account.messages[device] = []
            account.next[device] = 0


async def load_until_killed(served: Served, account: Account, chance: random.Random) -> None:
    loop = asyncio.get_running_loop()
    publishers = []
    for device, key in account.keys.items():
        publisher = Publisher(
            device, key, window=WINDOW, first=account.next[device], limit=1_000_000
        )
        await publisher.connect(served.mqtt_port, served.ca)
        publishers.append(publisher)
    writing = [asyncio.create_task(write(served, account)) for _ in range(3)]
    # From a thread, or the loop would never be in the middle of something.
    killing = loop.run_in_executor(
        None, kill_after, served, publishers, chance.randrange(1, 3000), chance.uniform(0, 0.01)
    )
    await asyncio.gather(*(publisher.ended for publisher in publishers))
    await killing
    for task in writing:
        with contextlib.suppress(httpx.TransportError):
            await asyncio.wait_for(task, 20)
    for publisher in publishers:
        account.messages[publisher.device] += publisher.acknowledged
        account.next[publisher.device] = publisher.next


def kill_after(
    served: Served, publishers: list[Publisher], acknowledged: int, seconds: float
) -> None:
    """Kill it some moment after so many messages of this life were acknowledged."""
    deadline = time.monotonic() + STALLED
    while sum(len(publisher.acknowledged) for publisher in publishers) < acknowledged:
        assert time.monotonic() < deadline, "publishing does not go on"
        time.sleep(0.001)
    time.sleep(seconds)
    assert served.process is not None
    served.process.kill()


async def write(served: Served, account: Account) -> None:
    """Registry, twin and queue writes until the connection breaks; raises TransportError then."""
    policy = dict(part.split("=", 1) for part in account.policy.split(";"))
    token = sas.generate(
        policy["SharedAccessKey"], "localhost", int(time.time()) + 3600,
        policy=policy["SharedAccessKeyName"],
    )  # fmt: skip
    async with httpx.AsyncClient(
        base_url=f"https://localhost:{served.https_port}", verify=tls(served.ca),
        headers={"Authorization": token}, params=API, timeout=20,
    ) as http:  # fmt: skip
        while True:
            account.attempted += 1
            device = f"written-{account.attempted:05}"
            (await http.put(f"/devices/{device}", json={"deviceId": device})).raise_for_status()
            account.devices.append(device)
            for step in range(3):
                value = f"{device}-{step}"
                patch = {"tags": {"marker": value}}
                (await http.patch(f"/twins/{device}", json=patch)).raise_for_status()
                account.twins[device] = value
                headers = {
                    "iothub-to": f"/devices/{device}/messages/deviceBound",
                    "iothub-messageid": value,
                }
                sent = await http.post("/messages/deviceBound", content=b"x", headers=headers)
                sent.raise_for_status()
                account.commands.setdefault(device, []).append(value)


async def check_files(data: Path, account: Account) -> list[Stored]:
    """What the killed server left behind."""
    stored = await stored_events(data)
    assert check_events(stored, account.messages) == []
    found = await stored_devices(data, account.devices)
    for device in account.devices:
        assert found[device].exists, f"{device} was made and is lost"
        # A step that was on its way may have been made as well.
        told, tag = account.twins.get(device), found[device].tag
        assert told is None or (tag is not None and tag >= told), f"{device}: {tag} after {told}"
        queued, ids = account.commands.get(device, []), found[device].commands
        assert ids[: len(queued)] == queued
        assert len(ids) <= len(queued) + 1
    return stored


def check_served(served: Served, account: Account, stored: list[Stored]) -> None:
    """The same through the front door: azure-eventhub reads what the files hold."""
    with served.control() as http:
        for device in account.devices[-50:]:
            found: dict[str, Any] = http.get(f"/devices/{device}", params=API).json()
            assert found["deviceId"] == device
            queued = len(account.commands.get(device, []))
            assert queued <= found["cloudToDeviceMessageCount"] <= queued + 1
    read = read_all(served.connection_string(events=True, plain=True), len(stored))
    assert len(read) == len(stored)
    assert sorted(read) == sorted(stored)


def read_all(connection_string: str, count: int) -> list[Stored]:
    """What azure-eventhub reads from the start of all partitions, each in the order it came."""
    client = EventHubConsumerClient.from_connection_string(
        connection_string, consumer_group="$Default"
    )
    read: list[Stored] = []
    last = dict.fromkeys(map(str, range(PARTITIONS)), -1)
    complete = threading.Event()

    def take(context: Any, events: list[Any]) -> None:
        for event in events:
            assert event.sequence_number == last[context.partition_id] + 1
            last[context.partition_id] = event.sequence_number
            body = b"".join(event.body)
            device, number = body[1 : body.index(b">")].split(b"|")
            partition = int(context.partition_id)
            read.append(Stored(partition, event.sequence_number, device.decode(), int(number)))
        if len(read) >= count:
            complete.set()

    receiving = threading.Thread(
        target=client.receive_batch,
        kwargs={
            "on_event_batch": take, "starting_position": "-1", "max_batch_size": 1000,
            "prefetch": 3000, "max_wait_time": 1,
        },
    )  # fmt: skip
    receiving.start()
    try:
        before = -1
        while not complete.wait(STALLED):
            assert len(read) > before, f"reading stopped after {len(read)} of {count} events"
            before = len(read)
    finally:
        client.close()
        receiving.join(30)
    return read
