"""`verify_store` on a real store that is damaged in every way: each is found and named; a busy healthy one gives no finding."""

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tidelog.broker.broker import Broker
from tidelog.broker.findings import FAULTS, Report
from tidelog.broker.verification import Scope, repair, verify_store
from tidelog.clock import SystemClock
from tidelog.errors import MetadataUnusable, StoreUnavailable, UnknownTopic
from tidelog.executors import InlineExecutor, ThreadExecutor
from tidelog.metadata.cleaning import condemn, forget_released, released_segments
from tidelog.metadata.extents import ReleasedSource, advance_log_start, expired_extents, release_expired, swap
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metadata.topics import TopicConfig
from tidelog.objects.local import open_directory
from tidelog.objects.memory import MemoryStore
from tidelog.objects.store import ObjectInfo
from tidelog.records.batch import scan, stamp
from tidelog.records.codec import Producer
from tidelog.segments.format import ChunkSource, Origin, decode, encode_intake, encode_merged
from tidelog.segments.keys import IntakeKey, MergedKey, parse_key

from tests.cluster import QUICK, Cluster, SharedStore, append

SCOPE = Scope(look_again_after_s=0.01)
STEADY = QUICK.model_copy(update={"max_latency_ms": 5, "lease_ms": 30_000})
ROUNDS = 12
on_sqlite = pytest.mark.parametrize("metadata_store", ["sqlite-in-memory"], indirect=True)


@dataclass
class Scene:
    """A store with records in two topics, and nobody at work."""

    store: MetadataStore
    bucket: Any
    root: Path
    clock: SystemClock

    async def report(self, **changes: object) -> Report:
        scope = replace(SCOPE, **changes)  # type: ignore[arg-type]
        return await verify_store(self.store, self.bucket, scope=scope, clock=self.clock, executor=InlineExecutor())

    async def sql(self, *statements: str) -> None:
        def run(tx: Transaction) -> None:
            for statement in statements:
                tx.execute(statement)

        await self.store.run(run)

    async def rows(self, statement: str) -> Sequence[Any]:
        return await self.store.run(lambda tx: tx.rows(statement))

    def segments(self) -> list[Path]:
        return sorted(self.root.rglob("*.seg"))


@pytest.fixture
async def scene(metadata_store: MetadataStore, tmp_path: Path) -> AsyncIterator[Scene]:
    clock = SystemClock()
    bucket = open_directory(tmp_path / "bucket", clock=clock, chance=random.Random(1), executor=ThreadExecutor("objects", threads=4))
    cluster = Cluster(SharedStore(metadata_store), bucket, clock)
    for name in ("one", "two"):
        await cluster.start(name, STEADY)
    one, two = cluster.network.brokers.values()
    await one.create_topic("clicks", partitions=2, config=TopicConfig())
    await one.create_topic("views", partitions=1, config=TopicConfig())
    await two.ensure_topic("views")
    producer_id, producer_epoch = await one.init_producer()
    for number in range(ROUNDS):
        broker = (one, two)[number % 2]
        await asyncio.gather(
            append(broker, "clicks", *[b"click %d" % number] * 5, producer=Producer(producer_id, producer_epoch, 5 * number)),
            append(broker, "clicks", b"one click", b"more", partition=1),
            append(broker, "views", b"a view"),
        )
    await cluster.close()
    # Nobody is left who could end the epochs, as the next broker to come would do.
    await metadata_store.run(lambda tx: [tx.execute(each) for each in ("UPDATE writers SET ended = TRUE", "DELETE FROM brokers")])  # type: ignore[func-returns-value]
    yield Scene(metadata_store, bucket, tmp_path / "bucket", clock)
    await bucket.close()


async def test_a_healthy_store_gives_no_finding_and_is_counted(scene: Scene) -> None:
    for full in (True, False):
        report = await scene.report(full=full)
        assert report.findings == []
        assert report.sound
        assert (report.partitions, report.records) == (3, ROUNDS * 8)
        assert report.segments == report.objects == len(scene.segments())
        assert report.extents == (await scene.rows("SELECT count(*) AS n FROM extents"))[0].n
        assert report.object_bytes == sum(path.stat().st_size for path in scene.segments())
        assert (report.batches_checked == ROUNDS * 3) is full
    of_one = await scene.report(topics=("views",))
    assert (of_one.partitions, of_one.records, of_one.objects, of_one.sound) == (1, ROUNDS, 0, True)
    with pytest.raises(UnknownTopic, match="'nothing' was to be checked"):
        await scene.report(topics=("views", "nothing"))


