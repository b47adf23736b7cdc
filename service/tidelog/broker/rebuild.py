"""A new metadata store made of the newest checkpoint and of segments alone, and a report of what these cannot tell.

What the checkpoint names comes back exactly, and so does what merged segments hold that follow on it: their footers carry offsets.
Segments that might have been committed since (their writer had not ended and their sequence was not resolved when the checkpoint was
taken) hold no offsets, nor whether their appends were accepted. Their records are appended in probable order, or left aside. All else
in the bucket that nothing refers to was never committed and never will be.

Every number that fences is put far beyond what could have been given out since, so nothing that is left of the old cluster can be
taken for something of the new one (I1, I6, I11).
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from tidelog.broker.cover import Candidate, cover
from tidelog.broker.marker import Marker, newest_marker, renew
from tidelog.errors import CorruptCheckpoint, CorruptSegment, MetadataUnusable, ObjectNotFound, StoreUnusable, TimeTravel
from tidelog.metadata.extents import Extent
from tidelog.metadata.membership import cluster_state
from tidelog.metadata.snapshot import TABLES, finish_rebuild, is_unused, write_table
from tidelog.metadata.store import MetadataStore
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import BatchHeader
from tidelog.segments.checkpoints import (
    PREFIX,
    CheckpointKey,
    CheckpointKind,
    CheckpointObject,
    PageRef,
    check_page,
    decode_checkpoint,
    parse_checkpoint_key,
    pick,
)
from tidelog.segments.format import TRAILER_BYTES, Chunk, Footer, decode_chunk, decode_footer, footer_start
from tidelog.segments.keys import IntakeKey, MergedKey, parse_key

Newer = Literal["append", "aside"]
"""What becomes of records that may have been committed after the checkpoint."""

EPOCH_LEAP = 100_000
"""More broker epochs, and more leader epochs of a partition, than can have been given since a checkpoint; these are 32-bit numbers."""
COUNT_LEAP = 1_000_000_000
"""More commits, changes and producers than there can have been."""
_SEQUENCES = 2**31
"""Of an idempotent producer; then they begin again at 0."""
_ROWS_AT_ONCE = 5000
_FOOTER_GUESS = 64 * 1024


@dataclass(frozen=True, slots=True)
class UnknownOrder:
    """Records of one partition that are newer than the checkpoint: whether they were all acknowledged, and in which order, is not known."""

    topic: str
    partition: int
    records: int
    bytes: int
    segments: int
    base_offset: int | None
    """Where they were appended; None: left aside."""
    next_offset: int | None
    duplicates: int
    """Batches that were left out because an idempotent producer had sent them before, or because a merged segment has them."""


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets of one partition, and what is the matter with them."""

    topic: str
    partition: int
    base_offset: int
    next_offset: int
    problem: str


@dataclass
class Report:
    """What was rebuilt, and what could not be known."""

    cluster_id: str = ""
    checkpoint: str = ""
    checkpoint_taken_at_ms: int = 0
    dry_run: bool = False
    newer: Newer = "append"
    topics: int = 0
    partitions: int = 0
    extents: int = 0
    exact_records: int = 0
    """Records whose offsets are certain."""
    producers: int = 0
    producers_forgotten: int = 0
    """Idempotent producers that appended after the checkpoint: their state is not known, so they are refused, and begin anew."""
    group_offsets: int = 0
    next_broker_epoch: int = 0
    next_producer_id: int = 0
    commit_count: int = 0
    unknown_order: list[UnknownOrder] = field(default_factory=list)
    log_starts_moved: list[OffsetRange] = field(default_factory=list)
    missing: list[OffsetRange] = field(default_factory=list)
    unplaced: list[OffsetRange] = field(default_factory=list)
    unknown_topics: dict[str, int] = field(default_factory=dict)
    """Records in segments of topics that no checkpoint tells of, by topic id: made after it, or dropped before."""
    damaged: list[str] = field(default_factory=list)
    """Objects that were to be used and could not, with what is wrong with each."""

    @property
    def certain(self) -> bool:
        """Whether nothing is in doubt."""
        return not (self.unknown_order or self.missing or self.unplaced or self.unknown_topics or self.damaged)


