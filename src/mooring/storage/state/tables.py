"""The tables of the state, as the newest migration leaves them.

Every row belongs to a hub. What a row says stands in its `document` (JSON of the entity); the
other columns are only what rows are found by. `sum` is a checksum, see documents.py.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

# Facts about the database itself: which data key it was written with.
instance = Table(
    "instance",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)


def _table(name: str, *columns: Column[int] | Column[str] | Index) -> Table:
    """A table of documents of a hub's."""
    return Table(
        name,
        metadata,
        Column("hub", String, primary_key=True),
        *columns,
        Column("document", Text, nullable=False),
        Column("sum", BigInteger, nullable=False),
    )


identities = _table(
    "identities",
    Column("device_id", String, primary_key=True),
    Column("module_id", String, primary_key=True),  # empty for the device itself
    Column("status", String, nullable=False),
    # The sequence number of the last command that was queued for it.
    Column("last_command", BigInteger, nullable=False, server_default="0"),
    # Lists and counts devices without passing their modules.
    Index("identities_by_module", "hub", "module_id", "device_id", "status"),
)
twins = _table(
    "twins",
    Column("device_id", String, primary_key=True),
    Column("module_id", String, primary_key=True),
)
policies = _table("policies", Column("name", String, primary_key=True))
commands = _table(
    "commands",
    Column("device_id", String, primary_key=True),
    Column("module_id", String, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("expires", BigInteger, nullable=False),
    Index("commands_by_expiry", "hub", "expires"),
)
feedback = _table(
    "feedback",
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("device_id", String, nullable=False),
    Column("module_id", String, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Index("feedback_by_expiry", "hub", "expires"),
    Index("feedback_by_identity", "hub", "device_id", "module_id"),
)
# Apart from the identities: it is written every few seconds, and its rows are small.
presence = _table(
    "presence",
    Column("device_id", String, primary_key=True),
    Column("module_id", String, primary_key=True),
    Column("connected", Integer, nullable=False),
)
settings = _table("settings", Column("name", String, primary_key=True))
counters = Table(
    "counters",
    metadata,
    Column("hub", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
