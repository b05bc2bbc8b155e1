"""Locks on queued items: who was handed an item may settle it for some time, nobody else gets it.

Locks are in memory: a restart puts everything back into its queue, which is what an expired lock
does as well. What a lock covers is named by its group (the queue) and keys (the items).

A queue is read from the store while others settle what they hold, so that a read may show an item
which is gone, or has changed, by the time that the read returns. Whoever reads therefore does it
inside of `reading`, and takes only what that calls free.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from mooring.errors import DeviceMessageLockLost

G = TypeVar("G")
K = TypeVar("K")

TOKEN_BYTES = 16  # an AMQP delivery tag that .NET takes for a GUID


class Lock(Generic[G, K]):
    """One lock. Nothing but `Locks` changes it."""

    __slots__ = ("group", "keys", "settling", "token", "until")

    def __init__(self, group: G, keys: tuple[K, ...], until: float) -> None:
        self.token = os.urandom(TOKEN_BYTES)
        self.group = group
        self.keys = keys
        self.until = until
        self.settling = False


class Reading(Generic[K]):
    """One group while it is read from the store."""

    __slots__ = ("held", "readers", "stale")

    def __init__(self, held: set[K]) -> None:
        self.held = held
        self.readers = 0
        self.stale: set[K] = set()

    def free(self, key: K) -> bool:
        """Whether an item that was read is still there as it was read, and nobody's."""
        return key not in self.held and key not in self.stale


class Locks(Generic[G, K]):
    """Locks of one duration, `seconds` by the monotonic `clock`."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._locks: dict[bytes, Lock[G, K]] = {}  # oldest first, since all last equally long
        self._held: dict[G, set[K]] = {}
        self._reading: dict[G, Reading[K]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def held(self, group: G) -> frozenset[K]:
        """The locked items of a group."""
        return frozenset(self._held.get(group, ()))

    def all_held(self) -> frozenset[tuple[G, K]]:
        """The locked items of all groups."""
        return frozenset((group, key) for group, keys in self._held.items() for key in keys)

    @contextmanager
    def reading(self, group: G) -> Iterator[Reading[K]]:
        """Around a read from the store and the grants that follow from it."""
        reading = self._reading.get(group)
        if reading is None:
            reading = self._reading[group] = Reading(self._held.setdefault(group, set()))
        reading.readers += 1
        try:
            yield reading
        finally:
            reading.readers -= 1
            if not reading.readers:
                del self._reading[group]
                self._tidy(group)

    def grant(self, group: G, keys: tuple[K, ...]) -> bytes:
        """Lock free items; returns the lock's token."""
        lock = Lock(group, keys, self._clock() + self._seconds)
        self._locks[lock.token] = lock
        self._held.setdefault(group, set()).update(keys)
        return lock.token

    def begin(self, token: bytes) -> Lock[G, K]:
        """Begin to settle: the lock stays until `end` or `give_up`.

        Raises DeviceMessageLockLost if there is no such lock, or it is being settled already."""
        lock = self._locks.get(token)
        if lock is None or lock.settling or lock.until <= self._clock():
            raise DeviceMessageLockLost("The lock on the message is lost.")
        lock.settling = True
        return lock

    def end(self, lock: Lock[G, K]) -> None:
        """Settled: its items are gone from the store, or not what they were."""
        self.changed(lock.group, lock.keys)
        self._remove(lock)

    def give_up(self, lock: Lock[G, K]) -> None:
        """Not settled: its items are free again, as they were."""
        self._remove(lock)

    def changed(self, group: G, keys: Iterable[K]) -> None:
        """Items are gone from the store, or not what they were: reads under way are outdated."""
        reading = self._reading.get(group)
        if reading is not None:
            reading.stale.update(keys)

    def discard(self, group: G, keys: Iterable[K]) -> None:
        """Items are gone from the store, whoever held them."""
        gone = set(keys)
        self.changed(group, gone)
        if gone.isdisjoint(self._held.get(group, ())):
            return
        for lock in [lock for lock in self._locks.values() if lock.group == group]:
            if not lock.settling and gone.issuperset(lock.keys):
                self._remove(lock)

    def release(self, tokens: Iterable[bytes]) -> set[G]:
        """Free the items of these locks; returns the groups that have something free now."""
        locks = [self._locks.get(token) for token in tokens]
        return self._free([lock for lock in locks if lock is not None and not lock.settling])

    def expire(self) -> set[G]:
        """The same for the locks whose time is over."""
        now = self._clock()
        over = []
        for lock in self._locks.values():
            if lock.until > now:
                break
            if not lock.settling:
                over.append(lock)
        return self._free(over)

    def _free(self, locks: list[Lock[G, K]]) -> set[G]:
        for lock in locks:
            self._remove(lock)
        return {lock.group for lock in locks}

    def _remove(self, lock: Lock[G, K]) -> None:
        if self._locks.pop(lock.token, None) is None:
            return
        self._held[lock.group].difference_update(lock.keys)
        self._tidy(lock.group)

    def _tidy(self, group: G) -> None:
        # A reading holds on to its group's set.
        if not self._held.get(group, True) and group not in self._reading:
            del self._held[group]
