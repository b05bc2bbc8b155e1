"""Consumer groups: the named views under which back ends read the event log.

A group is a name and nothing else: positions are the readers' own (they keep checkpoints), and
who holds a partition of a group is the reader endpoint's business. `$Default` always exists.
"""

import asyncio
import re
from collections.abc import Iterable

import msgspec

from mooring.errors import ArgumentInvalid, GenericConflict, GenericNotFound

from .state import State

DEFAULT = "$Default"
_SETTING = "consumer-groups"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,48}[A-Za-z0-9])?")


class ConsumerGroups:
    """The consumer groups of one hub; names differ in more than case."""

    def __init__(self, state: State, *, limit: int = 20) -> None:
        self._state = state
        self._limit = limit
        self._names: dict[str, str] = {DEFAULT.lower(): DEFAULT}
        self._writing = asyncio.Lock()

    async def open(self, configured: Iterable[str] = ()) -> None:
        """Load them, and add those that the configuration names."""
        text = await self._state.read(lambda tx: tx.setting(_SETTING))
        for name in msgspec.json.decode(text, type=list[str]) if text else []:
            self._names[name.lower()] = name
        for name in configured:
            if name.lower() not in self._names:
                await self.create(name)

    def find(self, name: str) -> str | None:
        """The group's name as it was created, whatever the case asked for; None if there is none.

        In memory: asked for each link that a reader attaches."""
        return self._names.get(name.lower())

    async def list(self) -> list[str]:
        """All names, `$Default` first."""
        return sorted(self._names.values(), key=lambda name: (name != DEFAULT, name.lower()))

    async def create(self, name: str) -> None:
        """Raises ArgumentInvalid for a bad name or one too many, GenericConflict if it exists."""
        if _NAME.fullmatch(name) is None:
            raise ArgumentInvalid(
                "A consumer group's name must be 1 to 50 characters of A-Z, a-z, 0-9 and ._-"
            )
        async with self._writing:
            if name.lower() in self._names:
                raise GenericConflict("There is a consumer group of this name")
            if len(self._names) >= self._limit:
                raise ArgumentInvalid(f"A hub has at most {self._limit} consumer groups")
            await self._store({**self._names, name.lower(): name})

    async def delete(self, name: str) -> None:
        """Raises GenericNotFound, and ArgumentInvalid for `$Default`."""
        if name.lower() == DEFAULT.lower():
            raise ArgumentInvalid(f"{DEFAULT} cannot be deleted")
        async with self._writing:
            if name.lower() not in self._names:
                raise GenericNotFound("There is no consumer group of this name")
            left = {key: one for key, one in self._names.items() if key != name.lower()}
            await self._store(left)

    async def _store(self, names: dict[str, str]) -> None:
        text = msgspec.json.encode(list(names.values())).decode()
        await self._state.write(lambda tx: tx.put_setting(_SETTING, text))
        self._names = names
