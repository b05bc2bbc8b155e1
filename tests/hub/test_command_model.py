"""A queue against a model of it: whatever is done in whatever order, both agree."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from tests.state import MemoryState

from mooring.errors import (
    DeviceMaximumQueueDepthExceeded,
    DeviceMessageLockLost,
    InvalidMessageExpiryTime,
)
from mooring.hub.commands import Command, Commands
from mooring.hub.feedback import Feedback
from mooring.hub.identity import Identity, Ref
from mooring.hub.settings import HubSettings

D1 = Ref("d1")
DEPTH, LOCK, DELIVERIES, TTL = 5, 60, 2, 100
WANTED = {
    "Success": ("positive", "full"),
    "Rejected": ("negative", "full"),
    "Expired": ("negative", "full"),
    "Purged": ("negative", "full"),
    "DeliveryCountExceeded": ("negative", "full"),
}


@dataclass
class Message:
    name: str
    ack: str
    expires: float
    deliveries: int = 0
    locked_until: float = 0.0
    token: bytes = b""


class QueueMachine(RuleBasedStateMachine):
    """The model is a list in the order of sending; time is moved by a rule."""

    tokens = Bundle("tokens")
    spent = Bundle("spent")

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.time = 1_000.0
        self.state = MemoryState()
        self.count = 0
        self.queue: list[Message] = []
        self.told: list[tuple[str, str]] = []
        identity = Identity(device_id="d1", generation_id="g1")
        self.run(self.state.write(lambda tx: tx.put_identity(identity)))
        self.open()

    def open(self) -> None:
        limits = HubSettings(
            c2d_queue_depth=DEPTH,
            c2d_lock=LOCK,
            c2d_max_delivery_count=DELIVERIES,
            c2d_default_ttl=TTL,
        )
        clocks: Any = {"now": lambda: self.time, "clock": lambda: self.time}
        feedback = Feedback(self.state, limits, **clocks)
        self.commands = Commands(self.state, limits, feedback, **clocks)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def leave(self, message: Message, outcome: str) -> None:
        self.queue.remove(message)
        if message.ack in WANTED[outcome]:
            self.told.append((message.name, outcome))

    def locked(self, message: Message) -> bool:
        return message.locked_until > self.time

    def drop_expired(self) -> None:
        # Those whose time passed first go first; the sort is stable.
        for message in sorted(self.queue, key=lambda one: one.expires):
            if message.expires <= self.time and not self.locked(message):
                self.leave(message, "Expired")

    @rule(ack=st.sampled_from(["none", "positive", "negative", "full"]), ttl=st.integers(-5, 200))
    def send(self, ack: str, ttl: int) -> None:
        self.count += 1
        name = str(self.count)
        # 0 asks for the default.
        expires = self.time + ttl if ttl else 0
        command = Command(device_id="d1", message_id=name, ack=ack, expires=int(expires * 1000))
        room = [one for one in self.queue if one.expires > self.time or self.locked(one)]
        if ttl >= 0 and len(room) < DEPTH <= len(self.queue):
            for message in [one for one in self.queue if one not in room]:
                self.leave(message, "Expired")
        try:
            self.run(self.commands.send(command))
        except InvalidMessageExpiryTime:
            assert ttl < 0
        except DeviceMaximumQueueDepthExceeded:
            assert len(self.queue) >= DEPTH
        else:
            assert ttl >= 0
            assert len(self.queue) < DEPTH
            self.queue.append(Message(name, ack, expires or self.time + TTL))

    @rule(target=tokens, limit=st.integers(1, 4))
    def receive(self, limit: int) -> Any:
        deliveries = self.run(self.commands.receive(D1, limit))
        free = [one for one in self.queue if one.expires > self.time and not self.locked(one)]
        assert [(one.command.message_id, one.command.delivery_count) for one in deliveries] == [
            (one.name, one.deliveries) for one in free[:limit]
        ]
        for message, delivery in zip(free, deliveries, strict=False):
            message.locked_until = self.time + LOCK
            message.token = delivery.lock_token
        return multiple(*(one.lock_token for one in deliveries))

    @rule(
        target=spent,
        token=consumes(tokens),
        how=st.sampled_from(["complete", "reject", "abandon", "abandon"]),
    )
    def settle(self, token: bytes, how: str) -> bytes:
        held = [one for one in self.queue if one.token == token and self.locked(one)]
        try:
            self.run(getattr(self.commands, how)(token))
        except DeviceMessageLockLost:
            assert not held
            return token
        (message,) = held
        message.locked_until = 0
        if how == "complete":
            self.leave(message, "Success")
        elif how == "reject":
            self.leave(message, "Rejected")
        else:
            message.deliveries += 1
            if message.deliveries == DELIVERIES:
                self.leave(message, "DeliveryCountExceeded")
        return token

    @rule(token=spent, how=st.sampled_from(["complete", "reject", "abandon"]))
    def settle_again(self, token: bytes, how: str) -> None:
        with pytest.raises(DeviceMessageLockLost):
            self.run(getattr(self.commands, how)(token))

    @rule(target=spent, token=consumes(tokens))
    def release(self, token: bytes) -> bytes:
        self.commands.release([token])
        for message in self.queue:
            if message.token == token:
                message.locked_until = 0
        return token

    @rule(seconds=st.integers(1, 90))
    def wait(self, seconds: int) -> None:
        self.time += seconds

    @rule()
    def sweep(self) -> None:
        before = len(self.queue)
        self.drop_expired()
        assert self.run(self.commands.sweep()) == before - len(self.queue)

    @rule()
    def purge(self) -> None:
        assert self.run(self.commands.purge(D1)) == len(self.queue)
        for message in list(self.queue):
            self.leave(message, "Purged")

    @rule()
    def restart(self) -> None:
        self.open()
        for message in self.queue:
            message.locked_until = 0

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        tables = self.state.tables
        assert [(one.message_id, one.delivery_count) for one in tables.commands.values()] == [
            (one.name, one.deliveries) for one in self.queue
        ]
        assert [(one.message_id, one.status) for one in tables.feedback.values()] == self.told

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(asyncio.sleep(0))
            self.loop.close()


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestQueue = QueueMachine.TestCase
