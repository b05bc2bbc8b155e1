"""A hub: its services, put together over one state and one event log.

Order. Opening: policies and consumer groups are loaded, nothing is connected any more, then the
background work starts. Closing: sessions end first, writes that have begun are finished, then the
background work stops and what is only in memory (presence) is written. The state and the event
log belong to whoever opened them and stay open.
"""

import time
from collections.abc import Callable, Iterable

from mooring.errors import ServiceUnavailable

from .access import Access
from .bulk import Bulk
from .commands import Commands
from .consumer_groups import ConsumerGroups
from .events import EventLog
from .feedback import Feedback
from .hosts import bare_host
from .methods import Methods
from .policies import Policies
from .presence import Presence
from .registry import Registry
from .revocation import Revocation
from .sessions import Sessions
from .settings import HubSettings
from .state import State
from .telemetry import Telemetry
from .twins import Twins


class Hub:
    """One hub; make it with `open`."""

    def __init__(
        self,
        name: str,
        state: State,
        events: EventLog,
        settings: HubSettings,
        *,
        aliases: Iterable[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = bare_host(name)
        """The host name it answers to."""
        self.aliases = frozenset(bare_host(alias) for alias in aliases) - {self.name}
        """More host names, lower case."""
        self.settings = settings
        self.state = state
        self.events = events
        self.now = now
        self.presence = Presence(
            state,
            interval=settings.presence_interval,
            activity_interval=settings.activity_interval,
            now=now,
        )
        self.sessions = Sessions(self.presence, now=now)
        self.registry = Registry(state, self.presence, settings, now=now)
        self.policies = Policies(state, limit=settings.max_policies)
        self.access = Access(
            self.name,
            self.aliases,
            self.registry,
            self.policies,
            self.sessions,
            clock_skew=settings.token_clock_skew,
            now=now,
        )
        self.revocation = Revocation(self.sessions, self.access, self.registry, self.policies)
        self.consumer_groups = ConsumerGroups(state, limit=settings.max_consumer_groups)
        self.telemetry = Telemetry(events, settings, now=now)
        self.twins = Twins(state, settings, now=now)
        self.methods = Methods(state, settings)
        self.feedback = Feedback(state, settings, now=now)
        self.commands = Commands(state, settings, self.feedback, now=now)
        self.bulk = Bulk(self.registry, self.twins)

    @classmethod
    async def open(
        cls,
        name: str,
        state: State,
        events: EventLog,
        settings: HubSettings | None = None,
        *,
        aliases: Iterable[str] = (),
        consumer_groups: Iterable[str] = (),
        now: Callable[[], float] = time.time,
    ) -> "Hub":
        """A hub that is ready to serve. `consumer_groups` are made if they are not there."""
        hub = cls(name, state, events, settings or HubSettings(), aliases=aliases, now=now)
        await hub.policies.open()
        await hub.consumer_groups.open(consumer_groups)
        await hub.presence.open()
        await hub.commands.open()
        hub.sessions.start()
        return hub

    @property
    def events_path(self) -> str:
        """The entity name of the Event Hubs-compatible endpoint: the host's first label."""
        return self.name.partition(".")[0]

    async def close(self) -> None:
        """End all sessions and finish what has begun."""
        await self.sessions.stop(
            ServiceUnavailable("The server is shutting down", reason="the server is shutting down")
        )
        await self.revocation.close()
        await self.registry.close()
        await self.policies.close()
        await self.twins.close()
        await self.commands.close()
        await self.feedback.close()
        await self.presence.close()
