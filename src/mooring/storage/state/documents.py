"""Documents under checksums: one kind of entity as JSON in the rows of one table.

The sum is the CRC-32 of table, key and document together: neither a flipped bit in the text nor
one in a key column (which would give a row to somebody else) goes unnoticed. SQLite itself serves
both and calls the file intact.
"""

import zlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec
import structlog
from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from ...errors import CorruptRecord

log = structlog.get_logger(__name__)

D = TypeVar("D")
Key = tuple[str | int, ...]


class Documents(Generic[D]):
    """The documents in one table, found by the columns of its primary key."""

    def __init__(self, table: Table, kind: Any) -> None:
        self.table = table
        self.keys = tuple(column.name for column in table.primary_key.columns)
        self._decoder = msgspec.json.Decoder(kind)
        here = [table.c[name] == bindparam(f"k_{name}") for name in self.keys]
        self._select = select(table.c.document, table.c.sum).where(*here)
        self._delete = delete(table).where(*here)
        self._update = update(table).where(*here)
        self._insert = insert(table)

    def get(self, connection: Connection, *key: str | int) -> D | None:
        """The document with this key. Raises CorruptRecord."""
        row = connection.execute(self._select, self._where(key)).one_or_none()
        return None if row is None else self.decode(key, row.document, row.sum)

    def put(self, connection: Connection, key: Key, document: D, **columns: str | int) -> None:
        """Insert it, or replace it; `columns` are those that it is found by besides its key.

        An update and an insert if that met nothing, since that is the same SQL everywhere."""
        if not self.replace(connection, key, document, **columns):
            self.insert(connection, key, document, **columns)

    def insert(self, connection: Connection, key: Key, document: D, **columns: str | int) -> None:
        """Insert it; there must be none with this key."""
        connection.execute(
            self._insert,
            dict(zip(self.keys, key, strict=True)) | self.encode(key, document, columns),
        )

    def replace(self, connection: Connection, key: Key, document: D, **columns: str | int) -> bool:
        """Replace it; False if there is none with this key."""
        values = self.encode(key, document, columns)
        return connection.execute(self._update, self._where(key) | values).rowcount > 0

    def delete(self, connection: Connection, *key: str | int) -> bool:
        """Delete it; False if there is none with this key."""
        return connection.execute(self._delete, self._where(key)).rowcount > 0

    def encode(self, key: Key, document: D, columns: Mapping[str, str | int]) -> dict[str, Any]:
        """The columns of its row that are not key columns."""
        text = msgspec.json.encode(document)
        return {"document": text.decode(), "sum": self._sum(key, text), **columns}

    def decode(self, key: Key, text: str, stored_sum: int) -> D:
        """A row's document. Raises CorruptRecord, with table and key, if its checksum fails."""
        # Text that is no UTF-8 any more arrives with surrogates, see sqlite.py.
        raw = str(text).encode("utf-8", "surrogateescape")
        if self._sum(key, raw) != stored_sum:
            raise self.corrupt(key, "the row fails its checksum")
        try:
            document: D = self._decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise self.corrupt(key, f"the row is no document of ours: {error}") from None
        return document

    def corrupt(self, key: Key, reason: str) -> CorruptRecord:
        """Report a damaged row; returns the error to raise."""
        name = "/".join(map(str, key))
        log.error("corrupt_record", table=self.table.name, key=name, reason=reason)
        return CorruptRecord(f"state: {self.table.name} {name}: {reason}")

    def _where(self, key: Key) -> dict[str, Any]:
        return {f"k_{name}": part for name, part in zip(self.keys, key, strict=True)}

    def _sum(self, key: Key, document: bytes) -> int:
        place = "\0".join([self.table.name, *map(str, key)])
        return zlib.crc32(document, zlib.crc32(place.encode("utf-8", "surrogateescape")))
