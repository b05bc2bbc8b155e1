"""Back ends receive feedback: `/messages/serviceBound/feedback`, one batch a message.

The delivery tag is the batch's lock token, 16 bytes, since .NET makes a GUID of it. Accepted and
rejected complete the batch; released, modified and no outcome at all hand it back. Batches that
were never judged are free again when the link goes (service-apis reference §4.3).
"""

import asyncio
import uuid
from typing import Final

import structlog

from mooring.errors import MooringError, ServerError, hub_error
from mooring.gateway.amqp.handler import Opening
from mooring.gateway.amqp.refusals import amqp_error
from mooring.hub.feedback import CONTENT_TYPE, FeedbackBatch
from mooring.wire.amqp.engine_events import Disposed
from mooring.wire.amqp.link import Delivery, LinkState, Outgoing
from mooring.wire.amqp.messages import Message, Properties
from mooring.wire.amqp.performatives import Accepted, DeliveryState, Rejected
from mooring.wire.amqp.types import Symbol, Timestamp

log = structlog.get_logger(__name__)

MAX_UNSETTLED: Final = 16  # batches of 64 records that one receiver may hold


class FeedbackReceiver:
    """One link of a back end."""

    def __init__(self, opening: Opening) -> None:
        self._connection = opening.connection
        self._hub = opening.hub
        self._link = opening.link
        self._held: set[bytes] = set()  # lock tokens sent and not settled
        self._settling: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()
        self._stop_watching = self._hub.feedback.watch(self._work.set)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def delivered(self, delivery: Delivery) -> None:
        """Nothing can be sent to a receiver; the engine sees to that."""

    def credited(self) -> None:
        self._work.set()

    def disposed(self, event: Disposed) -> None:
        for outgoing in event.deliveries:
            if outgoing.tag in self._held:
                self._held.discard(outgoing.tag)
                task = asyncio.get_running_loop().create_task(
                    self._settle(outgoing, event.state, event.settled)
                )
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)
        self._work.set()

    def closed(self) -> None:
        self._stop_watching()
        self._task.cancel()
        self._hub.feedback.release(self._held)
        self._held = set()

    async def _run(self) -> None:
        try:
            while self._link.state is LinkState.ATTACHED:
                await self._step()
        except MooringError as error:
            self._connection.detach(self._link, hub_error(error))
        except Exception as error:
            log.exception("feedback_receiver_failed", hub=self._hub.name)
            self._connection.detach(
                self._link, ServerError(reason=f"unexpected {type(error).__name__}")
            )

    async def _step(self) -> None:
        self._work.clear()
        holds_enough = len(self._held) >= MAX_UNSETTLED
        room = self._connection.writable and self._link.sendable and not holds_enough
        batch = await self._hub.feedback.receive() if room else None
        if batch is not None:
            await self._send(batch)
            return
        if self._link.drain and (room or holds_enough or not self._link.credit):
            # No batch for it, or no credit left: not if only the socket or the session is full.
            self._link.drained()
            self._connection.flush()
        await self._work.wait()

    async def _send(self, batch: FeedbackBatch) -> None:
        token = batch.lock_token
        if self._link.send(_message(batch, self._hub.events_path), token) is None:
            self._hub.feedback.release((token,))  # the link went while it was read
            return
        self._connection.flush()
        if self._link.settled:
            await self._hub.feedback.complete(token)
        else:
            self._held.add(token)

    async def _settle(self, outgoing: Outgoing, state: DeliveryState | None, settled: bool) -> None:
        answer = state
        try:
            if isinstance(state, Accepted | Rejected):
                await self._hub.feedback.complete(outgoing.tag)
            else:
                await self._hub.feedback.abandon(outgoing.tag)
        except MooringError as error:
            refusal = hub_error(error)
            log.warning(
                "feedback_not_settled",
                error=refusal.name,
                reason=refusal.reason,
                tracking_id=refusal.tracking_id,
            )
            answer = Rejected(amqp_error(refusal))
        if not settled:
            self._link.confirm([outgoing], answer)
            self._connection.flush()


def _message(batch: FeedbackBatch, hub_name: str) -> bytes:
    return Message(
        message_annotations={Symbol("iothub-enqueuedtime"): Timestamp(batch.enqueued)},
        properties=Properties(
            message_id=str(uuid.UUID(bytes=batch.lock_token)),
            user_id=hub_name.encode(),
            content_type=CONTENT_TYPE,
        ),
        data=[batch.body],
    ).encode()
