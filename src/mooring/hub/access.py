"""Access: the one door that turns credentials into a principal and says what it may do.

Rules:

- What a token claims (scope, expiry, policy) is judged only together with its signature; the key
  is looked up by the claim, the claim is believed when a key fits.
- To a stranger, an unknown identity, one that uses certificates and a wrong key look alike: the
  same answer, after the same work. Signatures are made with dummy keys where there are none, and
  a refusal costs one read of the registry, whether or not memory would have done. Only who holds
  a right key learns that the identity is disabled.
- An identity's own key proves that identity and nothing else, however wide the token's scope is.
  A device's key does not open its modules.
- A policy's token may act for any device in its scope that exists and is enabled, and needs
  DeviceConnect for that.
- Ids are compared case-sensitively and exactly; the host may be any alias of this hub.
- `reason` says which rule decided, for the log. Neither it nor the message holds a secret.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from mooring.errors import (
    DeviceDisabled,
    HubError,
    IotHubUnauthorized,
    IotHubUnauthorizedAccess,
)
from mooring.wire import sas
from mooring.wire.errors import WireError

from .hosts import bare_host
from .identity import Identity, Ref, new_key
from .lookup import absent
from .policies import ALL_RIGHTS, Policies, Right
from .registry import Registry
from .sessions import Sessions

EVENTS_PATH = "messages/events"
"""The resource path of the Event Hubs-compatible endpoint."""

_NOT_THIS_DEVICE = "Authentication failed for this device, renew token or certificate and reconnect"
_UNAUTHORIZED = "Unauthorized"
# Fits no token, and takes the place of keys that are not there so that the work is the same.
_DUMMY = new_key()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who somebody has proved to be, and what that lets them do."""

    hub: str
    """Host name of the hub, lower case."""
    rights: Right
    """`Right(0)` for none; those implied by others are included."""
    ref: Ref | None
    """The identity that proved itself, or that a policy's holder acts for."""
    policy: str = ""
    """The shared access policy that signed."""
    scope: str = ""
    """The hub's host and the path that the credential is for: `localhost/devices/d1`."""
    expires: float | None = None
    """Unix seconds; the session must end then."""
    key_digest: bytes = field(default=b"", repr=False)
    """SHA-256 of the key that signed: tells which slot it was."""
    generation_id: str = ""
    """Of the identity."""
    auth_method: str = ""
    """JSON for the annotation iothub-connection-auth-method."""
    revision: int = field(default=0, compare=False, repr=False)
    """`Sessions.revision` from before the keys were read."""


def local_operator(hub: str) -> Principal:
    """Whoever reaches the private socket in the data folder: the operator, with all rights."""
    return Principal(
        hub=hub, rights=ALL_RIGHTS, ref=None, scope=hub, auth_method=_auth_method("hub")
    )


