"""Records that may have been committed after the checkpoint: which they are, in which order, and what of them is there already."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from tidelog.broker.rebuild_partition import NewBatch, Partition
from tidelog.broker.rebuild_report import Report, UnknownOrder
from tidelog.broker.rebuild_source import Checkpoint, Segment, Segments
from tidelog.records.batch import BatchHeader
from tidelog.segments.keys import IntakeKey

_SEQUENCES = 2**31
"""Of an idempotent producer; then they begin again at 0."""


@dataclass
class Line:
    """The batches of one idempotent producer, which its leader took in the order of their sequences and once."""

    expected: int = 0
    waiting: dict[int, NewBatch] = field(default_factory=dict)

    def take(self, batch: NewBatch) -> list[NewBatch]:
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

    def rest(self) -> list[NewBatch]:
        """Return those before which something is missing, in their order."""
        return [batch for _, batch in sorted(self.waiting.items())]


class NewerRecords:
    """Finds them, and appends them or leaves them aside."""

    def __init__(self, checkpoint: Checkpoint, segments: Segments, partitions: Mapping[int, Partition], report: Report) -> None:
        self._checkpoint = checkpoint
        self._segments = segments
        self._partitions = partitions
        self._by_number = {(p.topic_id, p.partition): p for p in partitions.values()}
        self._report = report

    async def place(self) -> set[tuple[int, int]]:
        """Append what there is, or leave it aside; return (partition id, producer id) of the idempotent producers of it."""
        found = await self._find()
        for partition_id, batches in found.items():
            partition = self._partitions[partition_id]
            fresh = await self._without_duplicates(partition, batches)
            if not fresh:
                continue
            base = partition.end if self._report.newer == "append" else None
            if base is not None:
                partition.append(fresh)
            else:
                for batch in fresh:
                    self._segments.leave_aside(batch.segment)
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
        everyone = ((partition_id, batch.header.producer_id) for partition_id, batches in found.items() for batch in batches)
        return {(partition_id, producer_id) for partition_id, producer_id in everyone if producer_id >= 0}

    async def _find(self) -> dict[int, list[NewBatch]]:
        """Return the batches that may have been committed after the checkpoint, by partition id, in their probable order."""
        marks = self._checkpoint.marks_at_its_end()
        covered = self._checkpoint.covered()
        found: dict[int, list[NewBatch]] = defaultdict(list)
        newest: Counter[int] = Counter()
        """By writer: clocks may be set back, but a writer's segments follow on each other."""
        for segment, key in self._segments:
            if not isinstance(key, IntakeKey) or marks.is_final(segment):
                continue
            footer = await self._segments.footer(segment)
            if footer is None:
                continue
            newest[key.broker_epoch] = max(newest[key.broker_epoch], footer.origin.created_at_ms)
            ranges = covered[segment]
            for chunk in footer.chunks:
                if any(start <= chunk.position and chunk.end <= end for start, end in ranges):
                    continue
                partition = self._by_number.get((chunk.topic_id.hex(), chunk.partition))
                records_of_unknown = 0
                for header in await self._segments.headers(segment, chunk):
                    at = chunk.position + header.position
                    if any(start <= at < end for start, end in ranges):
                        continue
                    if partition is None:
                        records_of_unknown += header.record_count
                        continue
                    order = (newest[key.broker_epoch], *segment, at)
                    found[partition.partition_id].append(NewBatch(order, segment, at, header, footer.origin.created_at_ms))
                if records_of_unknown:
                    self._segments.of_unknown_topic(segment, chunk.topic_id.hex(), records_of_unknown)
        return {partition_id: sorted(batches, key=lambda batch: batch.order) for partition_id, batches in sorted(found.items())}

    async def _without_duplicates(self, partition: Partition, batches: Sequence[NewBatch]) -> list[NewBatch]:
        """Leave out what an idempotent producer had sent before, and what merged segments beyond the checkpoint hold (byte for byte)."""
        placed = await self._merged_beyond(partition)
        merged = Counter(_bytes_of(header) for header in placed.values())
        lines: dict[tuple[int, int], Line] = defaultdict(Line)
        for (partition_id, producer_id), row in self._checkpoint.producers.items():
            if partition_id == partition.partition_id:
                window = [batch for batch in orjson.loads(row[3]) if batch[2] < partition.known_end]
                if window:
                    lines[producer_id, row[2]] = Line((window[-1][1] + 1) % _SEQUENCES)
        for _, header in sorted(placed.items()):
            if header.producer_id >= 0:
                lines[header.producer_id, header.producer_epoch].expected = (header.base_sequence + header.record_count) % _SEQUENCES
        fresh: list[NewBatch] = []
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

    async def _merged_beyond(self, partition: Partition) -> dict[int, BatchHeader]:
        """Return what merged segments hold beyond the checkpoint, by offset: several may hold the same."""
        placed: dict[int, BatchHeader] = {}
        for segment in partition.merged_since:
            footer = await self._segments.footer(segment)
            if footer is not None:
                headers = await self._segments.headers(segment, footer.chunks[0])
                placed |= {h.base_offset: h for h in headers if partition.known_end <= h.base_offset < partition.end}
        return placed


def _bytes_of(header: BatchHeader) -> tuple[Segment | int, ...]:
    """Return what tells a batch's bytes, stamped or not: offset and leader epoch lie outside its CRC."""
    return (header.crc, header.size, header.record_count, header.producer_id, header.base_sequence)
