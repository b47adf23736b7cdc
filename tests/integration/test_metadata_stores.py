"""Metadata stores in bad surroundings: each with the sentence that says what to do."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, StaticPool, create_engine
from tidelog.clock import SystemClock
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable
from tidelog.executors import ThreadExecutor
from tidelog.metadata.commits import Committed, PartitionCommit, commit
from tidelog.metadata.leadership import ProducerWindow
from tidelog.metadata.membership import Lease, cluster_state, end_expired_epochs, initialise, membership, renew_lease
from tidelog.metadata.migrations import MIGRATION_LOCK
from tidelog.metadata.postgres import PostgresSettings, PostgresStore, open_postgres
from tidelog.metadata.schema import tables_metadata
from tidelog.metadata.sqlite import SqliteStore, open_sqlite
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import topics

from tests.contract.metadata_steps import TTL_MS, append, expire_now, extent, join, lead, topic, unbroken_for_long
from tests.database_link import DatabaseLink, database_link
from tests.postgres_server import PostgresServer

T = TypeVar("T")


async def sqlite(path: Path) -> SqliteStore:
    return await open_sqlite(path, clock=SystemClock(), executor=ThreadExecutor("sqlite", threads=1))


async def postgres(url: str, *, allow_migration: bool = True, lease_ttl_ms: int = 10_000) -> PostgresStore:
    settings = PostgresSettings(url, lease_ttl_ms=lease_ttl_ms, connect_timeout_ms=2000)
    return await open_postgres(settings, allow_migration=allow_migration)


def database_of(url: str) -> str:
    return url.split("/")[3].split("?")[0]


@pytest.fixture
async def link(postgres_server: PostgresServer, postgres_url: str) -> AsyncIterator[DatabaseLink]:
    async with database_link(postgres_server.directory, database_of(postgres_url)) as link:
        yield link


async def test_the_migrated_schema_is_the_one_that_the_code_describes(metadata_store: MetadataStore) -> None:
    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), tables_metadata)

    if isinstance(metadata_store, SqliteStore):
        driver = metadata_store._connection
        with create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool).connect() as connection:
            assert differences(connection) == []
    else:
        assert await metadata_store.run(lambda tx: differences(tx.connection)) == []


async def test_a_cancelled_caller_does_not_stop_the_transaction(metadata_store: MetadataStore) -> None:
    caller = asyncio.ensure_future(join(metadata_store, "b0"))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await join(metadata_store, "b0")
    assert [b.broker_id for b in (await metadata_store.run(membership)).brokers] == ["b0"]


async def test_what_a_verb_raises_rolls_back_and_passes(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")

    def spoil(tx: Transaction) -> None:
        tx.execute("DELETE FROM brokers")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await metadata_store.run(spoil)
    assert len((await metadata_store.run(membership)).brokers) == 1


# ---- SQLite


async def test_a_second_process_on_one_sqlite_is_told_who_has_it(tmp_path: Path) -> None:
    store = await sqlite(tmp_path / "meta.db")
    program = f"""
