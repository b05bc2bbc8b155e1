"""Grants: what the tokens on one connection allow, and what ends when they do.

Rules:

- A connection holds several tokens, at most MAX_TOKENS, one for each policy or identity and scope;
  putting another for the same renews the grant without touching the links that it still allows.
- A grant of a policy is a session of the hub: revocation and expiry end it there. A grant of an
  identity is not, as long as it has no device links: it must not push out the session in which the
  device itself is connected. It ends by a timer of its own.
- When a grant ends, its links go over to another grant that allows them, or are detached.
"""

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from mooring.errors import HubError, IotHubMaxCbsTokenExceeded, IotHubUnauthorized
from mooring.hub.access import Principal
from mooring.hub.policies import Right
from mooring.wire.amqp.link import Link

if TYPE_CHECKING:
    from mooring.gateway.amqp.connection import Connection
    from mooring.hub.hub import Hub
    from mooring.hub.identity import Ref

log = structlog.get_logger(__name__)

MAX_TOKENS: Final = 1024  # .NET multiplexes 995 devices, each with its token

_Key = tuple[str, "Ref | None", str]


class Grant:
    """One valid token; `hub.sessions` knows it as a session."""

    protocol = "amqp"

    def __init__(self, grants: "Grants", principal: Principal) -> None:
        self.principal = principal
        self.links: dict[Link, tuple[Right, str]] = {}  # and what each needs
        self._grants = grants
        self.timer: asyncio.TimerHandle | None = None

    def end(self, error: HubError) -> None:
        """Called by the hub when the token has expired or no longer holds."""
        self._grants.drop(self, error)


class Grants:
    """The grants of one connection."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._hub: Hub | None = None
        self._held: dict[_Key, Grant] = {}

    def __len__(self) -> int:
        return len(self._held)

    def put(self, hub: "Hub", principal: Principal) -> None:
        """Add a principal, or renew what it had. Raises IotHubMaxCbsTokenExceeded."""
        self._hub = hub
        key = (principal.policy, principal.ref, principal.scope)
        grant = self._held.get(key)
        if grant is not None:
            hub.sessions.renew(grant, principal)
            self._expire_later(grant)
            self._place_links(grant)  # its policy may grant less than before
            return
        if len(self._held) >= MAX_TOKENS:
            raise IotHubMaxCbsTokenExceeded(f"A connection takes {MAX_TOKENS} tokens at most.")
        grant = self._held[key] = Grant(self, principal)
        if principal.ref is None:
            hub.sessions.open(grant)
        self._expire_later(grant)

    def _expire_later(self, grant: Grant) -> None:
        if grant.timer is not None:
            grant.timer.cancel()
        principal = grant.principal
        if principal.ref is None or principal.expires is None or self._hub is None:
            return
        grant.timer = asyncio.get_running_loop().call_later(
            max(0.0, principal.expires - self._hub.now()) + 1.0,
            grant.end,
            IotHubUnauthorized("The token has expired", reason="the token has expired"),
        )

    def allow(self, right: Right, resource: str) -> Grant:
        """A grant that allows this. Raises IotHubUnauthorized, IotHubUnauthorizedAccess."""
        refusal: HubError | None = None
        for grant in self._held.values():
            assert self._hub is not None
            try:
                self._hub.access.require(grant.principal, right, resource)
            except HubError as error:
                refusal = error
            else:
                return grant
        raise refusal or IotHubUnauthorized("Unauthorized", reason="no token on the connection")

    def bind(self, link: Link, right: Right, resource: str) -> None:
        """Let a link live on a grant that allows it. Raises what `allow` raises."""
        self.allow(right, resource).links[link] = (right, resource)

    def unbind(self, link: Link) -> None:
        """The link has gone."""
        for grant in self._held.values():
            grant.links.pop(link, None)

    def drop(self, grant: Grant, error: HubError) -> None:
        """A grant has ended: move its links or detach them."""
        principal = grant.principal
        key = (principal.policy, principal.ref, principal.scope)
        if self._held.get(key) is not grant:
            return
        del self._held[key]
        if grant.timer is not None:
            grant.timer.cancel()
        log.info(
            "amqp_token_ended",
            peer=self._connection.peer,
            policy=principal.policy,
            device=str(principal.ref or ""),
            reason=error.reason,
            tracking_id=error.tracking_id,
        )
        self._place_links(grant, error)
        if not self._held:
            self._connection.end(error)

    def _place_links(self, grant: Grant, error: HubError | None = None) -> None:
        """Bind a grant's links to what allows them now, and detach the others."""
        links, grant.links = grant.links, {}
        for link, (right, resource) in links.items():
            try:
                self.bind(link, right, resource)
            except HubError as refusal:
                self._connection.detach(link, error or refusal)

    def close(self) -> None:
        """The connection has gone."""
        held, self._held = self._held, {}
        for grant in held.values():
            if grant.timer is not None:
                grant.timer.cancel()
            if self._hub is not None:
                self._hub.sessions.close(grant)
