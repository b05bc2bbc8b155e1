"""State over SQLite: group commits, isolation of units, keys at rest, damage, bad disks."""

import asyncio
import contextlib
import json
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mooring.errors import CorruptRecord, ServiceUnavailable, Unavailable
from mooring.hub.commands import Command, FeedbackRecord
from mooring.hub.identity import Identity, Ref
from mooring.hub.policies import Policy
from mooring.hub.twins import Twin
from mooring.storage.folder import DataFolder, DataFolderError
from mooring.storage.state import SqliteState, schema, store, tables
from mooring.storage.vault import Vault

from .test_events import small_disk  # noqa: F401

PRIMARY = "cHJpbWFyeSBrZXkgcHJpbWFyeSBrZXkgcHJpbWFyeSE="
SECONDARY = "c2Vjb25kYXJ5IGtleSBzZWNvbmRhcnkga2V5IHNlYyE="


def device(device_id: str = "d1", module_id: str = "", **fields: object) -> Identity:
    fields = {"primary_key": PRIMARY, "secondary_key": SECONDARY} | fields
    return Identity(device_id=device_id, module_id=module_id, generation_id="1", **fields)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def opened(path: Path, **options: bool) -> AsyncIterator[SqliteState]:
    state = await SqliteState.open(path, **options)
    try:
        yield state
    finally:
        await state.close()


def edit(path: Path, sql: str, *values: object) -> int:
    """Change the closed database behind its back; returns how many rows."""
    connection = sqlite3.connect(path / "state.db")
    with connection:
        count = connection.execute(sql, values).rowcount
    connection.close()
    return count


# units of work -------------------------------------------------------------------------------


async def test_what_a_write_returned_is_read_and_survives_a_restart(tmp_path):
    twin = Twin(device_id="d1", desired={"a": {"b": [1, 2.5, None, "ü\0"]}}, tags={"x": True})
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        assert await hub.write(lambda tx: tx.put_identity(device()) or "done") == "done"
        await hub.write(lambda tx: tx.put_twin(twin))
        assert await hub.read(lambda tx: tx.identity(Ref("d1"))) == device()
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        assert await hub.read(lambda tx: tx.identity(Ref("d1"))) == device()
        assert await hub.read(lambda tx: tx.twin(Ref("d1"))) == twin


async def test_a_failing_unit_undoes_itself_alone(tmp_path):
    class Refused(Exception):
        pass

    def unit(number: int):
        def run(tx):
            tx.put_identity(device(f"d{number}"))
            if number % 3 == 1:
                raise Refused(number)
            if number % 3 == 2:
                tx.enqueue(Command(device_id="nobody"))
            return number

        return run

    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        outcomes = await asyncio.gather(
            *[hub.write(unit(number)) for number in range(30)], return_exceptions=True
        )
        assert outcomes[0::3] == list(range(0, 30, 3))
        assert all(isinstance(outcome, Refused) for outcome in outcomes[1::3])
        assert all(isinstance(outcome, LookupError) for outcome in outcomes[2::3])
        stored = await hub.read(lambda tx: [one.device_id for one in tx.devices(100)])
        assert stored == sorted(f"d{number}" for number in range(0, 30, 3))


async def test_units_of_one_turn_share_a_commit(tmp_path, monkeypatch):
    async with opened(tmp_path) as state:
        sizes: list[int] = []
        run = state._writer._run
        monkeypatch.setattr(
            state._writer, "_run", lambda jobs: sizes.append(len(jobs)) or run(jobs)
        )
        hub = state.for_hub("localhost")
        units = [hub.write(lambda tx, n=n: tx.put_setting(f"s{n}", "x")) for n in range(100)]
        await asyncio.gather(*units)
        assert sizes == [store.MAX_BATCH, 100 - store.MAX_BATCH]


