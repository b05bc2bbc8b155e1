"""Durable state in memory: the port's behaviour without a database.

Units run one after another, in a thread like the store's if `threaded` is set, so that what a
unit must not do (await, touch the loop) fails here too. Each write works on a copy that takes the
place of the state only if nothing was raised.
"""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from mooring.errors import Unavailable
from mooring.hub.commands import Command, FeedbackRecord
from mooring.hub.identity import Identity, Ref
from mooring.hub.policies import Policy
from mooring.hub.state import Counts, Tx
from mooring.hub.twins import Twin

T = TypeVar("T")
Presence = tuple[bool, int, int]


@dataclass
class Tables:
    """All rows; entities are immutable, so a shallow copy of each table is a snapshot."""

    identities: dict[Ref, Identity] = field(default_factory=dict)
    twins: dict[Ref, Twin] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    commands: dict[tuple[Ref, int], Command] = field(default_factory=dict)
    sequences: dict[Ref, int] = field(default_factory=dict)
    feedback: dict[int, FeedbackRecord] = field(default_factory=dict)
    last_feedback: int = 0
    presence: dict[Ref, Presence] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def snapshot(self) -> "Tables":
        return Tables(**{name: copy.copy(rows) for name, rows in vars(self).items()})


class MemoryTx:
    """One unit of work over `tables`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    # identities
    def identity(self, ref: Ref) -> Identity | None:
        return self._tables.identities.get(ref)

    def put_identity(self, identity: Identity) -> None:
        self._tables.identities[identity.ref] = identity

    def delete_identity(self, ref: Ref) -> bool:
        tables = self._tables

        def gone(other: Ref) -> bool:
            return other == ref or (not ref.module_id and other.device_id == ref.device_id)

        found = any(map(gone, tables.identities))

        # Whether or not it exists, as a database's statements do.
        rows: dict[Ref, Any]
        for rows in (tables.identities, tables.twins, tables.presence, tables.sequences):
            for one in list(filter(gone, rows)):
                del rows[one]
        for key in [key for key in tables.commands if gone(key[0])]:
            del tables.commands[key]
        self.delete_feedback(
            [
                record.id
                for record in tables.feedback.values()
                if gone(Ref(record.device_id, record.module_id))
            ]
        )
        return found

    def devices(self, limit: int, after: str = "") -> list[Identity]:
        ids = sorted(
            ref.device_id
            for ref in self._tables.identities
            if not ref.module_id and ref.device_id > after
        )
        return [self._tables.identities[Ref(device_id)] for device_id in ids[:limit]]

    def modules(self, device_id: str) -> list[Identity]:
        refs = sorted(
            ref for ref in self._tables.identities if ref.device_id == device_id and ref.module_id
        )
        return [self._tables.identities[ref] for ref in refs]

    def counts(self) -> Counts:
        devices = [one for ref, one in self._tables.identities.items() if not ref.module_id]
        enabled = sum(one.status == "enabled" for one in devices)
        return Counts(len(devices), enabled, len(devices) - enabled)

    # twins
    def twin(self, ref: Ref) -> Twin | None:
        return self._tables.twins.get(ref)

    def put_twin(self, twin: Twin) -> None:
        self._tables.twins[Ref(twin.device_id, twin.module_id)] = twin

    # policies
    def policies(self) -> list[Policy]:
        return list(self._tables.policies.values())

    def put_policy(self, policy: Policy) -> None:
        self._tables.policies[policy.name] = policy

    def delete_policy(self, name: str) -> bool:
        return self._tables.policies.pop(name, None) is not None

    # cloud-to-device queues
    def enqueue(self, command: Command) -> Command:
        ref = Ref(command.device_id, command.module_id)
        sequence = self._tables.sequences.get(ref, 0) + 1
        self._tables.sequences[ref] = sequence
        stored = msgspec.structs.replace(command, sequence=sequence)
        self._tables.commands[ref, sequence] = stored
        return stored

    def commands(self, ref: Ref, limit: int, after: int = 0) -> list[Command]:
        keys = sorted(key for key in self._tables.commands if key[0] == ref and key[1] > after)
        return [self._tables.commands[key] for key in keys[:limit]]

    def command(self, ref: Ref, sequence: int) -> Command | None:
        return self._tables.commands.get((ref, sequence))

    def put_command(self, command: Command) -> None:
        key = (Ref(command.device_id, command.module_id), command.sequence)
        if key in self._tables.commands:
            self._tables.commands[key] = command

    def delete_command(self, ref: Ref, sequence: int) -> bool:
        return self._tables.commands.pop((ref, sequence), None) is not None

    def queue_depth(self, ref: Ref) -> int:
        return sum(key[0] == ref for key in self._tables.commands)

    def expired_commands(self, now: int, limit: int) -> list[Command]:
        expired = [one for one in self._tables.commands.values() if one.expires <= now]
        return sorted(expired, key=lambda one: one.expires)[:limit]

    # feedback
    def add_feedback(self, record: FeedbackRecord) -> None:
        self._tables.last_feedback += 1
        stored = msgspec.structs.replace(record, id=self._tables.last_feedback)
        self._tables.feedback[stored.id] = stored

    def feedback(self, limit: int, after: int = 0) -> list[FeedbackRecord]:
        ids = sorted(one for one in self._tables.feedback if one > after)
        return [self._tables.feedback[one] for one in ids[:limit]]

    def put_feedback(self, record: FeedbackRecord) -> None:
        if record.id in self._tables.feedback:
            self._tables.feedback[record.id] = record

    def delete_feedback(self, ids: list[int]) -> None:
        for one in ids:
            self._tables.feedback.pop(one, None)

    def expire_feedback(self, now: int) -> int:
        gone = [record.id for record in self._tables.feedback.values() if record.expires <= now]
        self.delete_feedback(gone)
        return len(gone)

    # presence
    def presence(self, ref: Ref) -> Presence | None:
        return self._tables.presence.get(ref)

    def put_presence(self, rows: dict[Ref, Presence]) -> None:
        for ref, row in rows.items():
            if ref in self._tables.identities:
                self._tables.presence[ref] = (row[0], row[1], row[2])

    def reset_presence(self, now: int) -> None:
        for ref, (connected, _, active) in list(self._tables.presence.items()):
            if connected:
                self._tables.presence[ref] = (False, now, active)

    # settings
    def setting(self, name: str) -> str | None:
        return self._tables.settings.get(name)

    def put_setting(self, name: str, value: str) -> None:
        self._tables.settings[name] = value

    def delete_setting(self, name: str) -> bool:
        return self._tables.settings.pop(name, None) is not None


class MemoryState:
    """One hub's state; `tables` survives, as a disk would, if given to another instance."""

    def __init__(self, tables: Tables | None = None, *, threaded: bool = False) -> None:
        self.tables = tables if tables is not None else Tables()
        self.failing = False
        """While set, commits fail: writes raise `Unavailable` and change nothing."""
        self.before_read: Callable[[], None] | None = None
        """Called before each read, so that a test can change something just then."""
        self.gate: asyncio.Event | None = None
        """If set, reads and writes that have been made return only once it is set."""
        self.reads = 0
        self.writes = 0
        self._threaded = threaded
        self._lock = asyncio.Lock()

    async def write(self, unit: Callable[[Tx], T]) -> T:
        async with self._lock:
            self.writes += 1
            tables = self.tables.snapshot()
            result = await self._run(unit, tables)
            if self.failing:
                raise Unavailable("the disk is full")
            self.tables = tables
        await self._hold()
        return result

    async def read(self, unit: Callable[[Tx], T]) -> T:
        self.reads += 1
        if self.before_read is not None:
            self.before_read()
        result = await self._run(unit, self.tables.snapshot())
        await self._hold()
        return result

    async def _run(self, unit: Callable[[Tx], T], tables: Tables) -> T:
        # Even without a thread there is a turn of the loop: callers may not count on none.
        if self._threaded:
            return await asyncio.to_thread(unit, MemoryTx(tables))
        await asyncio.sleep(0)
        return unit(MemoryTx(tables))

    async def _hold(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
