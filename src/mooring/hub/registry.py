"""The registry: which devices and modules exist, and how each proves itself.

Rules:

- A write is one unit of work that checks everything before it changes anything. What follows from
  it (the cache forgets, sessions that no longer hold end) happens before the write is reported
  done, also when whoever asked has gone away, also when the commit's outcome is unknown.
- An update replaces the entry, save what the server sets and what would do harm if it were lost
  by leaving it out: clients of other ages do not know all fields. So an update that says nothing
  about authentication, status, IoT Edge or scopes keeps them.
- Identities are found by exact, case-sensitive id.
- `lookup` serves connects: a bounded cache of what is, and one of what is not. A write removes
  entries and never stores any, and a load that a write overtook is not stored, so that nothing
  stale comes back.
- Keys are in no message, log or repr.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from mooring.errors import (
    ArgumentInvalid,
    DeviceAlreadyExists,
    InvalidDeviceScope,
    ModuleAlreadyExistsOnDevice,
    SystemModuleModifyUnauthorizedAccess,
    TooManyModulesOnDevice,
)

from . import etags
from .identity import (
    AUTH_TYPES,
    EDGE_SCOPE_PREFIX,
    MAX_STATUS_REASON,
    SYSTEM_MODULES,
    Identity,
    Ref,
    check_id,
    check_key,
    new_key,
    normal_thumbprint,
    ticks,
)
from .lookup import absent, known
from .presence import Presence, Status
from .settings import HubSettings
from .state import Counts, State, Tx
from .subscriptions import setting_name
from .twins import new_twin

T = TypeVar("T")

MAX_PAGE = 1000
"""Devices in one list; there is no continuation (service-apis reference §1.3)."""

SLOTS = ("primary", "secondary", "both")
STATUSES = ("enabled", "disabled")


class IdentityRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller wants an identity to be. None says nothing: a new identity gets the default
    (enabled, automatic keys), an old one keeps what it has. Empty keys count as none; "" and []
    clear scopes."""

    device_id: str
    module_id: str = ""
    status: str | None = None
    status_reason: str | None = None
    auth_type: str | None = None
    primary_key: str | None = None
    secondary_key: str | None = None
    primary_thumbprint: str | None = None
    secondary_thumbprint: str | None = None
    managed_by: str | None = None
    iot_edge: bool | None = None
    device_scope: str | None = None
    parent_scopes: list[str] | None = None

    def __repr__(self) -> str:
        # The derived one would print the keys.
        return f"IdentityRequest({str(self.ref)!r})"

    @property
    def ref(self) -> Ref:
        return Ref(self.device_id, self.module_id)


class Described(NamedTuple):
    """An identity with what is known of it elsewhere."""

    identity: Identity
    presence: Status
    queued: int
    """Commands in its queue."""


