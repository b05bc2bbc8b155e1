"""Brings a database to the schema that this version knows: Alembic, forward only, at start."""

from sqlalchemy import Connection, inspect, text

from ..folder import DataFolderError

HEAD = "0001"
"""The newest migration in `migrations/versions`; a test holds the two together."""


def migrate(connection: Connection) -> None:
    """Run what is missing, in the transaction of the caller.

    Raises DataFolderError if the schema is newer than this version."""
    revision = None
    if inspect(connection).has_table("alembic_version"):
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision == HEAD:
        return
    # Only now: loading it takes longer than the rest of a start.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "mooring.storage.state:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, HEAD)
    except CommandError as error:
        raise DataFolderError(
            f"the state database has schema {revision}, this version knows {HEAD}: "
            "it was written by a newer mooring"
        ) from error
