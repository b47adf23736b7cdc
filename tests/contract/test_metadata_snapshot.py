"""Every store's rows can be read page by page, and make a new store of any kind."""

from typing import Any

from tidelog.clock import SystemClock
from tidelog.executors import InlineExecutor
from tidelog.metadata.extents import read_extents
from tidelog.metadata.membership import cluster_state, initialise
from tidelog.metadata.snapshot import (
    TABLES,
    LivingMarks,
    finish_rebuild,
    is_unused,
    read_progress,
    read_released,
    read_table,
    write_table,
)
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig, create_topic, partitions

from tests.contract.metadata_steps import CLUSTER_ID
from tests.metadata_scene import play

SCENE = ("cluster", "writers", "resolved_marks", "topics", "partitions", "extents", "producers", "groups", "group_offsets")


async def rows_of(store: MetadataStore, table: str, *, limit: int) -> list[tuple[Any, ...]]:
    columns = list(TABLES[table].columns)
    found: list[tuple[Any, ...]] = []
    after = None
    while page := await store.run(read_table, table=table, after=after, limit=limit):
        assert len(page) <= limit
        found += page
        after = [page[-1][columns.index(column)] for column in TABLES[table].key]
    return found


async def test_rows_are_read_page_by_page_and_make_another_store(metadata_store: MetadataStore) -> None:
    await play(metadata_store)
    other = await open_sqlite(IN_MEMORY, clock=SystemClock(), executor=InlineExecutor())
    try:
        await copy(metadata_store, other)
    finally:
        await other.close()


async def test_a_store_is_made_of_rows_and_goes_on(metadata_store: MetadataStore) -> None:
    source = await open_sqlite(IN_MEMORY, clock=SystemClock(), executor=InlineExecutor())
    try:
        await play(source)
        assert await metadata_store.run(is_unused)
        await metadata_store.run(initialise, cluster_id="named by a broker that began too early", format_version=1)
        assert await metadata_store.run(is_unused), "a name alone is not use"
        await copy(source, metadata_store)
        assert not await metadata_store.run(is_unused)
        assert (await metadata_store.run(cluster_state)).cluster_id == CLUSTER_ID
        made = await metadata_store.run(create_topic, topic_id="ab" * 16, name="new", partitions=2, config=TopicConfig())
        taken = {row[0] for row in await rows_of(source, "partitions", limit=100)}
        ids = {row.partition_id for row in await metadata_store.run(partitions, topic_id=made.topic_id)}
        assert len(ids) == 2
        assert not ids & taken, "ids that came with the rows are not given again"
    finally:
        await source.close()


async def copy(source: MetadataStore, target: MetadataStore) -> None:
    """Copy what a scene has, in small pages, and compare."""
    contents = {table: await rows_of(source, table, limit=2) for table in SCENE}
    for table in ("topics", *(table for table in SCENE if table not in ("topics", "cluster"))):
        assert contents[table] == await rows_of(source, table, limit=1000)
        await target.run(write_table, table=table, rows=contents[table])
    await target.run(finish_rebuild, cluster=contents["cluster"][0], version=77)
    for table in SCENE:
        assert await rows_of(target, table, limit=1000) == contents[table], table
    assert await rows_of(target, "changes", limit=10) == [(1, 77)]


async def test_what_partitions_have_gained_comes_with_the_producers_that_appended_since(metadata_store: MetadataStore) -> None:
    """In the scene partition 1 ends at 30, and its producers' last appends lie at 0: the batches that they name there."""
    await play(metadata_store)
    positions = [(1, 10), (3, 0)]
    read = await metadata_store.run(read_progress, positions=positions, producers_from=[(1, 0), (2, 1), (3, 0)], max_extents=100)
    assert read.extents == await metadata_store.run(read_extents, positions=positions, max_extents=100)
    assert [row[:3] for row in read.producers] == [(1, 1, 0), (1, 2, 0)], "none of partition 2 has appended at 1 or later"


async def test_released_extents_are_told_while_their_segments_can_still_be_committed(metadata_store: MetadataStore) -> None:
    """In the scene (1, 1) is resolved up to 2, and so is (2, 2): both are final, and their released extents decide nothing any more."""
    await play(metadata_store)
    assert await metadata_store.run(read_released, marks=None, after=None, limit=100) == ()
    await metadata_store.run(lambda tx: tx.execute("UPDATE resolved_marks SET sequence = 0"))
    first = await metadata_store.run(read_released, marks=None, after=None, limit=1)
    rest = await metadata_store.run(read_released, marks=None, after=first[0][:4], limit=100)
    assert [row[:3] for row in (*first, *rest)] == [(1, 1, 2), (2, 2, 5), (2, 2, 6)]
    await metadata_store.run(lambda tx: tx.execute("UPDATE writers SET ended = TRUE WHERE broker_epoch = 1"))
    assert [row[:2] for row in await metadata_store.run(read_released, marks=None, after=None, limit=100)] == [(2, 2), (2, 2)]


async def test_released_extents_are_told_by_marks_that_were_read_before(metadata_store: MetadataStore) -> None:
    """What has become final since is told all the same; writers that registered since count as living, those forgotten by then do not."""
    await play(metadata_store)

    async def told(given_below: int, *resolved: tuple[int, int], after: tuple[int, ...] | None = None) -> list[tuple[int, ...]]:
        rows = await metadata_store.run(read_released, marks=LivingMarks(resolved, given_below), after=after, limit=2)
        return [row[:3] for row in rows] + (await told(given_below, *resolved, after=rows[-1][:4]) if rows else [])

    assert await told(4, (1, 0), (2, 0), (3, 0)) == [(1, 1, 2), (2, 2, 5), (2, 2, 6)]
    assert await told(4, (1, 1), (2, 1)) == [(2, 2, 5), (2, 2, 6)]
    assert await told(4, (2, 2)) == []
    assert await told(2) == [(2, 2, 5), (2, 2, 6)]