class Registry:
    """The identities of one hub."""

    def __init__(
        self,
        state: State,
        presence: Presence,
        settings: HubSettings,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.changed: Callable[[str], Awaitable[None]] = _nobody
        """Called with a device's id after each change of it or its modules; see `revocation`."""
        self._state = state
        self._presence = presence
        self._settings = settings
        self._now = now
        self._last_ticks = 0
        self._found: _Recent[Identity] = _Recent(settings.identity_cache)
        self._absent: _Recent[bool] = _Recent(settings.identity_cache)
        self._loading: dict[Ref, asyncio.Task[Identity | None]] = {}
        self._writing: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the writes that have begun."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    # Reading

    async def lookup(self, ref: Ref) -> Identity | None:
        """An identity as of the last committed write or so; the hot path of connects.

        May be one write behind only while that write is not reported done."""
        identity = self._found.get(ref)
        if identity is not None:
            return identity
        # Strangers choose what is absent: what is remembered of it is no longer than an id.
        if self._absent.get(ref) or not ref.is_possible:
            return None
        task = self._loading.get(ref)
        if task is None:
            task = asyncio.create_task(self._load(ref))
            self._loading[ref] = task
        return await asyncio.shield(task)

    def remembers(self, ref: Ref) -> bool:
        """Whether `lookup` would answer from memory, that it is there or that it is not."""
        return ref in self._found or ref in self._absent

    async def reread(self, ref: Ref) -> None:
        """Do what a `lookup` of something not remembered costs, for `access` to hide which."""
        await self._state.read(lambda tx: tx.identity(ref))

    async def get(self, ref: Ref) -> Identity:
        """An identity as stored. Raises DeviceNotFound, ModuleNotFound."""
        return await self._state.read(lambda tx: _known(tx, ref))

    async def devices(self, top: int = MAX_PAGE) -> list[Identity]:
        """Devices by id; a `top` outside of 1 to 1000 means 1000."""
        limit = top if 1 <= top <= MAX_PAGE else MAX_PAGE
        return await self._state.read(lambda tx: tx.devices(limit))

    async def modules(self, device_id: str) -> list[Identity]:
        """A device's modules by id. Raises DeviceNotFound."""

        def unit(tx: Tx) -> list[Identity]:
            _known(tx, Ref(device_id))
            return tx.modules(device_id)

        return await self._state.read(unit)

    async def counts(self) -> Counts:
        """How many devices there are."""
        return await self._state.read(lambda tx: tx.counts())

    async def describe(self, identities: Sequence[Identity]) -> list[Described]:
        """The identities with their presence and the depth of their queues."""
        refs = [identity.ref for identity in identities]
        depths = await self._state.read(lambda tx: [tx.queue_depth(ref) for ref in refs])
        seen = await self._presence.many(refs)
        return [
            Described(identity, seen[identity.ref], depth)
            for identity, depth in zip(identities, depths, strict=True)
        ]

    # Writing

    async def create(self, request: IdentityRequest) -> Identity:
        """Register a new identity with its twin.

        Raises ArgumentInvalid, DeviceAlreadyExists, ModuleAlreadyExistsOnDevice,
        DeviceNotFound (of a module), TooManyModulesOnDevice, InvalidDeviceScope,
        SystemModuleModifyUnauthorizedAccess."""
        ready = self._prepared(request)
        return await self._write([request.ref], lambda tx: self._create(tx, ready))

    async def update(self, request: IdentityRequest, *, if_match: str | None = None) -> Identity:
        """Replace an entry. `if_match` as in the header; None and "*" match any.

        Raises ArgumentInvalid, DeviceNotFound, ModuleNotFound, PreconditionFailed,
        InvalidDeviceScope, SystemModuleModifyUnauthorizedAccess."""
        ready = self._prepared(request)
        return await self._write([request.ref], lambda tx: self._update(tx, ready, if_match))

    async def put(self, request: IdentityRequest, *, if_match: str | None = None) -> Identity:
        """Create or, if it is there and `if_match` fits it, update."""
        ready = self._prepared(request)

        def unit(tx: Tx) -> Identity:
            if tx.identity(request.ref) is None:
                return self._create(tx, ready)
            return self._update(tx, ready, if_match)

        return await self._write([request.ref], unit)

    async def delete(self, ref: Ref, *, if_match: str | None = None) -> None:
        """Remove it with its modules, twin, queue, pending feedback and kept subscriptions.

        Raises DeviceNotFound, ModuleNotFound, PreconditionFailed,
        SystemModuleModifyUnauthorizedAccess."""
        _refuse_system_module(ref)

        def unit(tx: Tx) -> list[Ref]:
            identity = _known(tx, ref)
            etags.require(if_match, identity.etag)
            gone = [ref]
            if not ref.module_id:
                gone += [module.ref for module in tx.modules(ref.device_id)]
            tx.delete_identity(ref)
            for one in gone:
                tx.delete_setting(setting_name(one))
            return gone

        async def write() -> None:
            gone = [ref]
            try:
                gone = await self._state.write(unit)
            finally:
                self._forget(gone)
                await self.changed(ref.device_id)
            for one in gone:
                self._presence.forget(one)

        await self._finish(write())

    async def regenerate_keys(
        self, ref: Ref, slot: str, *, if_match: str | None = None
    ) -> Identity:
        """A new key in the slot `primary` or `secondary`, or in `both`.

        Raises ArgumentInvalid (slot, or an identity without keys) and what `update` raises."""
        if slot not in SLOTS:
            raise ArgumentInvalid(f"A key slot is one of {', '.join(SLOTS)}")
        primary = new_key() if slot in ("primary", "both") else None
        secondary = new_key() if slot in ("secondary", "both") else None

        def unit(tx: Tx) -> Identity:
            old = _known(tx, ref)
            etags.require(if_match, old.etag)
            if old.auth_type != "sas":
                raise ArgumentInvalid(f"{ref} does not authenticate with symmetric keys")
            identity = msgspec.structs.replace(
                old,
                version=old.version + 1,
                primary_key=primary or old.primary_key,
                secondary_key=secondary or old.secondary_key,
            )
            tx.put_identity(identity)
            return identity

        return await self._write([ref], unit)

    # Inside of a unit: plain functions of the Tx, run in a thread of the store's

    def _create(self, tx: Tx, ready: "_Prepared") -> Identity:
        ref = ready.request.ref
        if ref.module_id:
            device = _known(tx, Ref(ref.device_id))
            if tx.identity(ref) is not None:
                raise ModuleAlreadyExistsOnDevice(str(ref))
            own = [one for one in tx.modules(device.device_id) if not _is_system(one.ref)]
            if len(own) >= self._settings.max_modules:
                raise TooManyModulesOnDevice(
                    f"A device has at most {self._settings.max_modules} modules"
                )
        elif tx.identity(ref) is not None:
            raise DeviceAlreadyExists(ref.device_id)
        identity = _filled(
            ready,
            Identity(
                device_id=ref.device_id,
                module_id=ref.module_id,
                generation_id=str(ready.ticks),
                version=ready.first_version,
                primary_key=ready.spare_keys[0],
                secondary_key=ready.spare_keys[1],
            ),
        )
        identity = _with_scopes(tx, ready, identity, None)
        tx.put_identity(identity)
        tx.put_twin(new_twin(ref, ready.at))
        if identity.iot_edge:
            _add_system_modules(tx, ready)
        return identity

    def _update(self, tx: Tx, ready: "_Prepared", if_match: str | None) -> Identity:
        old = _known(tx, ready.request.ref)
        etags.require(if_match, old.etag)
        identity = _with_scopes(tx, ready, _filled(ready, old), old)
        identity = msgspec.structs.replace(
            identity,
            version=old.version + 1,
            status_updated=ready.at if identity.status != old.status else old.status_updated,
        )
        tx.put_identity(identity)
        if identity.iot_edge and not old.iot_edge:
            _add_system_modules(tx, ready)
        if old.iot_edge and not identity.iot_edge:
            for module_id in SYSTEM_MODULES:
                tx.delete_identity(Ref(old.device_id, module_id))
        return identity

    def _prepared(self, request: IdentityRequest) -> "_Prepared":
        _refuse_system_module(request.ref)
        at = int(self._now() * 1000)
        self._last_ticks = max(ticks(at), self._last_ticks + 1)
        return _Prepared(
            request=_checked(request),
            at=at,
            ticks=self._last_ticks,
            # Not from 1: an ETag from before a deletion must not fit what was made anew.
            first_version=secrets.randbelow(2**30) + 1,
            spare_keys=(new_key(), new_key(), new_key(), new_key(), new_key(), new_key()),
        )

    # What follows from a write

    async def _write(self, refs: Iterable[Ref], unit: Callable[[Tx], T]) -> T:
        touched = list(refs)

        async def write() -> T:
            try:
                return await self._state.write(unit)
            finally:
                # System modules come and go with their device.
                for device_id in {ref.device_id for ref in touched}:
                    self._forget([Ref(device_id, module_id) for module_id in SYSTEM_MODULES])
                self._forget(touched)
                for device_id in {ref.device_id for ref in touched}:
                    await self.changed(device_id)

        return await self._finish(write())

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        # Shielded: whoever asked may go away between the commit and what follows from it.
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return await asyncio.shield(task)

    def _forget(self, refs: Iterable[Ref]) -> None:
        for ref in refs:
            self._found.pop(ref)
            self._absent.pop(ref)
            self._loading.pop(ref, None)

    async def _load(self, ref: Ref) -> Identity | None:
        task = asyncio.current_task()
        try:
            identity = await self._state.read(lambda tx: tx.identity(ref))
            if self._loading.get(ref) is task:
                if identity is None:
                    self._absent.put(ref, True)
                else:
                    self._found.put(ref, identity)
            return identity
        finally:
            if self._loading.get(ref) is task:
                del self._loading[ref]


class _Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request with all that a unit needs and may not fetch itself (clock, chance)."""

    request: IdentityRequest
    at: int
    ticks: int
    first_version: int
    spare_keys: tuple[str, ...]

    def __repr__(self) -> str:
        # The derived one would print the keys.
        return f"_Prepared({self.request!r})"


class _Recent(Generic[T]):
    """The entries that were asked for last, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[Ref, T] = OrderedDict()

    def get(self, ref: Ref) -> T | None:
        entry = self._entries.get(ref)
        if entry is not None:
            self._entries.move_to_end(ref)
        return entry

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._entries

    def put(self, ref: Ref, entry: T) -> None:
        self._entries[ref] = entry
        self._entries.move_to_end(ref)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def pop(self, ref: Ref) -> None:
        self._entries.pop(ref, None)


async def _nobody(device_id: str) -> None:
    pass


def _known(tx: Tx, ref: Ref) -> Identity:
    """The identity; a module that is missing because its device is, is told as the device."""
    if ref.module_id and tx.identity(Ref(ref.device_id)) is None:
        raise absent(Ref(ref.device_id))
    return known(tx, ref)


def _is_system(ref: Ref) -> bool:
    return ref.module_id in SYSTEM_MODULES


def _refuse_system_module(ref: Ref) -> None:
    if _is_system(ref):
        raise SystemModuleModifyUnauthorizedAccess(
            f"The system module {ref.module_id} is the server's own"
        )


def _checked(request: IdentityRequest) -> IdentityRequest:
    """The request in normal form: no empty texts, thumbprints as stored. Raises ArgumentInvalid."""
    check_id(request.device_id)
    if request.module_id:
        check_id(request.module_id, "moduleId")
    status = request.status.lower() if request.status else None
    if status not in (None, *STATUSES):
        raise ArgumentInvalid("status is either enabled or disabled")
    if request.status_reason is not None and len(request.status_reason) > MAX_STATUS_REASON:
        raise ArgumentInvalid(f"statusReason is longer than {MAX_STATUS_REASON} characters")
    if request.managed_by is not None and len(request.managed_by) > MAX_STATUS_REASON:
        raise ArgumentInvalid(f"managedBy is longer than {MAX_STATUS_REASON} characters")
    if request.module_id and request.iot_edge:
        raise ArgumentInvalid("A module cannot be an IoT Edge device")
    auth_type = request.auth_type
    if auth_type is not None:
        names = {name.lower(): name for name in AUTH_TYPES}
        if auth_type.lower() not in names:
            raise ArgumentInvalid(f"authentication.type is one of {', '.join(AUTH_TYPES)}")
        auth_type = names[auth_type.lower()]
    is_sas, is_self_signed = auth_type == "sas", auth_type == "selfSigned"
    keys = [check_key(key) if key else None for key in (request.primary_key, request.secondary_key)]
    prints = [
        normal_thumbprint(text) if text else None
        for text in (request.primary_thumbprint, request.secondary_thumbprint)
    ]
    if is_sas and (keys[0] is None) != (keys[1] is None):
        raise ArgumentInvalid("Give both symmetric keys, or none to have both generated")
    if is_self_signed and not any(prints):
        raise ArgumentInvalid("selfSigned authentication needs at least one thumbprint")
    return msgspec.structs.replace(
        request,
        status=status,
        auth_type=auth_type,
        # What the type does not use is not kept, else an old key would lie in wait.
        primary_key=keys[0] if is_sas else None,
        secondary_key=keys[1] if is_sas else None,
        primary_thumbprint=prints[0] if is_self_signed else None,
        secondary_thumbprint=prints[1] if is_self_signed else None,
    )


def _filled(ready: _Prepared, base: Identity) -> Identity:
    """`base` with what the caller may set, but for scopes."""
    request = ready.request
    identity = msgspec.structs.replace(
        base,
        status=request.status or base.status,
        status_reason=request.status_reason,
        managed_by=request.managed_by if request.module_id else None,
        iot_edge=base.iot_edge if request.iot_edge is None else request.iot_edge,
    )
    if request.auth_type is None:
        return identity
    generated = request.auth_type == "sas" and request.primary_key is None
    return msgspec.structs.replace(
        identity,
        auth_type=request.auth_type,
        primary_key=ready.spare_keys[0] if generated else request.primary_key,
        secondary_key=ready.spare_keys[1] if generated else request.secondary_key,
        primary_thumbprint=request.primary_thumbprint,
        secondary_thumbprint=request.secondary_thumbprint,
    )


def _with_scopes(tx: Tx, ready: _Prepared, identity: Identity, old: Identity | None) -> Identity:
    """The scopes of IoT Edge's tree: an edge device has one of its own, made once; a leaf has its
    parent's (service-apis reference §1.1)."""
    request = ready.request
    if identity.module_id:
        return msgspec.structs.replace(identity, device_scope=None, parent_scopes=[])
    if identity.iot_edge:
        kept = old.device_scope if old is not None and old.iot_edge else None
        scope = kept or f"{EDGE_SCOPE_PREFIX}{identity.device_id}-{ready.ticks}"
        parents = [parent for parent in request.parent_scopes or () if parent]
        if request.parent_scopes is None and old is not None and old.iot_edge:
            parents = old.parent_scopes
        if len(parents) > 1:
            raise InvalidDeviceScope("A device has at most one parent")
        if scope in parents:
            raise InvalidDeviceScope("A device cannot be its own parent")
    else:
        scope = request.device_scope or ""
        if request.device_scope is None and old is not None and not old.iot_edge:
            scope = old.device_scope or ""
        parents = [scope] if scope else []
    # One that it has already may stay, also when the parent has been deleted since: an update that
    # echoes the entry back must not fail for it.
    for parent in set(parents) - set(old.parent_scopes if old is not None else ()):
        _require_parent(tx, parent, identity.device_id)
    return msgspec.structs.replace(identity, device_scope=scope or None, parent_scopes=parents)


def _require_parent(tx: Tx, scope: str, child: str) -> None:
    parent_id, _, _ = scope.removeprefix(EDGE_SCOPE_PREFIX).rpartition("-")
    parent = tx.identity(Ref(parent_id)) if scope.startswith(EDGE_SCOPE_PREFIX) else None
    if parent is None or not parent.iot_edge or parent.device_scope != scope:
        raise InvalidDeviceScope(
            "The scope is not that of an IoT Edge device of this hub", reason=f"parent of {child}"
        )


def _add_system_modules(tx: Tx, ready: _Prepared) -> None:
    for number, module_id in enumerate(SYSTEM_MODULES):
        ref = Ref(ready.request.device_id, module_id)
        tx.put_identity(
            Identity(
                device_id=ref.device_id,
                module_id=module_id,
                generation_id=str(ready.ticks),
                version=ready.first_version,
                primary_key=ready.spare_keys[2 + 2 * number],
                secondary_key=ready.spare_keys[3 + 2 * number],
                managed_by="iotEdge",
            )
        )
        tx.put_twin(new_twin(ref, ready.at))
