"""Retention and the cleaner: what topics do not keep goes, what is referred to stays, and one broker at a time deletes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tidelog.broker.broker import Broker
from tidelog.clock import SystemClock
from tidelog.errors import MetadataUnavailable, OffsetOutOfRange, TimeTravel, UnknownTopic
from tidelog.executors import ThreadExecutor
from tidelog.metadata.cleaning import drop_deleted_topic, writer_states
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.retention import apply_retention, strip_deleted_topic
from tidelog.metadata.sqlite import open_sqlite
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import TopicConfig, delete_topic
from tidelog.objects.local import open_directory
from tidelog.objects.memory import MemoryStore
from tidelog.objects.s3 import S3Settings, open_s3
from tidelog.objects.store import ObjectStore
from tidelog.segments.keys import IntakeKey, MergedKey, parse_key

from tests.cluster import QUICK, Cluster, SharedStore, append, open_cluster, until
from tests.postgres_server import PostgresServer

KEEP_ALL = TopicConfig(-1, -1)
EAGER = QUICK.model_copy(
    update={
        "retention_interval_ms": 50,
        "cleaner_interval_ms": 50,
        "reader_grace_ms": 1,
        "checkpoint_interval_ms": 0,
        "orphan_age_seconds": 0,
        "orphan_scan_interval_ms": 100,
        "cleaner_retry_ms": 100,
    }
)
IDLE = EAGER.model_copy(update={"cleaning": False, "retention": False})


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with open_cluster() as cluster:
        yield cluster


@pytest.fixture(params=["s3 and postgres", "directory and sqlite"])
async def real_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        if request.param == "s3 and postgres":
            s3: S3Settings = request.getfixturevalue("s3_settings")
            server: PostgresServer = request.getfixturevalue("postgres_server")
            bucket: ObjectStore = await open_s3(s3, clock=clock, chance=Random(1))
            store = await open_postgres(PostgresSettings(await stack.enter_async_context(server.database()), lease_ttl_ms=5000))
            cluster = Cluster(store, bucket, clock)
        else:
            bucket = open_directory(tmp_path / "bucket", clock=clock, chance=Random(1), executor=ThreadExecutor("files", threads=2))
            sqlite = await open_sqlite(tmp_path / "meta.db", clock=clock, executor=ThreadExecutor("sqlite", threads=1))
            cluster = Cluster(SharedStore(sqlite), bucket, clock)
        stack.push_async_callback(cluster.store.close)
        stack.push_async_callback(bucket.close)
        stack.push_async_callback(cluster.close)
        yield cluster


async def segments(bucket: ObjectStore) -> list[str]:
    return [found.key async for found in bucket.list() if parse_key(found.key) is not None]


async def rows(cluster: Cluster, *tables: str) -> int:
    """Return how many rows these tables have together."""
    together = " UNION ALL ".join(f"SELECT 1 FROM {table}" for table in tables)
    return len(await cluster.store.run(lambda tx: tx.rows(together)))


async def eventually(cluster: Cluster, *, objects: int) -> None:
    """Wait until so many segments are left, and nothing waits for the cleaner."""
    async with asyncio.timeout(20):
        while len(await segments(cluster.bucket)) != objects or await rows(cluster, "released_segments"):
            await asyncio.sleep(0.02)


async def read_from(broker: Broker, topic: str, offset: int, partition: int = 0) -> int:
    """Begin at an offset, as a consumer does; return where the answer ends."""
    async with broker.follow(topic, partition) as cursor:
        return (await cursor.read(await cursor.resolve(offset), max_bytes=1000)).next_offset


async def test_deleted_records_go_with_their_objects_and_readers_are_told_both_bounds(real_cluster: Cluster) -> None:
    broker = await real_cluster.start("one", EAGER)
    await broker.create_topic("clicks", partitions=2, config=KEEP_ALL)
    for number in range(6):
        await append(broker, "clicks", b"%d" % number)
    await append(broker, "clicks", b"kept", partition=1)
    assert len(await segments(real_cluster.bucket)) == 7
    assert await broker.delete_records("clicks", 0, 4) == 4
    await eventually(real_cluster, objects=3)
    with pytest.raises(OffsetOutOfRange) as error:
        await read_from(broker, "clicks", 3)
    assert (error.value.log_start_offset, error.value.high_watermark) == (4, 6)
    assert await read_from(broker, "clicks", 4) > 4
    assert await read_from(broker, "clicks", 0, partition=1) == 1
    assert await rows(real_cluster, "released_extents", "released_segments") == 0
    deleted = broker._metrics.objects_deleted["released"]._value.get()
    assert deleted == 4


async def test_a_segment_stays_while_one_partition_of_it_is_kept(cluster: Cluster) -> None:
    broker = await cluster.start("one", EAGER.model_copy(update={"max_latency_ms": 50, "puts_per_second": 1.0}))
    await broker.create_topic("clicks", partitions=2, config=KEEP_ALL)
    await asyncio.gather(*(append(broker, "clicks", b"first", partition=partition) for partition in range(2)))
    shared = await asyncio.gather(*(append(broker, "clicks", b"shared", partition=partition) for partition in range(2)))
    assert [each.base_offset for each in shared] == [1, 1]
    before = await segments(cluster.bucket)
    await broker.delete_records("clicks", 0, -1)
    async with asyncio.timeout(10):
        while await rows(cluster, "released_segments") or await rows(cluster, "extents") != 2:
            await asyncio.sleep(0.02)
    assert await segments(cluster.bucket) == before
    assert await read_from(broker, "clicks", 1, partition=1) == 2
    await broker.delete_records("clicks", 1, -1)
    await eventually(cluster, objects=0)


async def test_retention_by_size_follows_the_topic_without_a_restart(cluster: Cluster) -> None:
    broker = await cluster.start("one", EAGER)
    await broker.create_topic("clicks", partitions=1, config=KEEP_ALL)
    for number in range(10):
        await append(broker, "clicks", b"%d" % number + bytes(1000))
    assert len(await segments(cluster.bucket)) == 10
    await broker.alter_topic("clicks", config=TopicConfig(-1, 3000))
    await eventually(cluster, objects=3)
    with pytest.raises(OffsetOutOfRange, match="offsets 7 to 10"):
        await read_from(broker, "clicks", 6)
    assert (await append(broker, "clicks", b"next")).base_offset == 10


async def test_retention_by_time_empties_a_log_that_goes_on(cluster: Cluster) -> None:
    broker = await cluster.start("one", EAGER)
    await broker.create_topic("clicks", partitions=1, config=TopicConfig(200, -1))
    for number in range(5):
        await append(broker, "clicks", b"%d" % number)
    await eventually(cluster, objects=0)
    assert (await append(broker, "clicks", b"next")).base_offset == 5
    with pytest.raises(OffsetOutOfRange, match="offsets [56] to 6"):
        await read_from(broker, "clicks", 4)


async def test_a_follower_on_another_broker_hears_of_a_log_start_that_moved(cluster: Cluster) -> None:
    brokers = [await cluster.start(name, EAGER) for name in ("one", "two")]
    await brokers[0].create_topic("clicks", partitions=4, config=KEEP_ALL)
    await until(lambda: all(len(broker.catalog.topics()) == 1 for broker in brokers))
    for partition in range(4):
        for number in range(4):
            await append(brokers[0], "clicks", b"%d" % number, partition=partition)
    for partition in range(4):
        for broker in brokers:
            assert await read_from(broker, "clicks", 0, partition) > 0
    for partition in range(4):
        await brokers[partition % 2].delete_records("clicks", partition, 3)
    for partition in range(4):
        for broker in brokers:
            with pytest.raises(OffsetOutOfRange, match="offsets 3 to 4"):
                await read_from(broker, "clicks", 2, partition)


async def test_a_deleted_topic_goes_in_the_background_and_its_name_is_free(real_cluster: Cluster) -> None:
    broker = await real_cluster.start("one", EAGER.model_copy(update={"release_extents": 2}))
    await broker.create_topic("gone", partitions=3, config=KEEP_ALL)
    await broker.create_topic("kept", partitions=1, config=KEEP_ALL)
    for number in range(9):
        await append(broker, "gone", b"%d" % number, partition=number % 3)
    await append(broker, "kept", b"v")
    await broker.delete_topic("gone")
    with pytest.raises(UnknownTopic):
        await read_from(broker, "gone", 0)
    await eventually(real_cluster, objects=1)
    async with asyncio.timeout(10):
        while await rows(real_cluster, "topics") != 1:
            await asyncio.sleep(0.02)
    assert await rows(real_cluster, "partitions") == 1
    await broker.create_topic("gone", partitions=1, config=KEEP_ALL)
    assert (await append(broker, "gone", b"anew")).base_offset == 0


async def test_orphans_of_writers_that_ended_go_and_what_is_younger_or_referred_to_stays(real_cluster: Cluster) -> None:
    one = await real_cluster.start("one", IDLE)
    await one.create_topic("clicks", partitions=1, config=KEEP_ALL)
    await append(one, "clicks", b"kept")
    assert one.life is not None
    epoch, incarnation = one.life.identity.broker_epoch, one.life.identity.incarnation
    topic = one.catalog.topics()[0].topic_id
    for orphan in (IntakeKey("one", epoch, 90, incarnation), MergedKey(topic, 0, 0, "one", epoch, 91)):
        await real_cluster.bucket.put_new(str(orphan), [b"never committed"])
    await real_cluster.bucket.put_new("intake/readme.txt", [b"somebody else's"])
    two = await real_cluster.start("two", EAGER)
    await asyncio.sleep(0.5)
    assert len(await segments(real_cluster.bucket)) == 3, "their writer is alive, and has not resolved these"
    await real_cluster.kill("one")
    await eventually(real_cluster, objects=1)
    assert await read_from(two, "clicks", 0) == 1
    assert [found.key async for found in real_cluster.bucket.list("intake/readme")] == ["intake/readme.txt"]


async def test_an_orphan_younger_than_the_settings_say_stays(cluster: Cluster) -> None:
    one = await cluster.start("one", EAGER.model_copy(update={"orphan_age_seconds": 3600}))
    assert one.life is not None
    await cluster.kill("one")
    await cluster.bucket.put_new(str(IntakeKey("one", 1, 90, "0" * 32)), [b"never committed"])
    two = await cluster.start("two", EAGER.model_copy(update={"orphan_age_seconds": 3600}))
    scans = two._metrics.orphan_scans
    await until(lambda: scans._value.get() > 3)
    assert len(await segments(cluster.bucket)) == 1


class Refusing(MemoryStore):
    """A bucket that does not let some objects go."""

    refused: frozenset[str] = frozenset()
    asked = 0

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        kept = {key: "AccessDenied: under legal hold" for key in keys if key in self.refused}
        self.asked += len(kept)
        await super().delete_many([key for key in keys if key not in kept])
        return kept


async def test_an_object_that_cannot_be_deleted_stops_no_other_and_is_tried_rarely(cluster: Cluster) -> None:
    cluster.bucket = bucket = Refusing(clock=cluster.clock)
    broker = await cluster.start("one", EAGER.model_copy(update={"cleaner_retry_ms": 60_000, "orphan_cleaning": False}))
    await broker.create_topic("clicks", partitions=1, config=KEEP_ALL)
    for number in range(5):
        await append(broker, "clicks", b"%d" % number)
    bucket.refused = frozenset((await segments(bucket))[:2])
    await broker.delete_records("clicks", 0, -1)
    quarantined = broker._metrics.cleaner_quarantined
    await until(lambda: quarantined._value.get() == 2, seconds=20)
    assert await segments(bucket) == sorted(bucket.refused)
    assert bucket.asked == 2 * 3, "three times each, and then rarely"
    assert broker._metrics.deletions_refused._value.get() == 6
    await append(broker, "clicks", b"more")
    await broker.delete_records("clicks", 0, -1)
    async with asyncio.timeout(10):
        while len(await segments(bucket)) > 2:
            await asyncio.sleep(0.02)


async def test_nothing_is_deleted_by_a_metadata_store_older_than_the_bucket(cluster: Cluster) -> None:
    """I11: the restored copy still refers to nothing it should; its cleaner must not act on what it does not know."""
    broker = await cluster.start("one", EAGER.model_copy(update={"cleaner_interval_ms": 600}))
    await broker.create_topic("clicks", partitions=1, config=KEEP_ALL)
    for number in range(3):
        await append(broker, "clicks", b"%d" % number)
    await cluster.bucket.put_new(f"cluster/{10**6:020}.json", [b'{"cluster_id": "%s", "commit_count": 1000000, "format_version": 1}'
                                 % broker.cluster_id().encode()])  # fmt: skip
    before = await segments(cluster.bucket)
    await broker.delete_records("clicks", 0, -1)
    running = cluster.tasks.pop("one")
    with pytest.RaisesGroup(pytest.RaisesExc(TimeTravel, match="but the bucket knows of 1000000"), allow_unwrapped=True):
        async with asyncio.timeout(10):
            await running
    cluster.network.brokers.pop("one")
    assert await segments(cluster.bucket) == before
    assert broker._metrics.cleaner_rounds["time_travel"]._value.get() == 1


async def test_one_broker_at_a_time_cleans_and_another_goes_on_where_it_dies(cluster: Cluster) -> None:
    brokers = {name: await cluster.start(name, EAGER) for name in ("one", "two", "three")}

    def cleaners() -> list[str]:
        return [name for name, broker in brokers.items() if broker._metrics.cleaner_lease._value.get()]

    await until(lambda: len(cleaners()) == 1)
    [first] = cleaners()
    survivor = next(name for name in brokers if name != first)
    await brokers[survivor].create_topic("clicks", partitions=1, config=KEEP_ALL)
    await append(brokers[survivor], "clicks", b"v")
    await cluster.kill(first)
    del brokers[first]
    await brokers[survivor].delete_records("clicks", 0, -1)
    await eventually(cluster, objects=0)
    assert len(cleaners()) == 1


async def test_what_is_switched_off_does_nothing(cluster: Cluster) -> None:
    broker = await cluster.start("one", IDLE)
    await broker.create_topic("clicks", partitions=1, config=TopicConfig(1, 1))
    for number in range(3):
        await append(broker, "clicks", b"%d" % number)
    await broker.delete_records("clicks", 0, 2)
    await asyncio.sleep(0.5)
    assert len(await segments(cluster.bucket)) == 3
    assert await rows(cluster, "extents") == 3


async def test_an_idle_cleaner_asks_the_bucket_for_nothing_but_the_scan(cluster: Cluster) -> None:
    class Counting(MemoryStore):
        asked = 0

        async def put_new(self, key: str, parts: Sequence[bytes | bytearray | memoryview]) -> None:
            self.asked += key.startswith("cluster/")
            await super().put_new(key, parts)

    cluster.bucket = bucket = Counting(clock=cluster.clock)
    broker = await cluster.start("one", EAGER)
    await broker.create_topic("clicks", partitions=1, config=KEEP_ALL)
    await append(broker, "clicks", b"v")
    before = bucket.asked
    scans = broker._metrics.orphan_scans
    await until(lambda: scans._value.get() > 3)
    assert bucket.asked == before, "no marker is renewed where nothing is to be deleted"


async def test_a_dry_run_says_what_would_go_and_why_and_deletes_nothing(real_cluster: Cluster) -> None:
    one = await real_cluster.start("one", EAGER.model_copy(update={"cleaning": False, "orphan_age_seconds": 3600, "max_latency_ms": 0}))
    await one.create_topic("clicks", partitions=1, config=KEEP_ALL)
    for number in range(4):
        await append(one, "clicks", b"%d" % number)
    assert one.life is not None
    orphan = IntakeKey("one", one.life.identity.broker_epoch, 90, one.life.identity.incarnation)
    await real_cluster.bucket.put_new(str(orphan), [b"never committed"])
    assert (await one.plan_cleaning(0)).objects == (), "nothing was released, and the orphan's writer is alive"
    await one.delete_records("clicks", 0, 2)
    async with asyncio.timeout(10):
        while await rows(real_cluster, "released_segments") < 2:
            await asyncio.sleep(0.02)
    await real_cluster.kill("one")
    two = await real_cluster.start("two", IDLE.model_copy(update={"orphan_age_seconds": 3600}))
    async with asyncio.timeout(10):
        while len((plan := await two.plan_cleaning(0)).objects) < 3 or plan.objects[0].state == "unresolved":
            await asyncio.sleep(0.02)
    assert [(each.reason, each.state) for each in plan.objects] == [("released", "deletable")] * 2 + [("orphan", "young")]
    assert plan.objects[2].key == str(orphan)
    assert all(each.bytes > 0 for each in plan.objects)
    assert (plan.listed, plan.complete) == (5, True)
    assert not (await two.plan_cleaning(2)).complete
    assert len(await segments(real_cluster.bucket)) == 5
    assert await rows(real_cluster, "released_segments") == 2


async def test_writers_of_whom_nothing_is_left_are_forgotten_and_their_commits_still_count(cluster: Cluster) -> None:
    one = await cluster.start("one", EAGER)
    await one.create_topic("clicks", partitions=1, config=KEEP_ALL)
    await append(one, "clicks", b"v")
    await cluster.kill("one")
    two = await cluster.start("two", EAGER)
    await until(lambda: two.life is not None and len(two.life.ledger.led()) == 1)
    await two.delete_records("clicks", 0, -1)
    async with asyncio.timeout(20):
        while await rows(cluster, "writers") > 1:
            await asyncio.sleep(0.02)
    assert await rows(cluster, "commit_counts") == 2, "what they counted must go on counting (I11)"
    await cluster.kill("two")
    three = await cluster.start("three", EAGER)
    assert (await append(three, "clicks", b"next")).base_offset == 1


class Failing:
    """A metadata store in which some transactions take too long."""

    exclusive = False

    def __init__(self, store: MetadataStore, fails: Callable[[Any, dict[str, Any]], bool]) -> None:
        self._store = store
        self._fails = fails
        self.close = store.close

    async def run(self, verb: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self._fails(verb, kwargs):
            raise MetadataUnavailable("canceling statement due to statement timeout")
        return await self._store.run(verb, *args, **kwargs)

    run_reserved = run


async def test_a_topic_that_cannot_be_taken_away_keeps_nothing_else(cluster: Cluster) -> None:
    broker = await cluster.start("one", EAGER, lambda store: Failing(store, lambda verb, _: verb is drop_deleted_topic))
    await broker.create_topic("gone", partitions=1, config=KEEP_ALL)
    await broker.create_topic("clicks", partitions=1, config=KEEP_ALL)
    for number in range(5):
        await append(broker, "clicks", b"%d" % number)
    await broker.delete_topic("gone")
    await broker.delete_records("clicks", 0, -1)
    await eventually(cluster, objects=0)
    assert await rows(cluster, "topics") == 2


async def test_the_offsets_of_groups_go_with_their_topic_a_few_at_a_time(cluster: Cluster) -> None:
    broker = await cluster.start("one", IDLE)
    topic = await broker.create_topic("gone", partitions=2, config=KEEP_ALL)

    def fill(tx: Transaction) -> None:
        tx.execute(
            "INSERT INTO group_offsets (group_id, partition_id, next_offset, note, generation, committed_at_ms)"
            " SELECT 'group ' || n.number, partition_id, 0, '', 0, 0 FROM partitions CROSS JOIN"
            " (SELECT 1 AS number UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5) AS n"
        )

    await cluster.store.run(fill)
    assert await rows(cluster, "group_offsets") == 10
    await cluster.store.run(delete_topic, topic_id=topic.topic_id)
    assert [await cluster.store.run(strip_deleted_topic, topic_id=topic.topic_id, limit=4) for _ in range(4)] == [4, 4, 2, 0]
    assert await rows(cluster, "group_offsets") == 0


async def test_retention_looks_at_fewer_partitions_at_once_where_one_statement_is_too_much(cluster: Cluster) -> None:
    def too_much(verb: Any, asked: dict[str, Any]) -> bool:
        return verb is apply_retention and (len(asked["rules"]) > 2 or any(rule.partition_id == 3 for rule in asked["rules"]))

    broker = await cluster.start("one", EAGER, lambda store: Failing(store, too_much))
    await broker.create_topic("clicks", partitions=6, config=TopicConfig(retention_ms=-1, retention_bytes=0))
    for partition in range(6):
        await append(broker, "clicks", b"old", partition=partition)
        await append(broker, "clicks", b"new", partition=partition)

    async def starts() -> list[int]:
        topic = await broker.ensure_topic("clicks")
        return [state.log_start_offset for state in await broker.partitions(topic.topic_id)]

    async with asyncio.timeout(20):
        while sum(start > 0 for start in await starts()) < 5:
            await asyncio.sleep(0.02)
    assert [start > 0 for start in await starts()] == [True, True, False, True, True, True], "but for the one that is always too much"


async def test_an_orphan_that_stays_does_not_end_the_scan(cluster: Cluster) -> None:
    cluster.bucket = bucket = Refusing(clock=cluster.clock)
    one = await cluster.start("one", IDLE)
    await one.create_topic("clicks", partitions=1, config=KEEP_ALL)
    await append(one, "clicks", b"kept")
    await cluster.kill("one")
    [kept] = await segments(bucket)
    name = parse_key(kept)
    assert isinstance(name, IntakeKey)
    stays, goes = (str(IntakeKey("one", name.broker_epoch, number, name.incarnation)) for number in (500, 501))
    for key in (stays, goes):
        await bucket.put_new(key, [b"x"])
    bucket.refused = frozenset({stays})
    two = await cluster.start("two", EAGER.model_copy(update={"cleaner_retry_ms": 60_000, "cleaner_listed_objects": 2}))
    assert two.life is not None
    for _ in range(12):  # as after twelve failures: it is not tried again for a minute
        two.life.cleaner._quarantine.failed(stays, "AccessDenied")
    async with asyncio.timeout(30):
        while goes in await segments(bucket):
            await asyncio.sleep(0.02)
    assert set(await segments(bucket)) == {kept, stays}


async def test_a_whole_scan_that_cannot_begin_is_begun_again(cluster: Cluster) -> None:
    one = await cluster.start("one", IDLE)
    assert one.life is not None
    scan = one.life.cleaner._scan
    away = [True]
    scan._store = Failing(cluster.store, lambda verb, _: verb is writer_states and bool(away and away.pop()))
    with pytest.raises(MetadataUnavailable):
        await scan.look()
    listed: list[str] = []
    bucket_list = cluster.bucket.list

    def listing(prefix: str = "", *, start_after: str = "") -> AsyncIterator[Any]:
        listed.append(prefix)
        return bucket_list(prefix, start_after=start_after)

    cluster.bucket.list = listing  # type: ignore[method-assign]
    await scan.look()
    assert "merged/" in listed


async def test_records_of_a_topic_that_has_just_gone_cannot_be_deleted(cluster: Cluster) -> None:
    broker = await cluster.start("one", IDLE)
    topic = await broker.create_topic("gone", partitions=1, config=KEEP_ALL)
    await cluster.store.run(delete_topic, topic_id=topic.topic_id)
    assert await cluster.store.run(drop_deleted_topic, topic_id=topic.topic_id)
    with pytest.raises(UnknownTopic):
        await broker.delete_records("gone", 0, -1)
