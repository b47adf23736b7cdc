"""What a lost metadata store leaves behind in the bucket: the newest checkpoint, and the segments."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidelog.broker.marker import Marker
from tidelog.broker.rebuild_report import Report
from tidelog.errors import CorruptCheckpoint, CorruptSegment, ObjectNotFound, StoreUnusable, TimeTravel
from tidelog.metadata.extents import Extent
from tidelog.metadata.snapshot import TABLES
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

Segment = tuple[int, int]
"""(broker epoch, sequence)."""
_FOOTER_GUESS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Marks:
    """What nobody could have committed any more at some moment (I7b)."""

    known: Mapping[int, tuple[int, bool]]
    """By broker epoch: up to which sequence everything was resolved, and whether the epoch had ended."""
    given_below: int
    """All epochs below were given by then. A row comes in the same transaction as its epoch, so one that is missing was forgotten."""

    def is_final(self, segment: Segment) -> bool:
        """Say whether a segment was final: its writer ended or forgotten, or its sequence resolved."""
        epoch, sequence = segment
        if epoch not in self.known:
            return epoch < self.given_below
        resolved, ended = self.known[epoch]
        return ended or sequence <= resolved


@dataclass
class Checkpoint:
    """A checkpoint, with all that it builds on."""

    key: CheckpointKey
    about: dict[str, Any]
    tables: dict[str, list[tuple[Any, ...]]]
    extents: dict[int, set[Extent]]
    producers: dict[tuple[int, int], tuple[Any, ...]]
    marks: list[tuple[Any, ...]]
    """As they were when the first checkpoint of the folder was taken."""

    def marks_at_its_begin(self) -> Marks:
        """Return the marks as they were before the folder's first checkpoint read any extents."""
        known = {epoch: (sequence, bool(ended)) for epoch, sequence, ended in self.marks}
        return Marks(known, self.about.get("given_below") or 0)

    def marks_at_its_end(self) -> Marks:
        """Return the marks as they were before its extents were read."""
        ended = {row[0]: bool(row[3]) for row in self.tables["writers"]}
        # One that registered between the two reads has a mark and no row: it is alive.
        known = {epoch: (sequence, ended.get(epoch, False)) for epoch, sequence in self.tables["resolved_marks"]}
        return Marks(known, dict(zip(TABLES["cluster"].columns, self.tables["cluster"][0], strict=True))["next_broker_epoch"])

    def covered(self) -> dict[Segment, list[tuple[int, int]]]:
        """Return which bytes of segments it tells of, live or released."""
        covered: dict[Segment, list[tuple[int, int]]] = defaultdict(list)
        for extents in self.extents.values():
            for extent in extents:
                covered[extent.broker_epoch, extent.sequence].append((extent.position, extent.position + extent.length))
        for epoch, sequence, _, position, length in self.tables["released_extents"]:
            covered[epoch, sequence].append((position, position + length))
        return covered


async def newest_checkpoint(bucket: ObjectStore, marker: Marker | None, report: Report) -> Checkpoint:
    """Return the checkpoint that has seen the most commits; one that is damaged is passed over, and told of."""
    heads: dict[tuple[int, int], list[CheckpointKey]] = defaultdict(list)
    async for found in bucket.list(PREFIX):
        key = parse_checkpoint_key(found.key)
        if key is not None and key.page is None:
            heads[key.folder].append(key)
    best: Checkpoint | None = None
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


async def _load(bucket: ObjectStore, key: CheckpointKey) -> Checkpoint:
    head = await _head(bucket, key)
    loaded = Checkpoint(key, head.about, defaultdict(list), defaultdict(set), {}, [])

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


class Segments:
    """The segments that are there."""

    def __init__(self, bucket: ObjectStore, report: Report) -> None:
        self._bucket = bucket
        self._report = report
        self._found: dict[Segment, tuple[IntakeKey | MergedKey, int]] = {}
        self._aside: set[Segment] = set()

    async def look(self) -> None:
        """List them all."""
        for prefix in ("intake/", "merged/"):
            async for found in self._bucket.list(prefix):
                key = parse_key(found.key)
                if key is not None:
                    self._found[key.broker_epoch, key.sequence] = key, found.size

    def __contains__(self, segment: Segment) -> bool:
        return segment in self._found

    def __iter__(self) -> Iterator[tuple[Segment, IntakeKey | MergedKey]]:
        """Give all segments and their keys, in the order in which they were begun."""
        return iter(sorted((segment, key) for segment, (key, _) in self._found.items()))

    def key(self, segment: Segment) -> IntakeKey | MergedKey:
        """Return what a segment that is there is called."""
        return self._found[segment][0]

    async def footer(self, segment: Segment) -> Footer | None:
        """Return a segment's footer; None, and told of, where it is gone or damaged."""
        key, size = self._found[segment]
        try:
            at = max(0, size - _FOOTER_GUESS)
            tail = await self._bucket.get_range(str(key), at, max(1, size - at))
            if len(tail) >= TRAILER_BYTES and (start := footer_start(tail, size=size)) < at:
                tail = await self._bucket.get_range(str(key), start, size - start)
            return decode_footer(tail, size=size)
        except (CorruptSegment, ObjectNotFound) as error:
            self._damaged(segment, error)
            return None

    async def headers(self, segment: Segment, chunk: Chunk) -> Sequence[BatchHeader]:
        """Return the headers of a chunk's batches, checked; none, and told of, where it is gone or damaged."""
        key = self.key(segment)
        try:
            return decode_chunk(await self._bucket.get_range(str(key), chunk.position, chunk.length), chunk)
        except (CorruptSegment, ObjectNotFound) as error:
            self._damaged(segment, error)
            return []

    def leave_aside(self, segment: Segment) -> None:
        """Note that records of a segment may have been acknowledged, but have found no place: it is not to be lost."""
        self._aside.add(segment)

    def of_unknown_topic(self, segment: Segment, topic_id: str, records: int) -> None:
        """Count records of a topic that no checkpoint tells of, and leave their segment aside."""
        self._report.of_unknown_topic(topic_id, records)
        self.leave_aside(segment)

    def left_aside(self) -> list[tuple[str, int]]:
        """Return the keys and sizes of segments left aside, in order."""
        return [(str(key), size) for key, size in (self._found[segment] for segment in sorted(self._aside))]

    def _damaged(self, segment: Segment, error: CorruptSegment | ObjectNotFound) -> None:
        problem = f"{self.key(segment)}: {error}"
        if problem not in self._report.damaged:
            self._report.damaged.append(problem)
        if isinstance(error, CorruptSegment):
            self.leave_aside(segment)
