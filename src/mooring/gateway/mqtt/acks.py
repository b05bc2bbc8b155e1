"""PUBACKs in the order of the PUBLISHes that they answer [MQTT-4.6.0-2].

Telemetry is committed in the order it was appended, so that nearly always the oldest ones are due
and nothing has to be looked up. Twin patches and method responses finish by themselves: whatever
finishes early waits here for those before it.
"""

from collections import deque

_PUBACK = b"\x40\x02"


class Acks:
    """The QoS 1 PUBLISHes of one session that are not acknowledged yet.

    A position counts them from the start of the session; packet ids may come again."""

    __slots__ = ("_done", "ids", "next")

    def __init__(self) -> None:
        self.ids: deque[int] = deque()
        """Packet ids, oldest first; the session's hot path appends, and counts `next`, itself."""
        self.next = 0
        """The position of the next PUBLISH."""
        self._done: set[int] = set()

    def __len__(self) -> int:
        return len(self.ids)

    def expect(self, packet_id: int) -> int:
        """A PUBLISH has come; its position."""
        position = self.next
        self.next = position + 1
        self.ids.append(packet_id)
        return position

    def settle(self, positions: list[int]) -> bytes:
        """These, in ascending order, are done: the PUBACKs that are due now, in one piece."""
        ids = self.ids
        first = self.next - len(ids)
        count = len(positions)
        if positions[0] == first and positions[-1] - first == count - 1 and not self._done:
            if count == 1:
                return _PUBACK + ids.popleft().to_bytes(2, "big")
            take = ids.popleft
            return b"".join([_PUBACK + take().to_bytes(2, "big") for _ in positions])
        done = self._done
        done.update(positions)
        due = []
        while first in done:
            done.remove(first)
            due.append(_PUBACK + ids.popleft().to_bytes(2, "big"))
            first += 1
        return b"".join(due)