Segment = tuple[int, int]
"""(broker epoch, sequence)."""


@dataclass
class _Checkpoint:
    key: CheckpointKey
    about: dict[str, Any]
    tables: dict[str, list[tuple[Any, ...]]]
    extents: dict[int, set[Extent]]
    producers: dict[tuple[int, int], tuple[Any, ...]]
    marks: list[tuple[Any, ...]]
    """As they were when the first checkpoint of the folder was taken."""


@dataclass(frozen=True, slots=True)
class _NewBatch:
    """A batch that no checkpoint and no merged segment tells of."""

    order: tuple[int, int, int, int]
    segment: Segment
    position: int
    header: BatchHeader
    created_at_ms: int


@dataclass
class _Line:
    """The batches of one idempotent producer, which its leader took in the order of their sequences and once."""

    expected: int = 0
    waiting: dict[int, _NewBatch] = field(default_factory=dict)

    def take(self, batch: _NewBatch) -> list[_NewBatch]:
        """Return what may follow now: nothing for one that was there before, or that comes before its turn."""
        sequence = batch.header.base_sequence
        if 0 < (self.expected - sequence) % _SEQUENCES < _SEQUENCES // 2:
            return []
        self.waiting.setdefault(sequence, batch)
        ready = []
        while (following := self.waiting.pop(self.expected, None)) is not None:
            ready.append(following)
            self.expected = (self.expected + following.header.record_count) % _SEQUENCES
        return ready

    def rest(self) -> list[_NewBatch]:
        """Return those before which something is missing, in their order."""
        return [batch for _, batch in sorted(self.waiting.items())]


async def rebuild(*, bucket: ObjectStore, store: MetadataStore | None, newer: Newer) -> Report:
    """Fill a new metadata store; with None nothing is written, and the report says what would be.

    Raises MetadataUnusable for a store that was used before, StoreUnusable where the bucket has no checkpoint.
    """
    if store is not None and not await store.run(is_unused):
        raise MetadataUnusable(
            "a metadata store was to be rebuilt, but this one holds brokers or topics already; name an empty database or a new file"
            " (what an interrupted rebuild left behind has to be dropped)"
        )
    report = Report(dry_run=store is None, newer=newer)
    marker = await newest_marker(bucket)
    checkpoint = await _newest_checkpoint(bucket, marker, report)
    return await _Rebuild(bucket, store, checkpoint, marker, report).run()


# ---- the checkpoint


async def _newest_checkpoint(bucket: ObjectStore, marker: Marker | None, report: Report) -> _Checkpoint:
    """Return the checkpoint that has seen the most commits; one that is damaged is passed over, and told of."""
    heads: dict[tuple[int, int], list[CheckpointKey]] = defaultdict(list)
    async for found in bucket.list(PREFIX):
        key = parse_checkpoint_key(found.key)
        if key is not None and key.page is None:
            heads[key.folder].append(key)
    best: _Checkpoint | None = None
    for folder in sorted(heads, reverse=True):
        for key in sorted(heads[folder], reverse=True):
            try:
                about = (await _head(bucket, key)).about
                if marker is not None and about.get("cluster_id") != marker.cluster_id:
                    raise TimeTravel(f"checkpoint {key} is of cluster {about.get('cluster_id')}, but the bucket is {marker.cluster_id}'s")
                if best is None or (about["commit_count"], key.number) > (best.about["commit_count"], best.key.number):
                    best = await _load(bucket, key)
            except (CorruptCheckpoint, ObjectNotFound) as error:
                report.damaged.append(f"{key}: {error}")
                continue
            break
    if best is None:
        raise StoreUnusable(
            "a metadata store was to be rebuilt, but the bucket holds no whole checkpoint, and segments alone do not tell topics; is this"
            " the right bucket and prefix, and was checkpoint_interval_ms above 0?"
        )
    return best


