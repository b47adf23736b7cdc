"""The scrub of stored bytes: on brokers as they are, over hours of virtual time."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from tidelog.broker.broker import Broker
from tidelog.errors import MetadataUnavailable, ObjectNotFound, StoreUnavailable
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig
from tidelog.objects.memory import MemoryStore

from tests.cluster import QUICK, Cluster, append, on_virtual_time, until

SCRUBBING = QUICK.model_copy(
    update={"scrub_interval_ms": 60_000, "scrub_reads_per_second": 100.0, "merging": False, "checkpoint_interval_ms": 0, "lease_ms": 30_000}
)
APPENDS = 12


class Watched(MemoryStore):
    """A bucket that notes what is read, and through which a test damages and hides things."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(clock=store._clock)
        self.reads: list[str] = []
        self.fault: Callable[[str, bytes], bytes] = lambda _key, content: content

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        content = await super().get_range(key, position, length)
        if key.startswith("intake/"):
            self.reads.append(key)
            return self.fault(key, content)
        return content

    def segments(self) -> list[str]:
        return sorted(key for key in self._objects if key.startswith("intake/"))

    def damage(self, key: str) -> None:
        content, info = self._objects[key]
        self._objects[key] = content[:80] + bytes([content[80] ^ 4]) + content[81:], info


async def begun(cluster: Cluster, **changes: object) -> tuple[Broker, Watched, Any]:
    """Let a broker lead one partition of so many extents, each in a segment of its own; return its bucket and its metrics."""
    assert isinstance(cluster.bucket, MemoryStore)
    bucket = cluster.bucket = Watched(cluster.bucket)
    broker = await cluster.start("one", SCRUBBING.model_copy(update=changes))
    await broker.create_topic("clicks", partitions=1, config=TopicConfig())
    for number in range(APPENDS):
        await append(broker, "clicks", b"click %d" % number * 20)
    bucket.reads.clear()
    return broker, bucket, broker._metrics


