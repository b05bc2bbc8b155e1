"""Looks through the whole state database once after a start, beside the serving of it.

A row's checksum is verified when the row is read. What it cannot show is a row that is not found
any more because its key was damaged: SQLite keeps each key twice, in the table and in an index,
and its integrity check compares the two.
"""

import contextlib
import sqlite3
from pathlib import Path

import structlog

from ..worker import Worker

log = structlog.get_logger(__name__)

MAX_FINDINGS = 20


class Examination:
    """One run of SQLite's integrity check, in a thread and on a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._stopped = False
        self._worker = Worker("state-examination")
        self._worker.run(self._run, self._report, self._failed)

    async def stop(self) -> None:
        """Cut it short if it still runs."""
        self._stopped = True
        if self._connection is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):  # closed this moment
                self._connection.interrupt()
        await self._worker.stop()

    def _run(self) -> list[str]:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._connection = connection
            connection.text_factory = lambda raw: str(raw, "utf-8", "replace")
            connection.execute("PRAGMA query_only = ON")
            if self._stopped:
                return []
            rows = connection.execute(f"PRAGMA integrity_check({MAX_FINDINGS})").fetchall()
            return [row[0] for row in rows if row[0] != "ok"]
        finally:
            connection.close()

    def _report(self, findings: list[str]) -> None:
        for finding in findings:
            log.error("corrupt_database", file=self._path.name, reason=finding)

    def _failed(self, error: BaseException) -> None:
        if not self._stopped:
            log.error("corrupt_database", file=self._path.name, reason=str(error))