async def test_writes_of_one_unit_see_each_other_and_later_units_see_them(tmp_path):
    def count(tx):
        value = int(tx.setting("n") or 0) + 1
        tx.put_setting("n", str(value))
        return value, tx.setting("n")

    async with opened(tmp_path, fsync=False) as state:
        hub = state.for_hub("localhost")
        results = await asyncio.gather(*[hub.write(count) for _ in range(50)])
        assert results == [(number, str(number)) for number in range(1, 51)]
        assert await hub.read(lambda tx: tx.setting("n")) == "50"


async def test_a_reader_cannot_write(tmp_path):
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        with pytest.raises(Unavailable):
            await hub.read(lambda tx: tx.put_setting("a", "b"))
        assert await hub.read(lambda tx: tx.setting("a")) is None


async def test_a_read_that_fails_half_way_does_not_hold_later_reads_in_the_past(tmp_path):
    kept = []
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        await hub.write(lambda tx: [tx.put_identity(device(f"d{n}")) for n in range(50)])
    edit(tmp_path, "UPDATE identities SET sum = 0 WHERE device_id = 'd1'")
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        for number in range(5):
            try:
                await hub.read(lambda tx: tx.devices(100))
            except CorruptRecord as error:
                kept.append(error)  # and with it the frames of the read
            await hub.write(lambda tx, n=number: tx.put_setting("n", str(n)))
            assert await hub.read(lambda tx: tx.setting("n")) == str(number)


async def test_hubs_do_not_see_each_other(tmp_path):
    async with opened(tmp_path) as state:
        one, two = state.for_hub("one"), state.for_hub("two")
        for number, hub in enumerate((one, two)):
            await hub.write(lambda tx, n=number: tx.put_identity(device("d", version=n + 1)))
            await hub.write(lambda tx: tx.enqueue(Command(device_id="d", expires=1)))
            await hub.write(
                lambda tx: tx.add_feedback(
                    FeedbackRecord(
                        message_id="m",
                        device_id="d",
                        generation_id="1",
                        status="Success",
                        enqueued=1,
                        expires=1,
                    )
                )
            )
        await two.write(lambda tx: tx.delete_identity(Ref("d")))
        assert await one.read(lambda tx: tx.identity(Ref("d"))) == device("d", version=1)
        assert await two.read(lambda tx: tx.identity(Ref("d"))) is None
        for hub, left in ((one, 1), (two, 0)):
            assert len(await hub.read(lambda tx: tx.feedback(9))) == left
            assert len(await hub.read(lambda tx: tx.expired_commands(5, 9))) == left
            assert await hub.read(lambda tx: tx.queue_depth(Ref("d"))) == left
            assert (await hub.read(lambda tx: tx.counts())).total == left


async def test_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_WAITING", 5)
    gate = threading.Event()
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        held = [asyncio.create_task(hub.write(lambda tx: gate.wait(30))) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailable):
            await hub.write(lambda tx: None)
        gate.set()
        assert await asyncio.gather(*held) == [True] * 5
        await hub.write(lambda tx: None)


async def test_a_unit_that_nobody_waits_for_any_more_is_not_begun(tmp_path):
    gate = threading.Event()
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        held = asyncio.create_task(hub.write(lambda tx: gate.wait(30)))
        await asyncio.sleep(0.01)
        late = asyncio.create_task(hub.write(lambda tx: tx.put_setting("late", "x")))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.sleep(0)
        gate.set()
        await held
        assert await hub.read(lambda tx: tx.setting("late")) is None