import asyncio, pathlib
from tidelog.clock import SystemClock
from tidelog.executors import ThreadExecutor
from tidelog.metadata.sqlite import open_sqlite
asyncio.run(open_sqlite(pathlib.Path({str(tmp_path / "meta.db")!r}), clock=SystemClock(), executor=ThreadExecutor("x", threads=1)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"but process {os.getpid()} has it open; stop that one first" in done.stderr
    await store.close()
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


async def test_one_sqlite_is_not_opened_by_another_name(tmp_path: Path) -> None:
    store = await sqlite(tmp_path / "meta.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "meta.db")
    with pytest.raises(MetadataUnusable, match=f"process {os.getpid()} has it open"):
        await sqlite(tmp_path / "link.db")
    await store.close()


async def test_a_file_that_may_only_be_read_is_named(tmp_path: Path) -> None:
    store = await sqlite(tmp_path / "meta.db")
    await store.run(lambda tx: tx.execute("PRAGMA query_only = ON"))
    with pytest.raises(MetadataUnusable, match="the file is read-only; let this process write to it and to its directory"):
        await join(store, "b0")
    await store.close()


async def test_a_lock_of_another_program_is_waited_for_and_then_named(tmp_path: Path) -> None:
    """As a shell on the file takes it, which asks for no process lock."""
    store = await sqlite(tmp_path / "meta.db")
    await store.run(lambda tx: tx.rows("PRAGMA busy_timeout = 50"))
    shell = sqlite3.connect(tmp_path / "meta.db", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(MetadataUnavailable, match="another connection holds it locked; nothing was committed"):
        await join(store, "b0")
    shell.execute("ROLLBACK")
    shell.close()
    await join(store, "b0")
    await store.close()


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    store = await sqlite(tmp_path / "meta.db")
    assert [tuple(row) for row in await store.run(lambda tx: tx.rows("PRAGMA journal_mode"))] == [("wal",)]
    assert [tuple(row) for row in await store.run(lambda tx: tx.rows("PRAGMA synchronous"))] == [(2,)], "FULL"
    await store.close()


@pytest.mark.parametrize(
    ("asked", "got"), [("journal_mode = WAL", "journal_mode = DELETE"), ("synchronous = FULL", "synchronous = NORMAL")]
)
async def test_a_file_whose_commits_would_not_be_synced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, got: str
) -> None:
    """As a network file system does that cannot share memory: SQLite then quietly keeps another mode."""

    class Otherwise(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace(asked, got), *parameters)

    monkeypatch.setattr("tidelog.metadata.sqlite.sqlite3.connect", partial(sqlite3.connect, factory=Otherwise))
    with pytest.raises(MetadataUnusable, match="needs journal_mode and synchronous .* put it on a local file system"):
        await sqlite(tmp_path / "meta.db")
    monkeypatch.undo()
    await (await sqlite(tmp_path / "meta.db")).close()  # and nothing is held


def test_a_disk_that_fails_at_the_commit_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    """The commit may be in the file already, only its sync failed: then a restart brings it back (I5)."""
    program = f"""
import asyncio, os, pathlib, resource
from tidelog.errors import MetadataOutcomeUnknown
from tests.contract.metadata_steps import join
from tests.integration.test_metadata_stores import sqlite

async def main():
    path = pathlib.Path({str(tmp_path / "meta.db")!r})
    store = await sqlite(path)
    await join(store, "b0")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(f"{{path}}-wal") + 100, most))
    try:
        await join(store, "b1")
    except MetadataOutcomeUnknown as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    first = await join(store, "b1")
    print(first == await join(store, "b1"))
    await store.close()

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    problem, went_on = done.stdout.splitlines()
    assert "its disk failed (disk I/O error); it may have happened: mend the disk and ask again" in problem
    assert went_on == "True"


async def test_a_full_disk_commits_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    store = await sqlite(tmp_path / "meta.db")
    await join(store, "b0")
    [[pages]] = await store.run(lambda tx: tx.rows("PRAGMA page_count"))
    await store.run(lambda tx: tx.rows(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(MetadataUnavailable, match="its disk is full; nothing was committed"):
        await topic(store, count=5000)
    await store.run(lambda tx: tx.rows("PRAGMA max_page_count = 1000000"))
    assert len(await topic(store, count=5000)) == 5000
    await store.close()


async def test_a_file_that_is_no_database_or_a_missing_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(MetadataUnusable, match="not a sound SQLite database"):
        await sqlite(tmp_path / "text.db")
    with pytest.raises(MetadataUnusable, match="make the directory"):
        await sqlite(tmp_path / "nowhere" / "meta.db")


async def test_a_schema_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    await (await sqlite(tmp_path / "meta.db")).close()
    with sqlite3.connect(tmp_path / "meta.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(MetadataUnusable, match="schema is 9999, which this release .* does not know"):
        await sqlite(tmp_path / "meta.db")


async def test_every_reported_commit_survives_a_restart(tmp_path: Path) -> None:
    store = await sqlite(tmp_path / "meta.db")
    broker = (await join(store, "b0")).broker_epoch
    [partition] = await topic(store)
    led = (await lead(store, broker, [partition]))[partition]
    assert await append(store, led, broker, extent(broker, 1)) == Committed(10)
    await store.close()
    again = await sqlite(tmp_path / "meta.db")
    assert (await again.run(cluster_state)).commit_count == 1
    await again.close()


# ---- PostgreSQL


async def test_a_database_that_is_down_is_not_now(tmp_path: Path) -> None:
    with pytest.raises(MetadataUnavailable, match="cannot be reached .* nothing was committed"):
        await postgres("postgresql://postgres@127.0.0.1:1/none")


async def test_a_database_that_does_not_exist_is_named(postgres_server: PostgresServer) -> None:
    with pytest.raises(MetadataUnusable, match='database "none_such" does not exist; check the user'):
        await postgres(postgres_server.url("none_such"))


async def test_a_url_that_cannot_be_read_is_named() -> None:
    with pytest.raises(MetadataUnusable, match="write postgresql://"):
        await postgres("not a url")


async def test_a_missing_schema_is_refused_where_migrations_are_not_allowed(postgres_url: str) -> None:
    with pytest.raises(MetadataUnusable, match="schema is missing, but this release needs 0002"):
        await postgres(postgres_url, allow_migration=False)
    await (await postgres(postgres_url)).close()
    await (await postgres(postgres_url, allow_migration=False)).close()


async def test_brokers_that_start_together_on_an_empty_database_make_one_schema(postgres_url: str) -> None:
    stores = await asyncio.gather(*(postgres(postgres_url) for _ in range(6)))
    named = await asyncio.gather(*(store.run(initialise, cluster_id=f"{n:032x}", format_version=1) for n, store in enumerate(stores)))
    assert len({state.cluster_id for state in named}) == 1
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_schema_of_a_newer_release_is_refused_on_postgres(postgres_server: PostgresServer, postgres_url: str) -> None:
    await (await postgres(postgres_url)).close()
    await postgres_server.execute("UPDATE alembic_version SET version_num = '9999'", database=database_of(postgres_url))
    for allowed in (True, False):
        with pytest.raises(MetadataUnusable, match="schema is 9999, which this release .* does not know: .* run that release"):
            await postgres(postgres_url, allow_migration=allowed)


async def test_a_schema_that_is_migrated_beside_a_running_store_is_taken_up(postgres_server: PostgresServer, postgres_url: str) -> None:
    store = await postgres(postgres_url)
    await join(store, "b0")
    await topic(store)
    await store.run(topics)
    await postgres_server.execute("ALTER TABLE topics ALTER name TYPE varchar(300)", database=database_of(postgres_url))
    with pytest.raises(MetadataUnavailable, match="nothing was committed"):
        await store.run(topics)
    assert [known.name for known in await store.run(topics)] == ["clicks"]
    await store.close()


async def test_a_read_only_database_is_refused(postgres_server: PostgresServer, postgres_url: str) -> None:
    await postgres_server.execute(f"ALTER DATABASE {database_of(postgres_url)} SET default_transaction_read_only = on")
    with pytest.raises(MetadataUnusable, match="transaction_read_only = off, but .* has 'on': it only reads"):
        await postgres(postgres_url)


async def test_a_session_whose_server_was_demoted_is_replaced(postgres_url: str) -> None:
    """The name leads to the new primary by then; the session would lead to the old one for ever."""
    store = await postgres(postgres_url)
    await join(store, "b0")
    await store.run(lambda tx: tx.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    with pytest.raises(MetadataUnusable, match="only reads; name the primary"):
        await join(store, "b1")
    await join(store, "b1")
    await store.close()


async def test_a_database_that_cannot_hold_every_text_is_refused(postgres_server: PostgresServer) -> None:
    await postgres_server.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(MetadataUnusable, match="server_encoding = UTF8, but 'latin' has 'LATIN1': create the database with ENCODING"):
        await postgres(postgres_server.url("latin"))


@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
async def test_a_pooler_that_drops_time_outs_is_refused(link: DatabaseLink, name: str) -> None:
    """A paused broker's locks would keep others from taking over."""
    link.rewrite = lambda piece: piece.replace(b"\x00%s\x004000\x00" % name.encode(), b"\x00%s\x000000\x00" % name.encode())
    with pytest.raises(MetadataUnusable, match=f"sessions with {name} = 4000 ms, but got 0: .* connect to the database itself"):
        await postgres(link.url)


async def test_a_pooler_that_turns_synchronous_commits_off_is_refused(link: DatabaseLink) -> None:
    link.rewrite = lambda piece: piece.replace(b"\x00synchronous_commit\x00on\x00", b"\x00synchronous_commit\x00no\x00")
    with pytest.raises(
        MetadataUnusable, match="synchronous_commit = on or remote_apply, but .* has 'off': acknowledged commits could be lost"
    ):
        await postgres(link.url)


async def test_an_isolation_in_which_later_statements_do_not_see_later_commits_is_refused(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    await postgres_server.execute(f"ALTER DATABASE {database_of(postgres_url)} SET default_transaction_isolation = 'repeatable read'")
    with pytest.raises(MetadataUnusable, match="default_transaction_isolation = read committed, but .* has 'repeatable read'"):
        await postgres(postgres_url)


@pytest.mark.parametrize(
    ("name", "remedy"), [("fsync", "a crash would lose acknowledged records"), ("full_page_writes", "a crash could tear pages")]
)
async def test_a_server_that_is_not_safe_in_a_crash_is_refused(
    postgres_server: PostgresServer, postgres_url: str, name: str, remedy: str
) -> None:
    await postgres_server.execute(f"ALTER SYSTEM SET {name} = off")
    await postgres_server.execute("SELECT pg_reload_conf()")
    try:
        await _until(postgres_server, name, "off")
        with pytest.raises(MetadataUnusable, match=f"{name} = on, but .* has 'off': {remedy}"):
            await postgres(postgres_url)
    finally:
        await postgres_server.execute(f"ALTER SYSTEM RESET {name}")
        await postgres_server.execute("SELECT pg_reload_conf()")
        await _until(postgres_server, name, "on")


async def _until(server: PostgresServer, setting: str, value: str) -> None:
    async with asyncio.timeout(30):
        while True:
            connection = await asyncpg.connect(user="postgres", database="postgres", host=str(server.directory))
            found = await connection.fetchval(f"SHOW {setting}")
            await connection.close()
            if found == value:
                return
            await asyncio.sleep(0.05)


async def test_a_statement_that_takes_too_long_is_given_up(postgres_url: str) -> None:
    store = await postgres(postgres_url, lease_ttl_ms=1000)
    with pytest.raises(MetadataUnavailable, match="did not answer within 400 ms .* nothing was committed, try again"):
        await store.run(lambda tx: tx.rows("SELECT pg_sleep(60)"))
    await join(store, "b0")
    await store.close()


async def test_a_full_disk_of_the_database_is_named(postgres_url: str) -> None:
    store = await postgres(postgres_url)
    full = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE SQLSTATE ''53100''; END'"
    await store.run(lambda tx: tx.execute(full))
    await store.run(lambda tx: tx.execute("CREATE TRIGGER full_disk BEFORE INSERT ON brokers EXECUTE FUNCTION full_disk()"))
    with pytest.raises(MetadataUnavailable, match="the disk of the database at .* is full; nothing was committed: free some space"):
        await join(store, "b0")
    await store.run(lambda tx: tx.execute("DROP TRIGGER full_disk ON brokers"))
    await join(store, "b0")
    await store.close()


async def test_more_at_once_than_there_are_connections_wait_for_a_while(postgres_url: str) -> None:
    store = await open_postgres(PostgresSettings(postgres_url, pool_size=1, connect_timeout_ms=200))
    slow = asyncio.ensure_future(store.run(lambda tx: tx.rows("SELECT pg_sleep(1)")))
    await asyncio.sleep(0)
    with pytest.raises(MetadataUnavailable, match="all 1 connections to .* were in use for 200 ms; nothing was committed"):
        await store.run(membership)
    await slow
    await store.close()


async def test_a_renewal_waits_for_no_connection_that_others_use(postgres_url: str) -> None:
    store = await open_postgres(PostgresSettings(postgres_url, pool_size=1))
    broker = (await join(store, "b0")).broker_epoch
    begun = asyncio.Event()

    def slow(tx: Transaction) -> None:
        begun.set()
        tx.rows("SELECT pg_sleep(2)")

    slowly = asyncio.ensure_future(store.run(slow))
    await begun.wait()
    await store.run_reserved(renew_lease, broker_id="b0", broker_epoch=broker, ttl_ms=TTL_MS)
    assert not slowly.done()
    await slowly
    await store.close()


async def test_a_network_that_drops_everything_is_given_up_in_time_and_found_again(link: DatabaseLink) -> None:
    """No answer, no refusal: a half-open connection. The lease's connection is bound by the same time."""
    store = await postgres(link.url, lease_ttl_ms=1000)
    broker = (await join(store, "b0")).broker_epoch

    async def renew(*, reserved: bool) -> Lease:
        run = store.run_reserved if reserved else store.run
        return await run(renew_lease, broker_id="b0", broker_epoch=broker, ttl_ms=TTL_MS)

    for reserved in (True, False):
        await renew(reserved=reserved)
    link.freeze()
    for reserved in (True, False):
        async with asyncio.timeout(5):
            with pytest.raises(MetadataUnavailable, match="did not answer within the 500 ms of a statement .* nothing was committed"):
                await renew(reserved=reserved)
    link.thaw()
    for reserved in (True, False):
        async with asyncio.timeout(5):
            await answered(partial(renew, reserved=reserved))
    await store.close()


async def test_a_commit_whose_answer_is_lost_is_unknown_and_answered_when_it_is_asked_again(link: DatabaseLink) -> None:
    """I5."""
    store = await postgres(link.url, lease_ttl_ms=1000)
    broker = (await join(store, "b0")).broker_epoch
    [partition] = await topic(store)
    led = (await lead(store, broker, [partition]))[partition]
    link.lose_answers_after = b"COMMIT;"
    with pytest.raises(MetadataOutcomeUnknown, match="it may have happened: ask again"):
        await append(store, led, broker, extent(broker, 1))
    assert link.lost.is_set()
    link.lose_answers_after = None
    assert await answered(lambda: append(store, led, broker, extent(broker, 1))) == Committed(10)
    assert (await store.run(cluster_state)).commit_count == 1
    await store.close()


async def answered(work: Callable[[], Awaitable[T]]) -> T:
    """Try again as long as that is all that is asked."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await work()
            except MetadataUnavailable:
                continue


async def test_a_lock_held_too_long_is_given_up_and_nothing_is_committed(postgres_server: PostgresServer, postgres_url: str) -> None:
    store = await postgres(postgres_url, lease_ttl_ms=1000)
    broker = (await join(store, "b0")).broker_epoch
    [partition] = await topic(store)
    led = (await lead(store, broker, [partition]))[partition]
    holder = await asyncpg.connect(postgres_url)
    async with holder.transaction():
        await holder.execute("SELECT * FROM partitions FOR UPDATE")
        with pytest.raises(MetadataUnavailable, match="did not answer within 400 ms .* nothing was committed"):
            await append(store, led, broker, extent(broker, 1))
        lease = await store.run_reserved(renew_lease, broker_id="b0", broker_epoch=broker, ttl_ms=TTL_MS)
        assert lease.expires_at_ms > lease.now_ms
    await holder.close()
    assert await append(store, led, broker, extent(broker, 1)) == Committed(10)
    await store.close()


HELD = {
    "commit": "commit(tx, broker_epoch=2, partitions=[PartitionCommit(1, 1, 0, (NewExtent(2, 1, 8, 100, 10, 0),))])",
    "take over": "take_over(tx, broker_epoch=2, membership_version=3, partition_ids=[1])",
    "register": "register(tx, broker_id='b2', incarnation='i', zone='', address='', peer_address='', ttl_ms=1000)",
}
"""What a broker may be in the middle of, as Python."""


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
async def test_a_paused_broker_inside_a_transaction_does_not_block_the_end_of_its_epoch(postgres_url: str, held: str) -> None:
    """SIGSTOP while a transaction holds its locks: the server ends that session within half a lease, and nothing of it is committed."""
    store = await postgres(postgres_url, lease_ttl_ms=2000)
    one = (await join(store, "b0")).broker_epoch
    paused = (await join(store, "b1")).broker_epoch
    [partition] = await topic(store)
    await lead(store, paused, [partition])
    program = f"""
import asyncio
from tidelog.metadata.commits import NewExtent, PartitionCommit, commit
from tidelog.metadata.leadership import take_over
from tidelog.metadata.membership import register
from tidelog.metadata.postgres import PostgresSettings, open_postgres

async def main():
    store = await open_postgres(PostgresSettings({postgres_url!r}, lease_ttl_ms=2000))
    def half(tx):
        print("holds", {held}, flush=True)
        input()
    await store.run(half)

asyncio.run(main())
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert (await asyncio.to_thread(child.stdout.readline)).startswith("holds")
    os.kill(child.pid, signal.SIGSTOP)
    try:
        await store.run(expire_now, "b1")
        await store.run(unbroken_for_long, "b0")
        ended = await answered(lambda: store.run(end_expired_epochs, broker_id="b0", broker_epoch=one, ttl_ms=2000))
        assert ended == (paused,)
        led = (await lead(store, one, [partition]))[partition]
        assert led.leader_epoch == 2
    finally:
        os.kill(child.pid, signal.SIGCONT)
        _, errors = await asyncio.to_thread(child.communicate, "\n")
    assert child.returncode != 0
    assert "Metadata" in errors
    assert [b.broker_id for b in (await store.run(membership)).brokers] == ["b0"]
    assert await append(store, led, one, extent(one, 1)) == Committed(10)
    await store.close()


async def test_a_connection_lost_during_commit_leaves_the_outcome_unknown(postgres_server: PostgresServer, postgres_url: str) -> None:
    """A constraint checked at COMMIT ends the session there: the caller cannot know what became of its transaction."""
    store = await postgres(postgres_url)
    await join(store, "b0")

    def suicidal(tx: Transaction) -> None:
        tx.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
        )
        tx.execute(
            "CREATE CONSTRAINT TRIGGER die AFTER UPDATE ON cluster DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
        )

    await store.run(suicidal)
    with pytest.raises(MetadataOutcomeUnknown, match="it may have happened: ask again"):
        await store.run(lambda tx: tx.execute("UPDATE cluster SET next_producer_id = 77"))
    assert (await store.run(cluster_state)).commit_count == 0
    await store.close()


async def test_a_commit_of_many_partitions_changes_no_index_of_the_rows_it_updates(postgres_url: str) -> None:
    store = await postgres(postgres_url)
    epoch = (await join(store, "b0")).broker_epoch
    led = (await lead(store, epoch, await topic(store, count=300))).values()

    def updates(tx: Transaction, table: str) -> tuple[int, int]:
        """Those counted so far: all, and those that left the indexes alone."""
        ((updated, hot),) = tx.rows("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = :t", t=table)
        return updated, hot

    def commit_and_count(tx: Transaction, sequence: int) -> dict[str, tuple[int, int]]:
        proposals = [
            PartitionCommit(p.partition_id, p.leader_epoch, 10 * sequence - 10, (extent(epoch, sequence),), (ProducerWindow(7, 0, ()),))
            for p in led
        ]
        before = {table: updates(tx, table) for table in ("partitions", "producers")}
        assert set(commit(tx, broker_epoch=epoch, partitions=proposals).values()) == {Committed(10 * sequence)}
        after = {table: updates(tx, table) for table in before}
        return {table: (after[table][0] - before[table][0], after[table][1] - before[table][1]) for table in before}

    for sequence in range(1, 5):
        counts = await store.run(commit_and_count, sequence)
    for updated, hot in counts.values():
        assert updated == 300
        assert hot >= 270, counts
    await store.close()


async def test_connections_that_died_are_replaced(postgres_server: PostgresServer, postgres_url: str) -> None:
    store = await postgres(postgres_url)
    await join(store, "b0")
    await postgres_server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tidelog%'")
    assert len((await answered(lambda: store.run(membership))).brokers) == 1
    await store.close()


@pytest.mark.parametrize("error", [asyncpg.InternalClientError("another operation is in progress"), asyncpg.InterfaceError("is closed")])
async def test_a_driver_that_loses_its_place_while_a_session_begins_is_not_now(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As when the link breaks in the middle of an answer."""
    store = await open_postgres(PostgresSettings(postgres_url))
    await store._engine.dispose()

    def lost(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("tidelog.metadata.postgres._assert_session", lost)
        with pytest.raises(MetadataUnavailable, match="cannot be reached"):
            await store.run(lambda tx: tx.rows("SELECT 1"))
        with pytest.raises(MetadataUnavailable, match="cannot be reached"):
            await open_postgres(PostgresSettings(postgres_url))
    assert await store.run(lambda tx: tx.rows("SELECT 1"))
    await store.close()


async def test_a_session_that_is_lost_while_the_schema_is_looked_at_is_not_now(postgres_server: PostgresServer, postgres_url: str) -> None:
    """There is nothing left to roll back then; a broker that begins tries again, and does not end."""
    database = postgres_url.partition("?")[0].rpartition("/")[2]
    other = await asyncpg.connect(user="postgres", database=database, host=str(postgres_server.directory))
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        opening = asyncio.ensure_future(open_postgres(PostgresSettings(postgres_url)))
        while not await other.fetchval("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            assert not opening.done()
        with pytest.raises(MetadataUnavailable, match="nothing was committed"):
            await opening
    await other.close()
    await (await open_postgres(PostgresSettings(postgres_url))).close()