def flip(path: Path, position: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)


async def _chunk(scene: Scene, topic: str, place: int) -> tuple[Path, Any]:
    """Return the object and the row of a partition's extent."""
    [extent] = await scene.rows(
        "SELECT e.*, w.broker_id, w.incarnation FROM extents e JOIN writers w ON w.broker_epoch = e.broker_epoch"
        " JOIN partitions p ON p.partition_id = e.partition_id JOIN topics t ON t.topic_id = p.topic_id"
        f" WHERE t.name = '{topic}' AND p.partition = 0 ORDER BY e.base_offset LIMIT 1 OFFSET {place}"
    )
    return scene.root / str(IntakeKey(extent.broker_id, extent.broker_epoch, extent.sequence, extent.incarnation)), extent


async def flipped_record(scene: Scene) -> None:
    path, extent = await _chunk(scene, "clicks", 3)
    flip(path, extent.position + extent.length - 3)


async def flipped_stamp(scene: Scene) -> None:
    path, extent = await _chunk(scene, "clicks", 3)
    flip(path, extent.position + 7)


async def flipped_length(scene: Scene) -> None:
    path, extent = await _chunk(scene, "clicks", 3)
    flip(path, extent.position + 9, 0x40)


async def flipped_footer(scene: Scene) -> None:
    path, _ = await _chunk(scene, "clicks", 3)
    flip(path, path.stat().st_size - 40)


async def flipped_header(scene: Scene) -> None:
    path, _ = await _chunk(scene, "clicks", 3)
    flip(path, 6)


async def cut_a_little(scene: Scene) -> None:
    path, _ = await _chunk(scene, "clicks", 3)
    os.truncate(path, path.stat().st_size - 5)


async def cut_in_half(scene: Scene) -> None:
    path, _ = await _chunk(scene, "clicks", 3)
    os.truncate(path, 30)


async def gone(scene: Scene) -> None:
    path, _ = await _chunk(scene, "clicks", 3)
    path.unlink()


async def of_another_cluster(scene: Scene) -> None:
    path, _ = await _chunk(scene, "clicks", 3)
    content = path.read_bytes()
    footer = decode(content)
    sources = [
        ChunkSource(chunk.topic_id, chunk.partition, [part := content[chunk.position : chunk.end]], scan(part)) for chunk in footer.chunks
    ]
    parts, _ = encode_intake(sources, replace(footer.origin, cluster_id="f" * 32))
    path.write_bytes(b"".join(parts))


async def exchanged(scene: Scene) -> None:
    one, other = await _chunk(scene, "clicks", 3), await _chunk(scene, "clicks", 5)
    first, second = one[0].read_bytes(), other[0].read_bytes()
    one[0].write_bytes(second)
    other[0].write_bytes(first)


CLICKS = "partition_id = (SELECT p.partition_id FROM partitions p JOIN topics t USING (topic_id) WHERE name = 'clicks' AND partition = 0)"
DUPLICATE = (
    "INSERT INTO extents (partition_id, base_offset, next_offset, broker_epoch, sequence, position, length, record_count, level,"
    " max_timestamp_ms, commit_time_ms, leader_epoch) SELECT partition_id, 60, 65, broker_epoch, sequence, position, length, record_count,"
    f" level, max_timestamp_ms, commit_time_ms, leader_epoch FROM extents WHERE {CLICKS} AND base_offset = 55"
)


def statements(*of: str) -> Callable[[Scene], Any]:
    return lambda scene: scene.sql(*of)


def lost(base_offset: int) -> Callable[[Scene], Any]:
    return statements(f"DELETE FROM extents WHERE {CLICKS} AND base_offset = {base_offset}")


def of_partition(change: str) -> Callable[[Scene], Any]:
    return statements(f"UPDATE partitions SET {change} WHERE {CLICKS}")


def of_clicks(change: str, base_offset: int = 15) -> Callable[[Scene], Any]:
    return statements(f"UPDATE extents SET {change} WHERE {CLICKS} AND base_offset = {base_offset}")


