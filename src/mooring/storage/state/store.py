"""Durable state over SQLite: units of work in threads of the store's, many to a commit.

The way of a write: `write` queues the unit; at the end of the loop's turn all that is queued goes
to the writer's thread, or, while a commit is running, when that has come back. There it is one
transaction with a savepoint for each unit. After the flush to disk all units are answered at once.

Rules.
- A unit that raises undoes itself alone. An error of the database's (disk full, I/O error) undoes
  the whole transaction, and every unit in it gets `Unavailable`: never an answer before the flush.
- A read begins its snapshot after it was asked for, so that it sees all writes that returned.
- What waits is bounded; beyond that `ServiceUnavailable`, which tells clients to come again.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import exc

from ...errors import CorruptRecord, ServiceUnavailable, Unavailable
from ...files import make_private_file, make_private_folder
from ...hub.state import Tx
from .. import wal
from ..folder import DataFolder, DataFolderError
from ..vault import KEY_NAME, Vault
from ..worker import Worker
from . import sqlite, tables
from .examination import Examination
from .schema import migrate
from .tx import SqlTx

log = structlog.get_logger(__name__)

T = TypeVar("T")

DATABASE_NAME = "state.db"
MAX_BATCH = 64  # units to a commit: bounds how long the first waits for the last
MAX_WAITING = 4096

# The database cannot go on; all others are the fault of one unit or of one row.
_FATAL = (exc.OperationalError, exc.InternalError)


class _Job(NamedTuple):
    hub: str
    unit: Callable[[Tx], Any]
    future: "asyncio.Future[Any]"


class _Outcome(NamedTuple):
    value: Any
    error: BaseException | None


class _Lane:
    """A thread with a connection, and the units that wait for it."""

    def __init__(self, name: str, run: Callable[[list[_Job]], list[_Outcome]]) -> None:
        self.worker = Worker(name)
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Job] = []
        self._running = 0
        self._due = False
        self._idle: asyncio.Future[None] | None = None
        self._closed = False
        self.failing = False
        self.batches = 0
        self.units = 0

    async def do(self, hub: str, unit: Callable[[Tx], T]) -> T:
        if self._closed:
            raise Unavailable("the state is closed")
        if len(self._waiting) + self._running >= MAX_WAITING:
            raise ServiceUnavailable("The hub is busy.", reason="too many units of work wait")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(_Job(hub, unit, future))
        if not (self._due or self._running):
            self._due = True
            self._loop.call_soon(self._pump)
        return await future

    async def close(self) -> None:
        """Finish what waits."""
        self._closed = True
        while self._waiting or self._running:
            self._idle = self._loop.create_future()
            await self._idle

    def _pump(self) -> None:
        self._due = False
        if self._running:
            return
        # Who no longer waits is not served: that is what a time-out was for.
        self._waiting = [job for job in self._waiting if not job.future.done()]
        jobs, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        self._running = len(jobs)
        if jobs:
            self.worker.run(
                lambda: self._run(jobs),
                lambda outcomes: self._done(jobs, outcomes),
                lambda error: self._failed(jobs, error),
            )
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _done(self, jobs: list[_Job], outcomes: list[_Outcome]) -> None:
        self._running = 0
        self.batches += 1
        self.units += len(jobs)
        if self.failing:
            self.failing = False
            log.warning("state_recovered")
        self._pump()
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.future.done():
                continue
            if outcome.error is None:
                job.future.set_result(outcome.value)
            else:
                job.future.set_exception(outcome.error)

    def _failed(self, jobs: list[_Job], error: BaseException) -> None:
        self._running = 0
        if not self.failing:
            self.failing = True
            log.error("state_unavailable", reason=str(error))
        self._pump()
        for job in jobs:
            if not job.future.done():
                refusal = Unavailable("the state cannot be read or written")
                refusal.__cause__ = error
                job.future.set_exception(refusal)


class SqliteState:
    """The state of all hubs of one data folder; `for_hub` gives each its own."""

    def __init__(self, path: Path, vault: Vault, *, fsync: bool) -> None:
        self.path = path
        self._vault = vault
        self._fsync = fsync
        self._closed = False
        self._writer = _Lane("state-writer", self._commit)
        self._reader = _Lane("state-reader", self._look)
        self._writing: sa.Connection
        self._reading: sa.Connection
        self._examination: Examination

    @classmethod
    async def open(cls, folder: DataFolder | Path | str, *, fsync: bool = True) -> "SqliteState":
        """Open the state in a data folder, made or brought to the newest schema if need be.

        `fsync=False` is for tests only. Raises DataFolderError (data key missing or wrong, schema
        newer than this version) or CorruptRecord."""
        root = folder.path if isinstance(folder, DataFolder) else Path(folder)
        make_private_folder(root)
        path = root / DATABASE_NAME
        exists = path.exists() and path.stat().st_size > 0
        # The data key first: a database without one must never come to be.
        vault = Vault.open_file(root / KEY_NAME, may_create=not exists)
        make_private_file(path)
        self = cls(path, vault, fsync=fsync)
        try:
            await self._writer.worker.call(self._open_writer)
            await self._reader.worker.call(self._open_reader)
        except BaseException as error:
            await self._writer.worker.stop()
            await self._reader.worker.stop()
            # The driver's own comes from where a transaction begins: busy, or the disk is full.
            if isinstance(error, exc.OperationalError | sqlite3.OperationalError):
                reason = getattr(error, "orig", error)
                raise DataFolderError(f"cannot open {path}: {reason}") from error
            # SQLite quotes what is damaged, and the driver may fail to decode the quotation.
            if isinstance(error, exc.SQLAlchemyError | sqlite3.Error | UnicodeDecodeError):
                raise CorruptRecord(f"{path} is damaged: {error}") from error
            raise
        self._examination = Examination(path)
        return self

    def for_hub(self, name: str) -> "HubState":
        """One hub's state; rows of other hubs do not exist for it."""
        return HubState(self, name)

    async def close(self) -> None:
        """Finish what waits, and close the database."""
        if self._closed:
            return
        self._closed = True
        await self._examination.stop()
        await self._reader.close()
        await self._reader.worker.call(self._close_reader)
        await self._reader.worker.stop()
        # The writer closes last: the last connection to go takes the WAL along.
        await self._writer.close()
        await self._writer.worker.call(self._close_writer)
        await self._writer.worker.stop()

    @property
    def figures(self) -> dict[str, int]:
        """Commits, and units of work written and read since the start, for the metrics."""
        return {
            "commits": self._writer.batches,
            "written": self._writer.units,
            "read": self._reader.units,
        }

    @property
    def is_failing(self) -> bool:
        """Whether the last commit could not be made."""
        return self._writer.failing

    async def write(self, hub: str, unit: Callable[[Tx], T]) -> T:
        return await self._writer.do(hub, unit)

    async def read(self, hub: str, unit: Callable[[Tx], T]) -> T:
        return await self._reader.do(hub, unit)

    # in the threads --------------------------------------------------------------------------

    def _open_writer(self) -> None:
        frames = wal.scan(self.path.with_name(self.path.name + "-wal"))
        connection = sqlite.engine(self.path, writes=True, fsync=self._fsync).connect()
        try:
            wal.report_damage(self.path, sqlite.driver(connection), frames)
            with connection.begin():
                migrate(connection)
                self._check_key(connection)
        except BaseException:
            connection.close()
            raise
        self._writing = connection

    def _check_key(self, connection: sa.Connection) -> None:
        """The database remembers which data key it was written with."""
        name = "data-key"
        known = connection.execute(
            sa.select(tables.instance.c.value).where(tables.instance.c.name == name)
        ).scalar()
        if known is None:
            connection.execute(
                sa.insert(tables.instance), {"name": name, "value": self._vault.key_id}
            )
        else:
            self._vault.check(known, self.path.with_name(KEY_NAME))

    def _open_reader(self) -> None:
        self._reading = sqlite.engine(self.path, writes=False, fsync=self._fsync).connect()

    def _close_reader(self) -> None:
        self._reading.close()

    def _close_writer(self) -> None:
        self._writing.close()

    def _commit(self, jobs: list[_Job]) -> list[_Outcome]:
        """One transaction. Raises if it could not be made durable; then nothing was changed."""
        connection = self._writing
        execute = sqlite.driver(connection).execute
        outcomes = []
        with connection.begin():
            for job in jobs:
                # Straight to the driver: SQLAlchemy's savepoints cost more than a small unit.
                execute("SAVEPOINT unit")
                outcome = self._attempt(connection, job)
                if outcome.error is not None:
                    execute("ROLLBACK TO unit")
                execute("RELEASE unit")
                outcomes.append(outcome)
        return outcomes

    def _look(self, jobs: list[_Job]) -> list[_Outcome]:
        """One snapshot."""
        connection = self._reading
        with connection.begin():
            return [self._attempt(connection, job) for job in jobs]

    def _attempt(self, connection: sa.Connection, job: _Job) -> _Outcome:
        try:
            return _Outcome(job.unit(SqlTx(connection, job.hub, self._vault)), None)
        except _FATAL:
            raise
        except (exc.IntegrityError, exc.DataError, exc.ProgrammingError) as error:
            return _Outcome(None, error)
        except exc.DatabaseError as error:
            log.error("corrupt_database", file=self.path.name, reason=str(error.orig))
            return _Outcome(None, CorruptRecord(f"{self.path.name}: {error.orig}"))
        except BaseException as error:
            return _Outcome(None, error)


class HubState:
    """Implements `hub.state.State` for one hub."""

    def __init__(self, store: SqliteState, hub: str) -> None:
        self._store = store
        self._hub = hub

    async def write(self, unit: Callable[[Tx], T]) -> T:
        return await self._store.write(self._hub, unit)

    async def read(self, unit: Callable[[Tx], T]) -> T:
        return await self._store.read(self._hub, unit)