async def _whole(bucket: ObjectStore, key: str) -> bytes:
    return await bucket.get_range(key, 0, max(1, (await bucket.head(key)).size))


async def _head(bucket: ObjectStore, key: CheckpointKey) -> CheckpointObject:
    found = decode_checkpoint(await _whole(bucket, str(key)))
    if found.kind is not CheckpointKind.HEAD:
        raise CorruptCheckpoint("its name says that it is a head, but it is not")
    return found


async def _load(bucket: ObjectStore, key: CheckpointKey) -> _Checkpoint:
    head = await _head(bucket, key)
    loaded = _Checkpoint(key, head.about, defaultdict(list), defaultdict(set), {}, [])

    async def pages(name: str) -> AsyncIterator[CheckpointObject]:
        for page in head.about[name]:
            ref = PageRef(**page)
            data = await bucket.get_range(ref.key, 0, max(1, ref.length + 1))
            check_page(ref, data)
            yield decode_checkpoint(data)

    def gains(found: CheckpointObject) -> None:
        for block in found.blocks:
            if block.table == "extents":
                for row in pick(block, TABLES["extents"].columns):
                    loaded.extents[row[0]].add(Extent(*row))
            elif block.table == "producers":
                loaded.producers |= {(row[0], row[1]): row for row in pick(block, TABLES["producers"].columns)}

    def state(found: CheckpointObject) -> None:
        for block in found.blocks:
            if block.table == "marks":
                loaded.marks += pick(block, ("broker_epoch", "sequence", "ended"))
            elif block.table in TABLES and block.table not in ("extents", "producers"):
                loaded.tables[block.table] += pick(block, TABLES[block.table].columns)

    async for page in pages("pages"):
        gains(page)
    gains(head)
    async for page in pages("state"):
        state(page)
    state(head)
    if not loaded.tables["cluster"] or not loaded.tables["changes"]:
        raise CorruptCheckpoint("it names no cluster")
    return loaded


# ---- the rebuild


class _Partition:
    """A partition while it is put together."""

    def __init__(self, row: Sequence[Any], topic: str) -> None:
        named = dict(zip(TABLES["partitions"].columns, row, strict=True))
        self.partition_id: int = named["partition_id"]
        self.topic_id: str = named["topic_id"]
        self.partition: int = named["partition"]
        self.topic = topic
        self.log_start: int = named["log_start_offset"]
        self.end: int = named["next_offset"]
        self.known_end = self.end
        """Up to here the checkpoint is exact."""
        self.leader_epoch: int = named["leader_epoch"]
        self.fencing_token: str | None = named["fencing_token"]
        self.extents: list[Extent] = []
        self.merged_keys: list[str] = []
        """Of merged segments that hold offsets beyond the checkpoint."""

    def place(self, base: int, end: int, problem: str) -> OffsetRange:
        return OffsetRange(self.topic, self.partition, base, end, problem)