@on_sqlite
@pytest.mark.parametrize(
    ("damage", "found", "told"),
    [
        # the bucket
        (flipped_record, {"damaged-bytes"}, "topic clicks partition 0, offsets 15 to 20: bytes .*the batch at .* is damaged .*CRC-32C"),
        (flipped_stamp, {"damaged-bytes"}, "offsets 15 to 20: bytes .*stamped with offset 1 and leader epoch -1"),
        (flipped_length, {"damaged-bytes"}, "offsets 15 to 20: .*its length field says"),
        (flipped_footer, {"damaged-footer"}, r"intake/.*\.seg: segment at byte .*; it holds topic clicks partition 0, offsets 15 to 20"),
        (flipped_header, {"damaged-footer"}, "its header says kind 0, but its footer 1"),
        (cut_a_little, {"damaged-footer"}, "it ends with"),
        (cut_in_half, {"cut-object"}, r"it has 30 bytes, but rows refer to bytes up to \d+: it holds topic clicks partition 0, offsets 15"),
        (gone, {"missing-object"}, r"intake/.*\.seg: it holds topic clicks partition 0, offsets 15 to 20; .*Bring it back"),
        (of_another_cluster, {"wrong-object"}, "it says that it is an intake segment of .*'f{32}', .* but must be of"),
        (exchanged, {"wrong-object"}, "offsets 15 to 20"),
        # rows of extents
        (lost(15), {"missing-offsets"}, "offsets 15 to 20: no extent holds them"),
        (lost(0), {"missing-offsets"}, "offsets 0 to 5: no extent holds them"),
        (lost(55), {"missing-offsets"}, "offsets 55 to 60: no extent holds them"),
        (statements(f"DELETE FROM extents WHERE {CLICKS}"), {"missing-offsets"}, "offsets 0 to 60: no extent holds them"),
        (of_clicks("base_offset = 16"), {"missing-offsets", "wrong-row"}, "offsets 15 to 16: no extent holds them"),
        (of_clicks("base_offset = 14"), {"overlapping-offsets", "wrong-row"}, "offsets 10 to 15: they overlap with offsets 14 to 20"),
        (of_clicks("next_offset = 21, record_count = 6"), {"overlapping-offsets", "wrong-reference"}, "offsets 15 to 21: they overlap"),
        (of_clicks("record_count = 4"), {"wrong-row", "wrong-reference"}, "offsets 15 to 20: it holds 4 records"),
        (of_clicks("leader_epoch = 99"), {"wrong-row"}, "committed in leader epoch 99, but the partition has only come to"),
        (of_clicks("leader_epoch = 0", 55), {"wrong-row"}, "committed in leader epoch 0, after offsets of epoch"),
        (of_clicks("position = position + 1, length = length - 1"), {"damaged-bytes"}, "cut the batch at .* in two"),
        (of_clicks("position = position + 9"), {"wrong-reference"}, "but the partition's chunk is bytes"),
        (of_clicks("max_timestamp_ms = 1, level = 0"), {"wrong-reference"}, "the row says 5 records up to time 1, but the chunk in"),
        (of_clicks("level = 1"), {"wrong-row"}, "by 2 names of objects"),
        (of_clicks("sequence = sequence + 1000"), {"missing-object"}, "intake/.*offsets 15 to 20"),
        (statements(DUPLICATE, f"UPDATE partitions SET next_offset = 65 WHERE {CLICKS}"), {"wrong-reference"},
         "offsets 60 to 65: its bytes in .* are those of offsets 55 to 60, too: these bytes were committed twice"),
        # other rows
        (of_partition("next_offset = 55"), {"wrong-end", "wrong-state"}, "its high watermark is 55, but its rows end at 60"),
        (of_partition("log_start_offset = 70"), {"wrong-state"}, "its log start is 70, but its high watermark 60"),
        (statements("DELETE FROM writers WHERE broker_epoch = 1"), {"missing-row"}, "but its writer is not known"),
        (statements(f"DELETE FROM partitions WHERE {CLICKS}"), {"missing-row", "wrong-state"}, "whose partition is not known"),
        (statements("UPDATE topics SET partitions = 3 WHERE name = 'clicks'"), {"wrong-state"}, "it has 3 partitions, but 2 rows"),
        (statements("UPDATE producers SET batches = '[[0, 4, 1000]]'"), {"wrong-state"}, "it remembers offset 1000, but the partition"),
        (statements("INSERT INTO group_offsets (group_id, partition_id, next_offset, note, generation, committed_at_ms)"
                    f" SELECT 'g', partition_id, 61, '', 1, 1 FROM partitions WHERE {CLICKS}"), {"wrong-state"}, "has committed offset 61"),
        (statements("UPDATE writers SET ended = FALSE", "DELETE FROM resolved_marks"), {"wrong-state"}, "has no resolved mark"),
        (statements("INSERT INTO brokers (broker_id, broker_epoch, incarnation, zone, address, peer_address, lease_expires_at_ms,"
                    " unbroken_since_ms) VALUES ('x', 1, '', '', '', '', 1, 1)"), {"wrong-state"}, "it is a member, but its epoch"),
        # an older database, or another one
        (statements("UPDATE cluster SET cluster_id = 'another'"), {"time-travel", "wrong-object"}, "the bucket belongs to cluster"),
        (statements("UPDATE cluster SET next_broker_epoch = 2"), {"time-travel"}, "epochs below 2, but the bucket holds"),
    ],
)  # fmt: skip
async def test_each_damage_is_found_and_named(scene: Scene, damage: Callable[[Scene], Any], found: set[str], told: str) -> None:
    for path in scene.segments():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    await damage(scene)
    report = await scene.report()
    assert set(report.found) == found, [finding.sentence for finding in report.findings]
    assert any(re.search(told, finding.sentence) for finding in report.findings), [finding.sentence for finding in report.findings]
    assert not report.sound
    assert all(finding.sentence.endswith(FAULTS[finding.code].remedy) for finding in report.findings)


