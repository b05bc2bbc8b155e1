"""Subscriptions that outlive a connection: what persistent sessions asked to be sent.

Rules that hold here (device-protocols reference §1.4):

- A subscription is durable before `save` returns, so that whoever is told of it may rely on it.
- What is kept belongs to one identity, not to a later one of the same name: a generation id tells.
- A session whose device stays away longer than `expiry` is forgotten. How long that was is known
  in memory, and after a restart from presence.
- Filters are the protocol's own text; nothing here reads them.

They live among the hub's settings, one value an identity that has any; the registry deletes it
with the identity. A bounded part is kept in memory, including who has none, since every connect of
a device asks.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from .identity import Ref
from .presence import Presence
from .state import State

DAY: Final = 86_400.0


class _Kept(msgspec.Struct):
    generation_id: str
    filters: dict[str, int]


class _Entry:
    """What is known of one identity; `left` is when its last session ended, 0 while there is one,
    None if that is not known."""

    __slots__ = ("kept", "left")

    def __init__(self, kept: _Kept | None, left: float | None) -> None:
        self.kept = kept
        self.left = left


class Subscriptions:
    """The kept subscriptions of one hub's identities."""

    def __init__(
        self,
        state: State,
        presence: Presence,
        *,
        expiry: float = DAY,
        limit: int = 100_000,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`expiry` is in seconds; `limit` is how many identities are remembered in memory."""
        self._state = state
        self._presence = presence
        self._expiry = expiry
        self._limit = limit
        self._now = now
        self._known: OrderedDict[Ref, _Entry] = OrderedDict()

    async def resume(self, ref: Ref, generation_id: str) -> dict[str, int] | None:
        """Begin a session that is to be kept: the filters, with their QoS, of the one that this
        identity left, None if there is none.

        To be asked before the new session counts as connected."""
        entry = await self._entry(ref)
        kept = entry.kept
        if kept is not None and kept.generation_id == generation_id:
            left = entry.left
            if left is None:
                status = await self._presence.of(ref)
                left = 0.0 if status.connected else status.changed / 1000
            if not left or self._now() - left <= self._expiry:
                entry.left = 0.0
                return dict(kept.filters)
        await self.discard(ref)
        # A session without subscriptions is kept in memory only: losing it in a restart changes
        # nothing but the answer to whether there was one.
        self._remember(ref, _Entry(_Kept(generation_id, {}), 0.0))
        return None

    async def save(self, ref: Ref, generation_id: str, filters: Mapping[str, int]) -> None:
        """Keep these for the session that there is now; durable when it returns.

        Costs no write if it is what is kept already."""
        kept = _Kept(generation_id, dict(filters))
        entry = await self._entry(ref)
        if entry.kept == kept:
            return
        if filters:
            text = msgspec.json.encode(kept).decode()
            await self._state.write(lambda tx: tx.put_setting(setting_name(ref), text))
        else:
            await self._forget(ref)
        current = self._known.get(ref)  # the session may have ended meanwhile
        self._remember(ref, _Entry(kept, current.left if current is not None else None))

    async def discard(self, ref: Ref) -> None:
        """Forget them, durably. Costs no write if there are none."""
        entry = await self._entry(ref)
        if entry.kept is None:
            return
        if entry.kept.filters:
            await self._forget(ref)
        self._remember(ref, _Entry(None, None))

    def left(self, ref: Ref) -> None:
        """The identity's session has ended just now."""
        entry = self._known.get(ref)
        if entry is not None:
            entry.left = self._now()

    async def _forget(self, ref: Ref) -> None:
        await self._state.write(lambda tx: tx.delete_setting(setting_name(ref)))

    async def _entry(self, ref: Ref) -> _Entry:
        entry = self._known.get(ref)
        if entry is not None:
            self._known.move_to_end(ref)
            return entry
        text = await self._state.read(lambda tx: tx.setting(setting_name(ref)))
        entry = self._known.get(ref)  # somebody else may have asked, and written, meanwhile
        if entry is None:
            entry = _Entry(msgspec.json.decode(text, type=_Kept) if text else None, None)
            self._remember(ref, entry)
        return entry

    def _remember(self, ref: Ref, entry: _Entry) -> None:
        self._known[ref] = entry
        self._known.move_to_end(ref)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)


def setting_name(ref: Ref) -> str:
    """The setting that holds what is kept for an identity."""
    return f"subscriptions/{ref}"  # ids hold no slash
