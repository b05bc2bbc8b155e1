"""Cloud-to-device messages: a durable queue per identity with locks, expiry and feedback.

Rules that hold here (device-protocols reference §5):

- A queue is handed out in the order of its sequence numbers. What is received is locked; it
  leaves the queue by `complete`, `reject`, expiry, purge, or by one abandon too many.
- A lost lock, by time, by the connection's end or by a restart, puts a message back where it was
  and does not count as a delivery. Only `abandon` counts.
- Each write is one unit of work that also adds the feedback its sender asked for, and has been
  committed when the call returns. One that has begun runs to its end even if who asked has gone.
- An expired message is never handed out. It is dead-lettered by the sweeper, by small steps, or
  where a full queue needs its place; while it is locked it still belongs to whoever holds it.
- A generation id tells a device from an earlier one of the same name, whose locks mean nothing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote

import msgspec
import structlog

from mooring.errors import (
    ArgumentInvalid,
    DeviceMaximumQueueDepthExceeded,
    DeviceMessageLockLost,
    InvalidMessageExpiryTime,
    MessageTooLarge,
    MooringError,
)

from .identity import Ref
from .locks import Lock, Locks
from .lookup import known
from .settings import HubSettings

if TYPE_CHECKING:
    from .feedback import Feedback
    from .state import State, Tx

log = structlog.get_logger(__name__)

T = TypeVar("T")

ACKS: Final = ("none", "positive", "negative", "full")
SUCCESS, EXPIRED, REJECTED = "Success", "Expired", "Rejected"
PURGED, DELIVERY_COUNT_EXCEEDED = "Purged", "DeliveryCountExceeded"

# Which `ack` wants to hear of which outcome.
_WANTED: Final = {
    SUCCESS: ("positive", "full"),
    EXPIRED: ("negative", "full"),
    REJECTED: ("negative", "full"),
    PURGED: ("negative", "full"),
    DELIVERY_COUNT_EXCEEDED: ("negative", "full"),
}
_SWEEP_STEP: Final = 64  # messages, at most 64 KiB each, in one unit of work


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One queued cloud-to-device message. Times are milliseconds since 1970 UTC."""

    device_id: str
    module_id: str = ""
    sequence: int = 0  # per identity, increasing, given by the state on enqueue
    message_id: str = ""
    correlation_id: str = ""
    user_id: str = ""
    to: str = ""
    content_type: str = ""
    content_encoding: str = ""
    ack: str = "none"  # "none" | "positive" | "negative" | "full"
    enqueued: int = 0
    expires: int = 0
    delivery_count: int = 0
    generation_id: str = ""
    properties: dict[str, str] = {}
    body: bytes = b""

    @property
    def ref(self) -> Ref:
        return Ref(self.device_id, self.module_id)

    @property
    def size(self) -> int:
        """Body, system property values, and names and values of application properties.

        Raises ArgumentInvalid if a text cannot be encoded."""
        system = (
            self.message_id,
            self.correlation_id,
            self.user_id,
            self.to,
            self.content_type,
            self.content_encoding,
        )
        texts = (*system, *self.properties, *self.properties.values())
        try:
            return len(self.body) + sum(len(text.encode()) for text in texts)
        except UnicodeEncodeError:
            raise ArgumentInvalid(
                "A message property has characters that are not allowed."
            ) from None


class FeedbackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one command whose sender asked to know."""

    id: int = 0  # given by the state on insert; increasing
    message_id: str
    device_id: str
    module_id: str = ""
    generation_id: str
    status: str  # "Success" | "Expired" | "DeliveryCountExceeded" | "Rejected" | "Purged"
    enqueued: int  # ms
    expires: int  # ms: when the record itself is dropped
    delivery_count: int = 0


class Delivery(NamedTuple):
    """A message handed out under a lock."""

    command: Command
    lock_token: bytes  # 16 random bytes


class _Key(NamedTuple):
    """Names a message within its queue, also across devices of the same name."""

    generation_id: str
    sequence: int


def destinations(to: str) -> tuple[Ref, ...]:
    """Whom a message's `to` may mean: `/devices/{id}[/modules/{id}]/messages/devicebound`.

    Node and .NET percent-encode the ids, Python and the command line do not, and `%` is a letter
    like any other in an id: as written comes first. Raises ArgumentInvalid."""
    refs = []
    for decode in (str, unquote):
        parts = to.removeprefix("/").removesuffix("/").split("/")
        match [part.lower() for part in parts]:
            case ["devices", _, "messages", "devicebound"]:
                ref = Ref(decode(parts[1]))
            case ["devices", _, "modules", _, "messages", "devicebound"]:
                ref = Ref(decode(parts[1]), decode(parts[3]))
            case _:
                raise ArgumentInvalid("The message's 'to' is not the address of a device's queue.")
        if ref not in refs:
            refs.append(ref)
    return tuple(refs)


class Commands:
    """The cloud-to-device queues of one hub."""

    def __init__(
        self,
        state: "State",
        settings: HubSettings,
        feedback: "Feedback",
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._settings = settings
        self._feedback = feedback
        self._now = now
        self._locks: Locks[Ref, _Key] = Locks(settings.c2d_lock, clock)
        self._watchers: dict[Ref, list[Callable[[], None]]] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._overdue = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self.counts: Counter[str] = Counter()
        """What became of messages since the start (`Sent`, then an outcome), for the metrics."""

    async def open(self) -> None:
        """Begin to look for what has expired."""
        self._sweeper = asyncio.create_task(self._sweep_forever(), name="command-expiry")

    async def close(self) -> None:
        """Stop looking, and wait for the writes that have begun."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        await asyncio.gather(*self._running, return_exceptions=True)

    # back ends

    async def resolve(self, to: str) -> Ref:
        """The identity that a message's `to` addresses; ArgumentInvalid if it is no address.

        If there is none, the one as written, so that sending to it tells what is missing."""
        refs = destinations(to)
        if len(refs) == 1:
            return refs[0]
        return await self._state.read(
            lambda tx: next((ref for ref in refs if tx.identity(ref)), refs[0])
        )

    async def send(self, command: Command) -> Command:
        """Enqueue; returns the message as it was stored, with its number and times.

        `expires` 0 means the default time to live. Raises ArgumentInvalid, MessageTooLarge,
        InvalidMessageExpiryTime, DeviceNotFound, ModuleNotFound, DeviceMaximumQueueDepthExceeded.
        """
        settings, ref, at = self._settings, command.ref, self._ms()
        if command.ack not in ACKS:
            raise ArgumentInvalid(f"'iothub-ack' must be one of {', '.join(ACKS)}.")
        if command.size > settings.max_command:
            raise MessageTooLarge(
                f"The message is {command.size} bytes, at most {settings.max_command} are allowed."
            )
        expires = command.expires or at + settings.c2d_default_ttl * 1000
        if not at < expires <= at + settings.c2d_max_ttl * 1000:
            raise InvalidMessageExpiryTime(
                "The message's expiry time has passed, or is more than"
                f" {settings.c2d_max_ttl} seconds away."
            )
        # A lock that has run out holds no place, whether or not the sweeper has been here since.
        self._wake_all(self._locks.expire())
        locked = self._locks.held(ref)

        def unit(tx: "Tx") -> tuple[Command, list[_Key], int]:
            identity = known(tx, ref)
            gone: list[_Key] = []
            told = 0
            depth = tx.queue_depth(ref)
            if depth >= settings.c2d_queue_depth:
                for old in tx.commands(ref, depth):
                    if old.expires <= at and _key(old) not in locked:
                        told += self._leave(tx, old, EXPIRED, at)
                        gone.append(_key(old))
            if depth - len(gone) >= settings.c2d_queue_depth:
                raise DeviceMaximumQueueDepthExceeded(
                    f"The device's queue holds {settings.c2d_queue_depth} messages already."
                )
            return (
                tx.enqueue(
                    msgspec.structs.replace(
                        command,
                        sequence=0,
                        enqueued=at,
                        expires=expires,
                        delivery_count=0,
                        generation_id=identity.generation_id,
                    )
                ),
                gone,
                told,
            )

        async def run() -> Command:
            stored, gone, told = await self._state.write(unit)
            self.counts["Sent"] += 1
            self._locks.changed(ref, gone)
            self._feedback.added(told)
            self._wake(ref)
            return stored

        return await self._to_its_end(run())

    async def purge(self, ref: Ref) -> int:
        """Drop a whole queue, locked messages too; returns how many there were.

        Raises DeviceNotFound, ModuleNotFound."""
        at = self._ms()

        def unit(tx: "Tx") -> tuple[list[_Key], int]:
            known(tx, ref)
            gone: list[_Key] = []
            told = 0
            while page := tx.commands(ref, _SWEEP_STEP):
                for command in page:
                    told += self._leave(tx, command, PURGED, at)
                    gone.append(_key(command))
            return gone, told

        async def run() -> int:
            gone, told = await self._state.write(unit)
            self._locks.discard(ref, gone)
            self._feedback.added(told)
            return len(gone)

        return await self._to_its_end(run())

    async def depth(self, ref: Ref) -> int:
        """How many messages wait, locked ones included."""
        return await self._state.read(lambda tx: tx.queue_depth(ref))

    # devices

    def watch(self, ref: Ref, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when there may be something to receive; returns how to stop that.

        A wake that comes while a `receive` runs means to receive again."""
        self._watchers.setdefault(ref, []).append(wake)

        def stop() -> None:
            watchers = self._watchers.get(ref, [])
            if wake in watchers:
                watchers.remove(wake)
            if not watchers:
                self._watchers.pop(ref, None)

        return stop

    async def receive(self, ref: Ref, limit: int) -> list[Delivery]:
        """Lock and hand out the oldest messages that are nobody's, `limit` at most."""
        self._wake_all(self._locks.expire())
        deliveries: list[Delivery] = []
        outdated = False
        after = 0
        with self._locks.reading(ref) as reading:
            while len(deliveries) < limit:
                asked = limit - len(deliveries) + len(reading.held)
                page = await self._page(ref, asked, after)
                at = self._ms()
                for command in page:
                    key = _key(command)
                    if command.expires <= at:
                        self._overdue.set()
                    elif reading.free(key):
                        if len(deliveries) < limit:
                            token = self._locks.grant(ref, (key,))
                            deliveries.append(Delivery(command, token))
                    else:
                        outdated = outdated or key in reading.stale
                if len(page) < asked:
                    break
                after = page[-1].sequence
        if outdated:
            # Perhaps abandoned while it was read, and its wake lost on who waits for this.
            self._wake(ref)
        return deliveries

    async def _page(self, ref: Ref, limit: int, after: int) -> list[Command]:
        return await self._state.read(lambda tx: tx.commands(ref, limit, after))

    async def complete(self, lock_token: bytes) -> None:
        """The device has it: gone, durably, when this returns. Raises DeviceMessageLockLost."""
        await self._settle(lock_token, SUCCESS)

    async def reject(self, lock_token: bytes) -> None:
        """The device will never take it: dead-lettered. Raises DeviceMessageLockLost."""
        await self._settle(lock_token, REJECTED)

    async def abandon(self, lock_token: bytes) -> None:
        """Back into the queue, one delivery counted. Raises DeviceMessageLockLost."""
        await self._settle(lock_token, None)

    def release(self, lock_tokens: Iterable[bytes]) -> None:
        """The session has gone: back into the queue at once, no delivery counted."""
        self._wake_all(self._locks.release(lock_tokens))

    # expiry

    async def sweep(self) -> int:
        """Dead-letter what has expired and is not locked; returns how many messages."""
        self._wake_all(self._locks.expire())
        count = 0
        while True:
            at, locked = self._ms(), self._locks.all_held()
            limit = _SWEEP_STEP + len(locked)
            found = await self._expired(at, limit)
            keys = [(command.ref, _key(command)) for command in found]
            # What is not locked now cannot be any more: its time is over.
            due = [key for key in keys if key not in locked]
            if due:
                count += await self._to_its_end(self._expire(due, at))
            if len(found) < limit or not due:
                return count

    async def _expired(self, at: int, limit: int) -> list[Command]:
        return await self._state.read(lambda tx: tx.expired_commands(at, limit))

    async def _expire(self, due: list[tuple[Ref, _Key]], at: int) -> int:
        def unit(tx: "Tx") -> tuple[int, int]:
            count = told = 0
            for ref, key in due:
                command = tx.command(ref, key.sequence)
                if command is not None and command.generation_id == key.generation_id:
                    told += self._leave(tx, command, EXPIRED, at)
                    count += 1
            return count, told

        count, told = await self._state.write(unit)
        self.counts[EXPIRED] += count
        for ref, key in due:
            self._locks.changed(ref, (key,))
        self._feedback.added(told)
        return count

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._overdue.wait(), self._settings.expiry_interval)
            except TimeoutError:
                pass
            self._overdue.clear()
            try:
                count = await self.sweep()
                await self._feedback.sweep()
            except MooringError as error:
                log.warning("expiry_failed", reason=str(error))
            else:
                if count:
                    log.info("commands_expired", count=count)
                # However many are overdue, one look a second is enough.
                await asyncio.sleep(min(1.0, self._settings.expiry_interval))

    # what all of them share

    async def _settle(self, lock_token: bytes, outcome: str | None) -> None:
        lock = self._locks.begin(lock_token)
        await self._to_its_end(self._settle_locked(lock, outcome))

    async def _settle_locked(self, lock: Lock[Ref, _Key], outcome: str | None) -> None:
        ref, key, at = lock.group, lock.keys[0], self._ms()
        limit = self._settings.c2d_max_delivery_count

        def unit(tx: "Tx") -> int:
            command = tx.command(ref, key.sequence)
            if command is None or command.generation_id != key.generation_id:
                raise DeviceMessageLockLost("The message is gone.")
            if outcome is not None:
                return self._leave(tx, command, outcome, at)
            count = command.delivery_count + 1
            if count >= limit:
                return self._leave(tx, command, DELIVERY_COUNT_EXCEEDED, at)
            tx.put_command(msgspec.structs.replace(command, delivery_count=count))
            return 0

        try:
            told = await self._state.write(unit)
        except DeviceMessageLockLost:
            self._locks.end(lock)
            raise
        except BaseException:
            # Not settled as far as anybody knows: someone else may try.
            self._locks.give_up(lock)
            self._wake(ref)
            raise
        self._locks.end(lock)
        self.counts[outcome or "Abandoned"] += 1
        self._feedback.added(told)
        if outcome is None:
            self._wake(ref)

    def _leave(self, tx: "Tx", command: Command, outcome: str, at: int) -> int:
        """Take a message out of its queue; returns how many feedback records that made."""
        tx.delete_command(command.ref, command.sequence)
        if command.ack not in _WANTED[outcome]:
            return 0
        tx.add_feedback(
            FeedbackRecord(
                message_id=command.message_id,
                device_id=command.device_id,
                module_id=command.module_id,
                generation_id=command.generation_id,
                status=outcome,
                enqueued=at,
                expires=at + self._settings.feedback_ttl * 1000,
            )
        )
        return 1

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    def _wake(self, ref: Ref) -> None:
        for wake in tuple(self._watchers.get(ref, ())):
            try:
                wake()
            except Exception:
                # What woke it is done; one broken session must not make it look failed.
                log.exception("command_watcher_failed", device=str(ref))

    def _wake_all(self, refs: Iterable[Ref]) -> None:
        for ref in refs:
            self._wake(ref)

    def _ms(self) -> int:
        return int(self._now() * 1000)


def _key(command: Command) -> _Key:
    return _Key(command.generation_id, command.sequence)
