"""What is particular to SQLite: connections, pragmas, and how a transaction begins.

The driver's own transaction handling is switched off (isolation_level=None): with it, a savepoint
survived the rollback of the transaction around it. A writer begins IMMEDIATE, so that it holds
the write lock before its first read; a reader gets one snapshot for all of its reads.
"""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool


def engine(path: Path, *, writes: bool, fsync: bool) -> Engine:
    """An engine for one thread that keeps one connection."""

    def connect() -> sqlite3.Connection:
        # Made in one thread and closed in another at worst, never used by two at a time.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # Damaged text must reach our own check, and not end in the driver's decoder.
        connection.text_factory = _decode
        connection.executescript(
            "PRAGMA busy_timeout = 5000; PRAGMA cell_size_check = ON;"
            "PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 16777216;"
            f"PRAGMA synchronous = {'FULL' if fsync else 'OFF'};"
            + ("" if writes else "PRAGMA query_only = ON")
        )
        return connection

    # Parameters are somebody's data: errors go to the log without them.
    made = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    @event.listens_for(made, "begin")
    def _(connection: Connection) -> None:
        driver(connection).execute(begin)

    return made


def driver(connection: Connection) -> sqlite3.Connection:
    """The driver's connection, for what must be cheap or is not SQL of ours."""
    raw: Any = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _decode(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogateescape")