async def test_a_database_that_was_restored_is_noticed_by_its_count_of_commits(scene: Scene) -> None:
    cluster = Cluster(SharedStore(scene.store), scene.bucket, scene.clock)
    await cluster.start("three")  # writes a marker of what there is now
    await cluster.close()
    await scene.sql("UPDATE commit_counts SET commits = 0")
    report = await scene.report()
    assert set(report.found) == {"time-travel"}
    assert "this metadata store has seen 0 commits, but the bucket knows of" in report.findings[0].what
    assert not report.sound


async def test_damage_to_bytes_that_are_nobodys_is_no_damage(scene: Scene) -> None:
    await scene.sql(f"DELETE FROM extents WHERE {CLICKS} AND base_offset = 55", f"UPDATE partitions SET next_offset = 55 WHERE {CLICKS}")
    await scene.sql("DELETE FROM producers")
    path = scene.segments()[-1]
    footer = decode(path.read_bytes())
    [clicks] = await scene.rows("SELECT topic_id FROM topics WHERE name = 'clicks'")
    for path in scene.segments():
        footer = decode(path.read_bytes())
        of = [chunk for chunk in footer.chunks if (chunk.topic_id.hex(), chunk.partition) == (clicks.topic_id, 0)]
        rows = await scene.rows(
            f"SELECT 1 FROM extents WHERE {CLICKS} AND broker_epoch = {footer.origin.broker_epoch} AND sequence = {footer.origin.sequence}"
        )
        if of and not rows and len(footer.chunks) > 1:
            flip(path, of[0].end - 1)
            report = await scene.report()
            assert set(report.found) == {"damaged-remains"}
            assert report.sound
            return
    pytest.skip("the last append lay alone in its segment")


async def test_orphans_and_strangers_are_counted_and_told_only_when_they_are_old(scene: Scene) -> None:
    footer = decode(scene.segments()[0].read_bytes())
    path = scene.segments()[0]
    name = parse_key(str(path.relative_to(scene.root)))
    assert isinstance(name, IntakeKey)
    orphan = scene.root / str(replace(name, sequence=9999))
    orphan.write_bytes(path.read_bytes())
    report = await scene.report()
    assert (report.orphans, report.orphan_bytes, report.findings) == (1, orphan.stat().st_size, [])
    os.utime(orphan, (1_000_000_000, 1_000_000_000))
    (scene.root / "intake" / "readme").write_bytes(b"not ours")
    other = scene.root / str(replace(name, incarnation="0" * 32))
    other.write_bytes(path.read_bytes())
    report = await scene.report()
    assert report.found == {"orphans": 1, "strange-object": 2}
    assert report.sound
    assert any("1 orphans of" in finding.what and "sequence" not in finding.what for finding in report.findings)
    await scene.sql(f"UPDATE writers SET ended = FALSE WHERE broker_epoch = {footer.origin.broker_epoch}")
    report = await scene.report()
    assert (report.orphans, report.unsettled_objects) == (0, 1), "its writer may still have it committed"


