"""The event log does what a list of lists does, for any appends, reads, ageing and restarts."""

import asyncio
import tempfile
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mooring.hub.events import FIRST_OFFSET
from mooring.storage.events import SqliteEventLog

from .test_events import HEAD, Clock, Waiter, record, settle

DAY = 86_400
partitions = st.integers(0, 2)


class EventLogModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.model: list[list[tuple[int, int, int, bytes]]] = [[], [], []]
        self.begin = [0, 0, 0]
        self.open()

    def open(self) -> None:
        # A small cache, so that the file is read as well.
        self.log = self.runner.run(
            SqliteEventLog.open(
                self.folder.name, "localhost", partitions=3, fsync=False, now=self.clock,
                cache_bytes=3000, retention_seconds=DAY,
            )
        )  # fmt: skip

    def teardown(self) -> None:
        self.runner.run(self.log.close())
        self.runner.close()
        self.folder.cleanup()

    @rule(
        sent=st.lists(st.tuples(partitions, st.binary(max_size=300)), min_size=1, max_size=12),
        seconds=st.integers(-50, 60_000),
    )
    def append(self, sent: list[tuple[int, bytes]], seconds: int) -> None:
        self.clock.at += seconds
        waiter = Waiter()

        async def run() -> None:
            for number, (partition, body) in enumerate(sent):
                self.log.append(partition, record(body), waiter, number)
            await waiter.outcomes(len(sent))

        self.runner.run(run())
        assert waiter.done == list(range(len(sent)))
        touched = {partition for partition, _ in sent}
        latest = max(self.model[p][-1][2] if self.model[p] else 0 for p in touched)
        ms = max(int(self.clock.at * 1000), latest)
        for partition, body in sent:
            rows = self.model[partition]
            offset = rows[-1][1] + len(HEAD) + len(rows[-1][3]) if rows else FIRST_OFFSET
            rows.append((len(rows), offset, ms, body))

    @rule()
    def restart(self) -> None:
        self.runner.run(self.log.close())
        self.open()
        self.age()  # opening looks for what is old

    @rule()
    def age(self) -> None:
        self.runner.run(settle(self.log))
        before = int(self.clock.at * 1000) - DAY * 1000
        for partition, rows in enumerate(self.model):
            kept = [row[0] for row in rows if row[2] >= before]
            # Only what is old goes, and of that everything.
            first = self.log.info(partition).first_sequence_number
            assert first == max(self.begin[partition], kept[0] if kept else len(rows))
            self.begin[partition] = first

    @rule(partition=partitions, data=st.data(), events=st.integers(1, 9))
    def read(self, partition: int, data: Any, events: int) -> None:
        rows = self.model[partition]
        after = data.draw(st.integers(-1, len(rows)))
        limit = data.draw(st.integers(1, 2000))
        found = self.runner.run(self.log.read(partition, after, max_events=events, max_bytes=limit))
        start = max(after + 1, self.begin[partition])
        expected = rows[start : start + len(found)]
        assert [(e[0], e[1], e[2], e[3][len(HEAD) :]) for e in found] == expected
        assert len(found) <= events
        assert bool(found) == (start < len(rows))
        assert len(found) < 2 or sum(len(event.record) for event in found) <= limit

    @rule(partition=partitions, data=st.data())
    def position(self, partition: int, data: Any) -> None:
        rows = self.model[partition]
        kept = rows[self.begin[partition] :]
        at = [row[1] for row in rows] + [FIRST_OFFSET]
        offset = data.draw(st.sampled_from(at)) + data.draw(st.integers(-2, 2))
        when = data.draw(st.sampled_from([row[2] for row in rows] + [0]))
        when += data.draw(st.integers(-2, 2))
        for value, column, found in (
            (offset, 1, self.runner.run(self.log.position(partition, offset=offset))),
            (when, 2, self.runner.run(self.log.position(partition, enqueued_ms=when))),
        ):
            below = [row[0] for row in kept if row[column] <= value]
            if below:
                assert found == below[-1]
            else:
                # Nothing that is left: reading starts where the log does.
                assert found < self.begin[partition] or (found == -1)

    @invariant()
    def bounds(self) -> None:
        for partition, rows in enumerate(self.model):
            info = self.log.info(partition)
            last = rows[-1] if rows else (-1, -1, 0, b"")
            begin = self.begin[partition]
            assert info[:4] == (begin, last[0], last[1], last[2])
            assert info.is_empty == (begin == len(rows))


EventLogModel.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestEventLogModel = EventLogModel.TestCase