async def test_closing_finishes_what_waits_and_refuses_what_comes_after(tmp_path):
    state = await SqliteState.open(tmp_path)
    hub = state.for_hub("localhost")
    tasks = [
        asyncio.create_task(hub.write(lambda tx, n=n: tx.put_setting(f"s{n}", "x")))
        for n in range(200)
    ]
    await asyncio.sleep(0)
    await state.close()
    await asyncio.gather(*tasks)
    with pytest.raises(Unavailable):
        await hub.write(lambda tx: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.key", "state.db"]
    async with opened(tmp_path) as state:
        assert await state.for_hub("localhost").read(lambda tx: tx.setting("s199")) == "x"


async def test_a_full_disk_is_no_answer_and_passes(tmp_path, small_disk):  # noqa: F811
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        await hub.write(lambda tx: tx.put_setting("before", "x"))
        small_disk(64 << 10)
        try:
            big = "x" * 300_000
            outcomes = await asyncio.gather(
                hub.write(lambda tx: tx.put_setting("neighbour", "x")),
                hub.write(lambda tx: tx.put_setting("big", big)),
                return_exceptions=True,
            )
        finally:
            small_disk(None)
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
        assert big[:100] not in repr(outcomes) + repr([o.__cause__ for o in outcomes])
        assert await hub.read(lambda tx: tx.setting("neighbour")) is None
        await hub.write(lambda tx: tx.put_setting("after", "x"))
        assert await hub.read(lambda tx: (tx.setting("before"), tx.setting("after"))) == ("x", "x")


# keys at rest --------------------------------------------------------------------------------


async def test_no_key_is_on_disk_in_clear_and_all_files_are_private(tmp_path):
    folder = tmp_path / "data"
    state = await SqliteState.open(folder)
    hub = state.for_hub("localhost")
    policy = Policy(name="p", rights=1, primary_key=PRIMARY, secondary_key=SECONDARY)
    await hub.write(lambda tx: tx.put_identity(device()))
    await hub.write(lambda tx: tx.put_policy(policy))
    names = {path.name for path in folder.iterdir()}
    assert names == {"data.key", "state.db", "state.db-shm", "state.db-wal"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    await state.close()
    content = (folder / "state.db").read_bytes()
    assert b"d1" in content
    for key in (PRIMARY, SECONDARY):
        assert key.encode() not in content
        assert key.rstrip("=").encode() not in content
    async with opened(folder) as state:
        assert await state.for_hub("localhost").read(lambda tx: tx.policies()) == [policy]


async def test_a_sealed_key_opens_only_in_its_own_place(tmp_path):
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        await hub.write(lambda tx: tx.put_identity(device("a")))
    vault = Vault.open_file(tmp_path / "data.key", may_create=False)
    connection = sqlite3.connect(tmp_path / "state.db")
    (text,) = connection.execute("SELECT document FROM identities").fetchone()
    connection.close()
    sealed = json.loads(text)["primary_key"]
    place = ("localhost", "identities", "a", "", "primary")
    assert vault.unseal(sealed, *place) == PRIMARY
    for other in (
        ("localhost", "identities", "b", "", "primary"),
        ("localhost", "identities", "a", "", "secondary"),
        ("elsewhere", "identities", "a", "", "primary"),
        ("localhost", "policies", "a", "", "primary"),
        ("localhost", "identities", "", "a", "primary"),
    ):
        with pytest.raises(CorruptRecord) as caught:
            vault.unseal(sealed, *other)
        assert PRIMARY not in str(caught.value)
    assert PRIMARY not in repr(vault)


async def test_a_missing_data_key_is_never_replaced(tmp_path):
    async with opened(tmp_path) as state:
        await state.for_hub("localhost").write(lambda tx: tx.put_identity(device()))
    key = (tmp_path / "data.key").read_bytes()
    (tmp_path / "data.key").unlink()
    with pytest.raises(DataFolderError, match="missing"):
        await SqliteState.open(tmp_path)
    assert not (tmp_path / "data.key").exists()
    (tmp_path / "data.key").write_bytes(key)
    async with opened(tmp_path) as state:
        assert await state.for_hub("localhost").read(lambda tx: tx.identity(Ref("d1"))) == device()


async def test_a_wrong_or_damaged_data_key_is_refused(tmp_path):
    async with opened(tmp_path / "one"), opened(tmp_path / "two"):
        pass
    key = (tmp_path / "one/data.key").read_bytes()
    (tmp_path / "one/data.key").write_bytes((tmp_path / "two/data.key").read_bytes())
    with pytest.raises(DataFolderError, match="not the data key"):
        await SqliteState.open(tmp_path / "one")
    for damaged in (key[:-5], b"", key.replace(b"data", b"sata"), b"\xff" * 60):
        (tmp_path / "one/data.key").write_bytes(damaged)
        with pytest.raises(DataFolderError, match="damaged"):
            await SqliteState.open(tmp_path / "one")


async def test_loose_permissions_are_tightened(tmp_path):
    async with opened(tmp_path):
        pass
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    tmp_path.chmod(0o755)
    async with opened(tmp_path):
        pass
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_process_holds_a_data_folder(tmp_path):
    first = DataFolder.open(tmp_path)
    with pytest.raises(DataFolderError, match="another mooring"):
        DataFolder.open(tmp_path)
    first.close()
    DataFolder.open(tmp_path).close()


# schema --------------------------------------------------------------------------------------


async def test_the_migrations_make_the_tables_that_the_statements_expect(tmp_path):
    import sqlalchemy as sa
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    async with opened(tmp_path):
        pass
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'state.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()
    folder = Path(schema.__file__).with_name("migrations")
    assert ScriptDirectory(str(folder)).get_heads() == [schema.HEAD]


async def test_a_newer_schema_is_refused(tmp_path):
    async with opened(tmp_path):
        pass
    edit(tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DataFolderError, match="newer mooring"):
        await SqliteState.open(tmp_path)


# damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE {} SET document = replace(document, 'needle', 'noodle')",
        "UPDATE {} SET document = CAST(x'ff' || substr(CAST(document AS BLOB), 2) AS TEXT)",
        "UPDATE {} SET sum = sum + 1",
    ],
)
async def test_a_damaged_row_is_reported_with_table_and_key_and_never_served(tmp_path, sql):
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        for name in ("good", "bad"):
            await hub.write(lambda tx, n=name: tx.put_identity(device(n, status_reason="needle")))
            await hub.write(lambda tx, n=name: tx.put_twin(Twin(device_id=n, tags={"needle": 1})))
    for table in ("identities", "twins"):
        assert edit(tmp_path, sql.format(table) + " WHERE device_id = 'bad'") == 1
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        with capture_logs() as logs:
            with pytest.raises(CorruptRecord, match="identities localhost/bad/"):
                await hub.read(lambda tx: tx.identity(Ref("bad")))
            with pytest.raises(CorruptRecord, match="twins localhost/bad/"):
                await hub.write(lambda tx: tx.twin(Ref("bad")))
            with pytest.raises(CorruptRecord):
                await hub.read(lambda tx: tx.devices(10))
        assert [(entry["table"], entry["key"]) for entry in logs] == [
            ("identities", "localhost/bad/"),
            ("twins", "localhost/bad/"),
            ("identities", "localhost/bad/"),
        ]
        assert await hub.read(lambda tx: tx.identity(Ref("good"))) is not None
        assert await hub.write(lambda tx: tx.delete_identity(Ref("bad")))
        assert len(await hub.read(lambda tx: tx.devices(10))) == 1


