"""Cloud-to-device messages of one session: received under a lock, sent, completed by PUBACK.

Rules (device-protocols reference §1.8, §5):

- At most WINDOW messages wait for their PUBACK; the rest stays in the queue.
- At QoS 1 a PUBACK completes a message, at QoS 0 its sending does. MQTT cannot reject or abandon.
- A message is sent once on a connection. If its lock runs out before the PUBACK comes, the PUBACK
  still counts: the message is completed, not sent again, when it is received again.
- When the session ends, what was not acknowledged is free again at once. A client that comes back
  to its session gets it first, with DUP and the packet id that it had [MQTT-4.4.0-1].
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from mooring.errors import DeviceMessageLockLost, MooringError
from mooring.hub.commands import Command, Delivery
from mooring.hub.timestamps import iso
from mooring.wire import mqtt, topics

if TYPE_CHECKING:
    from mooring.hub.commands import Commands
    from mooring.hub.identity import Ref

log = structlog.get_logger(__name__)

WINDOW: Final = 16
_MAX_HAD: Final = 8 * WINDOW  # messages that are remembered, as sent or as acknowledged
_RETRY: Final = 5.0  # seconds after the state could not be read or written


class _Sent(NamedTuple):
    sequence: int
    lock_token: bytes


class Devicebound:
    """The queue of one identity, as one session drains it."""

    __slots__ = (
        "_again",
        "_commands",
        "_completing",
        "_default_ttl",
        "_drainer",
        "_ended",
        "_had",
        "_last_id",
        "_paused",
        "_qos",
        "_ref",
        "_remembered",
        "_retry",
        "_sent",
        "_stop",
        "_write",
    )

    def __init__(
        self,
        commands: "Commands",
        ref: "Ref",
        write: Callable[[bytes], Any],
        remembered: dict[int, int],
        default_ttl: int,
    ) -> None:
        """`remembered` are the packet ids, by sequence number, of what the client has not
        acknowledged on an earlier connection; `default_ttl`, in seconds, is what a message lives
        whose sender set no expiry."""
        self._commands = commands
        self._ref = ref
        self._write = write
        self._remembered = remembered
        self._default_ttl = default_ttl
        self._qos: int | None = None
        self._paused = False
        self._ended = False
        self._again = False
        self._last_id = 0
        self._sent: dict[int, _Sent] = {}
        # Sequence numbers of what the client has, but the queue perhaps still holds: being
        # completed, or not completed because the lock was lost or the disk failed.
        self._had: set[int] = set()
        self._drainer: asyncio.Task[None] | None = None
        self._completing: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._stop: Callable[[], None] | None = None

    def subscribe(self, qos: int | None) -> None:
        """Send from now on, at most at this QoS; None: send no more."""
        self._qos = qos
        if qos is None:
            if self._stop is not None:
                self._stop()
                self._stop = None
        else:
            if self._stop is None:
                self._stop = self._commands.watch(self._ref, self._wake)
            self._wake()

    def pause(self) -> None:
        """The client does not read: leave the rest in the queue."""
        self._paused = True

    def resume(self) -> None:
        """It reads again."""
        self._paused = False
        self._wake()

    def acknowledge(self, packet_id: int) -> None:
        """A PUBACK; one for nothing is ignored."""
        sent = self._sent.pop(packet_id, None)
        if sent is None:
            log.debug("puback_ignored", device=str(self._ref), reason="nothing waits for it")
            return
        self._had.add(sent.sequence)
        task = asyncio.get_running_loop().create_task(self._complete(sent))
        self._completing.add(task)
        task.add_done_callback(self._completing.discard)

    def end(self) -> dict[int, int]:
        """The session is over: free what was sent; returns its packet ids by sequence number."""
        self._ended = True
        self.subscribe(None)
        if self._retry is not None:
            self._retry.cancel()
        self._commands.release([sent.lock_token for sent in self._sent.values()])
        unacknowledged = {sent.sequence: packet_id for packet_id, sent in self._sent.items()}
        self._sent.clear()
        known = {**self._remembered, **unacknowledged}
        # Those of messages that were purged or expired are of no use, and nobody tells.
        return dict(list(known.items())[-_MAX_HAD:])

    def _wake(self) -> None:
        self._again = True
        if self._drainer is None and self._may_send():
            self._drainer = asyncio.get_running_loop().create_task(self._drain())

    def _may_send(self) -> bool:
        return (
            self._qos is not None and not self._paused and not self._ended and self._retry is None
        )

    async def _drain(self) -> None:
        """Receive and send until there is nothing more to receive, or no room for it."""
        try:
            while self._again and self._may_send():
                self._again = False
                room = WINDOW - len(self._sent)
                if room <= 0:
                    return  # the next PUBACK wakes this up
                deliveries = await self._commands.receive(self._ref, room)
                for at, delivery in enumerate(deliveries):
                    if not self._may_send():
                        self._commands.release([each.lock_token for each in deliveries[at:]])
                        return
                    await self._deliver(delivery)
                if len(deliveries) == room:
                    self._again = True
        except MooringError as error:
            log.warning("commands_not_received", device=str(self._ref), reason=str(error))
            self._retry_later()
        finally:
            self._drainer = None

    async def _deliver(self, delivery: Delivery) -> None:
        command, lock_token = delivery
        sequence = command.sequence
        if sequence in self._had:
            await self._complete(_Sent(sequence, lock_token))
            return
        for packet_id, sent in self._sent.items():
            if sent.sequence == sequence:  # its lock ran out while the client takes its time
                self._sent[packet_id] = _Sent(sequence, lock_token)
                return
        topic = _topic(self._ref, command, self._default_ttl)
        if len(topic) > 65_535:
            log.warning(
                "command_rejected",
                device=str(self._ref),
                sequence=sequence,
                reason="its properties do not fit an MQTT topic",
            )
            await self._reject(lock_token)
            return
        if not self._qos:
            self._write(mqtt.encode_publish(topic, command.body))
            self._had.add(sequence)
            await self._complete(_Sent(sequence, lock_token))
            return
        known = self._remembered.pop(sequence, None)
        packet_id = known if known is not None else self._next_id()
        self._sent[packet_id] = _Sent(sequence, lock_token)
        self._write(mqtt.encode_publish(topic, command.body, 1, packet_id, dup=known is not None))

    def _next_id(self) -> int:
        taken = set(self._remembered.values())
        while True:
            self._last_id = self._last_id % 65_535 + 1
            if self._last_id not in self._sent and self._last_id not in taken:
                return self._last_id

    async def _complete(self, sent: _Sent) -> None:
        try:
            await self._commands.complete(sent.lock_token)
        except DeviceMessageLockLost:
            # Purged or expired, then nothing more comes of it; or about to be received again.
            while len(self._had) > _MAX_HAD:
                self._had.pop()
        except MooringError as error:
            log.warning("command_not_completed", device=str(self._ref), reason=str(error))
            self._commands.release((sent.lock_token,))
            self._retry_later()
        else:
            self._had.discard(sent.sequence)
        self._wake()

    async def _reject(self, lock_token: bytes) -> None:
        try:
            await self._commands.reject(lock_token)
        except DeviceMessageLockLost:
            pass  # purged or expired
        except MooringError as error:
            log.warning("command_not_rejected", device=str(self._ref), reason=str(error))
            self._commands.release((lock_token,))
            self._retry_later()

    def _retry_later(self) -> None:
        if self._retry is None and not self._ended:
            self._retry = asyncio.get_running_loop().call_later(_RETRY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._wake()


def _topic(ref: "Ref", command: Command, default_ttl: int) -> bytes:
    # Azure's topics carry an expiry only if the sender set one.
    limited = command.expires - command.enqueued != default_ttl * 1000
    system = {
        name: value
        for name, value in (
            ("message-id", command.message_id),
            ("correlation-id", command.correlation_id),
            ("user-id", command.user_id),
            ("to", command.to),
            ("content-type", command.content_type),
            ("content-encoding", command.content_encoding),
            ("absolute-expiry-time", iso(command.expires) if limited else ""),
        )
        if value
    }
    properties: dict[str, str | None] = {**command.properties}
    if command.ack != "none":
        properties["iothub-ack"] = command.ack
    return topics.devicebound(*ref, system, properties).encode()
