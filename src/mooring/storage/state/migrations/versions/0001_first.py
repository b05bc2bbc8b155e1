"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _hub() -> "sa.Column[str]":
    return sa.Column("hub", sa.String, primary_key=True)


def _identity(*, key: bool = True) -> "list[sa.Column[str]]":
    return [
        sa.Column("device_id", sa.String, primary_key=key, nullable=False),
        sa.Column("module_id", sa.String, primary_key=key, nullable=False),
    ]


def _document() -> "list[sa.Column[str] | sa.Column[int]]":
    return [
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("sum", sa.BigInteger, nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "instance",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    op.create_table(
        "identities",
        _hub(),
        *_identity(),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("last_command", sa.BigInteger, nullable=False, server_default="0"),
        *_document(),
    )
    op.create_index(
        "identities_by_module", "identities", ["hub", "module_id", "device_id", "status"]
    )
    op.create_table("twins", _hub(), *_identity(), *_document())
    op.create_table(
        "policies", _hub(), sa.Column("name", sa.String, primary_key=True), *_document()
    )
    op.create_table(
        "commands",
        _hub(),
        *_identity(),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("expires", sa.BigInteger, nullable=False),
        *_document(),
    )
    op.create_index("commands_by_expiry", "commands", ["hub", "expires"])
    op.create_table(
        "feedback",
        _hub(),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        *_identity(key=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        *_document(),
    )
    op.create_index("feedback_by_expiry", "feedback", ["hub", "expires"])
    op.create_index("feedback_by_identity", "feedback", ["hub", "device_id", "module_id"])
    op.create_table(
        "presence",
        _hub(),
        *_identity(),
        sa.Column("connected", sa.Integer, nullable=False),
        *_document(),
    )
    op.create_table(
        "settings", _hub(), sa.Column("name", sa.String, primary_key=True), *_document()
    )
    op.create_table(
        "counters",
        _hub(),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