async def key_of(scene: Scene, extent: Any) -> str:
    [writer] = await scene.rows(f"SELECT * FROM writers WHERE broker_epoch = {extent.broker_epoch}")
    return str(IntakeKey(writer.broker_id, extent.broker_epoch, extent.sequence, writer.incarnation))


async def released(scene: Scene, before: int) -> None:
    """Do what retention does."""
    [row] = await scene.rows(f"SELECT partition_id, leader_epoch FROM partitions WHERE {CLICKS}")
    await scene.store.run(advance_log_start, partition_id=row.partition_id, leader_epoch=row.leader_epoch, to=before)
    expired = (await scene.store.run(expired_extents, partition_ids=[row.partition_id], limit=100)).extents
    wrote = {each.broker_epoch: each for each in await scene.rows("SELECT * FROM writers")}
    sources = [
        ReleasedSource(
            each, str(IntakeKey(wrote[each.broker_epoch].broker_id, each.broker_epoch, each.sequence, wrote[each.broker_epoch].incarnation))
        )
        for each in expired
    ]
    await scene.store.run(release_expired, broker_epoch=1, sources=sources)


async def test_what_retention_leaves_is_sound_and_what_waits_for_the_cleaner_is_counted(scene: Scene) -> None:
    await scene.sql("UPDATE extents SET sequence = sequence", f"DELETE FROM extents WHERE NOT {CLICKS}")
    await scene.sql(f"UPDATE partitions SET log_start_offset = next_offset WHERE NOT {CLICKS}")
    await released(scene, 22)
    report = await scene.report()
    assert report.findings == []
    assert report.released_objects >= 4
    assert report.released_bytes > 0
    assert report.released_objects + report.segments + report.orphans == report.objects
    await scene.sql("UPDATE released_segments SET released_at_ms = 1")
    stuck = await scene.report()
    assert set(stuck.found) == {"stuck-release"}
    assert stuck.sound


async def test_a_release_without_a_note_is_repaired_and_nothing_else_is(scene: Scene) -> None:
    await scene.sql(f"DELETE FROM extents WHERE NOT {CLICKS}", f"UPDATE partitions SET log_start_offset = next_offset WHERE NOT {CLICKS}")
    await released(scene, 22)
    notes = await scene.rows("SELECT broker_epoch, sequence, key FROM released_segments ORDER BY 1, 2")
    await scene.sql("DELETE FROM released_segments", f"DELETE FROM extents WHERE {CLICKS} AND base_offset = 30")
    report = await scene.report()
    assert report.found == {"unnoted-release": len(notes), "missing-offsets": 1}
    await repair(scene.store, report)
    assert report.repaired == len(notes)
    assert await scene.rows("SELECT broker_epoch, sequence, key FROM released_segments ORDER BY 1, 2") == notes
    again = await scene.report()
    assert again.found == {"missing-offsets": 1}
    await repair(scene.store, again)
    assert again.repaired == 0


async def test_nothing_is_repaired_under_an_older_database(scene: Scene) -> None:
    await scene.sql(f"DELETE FROM extents WHERE NOT {CLICKS}", f"UPDATE partitions SET log_start_offset = next_offset WHERE NOT {CLICKS}")
    await released(scene, 22)
    await scene.sql("DELETE FROM released_segments", "UPDATE cluster SET next_broker_epoch = 2")
    report = await scene.report()
    assert {"unnoted-release", "time-travel"} <= set(report.found)
    await repair(scene.store, report)
    assert (report.repaired, await scene.rows("SELECT 1 FROM released_segments")) == (0, [])


