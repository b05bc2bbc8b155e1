"""Feedback: what became of cloud-to-device messages whose senders asked, handed out in batches.

Rules that hold here (service-apis reference §4.3, device-protocols reference §5):

- A batch goes out when `feedback_batch_size` records wait, or when some wait and the last batch is
  `feedback_batch_interval` seconds ago.
- Records are durable, locks are in memory. A lock that is lost, by time, by its holder's going or
  by a restart, puts its records back without counting a delivery. Only an abandon counts, and
  after `feedback_max_delivery_count` of them a record is dropped.
- Records whose time has passed are never handed out, and are deleted by `sweep`.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import structlog

from .commands import FeedbackRecord
from .locks import Lock, Locks
from .settings import HubSettings
from .timestamps import iso

if TYPE_CHECKING:
    from .state import State, Tx

log = structlog.get_logger(__name__)

CONTENT_TYPE: Final = "application/vnd.microsoft.iothub.feedback.json"


class FeedbackBatch(NamedTuple):
    """Records that go out together under one lock."""

    records: tuple[FeedbackRecord, ...]
    lock_token: bytes  # 16 random bytes
    body: bytes  # JSON array, one object a record
    enqueued: int  # ms since 1970: the newest of the outcomes


class Feedback:
    """The feedback of one hub."""

    def __init__(
        self,
        state: "State",
        settings: HubSettings,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._settings = settings
        self._now = now
        self._clock = clock
        self._locks: Locks[None, int] = Locks(settings.feedback_lock, clock)
        self._watchers: list[Callable[[], None]] = []
        self._last_sent = -math.inf
        self._added = 0  # since the last batch
        self._timer: asyncio.TimerHandle | None = None
        self._settling: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for the writes that have begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.gather(*self._settling, return_exceptions=True)

    def added(self, count: int) -> None:
        """So many records were committed. Wakes who watches when a batch is due."""
        if not count:
            return
        self._added += count
        if self._added >= self._settings.feedback_batch_size or self._wait() <= 0:
            self._wake()
        else:
            self._wake_later()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when there may be a batch to receive; returns how to stop that.

        A wake that comes while a `receive` runs means to receive again."""
        self._watchers.append(wake)

        def stop() -> None:
            if wake in self._watchers:
                self._watchers.remove(wake)

        return stop

    async def receive(self) -> FeedbackBatch | None:
        """Lock and hand out the oldest records that are nobody's, None if no batch is due yet."""
        size = self._settings.feedback_batch_size
        self._free(self._locks.expire())
        records: list[FeedbackRecord] = []
        after = 0
        with self._locks.reading(None) as reading:
            while len(records) < size:
                asked = size - len(records) + len(reading.held)
                page = await self._page(asked, after)
                # All of it again after each page: others went on meanwhile.
                at = self._ms()
                records = [
                    record
                    for record in (*records, *page)
                    if record.expires > at and reading.free(record.id)
                ]
                if len(page) < asked:
                    break
                after = page[-1].id
            records = records[:size]
            if not records:
                return None
            if len(records) < size and self._wait() > 0:
                self._wake_later()
                return None
            token = self._locks.grant(None, tuple(record.id for record in records))
        self._last_sent = self._clock()
        self._added = 0
        # More may wait already: a full batch at once, or what is left when its time has come.
        if len(records) == size:
            self._wake_soon()
        return FeedbackBatch(
            tuple(records), token, _body(records), max(record.enqueued for record in records)
        )

    async def _page(self, limit: int, after: int) -> list[FeedbackRecord]:
        return await self._state.read(lambda tx: tx.feedback(limit, after))

    async def complete(self, lock_token: bytes) -> None:
        """The batch was taken: its records are gone. Raises DeviceMessageLockLost."""
        await self._settle(lock_token, lambda tx, ids: tx.delete_feedback(list(ids)))

    async def abandon(self, lock_token: bytes) -> None:
        """The batch goes back, one delivery counted. Raises DeviceMessageLockLost."""
        limit = self._settings.feedback_max_delivery_count

        def count(tx: "Tx", ids: tuple[int, ...]) -> None:
            for number in ids:
                # One by its id; it may be gone, with its device.
                for record in tx.feedback(1, number - 1):
                    if record.id != number:
                        continue
                    if record.delivery_count + 1 >= limit:
                        tx.delete_feedback([number])
                    else:
                        tx.put_feedback(
                            msgspec.structs.replace(
                                record, delivery_count=record.delivery_count + 1
                            )
                        )

        await self._settle(lock_token, count)
        self._wake_later()

    def release(self, lock_tokens: Iterable[bytes]) -> None:
        """The receiver has gone: its batches go back at once, no delivery counted."""
        self._free(self._locks.release(lock_tokens))

    async def sweep(self) -> int:
        """Delete the records whose time has passed; returns how many."""
        self._free(self._locks.expire())
        at = self._ms()
        oldest = await self._state.read(lambda tx: tx.feedback(1))
        # Records expire in the order in which they came, unless the setting was changed: a look
        # at the first saves a write for nothing at each sweep.
        if not oldest or oldest[0].expires > at:
            return 0
        return await self._state.write(lambda tx: tx.expire_feedback(at))

    async def _settle(
        self, lock_token: bytes, unit: Callable[["Tx", tuple[int, ...]], None]
    ) -> None:
        lock = self._locks.begin(lock_token)
        # Shielded: who asked may go, but the lock must end with the commit.
        task = asyncio.create_task(self._settle_locked(lock, unit))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    async def _settle_locked(
        self, lock: Lock[None, int], unit: Callable[["Tx", tuple[int, ...]], None]
    ) -> None:
        try:
            await self._state.write(lambda tx: unit(tx, lock.keys))
        except BaseException:
            # Not settled as far as anybody knows: someone else may try.
            self._locks.give_up(lock)
            raise
        self._locks.end(lock)

    def _free(self, groups: set[None]) -> None:
        """Batches came back that nobody refused: they need not wait for their time again."""
        if groups:
            self._last_sent = -math.inf
            self._wake()

    def _wait(self) -> float:
        """Seconds until a batch that is not full may go out."""
        return self._last_sent + self._settings.feedback_batch_interval - self._clock()

    def _wake_later(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._wait()), self._wake)

    def _wake_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for wake in tuple(self._watchers):
            try:
                wake()
            except Exception:
                # What woke it is done; one broken session must not make it look failed.
                log.exception("feedback_watcher_failed")

    def _ms(self) -> int:
        return int(self._now() * 1000)


def _body(records: list[FeedbackRecord]) -> bytes:
    """The array that clients parse (service-apis reference §4.3)."""
    items: list[dict[str, Any]] = []
    for record in records:
        item = {
            "originalMessageId": record.message_id,
            "deviceGenerationId": record.generation_id,
            "deviceId": record.device_id,
            "enqueuedTimeUtc": iso(record.enqueued),
            "statusCode": record.status,
            "description": record.status,
        }
        if record.module_id:
            item["moduleId"] = record.module_id
        items.append(item)
    return msgspec.json.encode(items)
