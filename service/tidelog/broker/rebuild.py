"""A new metadata store made of the newest checkpoint and of segments alone, and a report of what these cannot tell.

What the checkpoint names comes back exactly, and so does what merged segments hold that follow on it: their footers carry offsets.
Segments that might have been committed since (their writer had not ended and their sequence was not resolved when the checkpoint was
taken) hold no offsets, nor whether their appends were accepted. Their records are appended in probable order, or left aside. All else
in the bucket that nothing refers to was never committed and never will be.

What is left aside is copied below `aside/` first: to the new store it is an orphan, and its cleaner deletes those.

Every number that fences is put far beyond what could have been given out since, so nothing that is left of the old cluster can be
taken for something of the new one (I1, I6, I11).
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson

from tidelog.broker.cover import Candidate
from tidelog.broker.marker import Marker, newest_marker, renew
from tidelog.broker.rebuild_newer import NewerRecords
from tidelog.broker.rebuild_partition import EPOCH_LEAP, Partition
from tidelog.broker.rebuild_report import Newer, Report
from tidelog.broker.rebuild_source import Checkpoint, Segment, Segments, newest_checkpoint
from tidelog.errors import MetadataUnusable
from tidelog.metadata.extents import Extent
from tidelog.metadata.membership import cluster_state
from tidelog.metadata.snapshot import TABLES, finish_rebuild, is_unused, write_table
from tidelog.metadata.store import MetadataStore
from tidelog.objects.store import STREAM_PART_BYTES, ObjectStore
from tidelog.segments.keys import ASIDE, IntakeKey, MergedKey

COUNT_LEAP = 1_000_000_000
"""More commits, changes and producers than there can have been."""
_ROWS_AT_ONCE = 5000


async def rebuild(*, bucket: ObjectStore, into: Callable[[], Awaitable[MetadataStore]] | None, newer: Newer) -> Report:
    """Fill a new metadata store, opened once a checkpoint is found; with None nothing is written, and the report says what would be.

    Raises MetadataUnusable for a store that was used before, StoreUnusable where the bucket has no checkpoint.
    """
    report = Report(dry_run=into is None, newer=newer)
    marker = await newest_marker(bucket)
    checkpoint = await newest_checkpoint(bucket, marker, report)
    store = None if into is None else await into()
    if store is not None and not await store.run(is_unused):
        raise MetadataUnusable(
            "a metadata store was to be rebuilt, but this one holds brokers or topics already; name an empty database or a new file"
            " (what an interrupted rebuild left behind has to be dropped)"
        )
    return await _Rebuild(bucket, store, checkpoint, marker, report).run()


class _Rebuild:
    def __init__(
        self, bucket: ObjectStore, store: MetadataStore | None, checkpoint: Checkpoint, marker: Marker | None, report: Report
    ) -> None:
        self._bucket = bucket
        self._store = store
        self._checkpoint = checkpoint
        self._report = report
        self._segments = Segments(bucket, report)
        self._writers = {row[0]: row for row in checkpoint.tables["writers"]}
        self._writers_of_merged: dict[int, tuple[Any, ...]] = {}
        """Of whom nothing but merged segments are known, whose keys do not need the incarnation."""
        marked = 0 if marker is None else marker.commit_count
        counted = checkpoint.about["commit_count"]
        self._commit_count = max(marked, counted) + COUNT_LEAP
        self._leaps = max(0, marked - counted) // COUNT_LEAP + 1
        """How far numbers go ahead: an earlier rebuild from this checkpoint has taken a leap, too, and the marker tells of it."""
        names = {row[0]: row[1] for row in checkpoint.tables["topics"]}
        self._partitions = {
            row[0]: Partition(row, names[row[1]], leaps=self._leaps) for row in sorted(checkpoint.tables["partitions"]) if row[1] in names
        }
        self._by_number = {(p.topic_id, p.partition): p for p in self._partitions.values()}
        self._forgotten: set[tuple[int, int]] = set()
        """(partition id, producer id); producer -1: all of the partition."""

    async def run(self) -> Report:
        report, about = self._report, self._checkpoint.about
        report.cluster_id, report.checkpoint = about["cluster_id"], str(self._checkpoint.key)
        report.checkpoint_taken_at_ms = about["taken_at_ms"]
        await self._segments.look()
        cluster = dict(zip(TABLES["cluster"].columns, self._checkpoint.tables["cluster"][0], strict=True))
        newest_epoch = max((epoch for (epoch, _), _ in self._segments), default=0)
        report.drained = bool(about.get("drained")) and newest_epoch < cluster["next_broker_epoch"]
        merged = await self._merged_since()
        for partition in self._partitions.values():
            extents = self._checkpoint.extents.get(partition.partition_id, set())
            known = [Candidate(extent, present=(extent.broker_epoch, extent.sequence) in self._segments) for extent in extents]
            partition.put_together(known, merged[partition.partition_id], report)
            for segment in partition.unplaced:
                self._segments.leave_aside(segment)
            if partition.end > partition.known_end:
                self._forgotten.add((partition.partition_id, -1))
        self._forgotten |= await NewerRecords(self._checkpoint, self._segments, self._partitions, report).place()
        producers = self._producers()
        report.topics, report.partitions = len({p.topic_id for p in self._partitions.values()}), len(self._partitions)
        report.extents = sum(len(partition.extents) for partition in self._partitions.values())
        for partition in self._partitions.values():
            for extent in partition.extents:
                self._know_writer((extent.broker_epoch, extent.sequence))
        left_aside = self._segments.left_aside()
        report.aside = [key for key, _ in left_aside]
        if self._store is not None:
            for key, size in left_aside:
                await self._copy_aside(key, size)
            await self._write(self._store, producers)
        return report

    async def _copy_aside(self, key: str, size: int) -> None:
        """Copy a segment to where no cleaner looks: nothing refers to it, and nobody can have it committed any more."""

        async def parts() -> AsyncIterator[bytes]:
            for position in range(0, size, STREAM_PART_BYTES):
                yield await self._bucket.get_range(key, position, min(STREAM_PART_BYTES, size - position))

        if size <= STREAM_PART_BYTES:
            await self._bucket.put_new(ASIDE + key, [part async for part in parts()])
        else:
            await self._bucket.put_stream(ASIDE + key, parts())

    async def _merged_since(self) -> dict[int, set[Candidate]]:
        """Return what merged segments hold that were put in place after the folder's first checkpoint, by partition id."""
        marks, later = self._checkpoint.marks_at_its_begin(), self._checkpoint.marks_at_its_end()
        released = {row[:2] for row in self._checkpoint.tables["released_extents"]}
        named = {(extent.broker_epoch, extent.sequence) for extents in self._checkpoint.extents.values() for extent in extents}
        found: dict[int, set[Candidate]] = defaultdict(set)
        for segment, key in self._segments:
            if not isinstance(key, MergedKey) or segment in named or marks.is_final(segment):
                continue
            footer = await self._segments.footer(segment)
            if footer is None or footer.merged is None:
                continue
            [chunk] = footer.chunks
            partition = self._by_number.get((key.topic_id, key.partition))
            if partition is None:
                # Topics are read after marks: what was final or released by then is of one that was dropped by then.
                if not later.is_final(segment) and segment not in released:
                    self._segments.of_unknown_topic(segment, key.topic_id, chunk.record_count)
                continue
            extent = Extent(
                partition.partition_id, footer.merged.base_offset, footer.merged.next_offset, *segment, chunk.position, chunk.length,
                chunk.record_count, 1, chunk.max_timestamp_ms, footer.origin.created_at_ms, footer.merged.last_leader_epoch,
            )  # fmt: skip
            found[partition.partition_id].add(Candidate(extent, present=True))
        return found

    def _know_writer(self, segment: Segment) -> None:
        """Note who wrote a segment, where that broker registered after the checkpoint had read the writers: its key tells."""
        if segment[0] not in self._writers and segment in self._segments:
            key = self._segments.key(segment)
            incarnation = key.incarnation if isinstance(key, IntakeKey) else ""
            if incarnation:
                self._writers[segment[0]] = (segment[0], key.broker_id, incarnation, 1)
            else:
                self._writers_of_merged.setdefault(segment[0], (segment[0], key.broker_id, "", 1))

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

    async def _write(self, store: MetadataStore, producers: list[tuple[Any, ...]]) -> None:
        tables, report = self._checkpoint.tables, self._report
        cluster = dict(zip(TABLES["cluster"].columns, tables["cluster"][0], strict=True))
        leap = self._leaps * COUNT_LEAP
        version = tables["changes"][0][1] + leap
        seen = max([cluster["next_broker_epoch"] - 1, *(segment[0] for segment, _ in self._segments)])
        cluster["next_broker_epoch"] = report.next_broker_epoch = seen + self._leaps * EPOCH_LEAP
        cluster["next_producer_id"] = report.next_producer_id = cluster["next_producer_id"] + leap
        cluster["membership_version"] += leap
        report.commit_count = self._commit_count
        counts: Counter[str] = Counter(p.topic_id for p in self._partitions.values())
        topics = []
        for row in tables["topics"]:
            named = dict(zip(TABLES["topics"].columns, row, strict=True))
            if counts[row[0]]:  # else the last of its rows went between a look at topics and one at partitions
                topics.append(tuple((named | {"partitions": counts[row[0]], "changed_version": version}).values()))
        partitions = [
            (p.partition_id, p.topic_id, p.partition, p.new_leader_epoch, p.log_start, p.end, p.fencing_token, version)
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
