"""The database is lost at any moment: what a rebuild makes of the bucket as it is then, held against the shadow of every log."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from tidelog.broker.broker import Broker
from tidelog.broker.rebuild import rebuild
from tidelog.broker.rebuild_report import Report
from tidelog.errors import StoreUnusable
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.records.batch import scan
from tidelog.records.codec import decode_values
from tidelog.segments.keys import IntakeKey, MergedKey

from tests.cluster import QUICK, Cluster, SharedStore, append
from tests.sim.clients import TOPIC, TOPIC_ID
from tests.sim.watcher import Shadow
from tests.sim.world import Bucket, open_metadata

if TYPE_CHECKING:
    from tests.sim.world import World

AGAIN = QUICK.model_copy(
    update={
        "checkpoint_interval_ms": 4000,
        "retention_interval_ms": 500,
        "cleaner_interval_ms": 500,
        "reader_grace_ms": 1,
        "orphan_age_seconds": 0,
        "orphan_scan_interval_ms": 500,
    }
)
"""Of the broker that goes on in a rebuilt cluster: what nobody needs goes at once, and with it writers are forgotten."""
AGAIN_FROM = 10_000_000
"""Its first value."""


async def strike(world: "World", stop: float) -> None:
    """Lose the database on paper now and then, and look what comes back."""
    while world.draw.settings.checkpoint_interval_ms and world.loop.now < stop:
        await asyncio.sleep(world.chance.uniform(2, 12))
        if world.loop.now < stop:
            await look(world, whole=False)


async def look(world: "World", *, whole: bool) -> None:
    """Rebuild from the bucket as it is now; `whole`: there was time enough for a checkpoint of everything since the last commit."""
    bucket = _copy(world, world.bucket._objects)
    if not whole:
        world.lost = dict(bucket._objects)
    shadows = {
        number: (list(shadow.values), shadow.log_start_offset, shadow.next_offset, shadow.leader_epoch, dict(shadow.sequences))
        for number, shadow in world.watcher.shadows.items()
    }
    given_below = world.watcher._next_broker_epoch
    store = open_metadata(world.clock)
    try:
        report = await rebuild(bucket=bucket, into=_opened(store), newer="append")
        found = await store.run(_rows)
    except StoreUnusable:  # no checkpoint yet
        if whole:
            world.violation("rebuild: no checkpoint", "after the time in which one was due")
        return
    finally:
        await store.close()
    _count(world, report)
    rebuilt = _Rebuilt(world, bucket, report, found)
    if report.damaged or report.missing:  # what is not placed is there twice: its sources stay until a checkpoint knows better
        world.violation("rebuild: something is not there", report)
    if report.next_broker_epoch <= given_below:
        world.violation("rebuild: broker epoch goes back", f"{report.next_broker_epoch}, but those below {given_below} were given")
    for partition_id, (values, log_start, end, leader_epoch, sequences) in shadows.items():
        if partition_id in rebuilt.partitions and rebuilt.topic_id(partition_id) != TOPIC_ID:
            continue  # of a topic that is made to be deleted, whose values nobody keeps
        if partition_id in rebuilt.partitions:
            rebuilt.compare(
                partition_id,
                Shadow(
                    0,
                    partition_id,
                    leader_epoch=leader_epoch,
                    log_start_offset=log_start,
                    next_offset=end,
                    values=values,
                    sequences=sequences,
                ),
                whole=whole,
            )
        elif whole:
            world.violation("rebuild: partition lost", partition_id)


async def lose_twice(world: "World") -> None:
    """Go on in the cluster of the last rebuild under faults, with everything cleaned at once; then lose the database again."""
    if world.lost is None:
        return
    bucket = _copy(world, world.lost)
    stores = [open_metadata(world.clock) for _ in range(3)]
    try:
        first = await rebuild(bucket=bucket, into=_opened(stores[0]), newer="append")
        before = _Rebuilt(world, bucket, first, await stores[0].run(_rows))
        values = before.values()
        if not values:
            return  # the topic is in no checkpoint yet
        cluster = Cluster(SharedStore(stores[0]), bucket, world.clock)
        try:
            await _go_on(await cluster.start("again", AGAIN), values)
        finally:
            await cluster.close()
        late = [key for key in world.lost if key.startswith("intake/") and bucket.content(key) is None]
        for key in late:  # writes of the lost cluster's that come late: of writers that ended, and were forgotten
            bucket._objects[key] = world.lost[key]
        world.counts["rebuild: late writes"] += len(late)
        rows = await stores[0].run(_rows)
        reports = [await rebuild(bucket=bucket, into=_opened(store), newer="append") for store in stores[1:]]
        if not first.next_broker_epoch < reports[0].next_broker_epoch < reports[1].next_broker_epoch:
            world.violation("rebuild: broker epoch goes back", [report.next_broker_epoch for report in (first, *reports)])
        for store, report in zip(stores[1:], reports, strict=True):
            after = _Rebuilt(world, bucket, report, await store.run(_rows))
            for partition_id, _, leader_epoch, log_start, end in rows["partitions"]:
                if partition_id in values:
                    sequences = {
                        producer_id: (last, base + last - start)
                        for of_partition, producer_id, batches in rows["producers"]
                        if of_partition == partition_id
                        for start, last, base in json.loads(str(batches))[-1:]
                    }
                    after.compare(
                        partition_id,
                        Shadow(
                            0,
                            partition_id,
                            leader_epoch=leader_epoch,
                            log_start_offset=log_start,
                            next_offset=end,
                            values=values[partition_id],
                            sequences=sequences,
                        ),
                        whole=False,
                    )
                    base = after.partitions[partition_id][3]
                    strange = set(after.values()[partition_id][base:]) - set(values[partition_id][base:])
                    if strange:
                        world.violation("rebuild: deleted records come back", sorted(strange), partition=partition_id)
        world.counts["rebuild: lost twice"] += 1
    except StoreUnusable:  # no checkpoint by then
        return
    finally:
        for store in stores:
            await store.close()


async def _go_on(broker: Broker, values: Mapping[int, list[int]]) -> None:
    """Append to all partitions before and after checkpoints; what the first rebuild found is deleted."""
    value = AGAIN_FROM
    for round_ in range(3):
        for partition, of_one in enumerate(values.values()):
            for _ in range(4):
                await append(broker, TOPIC, b"%d" % value, partition=partition)
                of_one.append(value)
                value += 1
            if round_ == 0:
                await broker.delete_records(TOPIC, partition, len(of_one) - 4)
        if round_ < 2:
            await asyncio.sleep(10)


def _copy(world: "World", objects: Mapping[str, Any]) -> Bucket:
    bucket = Bucket(clock=world.clock)
    bucket._objects = dict(objects)
    return bucket


def _opened(store: MetadataStore) -> Callable[[], Awaitable[MetadataStore]]:
    async def answer() -> MetadataStore:
        return store

    return answer


def _count(world: "World", report: Report) -> None:
    world.counts["rebuild: done"] += 1
    world.counts["rebuild: newer records"] += len(report.unknown_order)
    world.counts["rebuild: duplicates left out"] += sum(each.duplicates for each in report.unknown_order)
    world.counts["rebuild: producers forgotten"] += report.producers_forgotten
    world.counts["rebuild: producers kept"] += report.producers


def _rows(tx: Transaction) -> Mapping[str, list[tuple[int, ...]]]:
    asked = {
        "partitions": "SELECT partition_id, partition, leader_epoch, log_start_offset, next_offset FROM partitions",
        "extents": "SELECT partition_id, base_offset, next_offset, broker_epoch, sequence, position, length, level FROM extents"
        " ORDER BY partition_id, base_offset",
        "writers": "SELECT broker_epoch, broker_id, incarnation, ended FROM writers",
        "producers": "SELECT partition_id, producer_id, batches FROM producers",
        "topics": "SELECT p.partition_id, p.topic_id, p.partition FROM partitions p",
    }
    return {name: [tuple(row) for row in tx.rows(sql)] for name, sql in asked.items()}


class _Rebuilt:
    def __init__(self, world: "World", bucket: Bucket, report: Report, rows: Mapping[str, list[tuple[int, ...]]]) -> None:
        self._world = world
        self._bucket = bucket
        self._writers = {row[0]: row for row in rows["writers"]}
        self.partitions = {row[0]: row for row in rows["partitions"]}
        self._names = {row[0]: row[1:] for row in rows["topics"]}
        self._extents = rows["extents"]
        self._producers = rows["producers"]
        self._certain_to = {
            each.partition: each.base_offset for each in report.unknown_order if each.topic == TOPIC and each.base_offset is not None
        }
        if any(not row[3] for row in rows["writers"]):
            world.violation("rebuild: a writer lives on", rows["writers"])

    def topic_id(self, partition_id: int) -> str:
        """Return whose partition it is."""
        return str(self._names[partition_id][0])

    def values(self) -> dict[int, list[int]]:
        """Return the values of the topic's partitions by offset, by partition id, ordered by number."""
        found = {}
        for partition_id, partition, _, log_start, end in sorted(self.partitions.values(), key=lambda row: row[1]):
            if self.topic_id(partition_id) == TOPIC_ID:
                found[partition_id] = [-1] * log_start + self._read(partition_id, partition, log_start, end)
        return found

    def compare(self, partition_id: int, shadow: Shadow, *, whole: bool) -> None:
        _, partition, leader_epoch, log_start, end = self.partitions[partition_id]
        certain_to = self._certain_to.get(partition, end)
        values = self._read(partition_id, partition, log_start, end)

        def wrong(name: str, what: object) -> None:
            self._world.violation(f"rebuild: {name}", what, partition=partition)

        if leader_epoch <= shadow.leader_epoch:
            wrong("leader epoch goes back", f"{leader_epoch} after {shadow.leader_epoch}")
        if log_start > shadow.log_start_offset:
            wrong("log start beyond the old one", f"{log_start}, which was {shadow.log_start_offset}")
        if certain_to > shadow.next_offset or values[: certain_to - log_start] != shadow.values[log_start:certain_to]:
            wrong(
                "not what it was",
                f"{values[: certain_to - log_start]} from {log_start} on, which were {shadow.values[log_start:certain_to]}",
            )
        lost = set(shadow.values[shadow.log_start_offset :]) - set(values)
        if lost:
            wrong("committed records lost", sorted(lost))
        twice = {value for value, count in Counter(values).items() if count > 1}
        sessions = {send.value: send.session for send in self._world.history.sends if send.value in twice}
        if any(sessions.get(value) is not None for value in twice):  # others' refused attempts cannot be told from accepted ones
            wrong("records twice", sorted(twice))
        keeps = self._world.draw.keeps
        moves = keeps.retention_ms >= 0 or keeps.retention_bytes >= 0  # by itself: also since the newest checkpoint
        if whole and (certain_to < shadow.next_offset or (log_start != shadow.log_start_offset and not moves)):
            wrong(
                "not up to date", f"certain from {log_start} to {certain_to}, but it was {shadow.log_start_offset} to {shadow.next_offset}"
            )
        for of_partition, producer_id, batches in self._producers:
            if of_partition == partition_id:
                first, last, base = json.loads(str(batches))[-1]
                if base + last - first >= certain_to:
                    wrong(
                        "producer beyond the log", f"{producer_id} at sequence {last}, offset {base}, but that is certain to {certain_to}"
                    )
                if shadow.sequences.get(producer_id, (-1, -1)) != (last, base + last - first):
                    wrong("producer not remembered", f"{producer_id} at sequence {last}, but it is at {shadow.sequences.get(producer_id)}")

    def _read(self, partition_id: int, partition: int, log_start: int, end: int) -> list[int]:
        """Return the values of a partition from its log start on, as its extents say."""
        values: list[int] = []
        at = None
        for of_partition, base, next_offset, epoch, sequence, position, length, level in self._extents:
            if of_partition != partition_id:
                continue
            if base != at and not (at is None and base <= log_start < next_offset):
                self._world.violation("rebuild: extents not dense", f"{base} follows on {at}", partition=partition)
            _, broker_id, incarnation, _ = self._writers[epoch]
            name, number = self._names[partition_id]
            key = (
                MergedKey(str(name), number, base, str(broker_id), epoch, sequence)
                if level
                else IntakeKey(str(broker_id), epoch, sequence, str(incarnation))
            )
            content = self._bucket.content(str(key))
            if content is None:
                self._world.violation("rebuild: dangling", str(key), partition=partition)
                return values
            data = memoryview(content)[position : position + length]
            found = [int(v or b"-1") for h in scan(data) for v in decode_values(data[h.position : h.position + h.size])]
            values += found[log_start - base :] if base < log_start else found
            at = next_offset
        if (log_start if at is None else at) != end:
            self._world.violation("rebuild: extents end before the log", f"{at}, but {end}", partition=partition)
        return values