async def merged(scene: Scene, *, damaged: Callable[[bytearray, Any], None] = lambda _content, _footer: None) -> Path:
    """Do what merging does, with all of one partition."""
    [partition] = await scene.rows(f"SELECT * FROM partitions WHERE {CLICKS}")
    extents = await scene.store.run(expired_like, partition_id=partition.partition_id)
    parts, headers, sources = [], [], []
    wrote = {each.broker_epoch: each for each in await scene.rows("SELECT * FROM writers")}
    for extent in extents:
        key = await key_of(scene, extent)
        content = bytearray((scene.root / key).read_bytes()[extent.position : extent.position + extent.length])
        stamp(content, scan(content), base_offset=extent.base_offset, leader_epoch=extent.leader_epoch)
        parts.append(bytes(content))
        headers += scan(content)
        sources.append(ReleasedSource(extent, key))
    [cluster] = await scene.rows("SELECT cluster_id FROM cluster")
    epoch = max(wrote)
    name = MergedKey(partition.topic_id, 0, 0, wrote[epoch].broker_id, epoch, 5000)
    origin = Origin(cluster.cluster_id, name.broker_id, epoch, 5000, 1)
    source = ChunkSource(bytes.fromhex(partition.topic_id), 0, parts, headers)
    encoded, footer = encode_merged(source, origin, base_offset=0, next_offset=extents[-1].next_offset)
    content = bytearray(b"".join(encoded))
    damaged(content, footer)
    await scene.bucket.put_new(str(name), [bytes(content)])
    await scene.sql(f"UPDATE writers SET ended = FALSE WHERE broker_epoch = {epoch}")
    chunk = footer.chunks[0]
    whole = replace(
        extents[-1], base_offset=0, broker_epoch=epoch, sequence=5000, position=chunk.position, length=chunk.length,
        record_count=chunk.record_count, max_timestamp_ms=chunk.max_timestamp_ms, level=1,
    )  # fmt: skip
    assert await scene.store.run(
        swap, partition_id=partition.partition_id, leader_epoch=partition.leader_epoch, sources=sources, merged=whole
    )
    await scene.sql("UPDATE writers SET ended = TRUE")
    return scene.root / str(name)


def expired_like(tx: Transaction, *, partition_id: int) -> Any:
    from tidelog.metadata.extents import read_extents

    return read_extents(tx, positions=[(partition_id, 0)], max_extents=1000).partitions[0].extents


async def test_merged_segments_are_checked_with_their_stamps_and_index(scene: Scene) -> None:
    path = await merged(scene)
    report = await scene.report()
    assert report.findings == []
    assert report.records == ROUNDS * 8
    content = path.read_bytes()
    flip(path, decode(content).chunks[0].end - 1)
    report = await scene.report()
    assert set(report.found) == {"damaged-bytes"}
    problems = " ".join(finding.what for finding in report.findings)
    assert all(sign in problems for sign in ("the sparse index says CRC-32C", "is damaged", "the chunk's bytes have CRC-32C")), problems
    assert "topic clicks partition 0, offsets 0 to 60" in report.findings[0].where
    path.write_bytes(content)
    await scene.sql(f"UPDATE extents SET base_offset = 2 WHERE {CLICKS}")
    report = await scene.report()
    assert {"missing-offsets", "missing-object", "wrong-row"} >= set(report.found) >= {"missing-offsets", "missing-object"}


async def test_a_batch_with_another_stamp_is_found(scene: Scene) -> None:
    path = await merged(scene)
    content = bytearray(path.read_bytes())
    chunk = decode(content).chunks[0]
    second = scan(content[chunk.position : chunk.end])[1]
    flip(path, chunk.position + second.position + 7, 0x40)
    report = await scene.report()
    assert set(report.found) == {"damaged-bytes"}
    assert any("a batch is stamped with offsets 69 to 74, but they must lie in 5 to 60" in finding.what for finding in report.findings)


async def test_a_store_that_does_not_answer_is_not_called_damaged(scene: Scene) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            return getattr(scene.bucket, name)

        async def head(self, key: str) -> ObjectInfo:
            raise StoreUnavailable("SlowDown; try again later")

    report = await verify_store(scene.store, Away(), scope=SCOPE, clock=scene.clock, executor=InlineExecutor())
    assert set(report.found) == {"not-looked-at"}
    assert not report.sound


async def test_a_body_that_is_damaged_on_its_way_once_is_looked_at_again(scene: Scene) -> None:
    damaged: set[str] = set()

    class Weather:
        def __getattr__(self, name: str) -> Any:
            return getattr(scene.bucket, name)

        async def get_range(self, key: str, position: int, length: int) -> bytes:
            content = await scene.bucket.get_range(key, position, length)
            if key.endswith(".seg") and key not in damaged:  # the first time: its footer
                damaged.add(key)
                return bytes([*content[:-1], content[-1] ^ 1])
            return bytes(content)

    report = await verify_store(scene.store, Weather(), scope=SCOPE, clock=scene.clock, executor=InlineExecutor())
    assert report.findings == []
    assert report.looked_at_again == len(scene.segments())


