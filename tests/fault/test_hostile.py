"""10,000 hostile connections, and a well-behaved client that does not notice.

The attackers (`hostile.py`, a process of its own) never authenticate: half-open handshakes, no
first packet, slow bytes, garbage, oversize packets, floods, endless headers, on every port. In the
middle of it one device publishes steadily. It must not be disconnected, each of its publishes must
be acknowledged and be read exactly once, and the server's memory must stay under a bound.
"""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from azure.eventhub import EventData, EventHubConsumerClient

from tests.fault.publisher import Publisher, body
from tests.served import FREE, Served

ATTACKERS = 10_000
PEAK_RSS_MIB = 250
"""The most that the server may ever hold while this goes on: 100 MiB that it has after its start,
and 400 connections at once, each within its limits (50 KiB of TLS state, a first packet of 64 KiB,
32 KiB of headers), come to 160 MiB; the rest is the allocator's slack. Measured: 123 MiB."""

pytestmark = pytest.mark.fault


class Steady(Publisher):
    """Publishes the next message a moment after the last was acknowledged."""

    def _publish(self) -> None:
        asyncio.get_running_loop().call_later(0.02, super()._publish)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    # Short times, so that attackers are shed while the test runs and not after it.
    return Served(
        tmp_path,
        "--amqp-plain-port",
        "0",
        ports=FREE,
        environ={
            "MOORING_TLS_HANDSHAKE_TIMEOUT": "3",
            "MOORING_TLS_FIRST_BYTE_TIMEOUT": "3",
            "MOORING_MQTT_FIRST_PACKET_TIME": "3",
            "MOORING_LOG_LEVEL": "info",
        },
    )


def peak_rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise LookupError("no VmHWM")


@pytest.mark.timeout(420)
async def test_a_well_behaved_client_does_not_notice_ten_thousand_hostile_ones(
    served: Served,
) -> None:
    with served:
        with served.control() as http:
            answer = http.put(
                "/devices/steady?api-version=2021-04-12", json={"deviceId": "steady"}
            ).raise_for_status()
        key = answer.json()["authentication"]["symmetricKey"]["primaryKey"]
        steady = Steady("steady", key, window=1, first=0, limit=1_000_000)
        await steady.connect(served.mqtt_port, served.ca)

        attack = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fault.hostile"),
            *map(str, (served.mqtt_port, served.amqp_port, served.https_port, ATTACKERS)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        printed, complaints = await attack.communicate()
        assert attack.returncode == 0, complaints.decode()
        made = json.loads(printed)
        assert sum(made.values()) == ATTACKERS
        assert len(made) == 9

        assert not steady.ended.done(), "the well-behaved client was disconnected"
        before = len(steady.acknowledged)
        async with asyncio.timeout(20):  # it is still served
            while len(steady.acknowledged) < before + 10:
                await asyncio.sleep(0.05)
        steady.stop()
        await steady.ended

        peak = peak_rss_mib(served.pid)
        assert peak < PEAK_RSS_MIB, f"the server held {peak:.0f} MiB"

        acknowledged = [body("steady", number) for number in steady.acknowledged]
        read = await asyncio.to_thread(
            read_all, served.connection_string(events=True, plain=True), len(acknowledged)
        )
        # One more may have been accepted whose acknowledgement was under way when we stopped.
        assert read[: len(acknowledged)] == acknowledged
        assert len(read) <= len(acknowledged) + 1
        print(f"peak RSS {peak:.0f} MiB, {len(acknowledged)} messages of the well-behaved client")


def read_all(connection_string: str, count: int) -> list[bytes]:
    """Everything in the log by azure-eventhub, in order; waits until there are `count`."""
    client = EventHubConsumerClient.from_connection_string(connection_string, "$Default")
    found: list[bytes] = []

    def on_events(_: object, events: list[EventData]) -> None:
        found.extend(b"".join(event.body) for event in events)
        if not events and len(found) >= count:
            client.close()

    # In batches: event by event, the blocking client waits for the empty partitions in between.
    client.receive_batch(on_events, max_batch_size=1000, starting_position="-1", max_wait_time=1)
    return found