async def test_a_row_whose_key_was_changed_is_not_taken_for_somebody_elses(tmp_path):
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        await hub.write(lambda tx: tx.put_identity(device("aaa")))
    edit(tmp_path, "UPDATE identities SET device_id = 'aab'")
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        with pytest.raises(CorruptRecord):
            await hub.read(lambda tx: tx.identity(Ref("aab")))


async def test_a_damaged_message_does_not_hold_up_those_behind_it(tmp_path):
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        await hub.write(lambda tx: tx.put_identity(device()))
        for number in range(1, 6):
            command = Command(device_id="d1", message_id=f"m{number}", expires=number)
            await hub.write(lambda tx, c=command: tx.enqueue(c))
    edit(tmp_path, "UPDATE commands SET sum = 0 WHERE sequence = 2")
    edit(tmp_path, "UPDATE commands SET expires = 1 WHERE sequence = 4")
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        with capture_logs() as logs:
            found = await hub.read(lambda tx: tx.commands(Ref("d1"), 2))
            expired = await hub.read(lambda tx: tx.expired_commands(9, 2))
        assert [command.sequence for command in found] == [1, 3]
        assert [command.sequence for command in expired] == [1, 3]
        assert {entry["key"] for entry in logs} == {"localhost/d1//2", "localhost/d1//4"}
        assert await hub.write(lambda tx: tx.delete_command(Ref("d1"), 2))


