"""A partition while it is put together from what a checkpoint, merged segments and newer batches tell of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tidelog.broker.cover import Candidate, cover
from tidelog.broker.rebuild_report import OffsetRange, Report
from tidelog.broker.rebuild_source import Segment
from tidelog.metadata.extents import Extent
from tidelog.metadata.snapshot import TABLES
from tidelog.records.batch import BatchHeader

EPOCH_LEAP = 100_000
"""More broker epochs, and more leader epochs of a partition, than can have been given since a checkpoint; these are 32-bit numbers."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch that no checkpoint and no merged segment tells of."""

    order: tuple[int, int, int, int]
    segment: Segment
    position: int
    header: BatchHeader
    created_at_ms: int


class Partition:
    """One partition."""

    def __init__(self, row: Sequence[Any], topic: str, *, leaps: int) -> None:
        named = dict(zip(TABLES["partitions"].columns, row, strict=True))
        self.partition_id: int = named["partition_id"]
        self.topic_id: str = named["topic_id"]
        self.partition: int = named["partition"]
        self.topic = topic
        self._leaps = leaps
        self.log_start: int = named["log_start_offset"]
        self.end: int = named["next_offset"]
        self.known_end = self.end
        """Up to here the checkpoint is exact."""
        self.leader_epoch: int = named["leader_epoch"]
        """The highest that is known."""
        self.fencing_token: str | None = named["fencing_token"]
        self.extents: list[Extent] = []
        self.merged_since: list[Segment] = []
        """Merged segments that hold offsets beyond the checkpoint."""
        self.unplaced: list[Segment] = []
        """Merged segments that hold offsets which do not follow on the others."""

    @property
    def new_leader_epoch(self) -> int:
        """One that was certainly never given."""
        return self.leader_epoch + self._leaps * EPOCH_LEAP

    def put_together(self, known: Iterable[Candidate], merged: set[Candidate], report: Report) -> None:
        """Take the fewest extents that follow on each other, of what a checkpoint knows and what was merged since; report what is amiss."""
        for candidate in merged:
            self.leader_epoch = max(self.leader_epoch, candidate.extent.leader_epoch)
            if candidate.extent.next_offset > self.known_end:
                self.merged_since.append((candidate.extent.broker_epoch, candidate.extent.sequence))
        found = cover({*known, *merged}, log_start=self.log_start, end=self.end)
        chosen = list(found.chosen)
        leading = 0
        while leading < len(chosen) and not chosen[leading].present:
            leading += 1
        first = chosen[leading].extent.base_offset if leading < len(chosen) else self.end
        if (leading or not found.complete) and first > self.log_start:
            why = "the objects that held them are gone: deleted after the checkpoint by retention or on request, or lost"
            report.log_starts_moved.append(self._place(self.log_start, first, why))
            self.log_start = first
        kept = chosen[leading:]
        for candidate in kept:
            extent = candidate.extent
            if candidate.present:
                report.exact_records += extent.record_count
            else:
                what = f"segment {extent.sequence} of broker epoch {extent.broker_epoch} is not in the bucket"
                report.missing.append(self._place(extent.base_offset, extent.next_offset, what))
        self.extents = [candidate.extent for candidate in kept]
        self.end = max(self.end, *(extent.next_offset for extent in self.extents), 0)
        self.log_start = min(self.log_start, self.end)
        for candidate in sorted(merged - set(chosen), key=lambda each: each.extent.base_offset):
            if candidate.extent.base_offset >= self.end:
                self.unplaced.append((candidate.extent.broker_epoch, candidate.extent.sequence))
                what = "a merged segment holds them, but nothing tells what lies between the checkpoint's end and them; left aside"
                report.unplaced.append(self._place(candidate.extent.base_offset, candidate.extent.next_offset, what))

    def append(self, batches: Sequence[NewBatch]) -> None:
        """Give offsets to batches, one extent for those that follow on each other in a segment."""
        epoch = self.new_leader_epoch
        for batch in batches:
            header = batch.header
            before = self.extents[-1] if self.extents else None
            if (
                before is not None
                and before.leader_epoch == epoch
                and (before.broker_epoch, before.sequence) == batch.segment
                and before.position + before.length == batch.position
            ):
                self.extents[-1] = Extent(
                    self.partition_id, before.base_offset, before.next_offset + header.record_count, *batch.segment, before.position,
                    before.length + header.size, before.record_count + header.record_count, 0,
                    max(before.max_timestamp_ms, header.max_timestamp_ms), batch.created_at_ms, epoch,
                )  # fmt: skip
            else:
                self.extents.append(
                    Extent(
                        self.partition_id, self.end, self.end + header.record_count, *batch.segment, batch.position, header.size,
                        header.record_count, 0, header.max_timestamp_ms, batch.created_at_ms, epoch,
                    )
                )  # fmt: skip
            self.end += header.record_count

    def _place(self, base: int, end: int, problem: str) -> OffsetRange:
        return OffsetRange(self.topic, self.partition, base, end, problem)
