"""Bulk registry operations: up to 100 items, each of which succeeds or fails by itself.

Rules (service-apis reference §1.4). An item names a device or a module once. Items are worked off
in order, so that a module may follow its device. A twin that comes with a new identity is written
after it: if that fails the identity stays, and the answer holds a warning instead of an error. A
full disk and a damaged record fail an item like anything else: those before it have been done, and
only an answer can tell which.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from mooring.errors import (
    ArgumentInvalid,
    BulkRegistryOperationFailure,
    DeviceDefinedMultipleTimes,
    GenericRequestEntityTooLarge,
    HubError,
    MooringError,
    hub_error,
)

from .identity import Identity, Ref
from .registry import IdentityRequest, Registry
from .twin_patch import Json
from .twins import Twins

MAX_ITEMS = 100

MODES = (
    "create",
    "update",
    "updateIfMatchETag",
    "delete",
    "deleteIfMatchETag",
    "createOrUpdate",
    "createOrUpdateIfMatchETag",
    "updateTwin",
    "updateTwinIfMatchETag",
)
_MODES = {mode.lower(): mode for mode in MODES}


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. `etag` and `twin_etag` count only for the modes `…IfMatchETag`."""

    mode: str  # any case
    request: IdentityRequest
    etag: str | None = None
    twin_etag: str | None = None
    tags: Json | None = None
    desired: Json | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why one item was not done, or not wholly."""

    ref: Ref
    operation: str
    error: HubError


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a bulk operation. A warning is an identity without the twin it came with."""

    errors: list[Failure]
    warnings: list[Failure]


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a key regeneration."""

    rotated: list[Identity]
    errors: list[Failure]


class Bulk:
    """Bulk operations on one hub's registry."""

    def __init__(self, registry: Registry, twins: Twins) -> None:
        self._registry = registry
        self._twins = twins

    async def run(self, items: Sequence[Item]) -> Outcome:
        """Do them in order. Raises GenericRequestEntityTooLarge for more than 100."""
        _refuse_too_many(len(items))
        outcome = Outcome(errors=[], warnings=[])
        named = Counter(item.request.ref for item in items)
        refused: set[Ref] = set()
        for item in items:
            ref = item.request.ref
            mode = _MODES.get(item.mode.lower(), "")
            try:
                if named[ref] > 1:
                    if ref in refused:
                        continue
                    refused.add(ref)
                    raise DeviceDefinedMultipleTimes(f"{ref} is named more than once")
                if not mode:
                    raise ArgumentInvalid(f"importMode is one of {', '.join(MODES)}")
                warning = await self._do(mode, item)
            except MooringError as error:
                failure = Failure(ref=ref, operation=mode or "unknown", error=hub_error(error))
                outcome.errors.append(failure)
            else:
                if warning is not None:
                    outcome.warnings.append(Failure(ref=ref, operation=mode, error=warning))
        return outcome

    async def regenerate(self, refs: Sequence[Ref], slot: str) -> Rotation:
        """New keys for each. Raises GenericRequestEntityTooLarge, ArgumentInvalid (slot)."""
        _refuse_too_many(len(refs))
        rotation = Rotation(rotated=[], errors=[])
        for ref, times in Counter(refs).items():
            try:
                if times > 1:
                    # Only the last of several new keys would be one.
                    raise DeviceDefinedMultipleTimes(f"{ref} is named more than once")
                rotation.rotated.append(await self._registry.regenerate_keys(ref, slot))
            except MooringError as error:
                failure = Failure(ref=ref, operation="regenerateKeys", error=hub_error(error))
                rotation.errors.append(failure)
        return rotation

    async def _do(self, mode: str, item: Item) -> HubError | None:
        """Returns why the twin of an identity that was written could not be."""
        request = item.request
        match mode:
            case "create":
                await self._registry.create(request)
            case "update":
                await self._registry.update(request)
            case "updateIfMatchETag":
                await self._registry.update(request, if_match=_given(item.etag, "eTag"))
            case "createOrUpdate":
                await self._registry.put(request)
            case "createOrUpdateIfMatchETag":
                await self._registry.put(request, if_match=_given(item.etag, "eTag"))
            case "delete":
                await self._registry.delete(request.ref)
                return None
            case "deleteIfMatchETag":
                await self._registry.delete(request.ref, if_match=_given(item.etag, "eTag"))
                return None
            case "updateTwin":
                await self._twins.patch(request.ref, _twin(item))
                return None
            case "updateTwinIfMatchETag":
                etag = _given(item.twin_etag, "twinETag")
                await self._twins.patch(request.ref, _twin(item), if_match=etag)
                return None
        if item.tags is None and item.desired is None:
            return None
        try:
            await self._twins.replace(request.ref, _twin(item))
        except MooringError as error:
            return hub_error(error)
        return None


def _given(etag: str | None, name: str) -> str:
    if not etag:
        raise ArgumentInvalid(f"This importMode needs {name}")
    return etag


def _twin(item: Item) -> Json:
    document: Json = {}
    if item.tags is not None:
        document["tags"] = item.tags
    if item.desired is not None:
        document["properties"] = {"desired": item.desired}
    return document


def _refuse_too_many(count: int) -> None:
    if count > MAX_ITEMS:
        raise GenericRequestEntityTooLarge(f"At most {MAX_ITEMS} items in one request")
    if count == 0:
        raise BulkRegistryOperationFailure("There is nothing to do")
