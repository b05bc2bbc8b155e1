"""A call: what is known of an HTTP request once it is let in.

The door leaves one in the ASGI scope; route handlers take its parts as Litestar dependencies, named
`hub`, `principal`, `ref` and `if_match` and typed as below. Whom a call is about is always `ref`,
which the door checked the rights for: a handler must not take ids from the request itself. (A
parameter that one of a handler's paths lacks becomes a query parameter for Litestar.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation
from litestar.types import Scope

from mooring.hub.access import Principal
from mooring.hub.hub import Hub
from mooring.hub.identity import Ref

_KEY = "mooring.call"

TheHub: TypeAlias = SkipValidation[NamedDependency[Hub]]
ThePrincipal: TypeAlias = SkipValidation[NamedDependency[Principal]]
"""On device-facing operations one that speaks as the identity in the path."""
TheRef: TypeAlias = SkipValidation[NamedDependency[Ref]]
"""The identity in the path."""
IfMatch: TypeAlias = SkipValidation[NamedDependency[str | None]]
"""The header, None if there is none."""


@dataclass(slots=True)
class Call:
    """One request; filled in as the door learns more."""

    request_id: str
    operation: str
    hub: Hub | None = None
    principal: Principal | None = None
    ref: Ref | None = None

    def described(self) -> dict[str, str]:
        """For logs: who asked for what, without anything secret."""
        principal = self.principal
        return {
            "request_id": self.request_id,
            "hub": self.hub.name if self.hub is not None else "",
            "device": str(self.ref or ""),
            "policy": principal.policy if principal is not None else "",
        }


def attach(scope: Mapping[str, Any], call: Call) -> None:
    """Leave the call in the scope."""
    scope[_KEY] = call  # type: ignore[index]


def call_of(scope: Mapping[str, Any]) -> Call | None:
    """The call of a request, None before the door has begun."""
    call = scope.get(_KEY)
    return call if isinstance(call, Call) else None


def _hub(scope: Scope) -> Hub:
    call = call_of(scope)
    assert call is not None and call.hub is not None, "routes are reached through the door only"  # noqa: PT018
    return call.hub


def _principal(scope: Scope) -> Principal:
    call = call_of(scope)
    assert call is not None and call.principal is not None, "the door lets nobody in without one"  # noqa: PT018
    return call.principal


def _ref(scope: Scope) -> Ref:
    call = call_of(scope)
    assert call is not None and call.ref is not None, "the path names an identity"  # noqa: PT018
    return call.ref


def _if_match(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"if-match":
            return value.decode("latin-1")
    return None


DEPENDENCIES = {
    "hub": Provide(_hub, sync_to_thread=False),
    "principal": Provide(_principal, sync_to_thread=False),
    "ref": Provide(_ref, sync_to_thread=False),
    "if_match": Provide(_if_match, sync_to_thread=False),
}
"""What handlers may ask for."""
