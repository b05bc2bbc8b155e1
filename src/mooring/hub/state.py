"""The port to durable state: units of work over one hub's identities, twins, policies and queues.

Rules. A unit is a plain function of a `Tx`; it runs in a thread of the store's, several units to
a commit, each under a savepoint: what it raises undoes it alone. `write` returns when the commit
is on disk. A unit must not touch anything but its `Tx` and its arguments, since it runs outside
the event loop, and must not keep the `Tx`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    # The entities' modules hold what is done with them too, and import this port for that.
    from .commands import Command, FeedbackRecord
    from .identity import Identity, Ref
    from .policies import Policy
    from .twins import Twin

T = TypeVar("T")


class Counts(NamedTuple):
    """How many devices (modules do not count) the registry holds."""

    total: int
    enabled: int
    disabled: int


class Tx(Protocol):
    """What a unit of work can do. Getters return None where there is no such row."""

    # identities
    def identity(self, ref: Ref) -> Identity | None: ...
    def put_identity(self, identity: Identity) -> None:
        """Insert or replace."""

    def delete_identity(self, ref: Ref) -> bool:
        """Delete it with its twin, queue and feedback; a device takes its modules along."""

    def devices(self, limit: int, after: str = "") -> list[Identity]:
        """Devices by ascending id, those above `after` only."""

    def modules(self, device_id: str) -> list[Identity]: ...
    def counts(self) -> Counts: ...

    # twins
    def twin(self, ref: Ref) -> Twin | None: ...
    def put_twin(self, twin: Twin) -> None: ...

    # policies
    def policies(self) -> list[Policy]: ...
    def put_policy(self, policy: Policy) -> None: ...
    def delete_policy(self, name: str) -> bool: ...

    # cloud-to-device queues
    def enqueue(self, command: Command) -> Command:
        """Append; returns it with its sequence number."""

    def commands(self, ref: Ref, limit: int, after: int = 0) -> list[Command]:
        """Oldest first, those with a sequence number above `after` only."""

    def command(self, ref: Ref, sequence: int) -> Command | None: ...
    def put_command(self, command: Command) -> None:
        """Replace the one with the same ref and sequence number."""

    def delete_command(self, ref: Ref, sequence: int) -> bool: ...
    def queue_depth(self, ref: Ref) -> int: ...
    def expired_commands(self, now: int, limit: int) -> list[Command]: ...

    # feedback
    def add_feedback(self, record: FeedbackRecord) -> None: ...
    def feedback(self, limit: int, after: int = 0) -> list[FeedbackRecord]: ...
    def put_feedback(self, record: FeedbackRecord) -> None: ...
    def delete_feedback(self, ids: list[int]) -> None: ...
    def expire_feedback(self, now: int) -> int:
        """Drop those past their time; returns how many."""

    # last known connection state: {ref: (connected, changed ms, last activity ms)}
    def presence(self, ref: Ref) -> tuple[bool, int, int] | None: ...
    def put_presence(self, rows: dict[Ref, tuple[bool, int, int]]) -> None:
        """Rows of identities that are gone are left out."""

    def reset_presence(self, now: int) -> None:
        """After a start nothing is connected."""

    # small named values of this hub, JSON text (consumer groups live under "consumer-groups")
    def setting(self, name: str) -> str | None: ...
    def put_setting(self, name: str, value: str) -> None: ...
    def delete_setting(self, name: str) -> bool: ...


class State(Protocol):
    """One hub's durable state."""

    async def write(self, unit: Callable[[Tx], T]) -> T:
        """Run and commit; raises what the unit raised, or `Unavailable` if the commit failed."""

    async def read(self, unit: Callable[[Tx], T]) -> T:
        """Run on a consistent snapshot, which includes every write that has returned."""
