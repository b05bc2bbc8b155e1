"""What a unit of work can do, in SQL that SQLite and PostgreSQL both take.

Rules. Statements are built once, when this module is loaded: building one costs more than running
it. A row that fails its checksum is never returned: asked for by its key, it raises CorruptRecord;
in the queues (commands, feedback) it is reported and left out, so that it does not hold up what
stands behind it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from ...errors import CorruptRecord
from ...hub.commands import Command, FeedbackRecord
from ...hub.identity import Identity, Ref
from ...hub.policies import Policy
from ...hub.state import Counts
from ...hub.twins import Twin
from ..vault import Vault
from . import tables
from .documents import Documents, Key

D = TypeVar("D")
Presence = tuple[bool, int, int]

_IDENTITIES: Documents[Identity] = Documents(tables.identities, Identity)
_TWINS: Documents[Twin] = Documents(tables.twins, Twin)
_POLICIES: Documents[Policy] = Documents(tables.policies, Policy)
_COMMANDS: Documents[Command] = Documents(tables.commands, Command)
_FEEDBACK: Documents[FeedbackRecord] = Documents(tables.feedback, FeedbackRecord)
_PRESENCE: Documents[Presence] = Documents(tables.presence, tuple[bool, int, int])
_SETTINGS: Documents[str] = Documents(tables.settings, str)

# Parameters are not named like columns: those names are taken in an UPDATE.
_HUB: Any = bindparam("k_hub")
_DEVICE: Any = bindparam("device")
_MODULE: Any = bindparam("module")
_AFTER: Any = bindparam("after")
_LIMIT: Any = bindparam("limit")
_NOW: Any = bindparam("now")

_i, _c, _f, _p = (
    tables.identities.c,
    tables.commands.c,
    tables.feedback.c,
    tables.presence.c,
)

_DEVICES = (
    select(_i.device_id, _i.module_id, _i.status, _i.document, _i.sum)
    .where(_i.hub == _HUB, _i.module_id == "", _i.device_id > _AFTER)
    .order_by(_i.device_id)
    .limit(_LIMIT)
)
_MODULES = (
    select(_i.device_id, _i.module_id, _i.status, _i.document, _i.sum)
    .where(_i.hub == _HUB, _i.device_id == _DEVICE, _i.module_id != "")
    .order_by(_i.module_id)
)
_COUNTS = (
    select(_i.status, func.count()).where(_i.hub == _HUB, _i.module_id == "").group_by(_i.status)
)
_ALL_POLICIES = (
    select(tables.policies)
    .where(tables.policies.c.hub == _HUB)
    .order_by(tables.policies.c.name)
)  # fmt: skip
_OF_DEVICE = [
    delete(table).where(table.c.hub == _HUB, table.c.device_id == _DEVICE)
    for table in (
        tables.identities,
        tables.twins,
        tables.commands,
        tables.feedback,
        tables.presence,
    )
]
_OF_MODULE = [
    statement.where(statement.table.c.module_id == _MODULE) for statement in _OF_DEVICE
]  # fmt: skip

_NEXT_COMMAND = (
    update(tables.identities)
    .where(_i.hub == _HUB, _i.device_id == _DEVICE, _i.module_id == _MODULE)
    .values(last_command=_i.last_command + 1)
    .returning(_i.last_command)
)
_QUEUE = (
    select(_c.sequence, _c.expires, _c.document, _c.sum)
    .where(
        _c.hub == _HUB,
        _c.device_id == _DEVICE,
        _c.module_id == _MODULE,
        _c.sequence > _AFTER,
    )
    .order_by(_c.sequence)
    .limit(_LIMIT)
)
_DEPTH = (
    select(func.count())
    .select_from(tables.commands)
    .where(_c.hub == _HUB, _c.device_id == _DEVICE, _c.module_id == _MODULE)
)
_EXPIRED = (
    select(_c.device_id, _c.module_id, _c.sequence, _c.expires, _c.document, _c.sum)
    .where(_c.hub == _HUB, _c.expires <= _NOW)
    .order_by(_c.expires, _c.device_id, _c.module_id, _c.sequence)
)

_COUNTER = tables.counters.c
_NEXT = (
    update(tables.counters)
    .where(_COUNTER.hub == _HUB, _COUNTER.name == bindparam("k_name"))
    .values(value=_COUNTER.value + 1)
    .returning(_COUNTER.value)
)
_FEEDBACK_AFTER = (
    select(_f.id, _f.expires, _f.document, _f.sum)
    .where(_f.hub == _HUB, _f.id > _AFTER)
    .order_by(_f.id)
    .limit(_LIMIT)
)
_EXPIRE_FEEDBACK = delete(tables.feedback).where(_f.hub == _HUB, _f.expires <= _NOW)

# An identity that is gone has no row to take this from.
_NEW_PRESENCE = text(
    "INSERT INTO presence (hub, device_id, module_id, connected, document, sum)"
    " SELECT hub, device_id, module_id, :connected, :document, :sum FROM identities AS i"
    " WHERE i.hub = :k_hub AND i.device_id = :k_device_id AND i.module_id = :k_module_id"
    " AND NOT EXISTS (SELECT 1 FROM presence AS p WHERE p.hub = i.hub"
    " AND p.device_id = i.device_id AND p.module_id = i.module_id)"
)
_SET_PRESENCE = (
    update(tables.presence)
    .where(
        _p.hub == bindparam("k_hub"),
        _p.device_id == bindparam("k_device_id"),
        _p.module_id == bindparam("k_module_id"),
    )
    .values(
        connected=bindparam("connected"), document=bindparam("document"), sum=bindparam("sum")
    )
)  # fmt: skip
_CONNECTED = select(_p.device_id, _p.module_id, _p.document, _p.sum).where(
    _p.hub == _HUB, _p.connected == 1
)


class SqlTx:
    """Implements `hub.state.Tx` over one transaction."""

    def __init__(self, connection: Connection, hub: str, vault: Vault) -> None:
        self._connection = connection
        self._hub = hub
        self._vault = vault

    # identities ------------------------------------------------------------------------------

    def identity(self, ref: Ref) -> Identity | None:
        stored = _IDENTITIES.get(self._connection, self._hub, *ref)
        return None if stored is None else self._with_keys(stored, self._vault.unseal)

    def put_identity(self, identity: Identity) -> None:
        _IDENTITIES.put(
            self._connection, (self._hub, *identity.ref),
            self._with_keys(identity, self._vault.seal), status=identity.status,
        )  # fmt: skip

    def delete_identity(self, ref: Ref) -> bool:
        found = False
        for statement in _OF_MODULE if ref.module_id else _OF_DEVICE:
            gone = self._run(statement, device=ref.device_id, module=ref.module_id).rowcount
            found = found or (statement.table is tables.identities and gone > 0)
        return found

    def devices(self, limit: int, after: str = "") -> list[Identity]:
        return self._identities(self._rows(_DEVICES, after=after, limit=limit))

    def modules(self, device_id: str) -> list[Identity]:
        return self._identities(self._rows(_MODULES, device=device_id))

    def _identities(self, rows: list[Row[Any]]) -> list[Identity]:
        found = []
        for row in rows:
            key = (self._hub, row.device_id, row.module_id)
            stored = _IDENTITIES.decode(key, row.document, row.sum)
            found.append(self._with_keys(stored, self._vault.unseal))
        return found

    def counts(self) -> Counts:
        by_status = {row[0]: int(row[1]) for row in self._rows(_COUNTS)}
        enabled = by_status.get("enabled", 0)
        total = sum(by_status.values())
        return Counts(total, enabled, total - enabled)

    def _with_keys(self, identity: Identity, turn: Callable[..., str]) -> Identity:
        """With its keys sealed, or unsealed again."""
        primary, secondary = identity.primary_key, identity.secondary_key
        if primary is None and secondary is None:
            return identity
        place = (self._hub, "identities", *identity.ref)
        return msgspec.structs.replace(
            identity,
            primary_key=None if primary is None else turn(primary, *place, "primary"),
            secondary_key=None if secondary is None else turn(secondary, *place, "secondary"),
        )

    # twins -----------------------------------------------------------------------------------

    def twin(self, ref: Ref) -> Twin | None:
        return _TWINS.get(self._connection, self._hub, *ref)

    def put_twin(self, twin: Twin) -> None:
        _TWINS.put(self._connection, (self._hub, twin.device_id, twin.module_id), twin)

    # policies --------------------------------------------------------------------------------

    def policies(self) -> list[Policy]:
        found = []
        for row in self._rows(_ALL_POLICIES):
            policy = _POLICIES.decode((self._hub, row.name), row.document, row.sum)
            found.append(self._policy(policy, self._vault.unseal))
        return found

    def put_policy(self, policy: Policy) -> None:
        sealed = self._policy(policy, self._vault.seal)
        _POLICIES.put(self._connection, (self._hub, policy.name), sealed)

    def delete_policy(self, name: str) -> bool:
        return _POLICIES.delete(self._connection, self._hub, name)

    def _policy(self, policy: Policy, turn: Callable[..., str]) -> Policy:
        place = (self._hub, "policies", policy.name)
        return msgspec.structs.replace(
            policy,
            primary_key=turn(policy.primary_key, *place, "primary"),
            secondary_key=turn(policy.secondary_key, *place, "secondary"),
        )

    # cloud-to-device queues ------------------------------------------------------------------

    def enqueue(self, command: Command) -> Command:
        """See the port. Raises LookupError if there is no such identity."""
        row = self._run(
            _NEXT_COMMAND, device=command.device_id, module=command.module_id
        ).one_or_none()
        if row is None:
            raise LookupError("no identity to queue this for")
        command = msgspec.structs.replace(command, sequence=row[0])
        _COMMANDS.insert(
            self._connection, self._command_key(command), command, expires=command.expires
        )
        return command

    def commands(self, ref: Ref, limit: int, after: int = 0) -> list[Command]:
        def page(count: int, last: Row[Any] | None) -> list[Row[Any]]:
            start = after if last is None else last.sequence
            return self._rows(
                _QUEUE, device=ref.device_id, module=ref.module_id, after=start, limit=count
            )

        return self._intact(
            _COMMANDS, page, lambda row: (self._hub, *ref, row.sequence), limit
        )  # fmt: skip

    def command(self, ref: Ref, sequence: int) -> Command | None:
        return _COMMANDS.get(self._connection, self._hub, *ref, sequence)

    def put_command(self, command: Command) -> None:
        _COMMANDS.replace(
            self._connection, self._command_key(command), command, expires=command.expires
        )

    def delete_command(self, ref: Ref, sequence: int) -> bool:
        return _COMMANDS.delete(self._connection, self._hub, *ref, sequence)

    def queue_depth(self, ref: Ref) -> int:
        return int(
            self._run(_DEPTH, device=ref.device_id, module=ref.module_id).scalar_one()
        )  # fmt: skip

    def expired_commands(self, now: int, limit: int) -> list[Command]:
        found: list[Command] = []
        with self._run(_EXPIRED, now=now) as rows:
            for row in rows:
                if len(found) >= limit:
                    break
                key = (self._hub, row.device_id, row.module_id, row.sequence)
                try:
                    found.append(self._one(_COMMANDS, key, row))
                except CorruptRecord:
                    continue
        return found

    def _command_key(self, command: Command) -> Key:
        return (self._hub, command.device_id, command.module_id, command.sequence)

    # feedback --------------------------------------------------------------------------------

    def add_feedback(self, record: FeedbackRecord) -> None:
        row = self._run(_NEXT, k_name="feedback").one_or_none()
        if row is None:
            self._connection.execute(
                insert(tables.counters), {"hub": self._hub, "name": "feedback", "value": 1}
            )
        record = msgspec.structs.replace(record, id=1 if row is None else row[0])
        _FEEDBACK.insert(self._connection, (self._hub, record.id), record, **_found_by(record))

    def feedback(self, limit: int, after: int = 0) -> list[FeedbackRecord]:
        def page(count: int, last: Row[Any] | None) -> list[Row[Any]]:
            start = after if last is None else last.id
            return self._rows(_FEEDBACK_AFTER, after=start, limit=count)

        return self._intact(_FEEDBACK, page, lambda row: (self._hub, row.id), limit)

    def put_feedback(self, record: FeedbackRecord) -> None:
        _FEEDBACK.replace(self._connection, (self._hub, record.id), record, **_found_by(record))

    def delete_feedback(self, ids: list[int]) -> None:
        for one in ids:
            _FEEDBACK.delete(self._connection, self._hub, one)

    def expire_feedback(self, now: int) -> int:
        return int(self._run(_EXPIRE_FEEDBACK, now=now).rowcount)

    # presence --------------------------------------------------------------------------------

    def presence(self, ref: Ref) -> Presence | None:
        return _PRESENCE.get(self._connection, self._hub, *ref)

    def put_presence(self, rows: dict[Ref, Presence]) -> None:
        if not rows:
            return
        values = [self._presence_row(ref, row) for ref, row in rows.items()]
        self._connection.execute(_NEW_PRESENCE, values)
        self._connection.execute(_SET_PRESENCE, values)

    def reset_presence(self, now: int) -> None:
        values = []
        for row in self._rows(_CONNECTED):
            ref = Ref(row.device_id, row.module_id)
            try:
                _, _, active = _PRESENCE.decode((self._hub, *ref), row.document, row.sum)
            except CorruptRecord:
                # It was reported; that the device is not connected now is known all the same.
                active = 0
            values.append(self._presence_row(ref, (False, now, active)))
        if values:
            self._connection.execute(_SET_PRESENCE, values)

    def _presence_row(self, ref: Ref, row: Presence) -> dict[str, Any]:
        key = (self._hub, *ref)
        columns = _PRESENCE.encode(key, row, {"connected": int(row[0])})
        return columns | {"k_hub": self._hub, "k_device_id": ref[0], "k_module_id": ref[1]}

    # settings --------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        return _SETTINGS.get(self._connection, self._hub, name)

    def put_setting(self, name: str, value: str) -> None:
        _SETTINGS.put(self._connection, (self._hub, name), value)

    def delete_setting(self, name: str) -> bool:
        return _SETTINGS.delete(self._connection, self._hub, name)

    # -----------------------------------------------------------------------------------------

    def _run(self, statement: Any, **values: Any) -> Any:
        return self._connection.execute(statement, {"k_hub": self._hub, **values})

    def _rows(self, statement: Any, **values: Any) -> list[Row[Any]]:
        """All rows at once: a cursor left open by an error keeps a reader in its old snapshot."""
        rows: list[Row[Any]] = self._run(statement, **values).all()
        return rows

    def _intact(
        self, documents: Documents[D], page: Callable[[int, Row[Any] | None], list[Row[Any]]],
        key: Callable[[Row[Any]], Key], limit: int,
    ) -> list[D]:  # fmt: skip
        """`limit` documents that are not damaged, if there are so many: a list that is shorter
        tells its reader that it has seen everything."""
        found: list[D] = []
        last: Row[Any] | None = None
        while (missing := limit - len(found)) > 0:
            rows = page(missing, last)
            for row in rows:
                try:
                    found.append(self._one(documents, key(row), row))
                except CorruptRecord:
                    continue
            if len(rows) < missing:
                break
            last = rows[-1]
        return found

    @staticmethod
    def _one(documents: Documents[D], key: Key, row: Row[Any]) -> D:
        document: Any = documents.decode(key, row.document, row.sum)
        if document.expires != row.expires:
            raise documents.corrupt(key, "its column `expires` says something else")
        found: D = document
        return found


def _found_by(record: FeedbackRecord) -> dict[str, str | int]:
    return {
        "device_id": record.device_id,
        "module_id": record.module_id,
        "expires": record.expires,
    }
