"""Sessions: the live connections, found by identity and by policy.

Rules:

- One session for each identity. A newer one ends the older one, whatever protocols they speak.
- Sessions of back ends (no identity in their principal) live side by side.
- A session ends when its token expires, and when its principal no longer holds (`revocation`).
- A principal carries the `revision` at which it was found to hold. If a key, a policy or an
  identity has changed since, it is looked at again when its session opens: otherwise a connect
  that read the old key just before the change would outlive it.
- All of this happens on the event loop; `end` may call `close` at once.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from mooring.errors import ConnectionForcefullyClosedOnNewConnection, HubError, IotHubUnauthorized

from .identity import Ref
from .presence import Presence

if TYPE_CHECKING:
    from .access import Principal

K = TypeVar("K")
V = TypeVar("V")

TICK = 1.0
"""Seconds between two looks for expired tokens."""


class Session(Protocol):
    """One live connection, or set of AMQP links, that a principal proved. Hashed by identity."""

    principal: "Principal"
    protocol: str  # "mqtt" | "amqp" …

    def end(self, error: HubError) -> None:
        """Close now and log the reason; idempotent."""


class _Entry(NamedTuple):
    """What a session is indexed under; its principal may be renewed meanwhile."""

    principal: "Principal"
    ends: int | None  # the whole second in which its token is past its time


class Sessions:
    """The sessions of one hub."""

    def __init__(self, presence: Presence, *, now: Callable[[], float] = time.time) -> None:
        self.revision = 0
        """Counts committed changes that may end a session."""
        self.recheck: Callable[[Session], None] = lambda session: None
        """Set by `revocation`: looks at a session whose principal is of an older revision."""
        self._presence = presence
        self._now = now
        self._open: dict[Session, _Entry] = {}
        self._by_ref: dict[Ref, Session] = {}
        self._modules: dict[str, set[Ref]] = {}
        self._by_policy: dict[str, set[Session]] = {}
        # By whole second, so that closing early leaves nothing behind (a heap would).
        self._expiring: dict[int, set[Session]] = {}
        self._looked = int(now())
        self._devices = 0
        self._stopped: HubError | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to end sessions whose tokens expire."""
        self._task = asyncio.create_task(self._run(), name="session-expiry")

    async def stop(self, error: HubError) -> None:
        """End all sessions, and those that still open."""
        self._stopped = error
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for session in list(self._open):
            self._end(session, error)

    def open(self, session: Session) -> None:
        """Register a session that begins; ends the older one of the same identity."""
        if session in self._open:
            return
        if self._stopped is not None:  # it was let in before
            session.end(self._stopped)
            return
        ref = session.principal.ref
        older = self._by_ref.get(ref) if ref is not None else None
        if older is not None:
            self._drop(older)
        self._add(session)
        if ref is not None:
            if older is None and not ref.module_id:
                self._devices += 1
            self._presence.connected(ref)
        if older is not None:
            older.end(
                ConnectionForcefullyClosedOnNewConnection(
                    "A new connection of the same identity has taken over",
                    reason=f"taken over by a newer {session.protocol} session",
                )
            )
        if session.principal.revision != self.revision:
            self.recheck(session)

    def close(self, session: Session) -> None:
        """Its connection has gone. Harmless for one that was taken over or ended already."""
        if session not in self._open:
            return
        ref = self._open[session].principal.ref
        self._drop(session)
        if ref is not None:
            if not ref.module_id:
                self._devices -= 1
            self._presence.disconnected(ref)

    def renew(self, session: Session, principal: "Principal") -> None:
        """A fresh token on a live connection (CBS): same identity, perhaps another key or policy.

        Raises IotHubUnauthorized if it is another identity's."""
        if principal.ref != session.principal.ref:
            raise IotHubUnauthorized(
                "Unauthorized", reason="a renewed token names another identity"
            )
        if session not in self._open:
            session.principal = principal
            return
        self._drop(session)
        session.principal = principal
        self._add(session)
        if principal.revision != self.revision:
            self.recheck(session)

    def of(self, ref: Ref) -> Session | None:
        """The session of an identity."""
        return self._by_ref.get(ref)

    def of_device(self, device_id: str) -> list[Session]:
        """The sessions of a device and of its modules."""
        refs = (Ref(device_id), *self._modules.get(device_id, ()))
        return [self._by_ref[ref] for ref in refs if ref in self._by_ref]

    def of_policy(self, name: str) -> list[Session]:
        """The sessions whose token a policy signed."""
        return list(self._by_policy.get(name, ()))

    def touch(self, ref: Ref) -> None:
        """The identity was active."""
        self._presence.touch(ref)

    @property
    def connected_count(self) -> int:
        """How many devices are connected; modules do not count."""
        return self._devices

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, session: object) -> bool:
        return session in self._open

    def expire(self) -> None:
        """End the sessions whose tokens are past their time."""
        now = int(self._now())
        gap = now - self._looked
        # A clock that jumped far is cheaper to follow by the seconds in use.
        due = (
            range(self._looked, now + 1)
            if 0 <= gap <= len(self._expiring)
            else [second for second in self._expiring if second <= now]
        )
        self._looked = now
        for second in due:
            for session in tuple(self._expiring.get(second, ())):
                self._end(
                    session,
                    IotHubUnauthorized("The token has expired", reason="the token has expired"),
                )

    def _end(self, session: Session, error: HubError) -> None:
        self.close(session)
        session.end(error)

    def _add(self, session: Session) -> None:
        principal = session.principal
        ends = None
        if principal.ref is not None:
            self._by_ref[principal.ref] = session
            if principal.ref.module_id:
                self._modules.setdefault(principal.ref.device_id, set()).add(principal.ref)
        if principal.policy:
            self._by_policy.setdefault(principal.policy, set()).add(session)
        if principal.expires is not None:
            # Later than the second that was looked at last: none is missed.
            ends = max(int(principal.expires) + 1, self._looked + 1)
            self._expiring.setdefault(ends, set()).add(session)
        self._open[session] = _Entry(principal, ends)

    def _drop(self, session: Session) -> None:
        principal, ends = self._open.pop(session)
        ref = principal.ref
        if ref is not None and self._by_ref.get(ref) is session:
            del self._by_ref[ref]
            if ref.module_id:
                _discard(self._modules, ref.device_id, ref)
        if principal.policy:
            _discard(self._by_policy, principal.policy, session)
        if ends is not None:
            _discard(self._expiring, ends, session)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.expire()


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    held = index.get(key)
    if held is not None:
        held.discard(value)
        if not held:
            del index[key]
