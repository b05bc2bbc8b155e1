"""The event log's driver over SQLite: record batches under checksums, committed in groups."""

from .log import SqliteEventLog

__all__ = ["SqliteEventLog"]
