"""A receiver of one partition's events: the log's records go out as they are.

Rules:

- A record is sent only from a read that verified it; a read that fails with CorruptRecord ends the
  link with an error, so that no event is skipped in silence.
- What is in flight is bounded: one read of READ_EVENTS and READ_BYTES, and only while the socket
  takes it and the client has given credit.
- The position moves with what was sent, never with what was read.
- Everything is sent settled, as Event Hubs does: azure-eventhub 5.15 asks for unsettled and then
  never settles.
"""

import asyncio
from typing import Final

import structlog

from mooring.errors import (
    ArgumentInvalid,
    CorruptRecord,
    GenericNotFound,
    HubError,
    MooringError,
    ServerError,
    hub_error,
)
from mooring.gateway.amqp import selector
from mooring.gateway.amqp.handler import Opening
from mooring.gateway.amqp.readers import Place
from mooring.wire.amqp.engine_events import Disposed
from mooring.wire.amqp.link import Delivery, LinkState
from mooring.wire.amqp.messages import encode_delivery_annotations
from mooring.wire.amqp.types import Symbol, Timestamp

log = structlog.get_logger(__name__)

READ_EVENTS: Final = 512
READ_BYTES: Final = 256 * 1024
EPOCH: Final = "com.microsoft:epoch"
RUNTIME_METRIC: Final = "com.microsoft:enable-receiver-runtime-metric"


class EventReceiver:
    """One link that reads a partition for a consumer group."""

    def __init__(self, opening: Opening) -> None:
        """Raises GenericNotFound, ArgumentInvalid, ReceiverStolen, TooManyReceivers."""
        self._connection = opening.connection
        self._hub = opening.hub
        self._link = opening.link
        attach = opening.link.attach
        assert attach is not None
        self._partition = _partition(opening)
        group = self._hub.consumer_groups.find(opening.captures["group"])
        if group is None:
            raise GenericNotFound(
                f"The consumer group '{opening.captures['group']}' does not exist."
            )
        self._start = selector.from_filters(attach.source.filter if attach.source else None)
        self.epoch = _epoch((attach.properties or {}).get(EPOCH))
        self._metrics = RUNTIME_METRIC in attach.desired_capabilities
        self._work = asyncio.Event()
        self._place: Place = (self._hub.name, group.lower(), self._partition)
        self._readers = opening.connection.endpoint.readers
        self._readers.enter(self._place, self)
        self._stop_waking = self._hub.events.subscribe(self._partition, self._work.set)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def delivered(self, delivery: Delivery) -> None:
        """Nothing can be sent to a receiver; the engine sees to that."""

    def credited(self) -> None:
        self._work.set()

    def disposed(self, event: Disposed) -> None:
        """Nothing was sent that could be settled: positions are the reader's own."""

    def closed(self) -> None:
        self._readers.leave(self._place, self)
        self._stop_waking()
        self._task.cancel()

    def detach(self, error: HubError) -> None:
        """Called when another receiver takes the partition over."""
        self._connection.detach(self._link, error)

    async def _run(self) -> None:
        try:
            after = await selector.resolve(self._start, self._hub.events, self._partition)
            while self._link.state is LinkState.ATTACHED:
                after = await self._step(after)
        except MooringError as error:
            if isinstance(error, CorruptRecord):
                log.error("events_corrupt", hub=self._hub.name, partition=self._partition)
            self._connection.detach(self._link, hub_error(error))
        except Exception as error:
            log.exception("events_receiver_failed", hub=self._hub.name, partition=self._partition)
            self._connection.detach(
                self._link, ServerError(reason=f"unexpected {type(error).__name__}")
            )

    async def _step(self, after: int) -> int:
        """Send what there is and fits, or wait for either; returns the new position."""
        self._work.clear()
        room = self._link.sendable if self._connection.writable else 0
        events = []
        if room > 0:
            events = await self._hub.events.read(
                self._partition,
                after,
                max_events=min(room, READ_EVENTS),
                max_bytes=READ_BYTES,
            )
        if events:
            sent = self._send([event.record for event in events])
            if sent:
                after = events[sent - 1].sequence_number
                self._connection.flush()
                # A reader that is far behind must not keep the loop from everybody else.
                await asyncio.sleep(0)
                return after
        elif self._link.drain and (room > 0 or not self._link.credit):
            # Nothing to read, or no credit left: not if only the socket or the session is full.
            self._link.drained()
            self._connection.flush()
        await self._work.wait()
        return after

    def _send(self, records: list[bytes]) -> int:
        prefix = self._runtime_metrics() if self._metrics else b""
        return self._link.send_settled(records, prefix)

    def _runtime_metrics(self) -> bytes:
        """The delivery annotations that azure-eventhub reads (`_utils.py`)."""
        info = self._hub.events.info(self._partition)
        return encode_delivery_annotations(
            {
                Symbol("last_enqueued_sequence_number"): info.last_sequence_number,
                Symbol("last_enqueued_offset"): str(info.last_offset),
                Symbol("last_enqueued_time_utc"): Timestamp(info.last_enqueued_ms),
                Symbol("runtime_info_retrieval_time_utc"): Timestamp(int(self._hub.now() * 1000)),
            }
        )


def _partition(opening: Opening) -> int:
    entity, text = opening.captures["entity"], opening.captures["partition"]
    if entity.lower() != opening.hub.events_path:
        raise GenericNotFound(f"The messaging entity '{entity}' could not be found.")
    count = opening.hub.events.partition_count
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < count):
        raise GenericNotFound(
            f"The partition '{text}' does not exist; there are partitions 0 to {count - 1}."
        )
    return int(text)


def _epoch(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ArgumentInvalid(f"The property {EPOCH} is not a number from 0.")
    return value
