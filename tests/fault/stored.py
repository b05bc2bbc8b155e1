"""What a data folder holds, read from its files while no server runs on them."""

import asyncio
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from mooring.hub.events import Event
from mooring.hub.identity import Ref
from mooring.storage.events import SqliteEventLog
from mooring.storage.state import SqliteState

_MARKER = re.compile(rb"<([^|<>]+)\|(\d{8})>")
PARTITIONS = 4


class Stored(NamedTuple):
    """One event, and which of a publisher's messages it carries."""

    partition: int
    sequence_number: int
    device: str
    number: int


def identify(partition: int, event: Event) -> Stored:
    found = {(hit[1], int(hit[2])) for hit in _MARKER.finditer(event.record)}
    assert len(found) == 1, f"event {event.sequence_number} is no message of ours"
    ((device, number),) = found
    return Stored(partition, event.sequence_number, device.decode(), number)


async def stored_events(data: Path) -> list[Stored]:
    """All events in the order of their sequence numbers, which are checked to have no gap."""
    log = await SqliteEventLog.open(data, "localhost", partitions=PARTITIONS)
    try:
        found = []
        for partition in range(log.partition_count):
            after = -1
            while events := await log.read(partition, after, max_events=5000, max_bytes=8 << 20):
                for event in events:
                    assert event.sequence_number == after + 1
                    after = event.sequence_number
                    found.append(identify(partition, event))
        return found
    finally:
        await log.close()


class StoredDevice(NamedTuple):
    exists: bool
    tag: str | None
    commands: list[str]
    reported: dict[str, str]


async def stored_devices(data: Path, devices: list[str]) -> dict[str, StoredDevice]:
    """Registry entry, the twin's tag `marker`, the queue's message ids and the reported
    properties of each device."""
    state = await SqliteState.open(data)
    try:
        hub = state.for_hub("localhost")
        found = {}
        for device in devices:
            ref = Ref(device)
            identity, twin, commands = await hub.read(
                lambda tx, ref=ref: (tx.identity(ref), tx.twin(ref), tx.commands(ref, 100))
            )
            tag = twin.tags.get("marker") if twin else None
            reported = twin.reported if twin else {}
            ids = [command.message_id for command in commands]
            found[device] = StoredDevice(identity is not None, tag, ids, reported)
        return found
    finally:
        await state.close()


def check_events(stored: list[Stored], acknowledged: dict[str, list[int]]) -> list[str]:
    """What is wrong: acknowledged messages that are missing or there twice, any message that is
    there twice or before an older one of its device, devices spread over partitions."""
    wrong = []
    seen: dict[str, list[int]] = {}
    partitions: dict[str, set[int]] = {}
    for event in stored:
        seen.setdefault(event.device, []).append(event.number)
        partitions.setdefault(event.device, set()).add(event.partition)
    for device, numbers in seen.items():
        if len(partitions[device]) > 1:
            wrong.append(f"{device} is in several partitions")
        wrong += [
            f"{device}: {later} after {number}"
            for number, later in itertools.pairwise(numbers)
            if later <= number
        ]
    for device, numbers in acknowledged.items():
        missing = set(numbers) - set(seen.get(device, ()))
        wrong += [f"{device}: {number} was acknowledged and is lost" for number in sorted(missing)]
    return wrong


def events_of(data: Path) -> list[Stored]:
    """`stored_events` for callers without a loop."""
    return asyncio.run(stored_events(data))
