"""Twins: each identity's desired and reported properties and tags, with versions and metadata.

Rules that hold here (service-apis reference §2, device-protocols reference §1.9):

- A write is one unit of work: it merges, checks the limits on the result, and stores, or changes
  nothing at all.
- `version` counts every write. The ETag changes with tags and desired properties only, so that a
  device that reports does not make a back end's If-Match fail.
- Each accepted patch of a section raises that section's `$version` by one. A back end's patch that
  names nothing in a section leaves the section alone.
- Whoever watches a twin hears of desired properties after the commit and in the order of
  `$version`: a back end's writes of one twin go one after another, and one that has begun runs to
  its end even if who asked has gone. A device's reads go between them, so that what it gets is
  never older than what it was told.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import structlog

from mooring.errors import (
    ArgumentInvalid,
    PreconditionFailed,
    SystemModuleModifyUnauthorizedAccess,
)

from . import etags, json_text
from .identity import SYSTEM_MODULES, Identity, Ref
from .lookup import known
from .presence import Status
from .settings import HubSettings
from .timestamps import NEVER, iso
from .twin_limits import check_depth, check_section
from .twin_patch import Json, merge, without_reserved

if TYPE_CHECKING:
    from .state import State, Tx

log = structlog.get_logger(__name__)

Watcher = Callable[[int, bytes], None]
"""Called with the new `$version` and the JSON text of the patch, which includes it."""

# A reported patch is at most this many times as long as what it may say: escapes and white space.
_TEXT_FACTOR: Final = 8


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """One twin as stored. `*_meta` mirrors its section with `$lastUpdated` (and, for desired,
    `$lastUpdatedVersion`), see the service-apis reference §2.2. Treat the dicts as immutable."""

    device_id: str
    module_id: str = ""
    etag: int = 1  # bumps on tags and desired writes
    version: int = 2  # bumps on every write
    model_id: str = ""
    tags: Json = {}
    desired: Json = {}
    desired_meta: Json = {}
    desired_version: int = 1
    reported: Json = {}
    reported_meta: Json = {}
    reported_version: int = 1


def new_twin(ref: Ref, at: int) -> Twin:
    """The twin that an identity begins with; `at` is the time of its creation in ms."""
    stamp = {"$lastUpdated": iso(at)}
    return Twin(
        device_id=ref.device_id,
        module_id=ref.module_id,
        desired_meta=stamp,
        reported_meta=stamp,
    )


class _Change(NamedTuple):
    """What a back end asks of one section."""

    patch: Json | None  # None clears it
    whole: bool  # the patch is the new section


class _Turn:
    """The order of the writes of one twin."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Twins:
    """The twins of one hub."""

    def __init__(
        self,
        state: "State",
        settings: HubSettings,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._settings = settings
        self._now = now
        self._watchers: dict[Ref, list[Watcher]] = {}
        self._turns: dict[Ref, _Turn] = {}
        self._writing: set[asyncio.Task[Twin]] = set()
        self.counts = Counter(read=0, changed=0, reported=0)
        """Reads, back ends' changes and devices' patches since the start, for the metrics."""

    async def close(self) -> None:
        """Wait for the writes that have begun."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def get(self, ref: Ref) -> Twin:
        """The twin. Raises DeviceNotFound, ModuleNotFound."""
        self.counts["read"] += 1
        return await self._state.read(lambda tx: _stored(tx, ref))

    async def device_view(self, ref: Ref) -> bytes:
        """What a device gets of its twin: `{"desired":{…,"$version":n},"reported":{…}}`."""
        # In its turn, or a notification could overtake what was read before it.
        async with self._turn(ref):
            twin = await self.get(ref)
        return msgspec.json.encode(
            {
                "desired": {**twin.desired, "$version": twin.desired_version},
                "reported": {**twin.reported, "$version": twin.reported_version},
            }
        )

    async def patch(self, ref: Ref, patch: Json, *, if_match: str | None = None) -> Twin:
        """A back end's merge of `{"tags":…,"properties":{"desired":…}}`; other keys are ignored.

        Raises DeviceNotFound, ModuleNotFound, PreconditionFailed (ETag), ArgumentInvalid, and
        SystemModuleModifyUnauthorizedAccess for the modules that only deployments change."""
        return await self._change(ref, patch, if_match, whole=False)

    async def replace(self, ref: Ref, document: Json, *, if_match: str | None = None) -> Twin:
        """The same, but the sections that `document` has take the place of what was there."""
        return await self._change(ref, document, if_match, whole=True)

    async def patch_reported(self, ref: Ref, patch: bytes, base_version: int | None = None) -> int:
        """Merge a device's patch, JSON text, into its reported properties; the new `$version`.

        Raises DeviceNotFound, ModuleNotFound, ArgumentInvalid, and PreconditionFailed if
        `base_version` is given and is not the current `$version`."""
        settings = self._settings
        item = json_text.parse_object(patch, max_bytes=_TEXT_FACTOR * settings.max_properties)
        item = without_reserved(item)
        check_depth("reported", item, settings)
        stamp = {"$lastUpdated": iso(self._ms())}

        def unit(tx: "Tx") -> int:
            twin = _stored(tx, ref)
            if base_version is not None and base_version != twin.reported_version:
                raise PreconditionFailed(
                    f"The version of the reported properties is {twin.reported_version},"
                    f" not {base_version}."
                )
            reported, meta = merge(twin.reported, twin.reported_meta, item, stamp)
            check_section("reported", reported, settings)
            twin = msgspec.structs.replace(
                twin,
                version=twin.version + 1,
                reported=reported,
                reported_meta=meta,
                reported_version=twin.reported_version + 1,
            )
            tx.put_twin(twin)
            return twin.reported_version

        version = await self._state.write(unit)
        self.counts["reported"] += 1
        return version

    async def set_model_id(self, ref: Ref, model_id: str) -> None:
        """Note the model that a connection announced; costs no write if it is the same."""
        if (await self.get(ref)).model_id == model_id:
            return

        def unit(tx: "Tx") -> None:
            tx.put_twin(msgspec.structs.replace(_stored(tx, ref), model_id=model_id))

        await self._state.write(unit)

    def watch(self, ref: Ref, callback: Watcher) -> Callable[[], None]:
        """Call `callback` after each change of desired properties; returns how to stop that."""
        self._watchers.setdefault(ref, []).append(callback)

        def stop() -> None:
            watchers = self._watchers.get(ref, [])
            if callback in watchers:
                watchers.remove(callback)
            if not watchers:
                self._watchers.pop(ref, None)

        return stop

    async def _change(self, ref: Ref, document: Json, if_match: str | None, *, whole: bool) -> Twin:
        if ref.module_id in SYSTEM_MODULES:
            raise SystemModuleModifyUnauthorizedAccess(
                f"The twin of {ref.module_id} is changed by deployments only."
            )
        properties = document.get("properties")
        tags = _change_of("tags", document, whole, self._settings)
        desired = _change_of("desired", _object("properties", properties), whole, self._settings)
        # Shielded: a client that hangs up while the commit runs must not cost the device its
        # notification.
        task = asyncio.create_task(self._change_in_turn(ref, tags, desired, if_match))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return await asyncio.shield(task)

    async def _change_in_turn(
        self, ref: Ref, tags: _Change | None, desired: _Change | None, if_match: str | None
    ) -> Twin:
        settings, at = self._settings, iso(self._ms())

        def unit(tx: "Tx") -> tuple[Twin, Json | None]:
            twin = _stored(tx, ref)
            etags.require(if_match, etags.twin_etag(twin.etag))
            if tags is None and desired is None:
                return twin, None
            changed, notice = _changed(twin, tags, desired, at)
            if tags is not None:
                check_section("tags", changed.tags, settings)
            if desired is not None:
                check_section("desired", changed.desired, settings)
            tx.put_twin(changed)
            return changed, notice

        async with self._turn(ref):
            twin, notice = await self._state.write(unit)
            self.counts["changed"] += 1
            if notice is not None:
                self._notify(ref, twin.desired_version, notice)
        return twin

    def _notify(self, ref: Ref, version: int, notice: Json) -> None:
        watchers = self._watchers.get(ref)
        if not watchers:
            return
        text = msgspec.json.encode({**notice, "$version": version})
        for callback in tuple(watchers):
            try:
                callback(version, text)
            except Exception:
                # The write is done; one broken session must not make it look failed.
                log.exception("twin_watcher_failed", device=str(ref))

    @asynccontextmanager
    async def _turn(self, ref: Ref) -> AsyncIterator[None]:
        """First come, first served for one twin; nothing is kept for twins at rest."""
        turn = self._turns.setdefault(ref, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[ref]

    def _ms(self) -> int:
        return int(self._now() * 1000)


def document(twin: Twin, identity: Identity, presence: Status, queued: int) -> Json:
    """The twin as back ends see it (service-apis reference §2.1); `queued` counts its commands."""
    root: Json = {"deviceId": twin.device_id}
    if twin.module_id:
        root["moduleId"] = twin.module_id
    root |= {
        "etag": etags.twin_etag(twin.etag),
        "deviceEtag": identity.etag,
        "status": identity.status,
        "statusReason": identity.status_reason,
        "statusUpdateTime": iso(identity.status_updated),
        "connectionState": "Connected" if presence.connected else "Disconnected",
        "lastActivityTime": iso(presence.active),
        "cloudToDeviceMessageCount": queued,
        "authenticationType": identity.auth_type,
        "x509Thumbprint": {
            "primaryThumbprint": identity.primary_thumbprint,
            "secondaryThumbprint": identity.secondary_thumbprint,
        },
        "modelId": twin.model_id,
        "version": twin.version,
    }
    if twin.tags:
        root["tags"] = twin.tags
    root |= {
        "properties": {
            "desired": _with_metadata(twin.desired, twin.desired_meta, twin.desired_version),
            "reported": _with_metadata(twin.reported, twin.reported_meta, twin.reported_version),
        },
        "capabilities": {"iotEdge": identity.iot_edge},
    }
    if identity.device_scope is not None:
        root["deviceScope"] = identity.device_scope
    root["parentScopes"] = identity.parent_scopes
    return root


def _with_metadata(section: Json, metadata: Json, version: int) -> Json:
    return {
        **section,
        "$metadata": metadata or {"$lastUpdated": NEVER},
        "$version": version,
    }


def _stored(tx: "Tx", ref: Ref) -> Twin:
    known(tx, ref)
    return tx.twin(ref) or Twin(device_id=ref.device_id, module_id=ref.module_id)


def _object(name: str, value: Any) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ArgumentInvalid(f"'{name}' must be a JSON object.")
    return value


def _change_of(name: str, parent: Json, whole: bool, settings: HubSettings) -> _Change | None:
    """What `parent` asks of its section `name`, None if nothing."""
    if name not in parent:
        return None
    if parent[name] is None:
        return _Change(None, whole)
    patch = without_reserved(_object(name, parent[name]))
    check_depth(name, patch, settings)
    return _Change(patch, whole) if patch or whole else None


def _merged(section: Json, metadata: Json, change: _Change, stamp: Json) -> tuple[Json, Json, Json]:
    """The section and metadata after a change, and what watchers are told of it."""
    if change.whole:
        section, metadata = merge({}, {}, change.patch or {}, stamp)
        return section, metadata, section
    patch = dict.fromkeys(section) if change.patch is None else change.patch
    section, metadata = merge(section, metadata, patch, stamp)
    return section, metadata, patch


def _changed(
    twin: Twin, tags: _Change | None, desired: _Change | None, at: str
) -> tuple[Twin, Json | None]:
    """The twin after a back end's write, and what its watchers are told, None for nothing."""
    twin = msgspec.structs.replace(twin, etag=twin.etag + 1, version=twin.version + 1)
    notice = None
    if tags is not None:
        twin = msgspec.structs.replace(twin, tags=_merged(twin.tags, {}, tags, {})[0])
    if desired is not None:
        version = twin.desired_version + 1
        stamp = {"$lastUpdated": at, "$lastUpdatedVersion": version}
        section, metadata, notice = _merged(twin.desired, twin.desired_meta, desired, stamp)
        twin = msgspec.structs.replace(
            twin, desired=section, desired_meta=metadata, desired_version=version
        )
    return twin, notice
