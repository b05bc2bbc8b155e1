"""A clean end under load: whoever sent what is stored is told so, and need not send it again."""

import asyncio
from pathlib import Path

import pytest

from ..served import FREE, Served
from .publisher import Publisher
from .stored import stored_events

pytestmark = pytest.mark.fault

DEVICES = 4
LIVES = 3


def test_what_is_stored_when_the_server_ends_was_acknowledged(tmp_path: Path) -> None:
    served = Served(tmp_path, ports=FREE)
    acknowledged: dict[str, list[int]] = {f"d{number}": [] for number in range(DEVICES)}
    first = dict.fromkeys(acknowledged, 0)
    for _ in range(LIVES):
        served.start()
        for publisher in asyncio.run(load_until_ended(served, first)):
            acknowledged[publisher.device] += publisher.acknowledged
            first[publisher.device] = publisher.next
    stored: dict[str, list[int]] = {device: [] for device in acknowledged}
    for event in asyncio.run(stored_events(served.data)):
        stored[event.device].append(event.number)
    assert stored == acknowledged


async def load_until_ended(served: Served, first: dict[str, int]) -> list[Publisher]:
    publishers = []
    for device, number in first.items():
        with served.control() as http:
            identity = http.put(f"/devices/{device}", json={"deviceId": device})
            if identity.status_code != 200:
                identity = http.get(f"/devices/{device}")
        key = identity.raise_for_status().json()["authentication"]["symmetricKey"]["primaryKey"]
        publisher = Publisher(device, key, window=16, first=number, limit=1_000_000)
        await publisher.connect(served.mqtt_port, served.ca)
        publishers.append(publisher)
    while any(len(publisher.acknowledged) < 200 for publisher in publishers):
        await asyncio.sleep(0)
    assert await asyncio.to_thread(served.stop) == 0
    await asyncio.gather(*(publisher.ended for publisher in publishers))
    return publishers
