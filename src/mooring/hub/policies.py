"""Shared access policies: named hub-level keys and the rights that they grant.

Rules. All policies are in memory, since every back end's request asks for one; memory changes
after the commit. Whoever holds a key of a policy that changes is looked at again before the
change is reported done.
"""

import asyncio
import enum
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from mooring.errors import ArgumentInvalid, GenericNotFound

from .identity import check_key, new_key
from .state import State, Tx

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9!._-]{1,64}")
SLOTS = ("primary", "secondary", "both", "swap")


class Right(enum.Flag):
    """What a credential may do (service-apis reference §10.1). Write implies read."""

    REGISTRY_READ = enum.auto()
    REGISTRY_WRITE = enum.auto()
    SERVICE_CONNECT = enum.auto()
    DEVICE_CONNECT = enum.auto()


ALL_RIGHTS = (
    Right.REGISTRY_READ | Right.REGISTRY_WRITE | Right.SERVICE_CONNECT | Right.DEVICE_CONNECT
)

_RIGHT_NAMES = {
    Right.REGISTRY_READ: "RegistryRead",
    Right.REGISTRY_WRITE: "RegistryWrite",
    Right.SERVICE_CONNECT: "ServiceConnect",
    Right.DEVICE_CONNECT: "DeviceConnect",
}

DEFAULTS = {
    "iothubowner": Right.REGISTRY_WRITE | Right.SERVICE_CONNECT | Right.DEVICE_CONNECT,
    "service": Right.SERVICE_CONNECT,
    "device": Right.DEVICE_CONNECT,
    "registryRead": Right.REGISTRY_READ,
    "registryReadWrite": Right.REGISTRY_WRITE,
}
"""The policies that a hub starts with."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One shared access policy; keys are base64 text of 32 random bytes."""

    name: str
    rights: int  # Right.value
    primary_key: str
    secondary_key: str

    def __repr__(self) -> str:
        # The derived one would print the keys.
        return f"Policy({self.name!r}, {format_rights(Right(self.rights))!r})"

    @property
    def granted(self) -> Right:
        """Its rights, those implied included."""
        rights = Right(self.rights)
        return rights | Right.REGISTRY_READ if Right.REGISTRY_WRITE in rights else rights


def format_rights(rights: Right) -> str:
    """`RegistryWrite, ServiceConnect, DeviceConnect`, as Azure's control plane writes them."""
    return ", ".join(name for right, name in _RIGHT_NAMES.items() if right in rights)


def parse_rights(text: str) -> Right:
    """The reverse, in any case. Raises ArgumentInvalid for an unknown name and for no right."""
    by_name = {name.lower(): right for right, name in _RIGHT_NAMES.items()}
    rights = Right(0)
    for part in text.split(","):
        right = by_name.get(part.strip().lower())
        if right is None:
            raise ArgumentInvalid(f"Unknown right; there are {', '.join(_RIGHT_NAMES.values())}")
        rights |= right
    return rights


class Policies:
    """The policies of one hub."""

    def __init__(self, state: State, *, limit: int = 100) -> None:
        self.changed: Callable[[str], Awaitable[None]] = _nobody
        """Called with a policy's name after each committed change; set by `revocation`."""
        self._state = state
        self._limit = limit
        self._by_name: dict[str, Policy] = {}
        # One writer at a time: memory then follows commits in their order.
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Load them; on a first start, make the defaults with fresh keys."""

        def unit(tx: Tx) -> list[Policy]:
            found = tx.policies()
            if not found:
                found = [_fresh(name, rights) for name, rights in DEFAULTS.items()]
                for policy in found:
                    tx.put_policy(policy)
            return found

        self._by_name = {policy.name: policy for policy in await self._state.write(unit)}

    async def close(self) -> None:
        """Wait for the writes that have begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def get(self, name: str) -> Policy | None:
        """A policy by its exact name."""
        return self._by_name.get(name)

    def all(self) -> list[Policy]:
        """All of them, by name."""
        return sorted(self._by_name.values(), key=lambda policy: policy.name)

    async def put(
        self,
        name: str,
        rights: Right,
        *,
        primary_key: str | None = None,
        secondary_key: str | None = None,
    ) -> Policy:
        """Create or change one; keys that are not given are kept, or made for a new one.

        Raises ArgumentInvalid for a bad name or key, no rights, or one policy too many."""
        if _NAME.fullmatch(name) is None:
            raise ArgumentInvalid(
                "A policy's name must be 1 to 64 characters of A-Z, a-z, 0-9 and !._-"
            )
        if not rights:
            raise ArgumentInvalid("A policy must grant at least one right")
        for key in (primary_key, secondary_key):
            if key:
                check_key(key)

        async def write() -> Policy:
            old = self._by_name.get(name)
            if old is None and len(self._by_name) >= self._limit:
                raise ArgumentInvalid(f"A hub has at most {self._limit} policies")
            base = old or _fresh(name, rights)
            return await self._store(
                msgspec.structs.replace(
                    base,
                    rights=rights.value,
                    primary_key=primary_key or base.primary_key,
                    secondary_key=secondary_key or base.secondary_key,
                )
            )

        return await self._alone(write())

    async def regenerate(self, name: str, slot: str) -> Policy:
        """Give it a new `primary` or `secondary` key, `both`, or `swap` the two.

        Raises GenericNotFound, and ArgumentInvalid for another slot."""
        if slot not in SLOTS:
            raise ArgumentInvalid(f"A key slot is one of {', '.join(SLOTS)}")

        async def write() -> Policy:
            old = self._existing(name)
            primary, secondary = old.primary_key, old.secondary_key
            if slot == "swap":
                primary, secondary = secondary, primary
            if slot in ("primary", "both"):
                primary = new_key()
            if slot in ("secondary", "both"):
                secondary = new_key()
            return await self._store(
                msgspec.structs.replace(old, primary_key=primary, secondary_key=secondary)
            )

        return await self._alone(write())

    async def delete(self, name: str) -> None:
        """Remove one. Raises GenericNotFound."""

        async def write() -> None:
            self._existing(name)
            await self._state.write(lambda tx: tx.delete_policy(name))
            del self._by_name[name]
            await self.changed(name)

        await self._alone(write())

    def _existing(self, name: str) -> Policy:
        policy = self._by_name.get(name)
        if policy is None:
            raise GenericNotFound("There is no policy of this name")
        return policy

    async def _store(self, policy: Policy) -> Policy:
        await self._state.write(lambda tx: tx.put_policy(policy))
        self._by_name[policy.name] = policy
        await self.changed(policy.name)
        return policy

    async def _alone(self, work: Coroutine[Any, Any, T]) -> T:
        async def locked() -> T:
            async with self._writing:
                return await work

        # Shielded: whoever asked may go away between the commit and what follows from it.
        task = asyncio.create_task(locked())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


async def _nobody(name: str) -> None:
    pass


def _fresh(name: str, rights: Right) -> Policy:
    return Policy(name=name, rights=rights.value, primary_key=new_key(), secondary_key=new_key())