@contextmanager
def told_by_scrub() -> Iterator[list[Any]]:
    """What the scrub writes into the log."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entries.append({**record.msg, "level": record.levelname} if isinstance(record.msg, dict) else {"event": record.msg})

    entries: list[Any] = []
    logger, kept = logging.getLogger("tidelog.broker.scrub"), Kept()
    logger.addHandler(kept)
    try:
        yield entries
    finally:
        logger.removeHandler(kept)


def counted(metrics: Any) -> dict[str, int]:
    return {found: int(counter._value.get()) for found, counter in metrics.scrubbed.items() if counter._value.get()}


def passes(metrics: Any) -> int:
    return int(metrics.scrub_passes._value.get())


async def after_passes(metrics: Any, count: int) -> None:
    seen = passes(metrics)
    await until(lambda: passes(metrics) >= seen + count, seconds=1e9)


@on_virtual_time
async def test_a_pass_reads_every_extent_from_the_bucket_once_in_each_interval(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster)
    await after_passes(metrics, 1)
    assert sorted(bucket.reads) == bucket.segments()
    before = cluster.clock.monotonic()
    await after_passes(metrics, 3)
    assert counted(metrics) == {"sound": 4 * APPENDS}
    assert len(bucket.reads) == 4 * APPENDS, "caches are of no use here"
    assert 3 * 54 <= cluster.clock.monotonic() - before <= 3 * 68


@on_virtual_time
async def test_a_pass_begins_somewhere_else_each_time(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster)
    firsts = set()
    for _ in range(8):
        bucket.reads.clear()
        await after_passes(metrics, 1)
        firsts.add(bucket.reads[0])
        assert sorted(bucket.reads) == bucket.segments()
    assert len(firsts) > 2


@on_virtual_time
async def test_damage_is_looked_at_again_told_and_stops_nobody(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster)
    damaged = bucket.segments()[3]
    bucket.damage(damaged)
    with told_by_scrub() as logs:
        await after_passes(metrics, 2)
    told = [entry for entry in logs if entry["event"] == "scrub_found_damage"]
    assert counted(metrics) == {"sound": 2 * (APPENDS - 1), "damaged": 2}
    assert bucket.reads.count(damaged) == 6, "three looks in each pass"
    assert metrics.scrub_looks_again._value.get() == 4
    assert [(entry["topic"], entry["base_offset"], entry["next_offset"], entry["key"], entry["level"]) for entry in told] == [
        ("clicks", 3, 4, damaged, "ERROR")
    ] * 2
    assert "CRC-32C" in told[0]["problem"]


@on_virtual_time
async def test_a_missing_object_is_told(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster)
    await bucket.delete_many([gone := bucket.segments()[5]])
    with told_by_scrub() as logs:
        await after_passes(metrics, 1)
    assert counted(metrics) == {"sound": APPENDS - 1, "missing": 1}
    assert [entry["key"] for entry in logs if entry["event"] == "scrub_found_damage"] == [gone]


@on_virtual_time
async def test_what_is_damaged_on_its_way_is_no_damage(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster)
    times: dict[str, int] = {}

    def twice(key: str, content: bytes) -> bytes:
        times[key] = times.get(key, 0) + 1
        return content[:-1] if times[key] == 1 else content[:70] + b"?" + content[71:] if times[key] == 2 else content

    bucket.fault = twice
    await after_passes(metrics, 1)
    assert counted(metrics) == {"sound": APPENDS}
    assert metrics.scrub_looks_again._value.get() == 2 * APPENDS


@on_virtual_time
async def test_what_moved_meanwhile_is_no_damage(cluster: Cluster) -> None:
    broker, bucket, metrics = await begun(cluster)

    def gone(key: str, _content: bytes) -> bytes:
        raise ObjectNotFound(f"{key!r} is gone")

    bucket.fault = gone
    await broker.delete_records("clicks", 0, 4)
    await after_passes(metrics, 1)
    assert counted(metrics) == {"missing": APPENDS - 4}, "what lies below the log start is not looked at"

    def trimmed(key: str, _content: bytes) -> bytes:
        cluster.network.loop.call_soon(lambda: trimming.append(cluster.network.loop.create_task(broker.delete_records("clicks", 0, -1))))
        raise ObjectNotFound(f"{key!r} is gone")

    trimming: list[Any] = []
    bucket.fault = trimmed
    before = counted(metrics)
    await until(lambda: counted(metrics) != before, seconds=1e9)
    assert counted(metrics) == {**before, "moved": 1}


@on_virtual_time
async def test_a_store_that_does_not_answer_is_passed_over(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster)

    def away(_key: str, _content: bytes) -> bytes:
        raise StoreUnavailable("SlowDown; try again later")

    bucket.fault = away
    with told_by_scrub() as logs:
        await after_passes(metrics, 1)
    assert counted(metrics) == {"unread": APPENDS}
    assert {entry["event"] for entry in logs if entry["event"].startswith("scrub")} == {"scrub_could_not_read"}
    bucket.fault = lambda _key, content: content
    await after_passes(metrics, 1)
    assert counted(metrics) == {"unread": APPENDS, "sound": APPENDS}


@on_virtual_time
async def test_budgets_are_kept(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster, scrub_reads_per_second=0.1, scrub_interval_ms=1000)
    await after_passes(metrics, 1)
    before = cluster.clock.monotonic()
    await after_passes(metrics, 1)
    assert cluster.clock.monotonic() - before >= (APPENDS - 1) / 0.1
    assert len(bucket.reads) == 2 * APPENDS


@on_virtual_time
async def test_bytes_are_budgeted_too(cluster: Cluster) -> None:
    _, _, metrics = await begun(cluster, scrub_bytes_per_second=1024, scrub_interval_ms=1000)
    await after_passes(metrics, 1)
    before, read = cluster.clock.monotonic(), metrics.scrub_bytes._value.get()
    await after_passes(metrics, 1)
    assert cluster.clock.monotonic() - before >= (metrics.scrub_bytes._value.get() - read) * (APPENDS - 2) / APPENDS / 1024


@on_virtual_time
async def test_it_can_be_switched_off(cluster: Cluster) -> None:
    _, bucket, metrics = await begun(cluster, scrub_interval_ms=0)
    await asyncio.sleep(200)
    assert (bucket.reads, passes(metrics)) == ([], 0)


@on_virtual_time
async def test_an_absence_of_the_metadata_store_is_waited_for(cluster: Cluster) -> None:
    away = [False]

    class Sometimes:
        exclusive = False

        def __init__(self, store: MetadataStore) -> None:
            self._store = store
            self.run_reserved = store.run_reserved
            self.close = store.close

        async def run(self, verb: Any, /, *args: Any, **kwargs: Any) -> Any:
            if away[0] and verb.__name__ == "read_extents":
                raise MetadataUnavailable("away")
            return await self._store.run(verb, *args, **kwargs)

    cluster.store = Sometimes(cluster.store)
    _, bucket, metrics = await begun(cluster)
    away[0] = True
    before = passes(metrics)
    await asyncio.sleep(1000)
    assert (passes(metrics), bucket.reads) == (before, [])
    away[0] = False
    await after_passes(metrics, 1)
    assert counted(metrics) == {"sound": APPENDS}


@pytest.mark.parametrize("change", [{"record_count": 9}, {"max_timestamp_ms": 99}, {"length": 40}, {"position": 9}])
def test_a_row_that_says_something_else_than_the_bytes_is_found(change: dict[str, int]) -> None:
    from tidelog.records.batch import scan
    from tidelog.records.codec import encode_many
    from tidelog.segments.audit import Claim, ExtentAudit

    batches = [encode_many([b"a", b"b"], timestamps_ms=5), encode_many([b"c"], timestamps_ms=3)]
    content = b"".join(batches)
    sound = Claim(8, len(content), 3, 5, base_offset=10, next_offset=13, stamped=False)
    assert len(scan(content)) == 2

    def audited(claim: Claim, pieces: Sequence[bytes]) -> str:
        audit = ExtentAudit(claim)
        for piece in pieces:
            if problem := audit.feed(piece):
                return problem
        return audit.finish()

    for size in (1, 7, 61, len(content)):
        assert audited(sound, [content[at : at + size] for at in range(0, len(content), size)]) == ""
    wrong = replace(sound, **change)  # type: ignore[arg-type]
    if "position" not in change:  # where it lies, only its object can tell
        assert audited(wrong, [content[: wrong.length]])
    assert audited(replace(sound, stamped=True), [content])