async def test_many_extents_are_walked_page_by_page(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_EXTENTS_EACH", "_SEGMENTS_AT_ONCE", "_OBJECTS_AT_ONCE", "_PARTITIONS_AT_ONCE", "_PRODUCERS_AT_ONCE", "_UNNOTED_AT_ONCE"):
        monkeypatch.setattr(f"tidelog.broker.verification.{name}", 2)
    report = await scene.report()
    assert report.findings == []
    assert (report.partitions, report.records) == (3, ROUNDS * 8)
    assert report.extents == (await scene.rows("SELECT count(*) AS n FROM extents"))[0].n
    assert report.objects == len(scene.segments())
    await scene.sql(
        f"DELETE FROM extents WHERE {CLICKS} AND base_offset IN (0, 25, 55)",
        f"UPDATE extents SET base_offset = 39 WHERE {CLICKS} AND base_offset = 40",
    )
    report = await scene.report()
    missing = sorted(finding.where for finding in report.findings if finding.code == "missing-offsets")
    assert missing == [f"topic clicks partition 0, offsets {begin} to {begin + 5}" for begin in (0, 25, 55)]
    assert report.found["overlapping-offsets"] == 1


async def test_a_rate_is_kept(scene: Scene) -> None:
    began = scene.clock.monotonic()
    report = await scene.report(bytes_per_second=40_000)
    assert report.sound
    assert scene.clock.monotonic() - began >= (report.bytes_read - 20_000) / 40_000


async def test_an_empty_database_is_told(metadata_store: MetadataStore) -> None:
    bucket = MemoryStore(clock=SystemClock())
    with pytest.raises(MetadataUnusable, match="no broker has ever used it"):
        await verify_store(metadata_store, bucket, scope=SCOPE, clock=SystemClock(), executor=InlineExecutor())


async def test_a_busy_healthy_cluster_gives_no_finding(metadata_store: MetadataStore, tmp_path: Path) -> None:
    """Appends, retention, release and deletion go on while everything is checked, over and over."""
    clock = SystemClock()
    bucket = open_directory(tmp_path / "bucket", clock=clock, chance=random.Random(1), executor=ThreadExecutor("objects", threads=4))
    cluster = Cluster(SharedStore(metadata_store), bucket, clock)
    brokers = [await cluster.start(name, STEADY) for name in ("one", "two")]
    await brokers[0].create_topic("clicks", partitions=3, config=TopicConfig())
    await brokers[1].ensure_topic("clicks")
    scene = Scene(metadata_store, bucket, tmp_path / "bucket", clock)
    over = asyncio.Event()
    deleted = 0

    async def write(broker: Broker, partition: int) -> None:
        while not over.is_set():
            await append(broker, "clicks", b"x" * 200, b"y", partition=partition)

    async def trim() -> None:
        nonlocal deleted
        while not over.is_set():
            await asyncio.sleep(0.05)
            [row] = await scene.rows(f"SELECT next_offset FROM partitions WHERE {CLICKS}")
            await brokers[0].delete_records("clicks", 0, max(0, row.next_offset - 6))
            await released(scene, 0)
            deleted += await clean(scene)

    async with asyncio.timeout(120), asyncio.TaskGroup() as work:
        for number in range(4):
            work.create_task(write(brokers[number % 2], number % 3))
        work.create_task(trim())
        try:
            checks = 0
            while checks < 5 or deleted < 10:
                await asyncio.sleep(0.1)
                checks += 1
                report = await scene.report()
                assert report.findings == [], [finding.sentence for finding in report.findings]
        finally:
            over.set()
    assert report.records > 0
    await cluster.close()
    await bucket.close()


async def clean(scene: Scene) -> int:
    """Do what the cleaner does."""
    notes = await scene.store.run(released_segments, grace_ms=0, limit=100)
    verdict = await scene.store.run(condemn, notes=notes)
    doomed = [note for note in notes if (note.broker_epoch, note.sequence) in verdict.condemned]
    await scene.bucket.delete_many([note.key for note in doomed])
    await scene.store.run(forget_released, notes=doomed)
    return len(doomed)
