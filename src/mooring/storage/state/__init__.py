"""The state's driver: SQLAlchemy Core over SQLite, units of work in group commits."""

from .store import SqliteState

__all__ = ["SqliteState"]