class Access:
    """The door of one hub."""

    def __init__(
        self,
        name: str,
        hosts: Iterable[str],
        registry: Registry,
        policies: Policies,
        sessions: Sessions,
        *,
        clock_skew: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`hosts` are all names of the hub, `name` the one that scopes are kept under."""
        self._name = name
        self._hosts = frozenset(map(bare_host, hosts)) | {name}
        self._events = name.partition(".")[0]
        self._registry = registry
        self._policies = policies
        self._sessions = sessions
        self._skew = clock_skew
        self._now = now

    async def connect(self, ref: Ref, token: str | None) -> Principal:
        """The principal of a device or module that connects as `ref` with `token`.

        Raises IotHubUnauthorized, IotHubUnauthorizedAccess (a policy without the right or the
        scope), DeviceDisabled, and to a policy's holder DeviceNotFound and ModuleNotFound. MQTT
        answers all of them with return code 5."""
        revision = self._sessions.revision
        if token is None:
            raise IotHubUnauthorized(_NOT_THIS_DEVICE, reason="no token was given")
        claim = self._claim(token)
        if claim.policy:
            return await self.act_for(await self._by_policy(claim, revision), ref)
        return await self._by_identity(claim, ref, revision)

    async def authenticate(self, token: str) -> Principal:
        """The principal of any token, before it is known what it is wanted for.

        Raises IotHubUnauthorized, and DeviceDisabled to who holds the device's key."""
        revision = self._sessions.revision
        claim = self._claim(token)
        if claim.policy:
            return await self._by_policy(claim, revision)
        ref = _ref(claim.scope.segments)
        if ref is None:
            raise IotHubUnauthorized(
                _UNAUTHORIZED, reason="a token without skn must name a device in sr"
            )
        return await self._by_identity(claim, await self._known_spelling(ref), revision)

    async def act_for(self, principal: Principal, ref: Ref) -> Principal:
        """The principal that speaks as `ref`: itself, or a policy's holder who acts for it.

        Raises what `connect` raises."""
        if principal.ref is not None:
            if principal.ref != ref:
                raise IotHubUnauthorizedAccess(
                    _UNAUTHORIZED, reason=f"{principal.ref} is not {ref}"
                )
            error = await self.still_holds(principal)
            if error is not None:
                raise error
            return principal
        self.require(principal, Right.DEVICE_CONNECT, ref.path)
        identity = await self._registry.lookup(ref)
        if identity is None:
            raise absent(ref)
        await self._refuse_disabled(identity)
        return replace(
            principal,
            rights=Right.DEVICE_CONNECT,
            ref=ref,
            scope=f"{self._name}/{ref.path}",
            generation_id=identity.generation_id,
        )

    def require(self, principal: Principal, right: Right, resource: str = "") -> None:
        """Raise IotHubUnauthorizedAccess unless the principal has `right` for `resource`.

        `resource` is a path under the hub, with ids decoded; "" is the hub itself. Raises
        IotHubUnauthorized if the credential has expired meanwhile."""
        if self._expired(principal.expires):
            raise IotHubUnauthorized("The token has expired", reason="the token has expired")
        if right not in principal.rights:
            self._refuse(principal, resource, f"lacks the right {right.name}")
        scope = tuple(principal.scope.split("/")[1:])
        path = tuple(part for part in resource.split("/") if part)
        if not _covers(scope, path):
            self._refuse(principal, resource, f"its scope is {principal.scope}")
        if principal.ref is not None and not _owns(principal.ref, path):
            self._refuse(principal, resource, f"it speaks for {principal.ref} only")

    async def still_holds(self, principal: Principal) -> HubError | None:
        """Why this principal would be refused now, or None if it would not."""
        if self._expired(principal.expires):
            return IotHubUnauthorized("The token has expired", reason="the token has expired")
        if principal.policy:
            error = self._policy_holds(principal)
            if error is not None:
                return error
        if principal.ref is None:
            return None
        identity = await self._registry.lookup(principal.ref)
        if identity is None or identity.generation_id != principal.generation_id:
            return absent(principal.ref)
        try:
            await self._refuse_disabled(identity)
        except DeviceDisabled as disabled:
            return disabled
        if not principal.policy and principal.key_digest not in map(_digest, identity.keys):
            return IotHubUnauthorized(
                _NOT_THIS_DEVICE, reason="the key that signed is no longer the identity's"
            )
        return None

    def _claim(self, token: str) -> "_Claim":
        """What a token says, if it is one, is for this hub and has not expired."""
        try:
            parsed = sas.parse(token)
            scope = parsed.scope
        except WireError as error:
            raise IotHubUnauthorized(_UNAUTHORIZED, reason=str(error)) from None
        if bare_host(scope.host) not in self._hosts:
            raise IotHubUnauthorized(
                _UNAUTHORIZED, reason="the token's sr names another host than this hub's"
            )
        expires = parsed.expires + self._skew
        if self._expired(expires):
            raise IotHubUnauthorized(
                "The token has expired", reason=f"the token's se, {parsed.expires}, is past"
            )
        return _Claim(parsed, scope, parsed.policy, expires)

    async def _by_policy(self, claim: "_Claim", revision: int) -> Principal:
        policy = self._policies.get(claim.policy)
        keys = (policy.primary_key, policy.secondary_key) if policy is not None else ()
        key = _signer(claim.token, keys, raw_text=True)
        if policy is None or key is None:
            reason = "no such policy" if policy is None else "no key of the policy made the sig"
            raise IotHubUnauthorized(_UNAUTHORIZED, reason=reason)
        return Principal(
            hub=self._name,
            rights=policy.granted,
            ref=None,
            policy=policy.name,
            scope="/".join((self._name, *await self._policy_scope(claim.scope.segments))),
            expires=claim.expires,
            key_digest=_digest(key),
            auth_method=_auth_method("hub"),
            revision=revision,
        )

    async def _by_identity(self, claim: "_Claim", ref: Ref, revision: int) -> Principal:
        if not ref.is_possible:
            raise IotHubUnauthorized(
                _NOT_THIS_DEVICE, reason="the name claimed is not one that an identity can have"
            )
        asked = (ref, Ref(ref.device_id)) if ref.module_id else (ref,)
        remembered = [one for one in asked if self._registry.remembers(one)]
        found = [await self._registry.lookup(one) for one in asked]
        identity, device = found[0], found[-1]
        key = _signer(claim.token, identity.keys if identity is not None else ())
        if identity is None or device is None:
            reason = f"there is no identity {ref}"
        elif identity.auth_type != "sas":
            reason = f"{ref} authenticates with {identity.auth_type}, not with a key"
        elif key is None:
            reason = f"no key of {ref} made the sig"
        elif not _names(claim.scope.segments, ref):
            reason = f"the token's sr is not for {ref}"
        else:
            reason = ""
        if reason or identity is None or key is None:
            for one in remembered:
                await self._registry.reread(one)
            raise IotHubUnauthorized(_NOT_THIS_DEVICE, reason=reason)
        await self._refuse_disabled(identity)
        own = tuple(ref.path.split("/"))
        # The narrower of the two: what the identity owns, or less if the token says so.
        scope = own if len(claim.scope.segments) <= len(own) else claim.scope.segments
        return Principal(
            hub=self._name,
            rights=Right.DEVICE_CONNECT,
            ref=ref,
            scope="/".join((self._name, *own, *scope[len(own) :])),
            expires=claim.expires,
            key_digest=_digest(key),
            generation_id=identity.generation_id,
            auth_method=_auth_method("module" if ref.module_id else "device"),
            revision=revision,
        )

    async def _refuse_disabled(self, identity: Identity) -> None:
        device: Identity | None = identity
        if identity.module_id:
            device = await self._registry.lookup(Ref(identity.device_id))
        if device is None or not device.enabled or not identity.enabled:
            raise DeviceDisabled(
                f"Device {identity.device_id} is disabled",
                reason=f"{identity.device_id} is disabled",
            )

    def _policy_holds(self, principal: Principal) -> HubError | None:
        policy = self._policies.get(principal.policy)
        keys = (policy.primary_key, policy.secondary_key) if policy is not None else ()
        if policy is None or principal.key_digest not in map(_digest, keys):
            return IotHubUnauthorized(
                _UNAUTHORIZED, reason=f"the key that signed is no longer {principal.policy}'s"
            )
        if principal.rights not in policy.granted:
            return IotHubUnauthorizedAccess(
                _UNAUTHORIZED, reason=f"the policy {principal.policy} grants less now"
            )
        return None

    async def _policy_scope(self, segments: tuple[str, ...]) -> tuple[str, ...]:
        """The path of a policy's token as resources are named here.

        Event Hubs clients name the entity (the hub's first label) and paths under it; some clients
        encode an id before they encode the whole scope."""
        if not segments:
            return ()
        if segments[0].lower() == self._events:
            return (*EVENTS_PATH.split("/"), *segments[1:])
        ref = _ref(segments)
        if ref is None:
            return segments
        known = await self._known_spelling(ref)
        return (*known.path.split("/"), *segments[len(ref.path.split("/")) :])

    async def _known_spelling(self, ref: Ref) -> Ref:
        """`ref`, or what it decodes to if only that exists.

        Exact first: `a%41` is a legal id, and a token for it must not open the device `aA`."""
        decoded = Ref(unquote(ref.device_id), unquote(ref.module_id))
        if decoded == ref or await self._registry.lookup(ref) is not None:
            return ref
        return decoded if await self._registry.lookup(decoded) is not None else ref

    def _expired(self, expires: float | None) -> bool:
        return expires is not None and self._now() > expires

    def _refuse(self, principal: Principal, resource: str, reason: str) -> None:
        who = principal.policy or str(principal.ref or "the caller")
        if principal.policy:
            message = f"Authorization rule '{who}' does not allow access for '{resource or '/'}'"
        else:
            message = _UNAUTHORIZED
        raise IotHubUnauthorizedAccess(message, reason=f"{who} for '{resource}': {reason}")


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a token claims; nothing of it is proved."""

    token: sas.Token
    scope: sas.Scope
    policy: str
    expires: float


def _signer(token: sas.Token, keys: tuple[str, ...], *, raw_text: bool = False) -> str | None:
    """The key that made the signature.

    A failure costs the same however many keys there are; a success, which shows anyway, ends it:
    a connect with the primary key is spared seven of eight HMACs, a tenth of its CPU."""
    for key in (*keys, _DUMMY, _DUMMY)[: max(2, len(keys))]:
        if sas.verify(token, key, raw_text=raw_text) and key is not _DUMMY:
            return key
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _ref(segments: tuple[str, ...]) -> Ref | None:
    """The identity that a scope names, `devices/{id}[/modules/{id}]…`."""
    if len(segments) < 2 or segments[0].lower() != "devices":
        return None
    if len(segments) >= 4 and segments[2].lower() == "modules":
        return Ref(segments[1], segments[3])
    return Ref(segments[1])


def _names(segments: tuple[str, ...], ref: Ref) -> bool:
    """Whether a scope that `ref`'s own key signed is for `ref` or something wider or narrower.

    Some clients encode an id before the whole scope, so an id also counts as what it decodes to:
    the key has shown already whose token it is."""
    own = ref.path.split("/")
    return all(
        have.lower() == want.lower() if index % 2 == 0 else want in (have, unquote(have))
        for index, (have, want) in enumerate(zip(segments, own, strict=False))
    ) and (bool(ref.module_id) or len(segments) < 3 or segments[2].lower() != "modules")


def _covers(scope: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether `path` lies at or below `scope`: ids exactly, the fixed words in any case."""
    if len(path) < len(scope):
        return False
    ids = _IDS_AT.get(path[0].lower(), ()) if path else ()
    return all(
        have == want or (index not in ids and have.lower() == want.lower())
        for index, (have, want) in enumerate(zip(scope, path, strict=False))
    )


_IDS_AT = {
    "devices": (1, 3),  # devices/{id}/modules/{id}
    "twins": (1, 3),
    "digitaltwins": (1,),
    "configurations": (1,),
    "jobs": (1, 2),  # jobs/{id}, jobs/v2/{id}
}
"""Where ids stand in a path, by the word that it begins with."""


def _owns(ref: Ref, path: tuple[str, ...]) -> bool:
    own = tuple(ref.path.split("/"))
    if not _covers(own, path):
        return False
    return bool(ref.module_id) or len(path) < 3 or path[2].lower() != "modules"


def _auth_method(scope: str) -> str:
    """In the key order and the spelling that consumers have seen Azure write."""
    return f'{{"scope":"{scope}","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}}'
