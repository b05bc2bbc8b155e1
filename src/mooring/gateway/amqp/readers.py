"""Who reads which partition of which consumer group: epochs, stealing and the limit.

Rules (device-protocols reference §7.2):

- A receiver with an epoch owns its partition in its group: it detaches every receiver there of the
  same or a lower epoch, or of none, and keeps out those of a lower epoch and those without.
- Without an epoch, at most MAX_RECEIVERS read side by side.
"""

from typing import Final, Protocol

from mooring.errors import HubError
from mooring.gateway.amqp.refusals import ReceiverStolen, TooManyReceivers

MAX_RECEIVERS: Final = 5

Place = tuple[str, str, int]  # hub, consumer group (lower case), partition


class Reader(Protocol):
    """A receiver; hashed by identity."""

    epoch: int | None

    def detach(self, error: HubError) -> None:
        """End it; it leaves by itself."""


class Readers:
    """All receivers of a server."""

    def __init__(self) -> None:
        self._at: dict[Place, set[Reader]] = {}

    def enter(self, place: Place, reader: Reader) -> None:
        """Let a reader in, detaching those that it displaces.

        Raises ReceiverStolen, TooManyReceivers."""
        present = self._at.get(place, set())
        owner = next((one.epoch for one in present if one.epoch is not None), None)
        if owner is not None and (reader.epoch is None or reader.epoch < owner):
            raise ReceiverStolen(
                f"A receiver with a higher epoch of '{owner}' already exists. A new receiver with"
                f" epoch '{reader.epoch or 0}' cannot be created: reconnect with a higher epoch."
            )
        if reader.epoch is None:
            if len(present) >= MAX_RECEIVERS:
                raise TooManyReceivers(
                    f"The partition has {MAX_RECEIVERS} receivers in this consumer group, which"
                    " is the most without an epoch."
                )
        else:
            for one in tuple(present):
                self.leave(place, one)
                one.detach(
                    ReceiverStolen(
                        f"New receiver with higher epoch of '{reader.epoch}' is created, hence the"
                        f" receiver with epoch '{one.epoch or 0}' is getting disconnected."
                    )
                )
        self._at.setdefault(place, set()).add(reader)

    def leave(self, place: Place, reader: Reader) -> None:
        """The reader has gone; harmless if it was displaced."""
        present = self._at.get(place)
        if present is not None:
            present.discard(reader)
            if not present:
                del self._at[place]
