"""SASL: which mechanisms there are, and what a PLAIN user name means.

    {policy}@sas.root.{hub}            a shared access policy
    {device}@sas.{hub}                 a device, or {device}/modules/{module}
    {device}@{hub}                     the same

`{hub}` is the hub's host name or the front of it, up to a dot (device-protocols reference §3.1).
The password is a token. ANONYMOUS, MSSBCBS and EXTERNAL prove nothing by themselves: a token
follows on `$cbs`.
"""

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from mooring.errors import IotHubNotFound, IotHubUnauthorized
from mooring.hub.access import Principal
from mooring.hub.identity import Ref

if TYPE_CHECKING:
    from mooring.hub.hub import Hub
    from mooring.hub.hubs import Hubs

PLAIN: Final = "PLAIN"
MECHANISMS: Final = ("MSSBCBS", PLAIN, "ANONYMOUS", "EXTERNAL")  # the most wanted first

_ROOT: Final = "sas.root."
_SAS: Final = "sas."


async def plain(
    response: bytes, hubs: "Hubs", hosts: tuple[str | None, ...]
) -> tuple["Hub", Principal]:
    """The hub and the principal that a PLAIN response proves. Raises HubError.

    `hosts` are the names that the connection gave so far; they decide between hubs whose names
    begin alike."""
    user, token = _parts(response)
    name, at, place = user.rpartition("@")
    if not at or not name:
        raise _unauthorized("the SASL user name is not of the form name@sas.hub")
    lowered = place.lower()
    is_policy = lowered.startswith(_ROOT)
    label = lowered.removeprefix(_ROOT) if is_policy else lowered
    found = _find(label, hubs, hosts)
    if found is None and not is_policy and label.startswith(_SAS):
        found = _find(label.removeprefix(_SAS), hubs, hosts)
    if found is None:
        raise IotHubNotFound(reason="the SASL user name's hub is none of this server")
    if is_policy:
        principal = await found.access.authenticate(token)
        if principal.policy != unquote(name):
            raise _unauthorized("the token is not of the policy that the SASL user name says")
        return found, principal
    return found, await found.access.connect(_ref(name), token)


def _parts(response: bytes) -> tuple[str, str]:
    try:
        _, user, password = response.decode().split("\0")
    except ValueError:  # also of the decoding
        raise _unauthorized("the PLAIN response is not authzid, user and password") from None
    return user, password


def _find(label: str, hubs: "Hubs", hosts: tuple[str | None, ...]) -> "Hub | None":
    exact = hubs.find(label) if label else None
    if exact is not None:
        return exact
    candidates = [
        hub
        for hub in hubs
        if any(name.startswith(f"{label}.") for name in (hub.name, *hub.aliases))
    ]
    for host in hosts:
        named = hubs.find(host) if host else None
        if named in candidates:
            return named
    return candidates[0] if candidates and label else None


def _ref(name: str) -> Ref:
    parts = name.split("/")
    if len(parts) == 3 and parts[1].lower() == "modules":
        return Ref(unquote(parts[0]), unquote(parts[2]))
    return Ref(unquote(name))


def _unauthorized(reason: str) -> IotHubUnauthorized:
    return IotHubUnauthorized("Unauthorized", reason=reason)
