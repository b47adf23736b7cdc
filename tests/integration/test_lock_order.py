"""Every verb locks rows in the written order, so that no two can wait for each other in a circle.

The server itself is asked: one session holds a row; where the verb comes to wait for it, every row that it holds by then
has to come before that row. So the order inside of a statement is seen too, whatever the plan.
"""

import asyncio
import inspect
import re
from contextlib import suppress
from typing import Any, TypeAlias

import asyncpg
import pytest
from tidelog.errors import TidelogError
from tidelog.metadata import cleaning, commits, extents, groups, leadership, marks, membership, retention, schema, topics
from tidelog.metadata.postgres import PostgresStore
from tidelog.metadata.schema import tables_metadata
from tidelog.metadata.store import Transaction

from tests.metadata_scene import VERBS, Snapshots, Verb

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Row = tuple[str, tuple[Any, ...]]
"""A table's name and a primary key."""

ORDER = re.sub(r"\s", "", re.split(r"\n\n", schema.__doc__ or "")[3]).split("→")
KEYS = {table.name: [column.name for column in table.primary_key] for table in tables_metadata.sorted_tables}


class _RolledBack(Exception):
    """Ends a verb that has not come to wait."""


def place(row: Row) -> tuple[int, tuple[Any, ...]]:
    return ORDER.index(row[0]), row[1]


def test_the_written_order_names_every_table() -> None:
    assert sorted(ORDER) == sorted(tables_metadata.tables)


READ = {
    "dated_extents",
    "cluster_state", "membership", "topics", "partitions", "catalog_changes", "writers", "find_extents", "released_segments",
    "final_segments", "read_group", "list_groups", "group_offsets", "backlog", "writer_states", "broker_ids", "stored_bytes", "review",
}  # fmt: skip
PARTS = {"lock_led", "next_change", "extents_of"}
"""Of verbs, in other modules."""


def test_every_verb_that_locks_is_in_the_scene() -> None:
    modules = (cleaning, commits, extents, groups, leadership, marks, membership, retention, topics)
    verbs = {
        name
        for module in modules
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and "tx" in inspect.signature(function).parameters
    }
    public = {name for name in verbs if not name.startswith("_")}
    assert public == {verb.__name__ for verb in VERBS.values()} | READ | PARTS


@pytest.mark.parametrize("name", VERBS)
async def test_a_verb_that_waits_for_a_row_holds_only_rows_before_it(
    scene: tuple[PostgresStore, Snapshots], scene_url: str, name: str
) -> None:
    store, snapshots = scene
    watcher = await asyncpg.connect(scene_url)
    await snapshots.restore()
    rows = [
        (table, tuple(key))
        for table, columns in KEYS.items()
        for key in await snapshots.connection.fetch(f"SELECT {', '.join(columns)} FROM {table}")
    ]
    wrong = []
    for row in rows:
        wrong += [
            f"{held} before {row}"
            for held in await held_while_waiting_for(row, store, snapshots, watcher, VERBS[name])
            if place(held) > place(row)
        ]
    await watcher.close()
    assert not wrong, "\n".join(wrong)


async def held_while_waiting_for(row: Row, store: PostgresStore, snapshots: Snapshots, watcher: Connection, verb: Verb) -> list[Row]:
    """Return the rows that the verb has locked when it comes to wait for this one; none where it never does."""
    pids: asyncio.Queue[int] = asyncio.Queue()

    def watched(tx: Transaction) -> None:
        driver: Any = tx.connection.connection.driver_connection
        pids.put_nowait(driver.get_server_pid())
        verb(tx)
        raise _RolledBack

    async def run() -> None:
        with suppress(TidelogError, _RolledBack):
            await store.run(watched)

    table, key = row
    where = " AND ".join(f"{column} = ${number}" for number, column in enumerate(KEYS[table], 1))
    holder = snapshots.connection
    async with asyncio.TaskGroup() as tasks, holder.transaction():
        await holder.execute(f"SELECT FROM {table} WHERE {where} FOR UPDATE", *key)
        task = tasks.create_task(run())
        pid = await pids.get()
        while not task.done() and not await holder.fetchval("SELECT pg_blocking_pids($1) <> '{}'", pid):
            pass
        return [] if task.done() else await locked_by_others(watcher, than=row)


async def locked_by_others(connection: Connection, *, than: Row) -> list[Row]:
    """Return the rows, `than` left out, that a third session cannot lock."""
    locked: list[Row] = []
    for table, columns in KEYS.items():
        keys = f"SELECT {', '.join(columns)} FROM {table}"
        free = {tuple(found) for found in await connection.fetch(f"{keys} FOR UPDATE SKIP LOCKED")}
        locked += [(table, tuple(found)) for found in await connection.fetch(keys) if tuple(found) not in free]
    return [row for row in locked if row != than]
