"""Presence: which identities are connected, since when, and when each was last heard of.

Rules. Memory holds what the disk does not have yet and whoever is connected; `flush` writes
changes of connection every few seconds, and mere activity about once a minute, since a fleet that
talks all the time would otherwise cost one row per device and flush. What `of` answers is always
current. Losing the last seconds in a crash is allowed: nothing decides by presence.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from mooring.errors import MooringError

from .identity import Ref
from .state import State, Tx

log = structlog.get_logger(__name__)


class Status(NamedTuple):
    """One identity's connection state; times are milliseconds since 1970 UTC, 0 meaning never."""

    connected: bool = False
    changed: int = 0
    active: int = 0


NEVER = Status()


class Presence:
    """Connection states of one hub."""

    def __init__(
        self,
        state: State,
        *,
        interval: float = 2.0,
        activity_interval: float = 60.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._interval = interval
        self._activity_interval = activity_interval
        self._now = now
        self._known: dict[Ref, Status] = {}  # connected, or not yet on disk
        self._changed: set[Ref] = set()
        self._active: dict[Ref, int] = {}  # last activity, newer than in _known
        self._flushed_activity = now()
        self._flushing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Nothing is connected after a start; begins flushing."""
        at = self._ms()
        await self._state.write(lambda tx: tx.reset_presence(at))
        self._task = asyncio.create_task(self._run(), name="presence")

    async def close(self) -> None:
        """Writes the rest and stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flush(everything=True)

    def connected(self, ref: Ref) -> None:
        """The identity has a session now."""
        at = self._ms()
        self._active.pop(ref, None)
        self._known[ref] = Status(True, at, at)
        self._changed.add(ref)

    def disconnected(self, ref: Ref) -> None:
        """Its session has gone."""
        at = self._ms()
        self._active.pop(ref, None)
        self._known[ref] = Status(False, at, at)
        self._changed.add(ref)

    def touch(self, ref: Ref) -> None:
        """It was heard of. Cheap: called for each message."""
        self._active[ref] = self._ms()

    def forget(self, ref: Ref) -> None:
        """The identity was deleted; a later one of the same name starts from never."""
        self._known.pop(ref, None)
        self._active.pop(ref, None)
        self._changed.discard(ref)

    async def of(self, ref: Ref) -> Status:
        """What is known of one identity."""
        return (await self.many((ref,)))[ref]

    async def many(self, refs: Iterable[Ref]) -> dict[Ref, Status]:
        """What is known of several; those never seen are `NEVER`."""
        wanted = tuple(refs)
        rows: dict[Ref, Status] = {}
        absent = tuple(ref for ref in wanted if ref not in self._known)
        if absent:
            rows = await self._state.read(lambda tx: _rows(tx, absent))
        found = {}
        for ref in wanted:
            # Memory is asked after the read: what is flushed meanwhile leaves memory only when it
            # is on disk, and what is newer than the read is still here.
            status = self._known.get(ref) or rows.get(ref, NEVER)
            active = self._active.get(ref)
            if active is not None and active > status.active:
                status = status._replace(active=active)
            found[ref] = status
        return found

    async def flush(self, *, everything: bool = False) -> None:
        """Write what changed; `everything` includes activity times."""
        async with self._flushing:
            with_activity = everything or (
                self._now() - self._flushed_activity >= self._activity_interval
            )
            active: dict[Ref, int] = {}
            if with_activity:
                self._flushed_activity = self._now()
                active = dict(self._active)
                await self._learn(active)
                for ref, at in active.items():
                    if self._active.get(ref) == at:
                        del self._active[ref]
            changed, self._changed = self._changed | active.keys(), set()
            rows = {ref: self._known[ref] for ref in changed if ref in self._known}
            if not rows:
                return
            try:
                await self._state.write(lambda tx: tx.put_presence(dict(rows)))
            except BaseException:
                # Cancelled too: the store may not have begun, and `close` writes the rest.
                self._changed |= rows.keys()
                raise
            for ref, row in rows.items():
                if not row.connected and self._known.get(ref) is row:
                    del self._known[ref]

    async def _learn(self, active: dict[Ref, int]) -> None:
        """Bring activity times into `_known`; who is not connected (HTTPS) is read first."""
        absent = tuple(ref for ref in active if ref not in self._known)
        rows = await self._state.read(lambda tx: _rows(tx, absent)) if absent else {}
        for ref, at in active.items():
            status = self._known.get(ref) or rows.get(ref, NEVER)
            if at > status.active:
                status = status._replace(active=at)
            self._known[ref] = status

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.flush()
            except MooringError as error:
                log.warning("presence_not_written", reason=str(error))

    def _ms(self) -> int:
        return int(self._now() * 1000)


def _rows(tx: Tx, refs: tuple[Ref, ...]) -> dict[Ref, Status]:
    return {ref: Status(*row) for ref in refs if (row := tx.presence(ref)) is not None}