class _Rebuild:
    def __init__(
        self, bucket: ObjectStore, store: MetadataStore | None, checkpoint: _Checkpoint, marker: Marker | None, report: Report
    ) -> None:
        self._bucket = bucket
        self._store = store
        self._checkpoint = checkpoint
        self._marker = marker
        self._report = report
        self._objects: dict[Segment, tuple[IntakeKey | MergedKey, int]] = {}
        """All segments that are there, with their sizes."""
        self._writers = {row[0]: row for row in checkpoint.tables["writers"]}
        self._writers_of_merged: dict[int, tuple[Any, ...]] = {}
        """Of whom nothing but merged segments are known, whose keys do not need the incarnation."""
        names = {row[0]: row[1] for row in checkpoint.tables["topics"]}
        self._partitions = {row[0]: _Partition(row, names[row[1]]) for row in sorted(checkpoint.tables["partitions"]) if row[1] in names}
        self._by_number = {(p.topic_id, p.partition): p for p in self._partitions.values()}
        self._forgotten: set[tuple[int, int]] = set()
        """(partition id, producer id); producer -1: all of the partition."""

    async def run(self) -> Report:
        report, about = self._report, self._checkpoint.about
        report.cluster_id, report.checkpoint = about["cluster_id"], str(self._checkpoint.key)
        report.checkpoint_taken_at_ms = about["taken_at_ms"]
        await self._list()
        merged = await self._merged_since()
        for partition in self._partitions.values():
            self._put_together(partition, merged[partition.partition_id])
        await self._newer(await self._new_batches())
        producers = self._producers()
        report.topics, report.partitions = len(self._checkpoint.tables["topics"]), len(self._partitions)
        report.extents = sum(len(partition.extents) for partition in self._partitions.values())
        if self._store is not None:
            await self._write(self._store, producers)
        return report

    async def _list(self) -> None:
        for prefix in ("intake/", "merged/"):
            async for found in self._bucket.list(prefix):
                key = parse_key(found.key)
                if key is not None:
                    self._objects[key.broker_epoch, key.sequence] = key, found.size

    def _is_final(self, segment: Segment, marks: dict[int, tuple[int, bool]]) -> bool:
        """Say whether nobody could commit a segment any more when these marks were read (I7b)."""
        sequence, ended = marks.get(segment[0], (-1, False))
        return ended or segment[1] <= sequence

    # ---- what is certain

    async def _merged_since(self) -> dict[int, set[Candidate]]:
        """Return what merged segments hold that were put in place after the folder's first checkpoint, by partition id."""
        marks = {epoch: (sequence, bool(ended)) for epoch, sequence, ended in self._checkpoint.marks}
        named = {(extent.broker_epoch, extent.sequence) for extents in self._checkpoint.extents.values() for extent in extents}
        found: dict[int, set[Candidate]] = defaultdict(set)
        for segment, (key, size) in sorted(self._objects.items()):
            if not isinstance(key, MergedKey) or segment in named or self._is_final(segment, marks):
                continue
            footer = await self._footer(str(key), size)
            partition = self._by_number.get((key.topic_id, key.partition))
            if footer is None or footer.merged is None:
                continue
            [chunk] = footer.chunks
            if partition is None:
                self._unknown_topic(key.topic_id, chunk.record_count)
                continue
            extent = Extent(
                partition.partition_id, footer.merged.base_offset, footer.merged.next_offset, *segment, chunk.position, chunk.length,
                chunk.record_count, 1, chunk.max_timestamp_ms, footer.origin.created_at_ms, footer.merged.last_leader_epoch,
            )  # fmt: skip
            found[partition.partition_id].add(Candidate(extent, present=True))
            partition.leader_epoch = max(partition.leader_epoch, extent.leader_epoch)
            if extent.next_offset > partition.known_end:
                partition.merged_keys.append(str(key))
        return found

    def _put_together(self, partition: _Partition, merged: set[Candidate]) -> None:
        known = self._checkpoint.extents.get(partition.partition_id, set())
        candidates = {Candidate(extent, present=(extent.broker_epoch, extent.sequence) in self._objects) for extent in known} | merged
        found = cover(candidates, log_start=partition.log_start, end=partition.end)
        chosen = list(found.chosen)
        leading = 0
        while leading < len(chosen) and not chosen[leading].present:
            leading += 1
        first = chosen[leading].extent.base_offset if leading < len(chosen) else partition.end
        if (leading or not found.complete) and first > partition.log_start:
            why = "the objects that held them are gone: deleted after the checkpoint by retention or on request, or lost"
            self._report.log_starts_moved.append(partition.place(partition.log_start, first, why))
            partition.log_start = first
        kept = chosen[leading:]
        for candidate in kept:
            extent = candidate.extent
            if not candidate.present:
                what = f"segment {extent.sequence} of broker epoch {extent.broker_epoch} is not in the bucket"
                self._report.missing.append(partition.place(extent.base_offset, extent.next_offset, what))
            self._report.exact_records += extent.record_count
            self._know_writer((extent.broker_epoch, extent.sequence))
        partition.extents = [candidate.extent for candidate in kept]
        partition.end = max(partition.end, *(extent.next_offset for extent in partition.extents), 0)
        partition.log_start = min(partition.log_start, partition.end)
        if partition.end > partition.known_end:
            self._forgotten.add((partition.partition_id, -1))
        for candidate in sorted(merged - set(chosen), key=lambda each: each.extent.base_offset):
            if candidate.extent.base_offset >= partition.end:
                what = "a merged segment holds them, but nothing tells what lies between the checkpoint's end and them; left aside"
                self._report.unplaced.append(partition.place(candidate.extent.base_offset, candidate.extent.next_offset, what))

    def _know_writer(self, segment: Segment) -> None:
        """Note who wrote a segment, where that broker registered after the checkpoint had read the writers: its key tells."""
        if segment[0] not in self._writers and segment in self._objects:
            key, _ = self._objects[segment]
            incarnation = key.incarnation if isinstance(key, IntakeKey) else ""
            if incarnation:
                self._writers[segment[0]] = (segment[0], key.broker_id, incarnation, 1)
            else:
                self._writers_of_merged.setdefault(segment[0], (segment[0], key.broker_id, "", 1))

    # ---- what is not

    async def _new_batches(self) -> dict[int, list[_NewBatch]]:
        """Return the batches that may have been committed after the checkpoint, by partition id, in their probable order."""
        ended = {row[0]: bool(row[3]) for row in self._checkpoint.tables["writers"]}
        # One that registered between the two reads has a mark and no row: it is alive.
        marks = {epoch: (sequence, ended.get(epoch, False)) for epoch, sequence in self._checkpoint.tables["resolved_marks"]}
        covered: dict[tuple[int, int, int], list[tuple[int, int]]] = defaultdict(list)
        for extents in self._checkpoint.extents.values():
            for extent in extents:
                covered[extent.partition_id, extent.broker_epoch, extent.sequence].append(
                    (extent.position, extent.position + extent.length)
                )
        for epoch, sequence, partition_id, position, length in self._checkpoint.tables["released_extents"]:
            covered[partition_id, epoch, sequence].append((position, position + length))
        found: dict[int, list[_NewBatch]] = defaultdict(list)
        newest: Counter[int] = Counter()
        """By writer: clocks may be set back, but a writer's segments follow on each other."""
        for segment, (key, size) in sorted(self._objects.items()):
            if not isinstance(key, IntakeKey) or self._is_final(segment, marks):
                continue
            footer = await self._footer(str(key), size)
            if footer is None:
                continue
            newest[key.broker_epoch] = max(newest[key.broker_epoch], footer.origin.created_at_ms)
            for chunk in footer.chunks:
                partition = self._by_number.get((chunk.topic_id.hex(), chunk.partition))
                if partition is None:
                    self._unknown_topic(chunk.topic_id.hex(), chunk.record_count)
                    continue
                ranges = covered[partition.partition_id, *segment]
                if any(start <= chunk.position and chunk.end <= end for start, end in ranges):
                    continue
                for header in await self._headers(str(key), chunk):
                    at = chunk.position + header.position
                    if not any(start <= at < end for start, end in ranges):
                        order = (newest[key.broker_epoch], *segment, at)
                        batch = _NewBatch(order, segment, at, header, footer.origin.created_at_ms)
                        found[partition.partition_id].append(batch)
        return {partition_id: sorted(batches, key=lambda batch: batch.order) for partition_id, batches in sorted(found.items())}

    async def _newer(self, found: dict[int, list[_NewBatch]]) -> None:
        for partition_id, batches in found.items():
            partition = self._partitions[partition_id]
            fresh = await self._without_duplicates(partition, batches)
            self._forgotten |= {(partition_id, batch.header.producer_id) for batch in batches if batch.header.producer_id >= 0}
            if not fresh:
                continue
            base = partition.end if self._report.newer == "append" else None
            if base is not None:
                self._append(partition, fresh)
            self._report.unknown_order.append(
                UnknownOrder(
                    topic=partition.topic,
                    partition=partition.partition,
                    records=sum(batch.header.record_count for batch in fresh),
                    bytes=sum(batch.header.size for batch in fresh),
                    segments=len({batch.segment for batch in fresh}),
                    base_offset=base,
                    next_offset=None if base is None else partition.end,
                    duplicates=len(batches) - len(fresh),
                )
            )

    async def _without_duplicates(self, partition: _Partition, batches: Sequence[_NewBatch]) -> list[_NewBatch]:
        """Leave out what an idempotent producer had sent before, and what merged segments beyond the checkpoint hold (byte for byte)."""
        placed: dict[int, BatchHeader] = {}
        """What merged segments hold beyond the checkpoint, by offset: several may hold the same."""
        for key in partition.merged_keys:
            footer = await self._footer(key, self._size(key))
            if footer is not None:
                headers = await self._headers(key, footer.chunks[0])
                placed |= {h.base_offset: h for h in headers if partition.known_end <= h.base_offset < partition.end}
        merged = Counter(_bytes_of(header) for header in placed.values())
        lines: dict[tuple[int, int], _Line] = defaultdict(_Line)
        for (partition_id, producer_id), row in self._checkpoint.producers.items():
            if partition_id == partition.partition_id:
                window = [batch for batch in orjson.loads(row[3]) if batch[2] < partition.known_end]
                if window:
                    lines[producer_id, row[2]] = _Line((window[-1][1] + 1) % _SEQUENCES)
        for _, header in sorted(placed.items()):
            if header.producer_id >= 0:
                lines[header.producer_id, header.producer_epoch].expected = (header.base_sequence + header.record_count) % _SEQUENCES
        fresh: list[_NewBatch] = []
        for batch in batches:
            header = batch.header
            content = _bytes_of(header)
            if merged[content]:
                merged[content] -= 1
            elif header.producer_id < 0:
                fresh.append(batch)
            else:
                fresh += lines[header.producer_id, header.producer_epoch].take(batch)
        for _, line in sorted(lines.items()):
            fresh += line.rest()
        return fresh

    def _append(self, partition: _Partition, batches: Sequence[_NewBatch]) -> None:
        """Give offsets to batches, one extent for those that follow on each other in a segment."""
        epoch = partition.leader_epoch + EPOCH_LEAP
        for batch in batches:
            self._know_writer(batch.segment)
            header = batch.header
            before = partition.extents[-1] if partition.extents else None
            if (
                before is not None
                and before.leader_epoch == epoch
                and (before.broker_epoch, before.sequence) == batch.segment
                and before.position + before.length == batch.position
            ):
                partition.extents[-1] = Extent(
                    partition.partition_id, before.base_offset, before.next_offset + header.record_count, *batch.segment, before.position,
                    before.length + header.size, before.record_count + header.record_count, 0,
                    max(before.max_timestamp_ms, header.max_timestamp_ms), batch.created_at_ms, epoch,
                )  # fmt: skip
            else:
                partition.extents.append(
                    Extent(
                        partition.partition_id, partition.end, partition.end + header.record_count, *batch.segment, batch.position,
                        header.size, header.record_count, 0, header.max_timestamp_ms, batch.created_at_ms, epoch,
                    )
                )  # fmt: skip
            partition.end += header.record_count

    def _producers(self) -> list[tuple[Any, ...]]:
        """Return the windows that are certain: cut at the checkpoint's end, and none of a producer that has appended since (I8)."""
        kept = []
        for (partition_id, producer_id), row in sorted(self._checkpoint.producers.items()):
            partition = self._partitions.get(partition_id)
            if partition is None:
                continue
            window = [batch for batch in orjson.loads(row[3]) if batch[2] < partition.known_end]
            if not window or self._forgotten & {(partition_id, -1), (partition_id, producer_id)}:
                self._report.producers_forgotten += 1
                continue
            kept.append((*row[:3], orjson.dumps(window).decode(), row[4]))
        self._report.producers = len(kept)
        return kept

    # ---- objects

    async def _footer(self, key: str, size: int) -> Footer | None:
        """Return a segment's footer; None, and told of, where it is gone or damaged."""
        try:
            at = max(0, size - _FOOTER_GUESS)
            tail = await self._bucket.get_range(key, at, max(1, size - at))
            if len(tail) >= TRAILER_BYTES and (start := footer_start(tail, size=size)) < at:
                tail = await self._bucket.get_range(key, start, size - start)
            return decode_footer(tail, size=size)
        except (CorruptSegment, ObjectNotFound) as error:
            self._report.damaged.append(f"{key}: {error}")
            return None

    async def _headers(self, key: str, chunk: Chunk) -> list[BatchHeader]:
        try:
            return decode_chunk(await self._bucket.get_range(key, chunk.position, chunk.length), chunk)
        except (CorruptSegment, ObjectNotFound) as error:
            self._report.damaged.append(f"{key}: {error}")
            return []

    def _size(self, key: str) -> int:
        parsed = parse_key(key)
        assert parsed is not None
        return self._objects[parsed.broker_epoch, parsed.sequence][1]

    def _unknown_topic(self, topic_id: str, records: int) -> None:
        self._report.unknown_topics[topic_id] = self._report.unknown_topics.get(topic_id, 0) + records

    # ---- writing

    async def _write(self, store: MetadataStore, producers: list[tuple[Any, ...]]) -> None:
        tables, report = self._checkpoint.tables, self._report
        cluster = dict(zip(TABLES["cluster"].columns, tables["cluster"][0], strict=True))
        version = tables["changes"][0][1] + COUNT_LEAP
        seen = max([cluster["next_broker_epoch"] - 1, *(epoch for epoch, _ in self._objects)])
        cluster["next_broker_epoch"] = report.next_broker_epoch = seen + EPOCH_LEAP
        cluster["next_producer_id"] = report.next_producer_id = cluster["next_producer_id"] + COUNT_LEAP
        cluster["membership_version"] += COUNT_LEAP
        marked = 0 if self._marker is None else self._marker.commit_count
        report.commit_count = max(marked, self._checkpoint.about["commit_count"]) + COUNT_LEAP
        counts: Counter[str] = Counter(p.topic_id for p in self._partitions.values())
        topics = []
        for row in tables["topics"]:
            named = dict(zip(TABLES["topics"].columns, row, strict=True))
            named |= {"partitions": max(counts[row[0]], 1), "changed_version": version}
            topics.append(tuple(named.values()))
        partitions = [
            (p.partition_id, p.topic_id, p.partition, p.leader_epoch + EPOCH_LEAP, p.log_start, p.end, p.fencing_token, version)
            for p in self._partitions.values()
        ]
        offsets = [row for row in tables["group_offsets"] if row[1] in self._partitions]
        report.group_offsets = len(offsets)
        marks = {row[0]: row for row in tables["resolved_marks"]}
        writers = [(*row[:3], 1) for _, row in sorted((self._writers_of_merged | self._writers).items())]
        contents: dict[str, list[tuple[Any, ...]]] = {
            "topics": topics,
            "partitions": partitions,
            "extents": [_row(extent) for p in self._partitions.values() for extent in p.extents],
            "producers": producers,
            "groups": tables["groups"],
            "group_offsets": offsets,
            "writers": writers,
            "resolved_marks": [marks.get(row[0], (row[0], 0)) for row in writers],
            "commit_counts": [(0, report.commit_count)],
        }
        for table, rows in contents.items():
            for at in range(0, len(rows), _ROWS_AT_ONCE):
                await store.run(write_table, table=table, rows=rows[at : at + _ROWS_AT_ONCE])
        await store.run(finish_rebuild, cluster=list(cluster.values()), version=version)
        await renew(self._bucket, lambda: store.run(cluster_state))


def _row(extent: Extent) -> tuple[Any, ...]:
    return tuple(getattr(extent, column) for column in TABLES["extents"].columns)


def _bytes_of(header: BatchHeader) -> tuple[int, ...]:
    """Return what tells a batch's bytes, stamped or not: offset and leader epoch lie outside its CRC."""
    return (header.crc, header.size, header.record_count, header.producer_id, header.base_sequence)
