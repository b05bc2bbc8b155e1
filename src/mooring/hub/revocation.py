"""Revocation: sessions whose principal no longer holds end at once.

Rules. It runs after a change is on disk and before the change is reported done. It asks
`access.still_holds` and decides nothing itself, so that a session ends exactly when its credential
would be refused. Each change raises `Sessions.revision` first: a session that opens after, but
was let in before, is looked at again.
"""

import asyncio
from collections.abc import Iterable

import structlog

from mooring.errors import MooringError, ServiceUnavailable

from .access import Access
from .policies import Policies
from .registry import Registry
from .sessions import Session, Sessions

log = structlog.get_logger(__name__)

_AT_ONCE = 100  # sessions looked at before others get a turn: a policy may have let in thousands


class Revocation:
    """Watches the registry and the policies of one hub."""

    def __init__(
        self, sessions: Sessions, access: Access, registry: Registry, policies: Policies
    ) -> None:
        self._sessions = sessions
        self._access = access
        self._rechecks: set[asyncio.Task[None]] = set()
        registry.changed = self.identity_changed
        policies.changed = self.policy_changed
        sessions.recheck = self._recheck

    async def close(self) -> None:
        """Wait for the looks that have begun."""
        await asyncio.gather(*self._rechecks, return_exceptions=True)

    async def identity_changed(self, device_id: str) -> None:
        """A device or one of its modules was written or deleted."""
        self._sessions.revision += 1
        await self._look(self._sessions.of_device(device_id))

    async def policy_changed(self, name: str) -> None:
        """A policy was written or deleted."""
        self._sessions.revision += 1
        await self._look(self._sessions.of_policy(name))

    async def _look(self, sessions: Iterable[Session]) -> None:
        for number, session in enumerate(sessions, 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                error = await self._access.still_holds(session.principal)
            except MooringError as broken:
                # The registry cannot be read. Who cannot be vouched for has to come again.
                error = ServiceUnavailable(
                    "The credential cannot be checked now", reason=f"not readable: {broken}"
                )
            if error is None or session not in self._sessions:
                continue
            log.info(
                "session_revoked",
                tracking_id=error.tracking_id,
                device=str(session.principal.ref or ""),
                policy=session.principal.policy,
                protocol=session.protocol,
                reason=error.reason,
            )
            self._sessions.close(session)
            session.end(error)

    def _recheck(self, session: Session) -> None:
        task = asyncio.create_task(self._look((session,)))
        self._rechecks.add(task)
        task.add_done_callback(self._rechecks.discard)