async def test_what_is_no_database_is_refused(tmp_path):
    async with opened(tmp_path):
        pass
    (tmp_path / "state.db").write_bytes(b"nothing of the kind " * 500)
    with pytest.raises(CorruptRecord):
        await SqliteState.open(tmp_path)


async def test_presence_is_kept_for_those_that_exist(tmp_path):
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        await hub.write(lambda tx: tx.put_identity(device("here")))
        rows = {Ref("here"): (True, 5, 6), Ref("gone"): (True, 5, 6)}
        await hub.write(lambda tx: tx.put_presence(rows))
        await hub.write(lambda tx: tx.put_presence({Ref("here"): (True, 5, 7)}))
        assert await hub.read(lambda tx: tx.presence(Ref("here"))) == (True, 5, 7)
        assert await hub.read(lambda tx: tx.presence(Ref("gone"))) is None
        await hub.write(lambda tx: tx.put_identity(device("here", version=2)))
        await hub.write(lambda tx: tx.reset_presence(9))
        assert await hub.read(lambda tx: tx.presence(Ref("here"))) == (False, 9, 7)


async def test_a_large_registry_is_listed_in_pages(tmp_path):
    async with opened(tmp_path, fsync=False) as state:
        hub = state.for_hub("localhost")
        plain = {"primary_key": None, "secondary_key": None}
        for start in range(0, 1000, 100):
            await hub.write(
                lambda tx, s=start: [
                    tx.put_identity(
                        device(f"d{n:04}", status="enabled" if n % 4 else "disabled", **plain)
                    )
                    for n in range(s, s + 100)
                ]
            )
        assert await hub.read(lambda tx: tx.counts()) == (1000, 750, 250)
        page = await hub.read(lambda tx: tx.devices(300, "d0299"))
        assert [one.device_id for one in page] == [f"d{n:04}" for n in range(300, 600)]


async def test_a_row_that_cannot_be_found_any_more_is_reported_after_the_start(tmp_path):
    async with opened(tmp_path) as state:
        hub = state.for_hub("localhost")
        for name in ("aaa", "bbb", "ccc"):
            await hub.write(lambda tx, n=name: tx.put_identity(device(n)))
            await hub.write(lambda tx, n=name: tx.put_twin(Twin(device_id=n)))
    content = (tmp_path / "state.db").read_bytes()
    # In the table the key stands before the document, in the index it does not.
    at = content.index(b"localhostbbb{")
    (tmp_path / "state.db").write_bytes(content[: at + 9] + b"bzb" + content[at + 12 :])
    with capture_logs() as logs:
        async with opened(tmp_path):
            while not logs:
                await asyncio.sleep(0.001)
    assert {entry["event"] for entry in logs} == {"corrupt_database"}
    assert "missing from index" in logs[0]["reason"]


async def test_a_sound_database_is_examined_without_a_word(tmp_path):
    with capture_logs() as logs:
        for _ in range(3):
            async with opened(tmp_path) as state:
                await state._examination._worker.call(lambda: None)
            async with opened(tmp_path):
                pass  # closed while it is examined
    assert logs == []


def test_a_folder_on_a_full_disk_is_refused_and_not_kept_locked(tmp_path, small_disk):  # noqa: F811
    small_disk(0)
    try:
        with pytest.raises(DataFolderError, match="cannot write in"):
            DataFolder.open(tmp_path / "data")
    finally:
        small_disk(None)
    DataFolder.open(tmp_path / "data").close()


async def test_a_disk_that_is_full_at_the_start_is_not_called_damage(tmp_path, monkeypatch):
    def full(connection):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "migrate", full)
    with pytest.raises(DataFolderError, match="disk is full"):
        await SqliteState.open(tmp_path / "data")
