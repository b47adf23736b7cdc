"""Stamped batches in memory: how bytes of segments become them, and how they are cut for an answer.

Pure: knows bytes and extents, not where they come from. Whatever does not add up is a CorruptSegment, never data.
"""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from struct import Struct

from crc32c import crc32c

from tidelog.errors import CorruptBatch, CorruptSegment
from tidelog.metadata.extents import Extent
from tidelog.records.batch import HEADER_BYTES, BatchHeader, Buffer, scan, stamp
from tidelog.segments.format import IndexEntry

_LENGTH = Struct(">i")
_LENGTH_AT = 8
_BEFORE_LENGTH_ENDS = 12
_LEAST_LENGTH = HEADER_BYTES - _BEFORE_LENGTH_ENDS
_OBJECT_BYTES = 500
"""What the objects of one `StampedBatches` take beside their content."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Some batches of a `StampedBatches`; the bytes are shared with it."""

    batches: memoryview
    base_offset: int
    next_offset: int


class StampedBatches:
    """Batches back to back as readers get them, and where each begins and ends. Covers [base_offset, next_offset), gaps too."""

    __slots__ = ("_bases", "_data", "_ends", "_nexts", "base_offset", "next_offset")

    def __init__(self, data: bytearray, headers: Sequence[BatchHeader], bases: Sequence[int], *, base_offset: int, next_offset: int):
        self.base_offset = base_offset
        self.next_offset = next_offset
        self._data = data
        self._ends = array("q", accumulate(header.size for header in headers))
        self._bases = array("q", bases)
        self._nexts = array("q", (base + h.last_offset_delta + 1 for base, h in zip(bases, headers, strict=True)))

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self._data) + 24 * len(self._ends) + _OBJECT_BYTES

    def cut(self, offset: int, *, max_bytes: int) -> Cut | None:
        """Return whole batches from the one that holds `offset` on, about `max_bytes` but at least one; None where only a gap follows."""
        first = bisect_right(self._nexts, offset)
        if first == len(self._nexts):
            return None
        start = self._ends[first - 1] if first else 0
        last = max(first, bisect_right(self._ends, start + max_bytes) - 1)
        at_end = last == len(self._ends) - 1
        return Cut(
            memoryview(self._data).toreadonly()[start : self._ends[last]],
            self._bases[first],
            self.next_offset if at_end else self._nexts[last],
        )


def stamp_parts(parts: Sequence[Buffer], *, base_offset: int, leader_epoch: int) -> StampedBatches:
    """Return what intake took in, stamped in a copy. Scanned again, so that memory is held to the same checks as the bucket."""
    data = bytearray().join(parts)
    headers = scan(data)
    next_offset = stamp(data, headers, base_offset=base_offset, leader_epoch=leader_epoch)
    return StampedBatches(data, headers, _dense(headers, base_offset), base_offset=base_offset, next_offset=next_offset)


# ---- intake segments


@dataclass(frozen=True, slots=True)
class IntakeSpan:
    """Bytes of one extent of an intake segment, from the beginning of a batch on."""

    extent: Extent
    key: str
    offset: int
    """Of the batch that begins at `position`."""
    position: int
    length: int

    @property
    def whole(self) -> bool:
        """Whether it reaches the extent's end."""
        return self.position + self.length == self.extent.position + self.extent.length


def first_batch_bytes(span: IntakeSpan, parts: Sequence[Buffer]) -> int:
    """Return how long the first batch of a span claims to be. What is no batch at all is left for `stamp_intake` to report."""
    head = bytes(parts[0][:_BEFORE_LENGTH_ENDS])
    if len(head) < _BEFORE_LENGTH_ENDS and len(parts) > 1:
        head += bytes(parts[1][: _BEFORE_LENGTH_ENDS - len(head)])
    length: int = _LENGTH.unpack_from(head, _LENGTH_AT)[0] if len(head) == _BEFORE_LENGTH_ENDS else 0
    claimed = max(length, 0) + _BEFORE_LENGTH_ENDS
    if claimed > span.extent.position + span.extent.length - span.position:
        raise CorruptSegment(f"{span.key}: a batch claims {claimed} bytes, more than its extent has left", position=span.position)
    return claimed


def stamp_intake(spans: Sequence[IntakeSpan], parts: Sequence[Sequence[Buffer]]) -> tuple[StampedBatches, int]:
    """Check and stamp what lies in consecutive spans: the first batch whole, and only the last span may end within a batch.

    Returns the batches, and the position in the last span's object where the first batch that is not among them begins.
    """
    data = bytearray().join([part for of_span in parts for part in of_span])
    everything: list[BatchHeader] = []
    bases: list[int] = []
    start = 0
    end_position = after = 0
    for span in spans:
        end = start + span.length
        if not span.whole:
            end = start + _whole_batches(memoryview(data)[start:end])
            del data[end:]
        extent = span.extent
        headers = _scan(memoryview(data)[start:end], span)
        after = stamp(memoryview(data)[start:end], headers, base_offset=span.offset, leader_epoch=extent.leader_epoch)
        bases.extend(_dense(headers, span.offset))
        everything.extend(headers)
        if (after != extent.next_offset) if span.whole else (after >= extent.next_offset):
            raise CorruptSegment(
                f"{span.key}: the extent at {extent.position} was committed with offsets {extent.base_offset} to"
                f" {extent.next_offset}, but its batches up to here reach {after}",
                position=span.position,
            )
        end_position = span.position + end - start
        start = end
    return StampedBatches(data, everything, bases, base_offset=spans[0].offset, next_offset=after), end_position


def _whole_batches(view: memoryview) -> int:
    """Return where the last whole batch ends. What is no batch at all is left for the scan to report."""
    position = 0
    while len(view) - position >= _BEFORE_LENGTH_ENDS:
        length = _LENGTH.unpack_from(view, position + _LENGTH_AT)[0]
        if length < _LEAST_LENGTH:
            return len(view)
        if length > len(view) - position - _BEFORE_LENGTH_ENDS:
            break
        position += length + _BEFORE_LENGTH_ENDS
    return position


def _scan(view: memoryview, span: IntakeSpan) -> list[BatchHeader]:
    try:
        headers = scan(view)
    except CorruptBatch as error:
        raise CorruptSegment(f"{span.key}: {error.problem}", position=span.position + error.position) from error
    for header in headers:
        if header.last_offset_delta != header.record_count - 1:
            raise CorruptSegment(f"{span.key}: a batch of an intake segment has gaps", position=span.position + header.position)
    return headers


def _dense(headers: Sequence[BatchHeader], base_offset: int) -> list[int]:
    return list(accumulate((header.record_count for header in headers), initial=base_offset))[:-1]


# ---- merged segments


@dataclass(frozen=True, slots=True)
class MergedRun:
    """Whole entries of a merged segment's sparse index."""

    extent: Extent
    key: str
    entries: tuple[IndexEntry, ...]
    end: int
    """Position after the last entry's bytes."""
    next_offset: int

    @property
    def position(self) -> int:
        """Where the bytes begin."""
        return self.entries[0].position

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return self.end - self.position


def plan_merged(extent: Extent, key: str, index: Sequence[IndexEntry], offset: int, *, max_bytes: int) -> MergedRun:
    """Return the entries to read for `offset`: about `max_bytes` of them, at least one."""
    first = max(0, bisect_right(index, offset, key=lambda entry: entry.offset) - 1)
    chunk_end = extent.position + extent.length
    last = first
    while last + 1 < len(index) and (index[last + 2].position if last + 2 < len(index) else chunk_end) - index[first].position <= max_bytes:
        last += 1
    at_end = last + 1 == len(index)
    return MergedRun(
        extent,
        key,
        tuple(index[first : last + 1]),
        chunk_end if at_end else index[last + 1].position,
        extent.next_offset if at_end else index[last + 1].offset,
    )


def check_merged(run: MergedRun, parts: Sequence[Buffer]) -> StampedBatches:
    """Check what lies in a run of entries: the index covers the stamps, which the batches' own checksums do not."""
    data = bytearray().join(parts)
    view = memoryview(data)
    bounds = [*(entry.position for entry in run.entries), run.end]
    for entry, end in zip(run.entries, bounds[1:], strict=True):
        found = crc32c(view[entry.position - run.position : end - run.position])
        if found != entry.crc32c:
            raise CorruptSegment(
                f"{run.key}: the sparse index says CRC-32C {entry.crc32c:#010x}, but the bytes give {found:#010x}", position=entry.position
            )
    try:
        headers = scan(view)
    except CorruptBatch as error:
        raise CorruptSegment(f"{run.key}: {error.problem}", position=run.position + error.position) from error
    offset = run.entries[0].offset
    for header in headers:
        if header.base_offset < offset or header.next_offset > run.next_offset:
            raise CorruptSegment(
                f"{run.key}: a batch holds offsets {header.base_offset} to {header.next_offset}, but they must lie in {offset} to"
                f" {run.next_offset}",
                position=run.position + header.position,
            )
        offset = header.next_offset
    view.release()
    return StampedBatches(data, headers, [h.base_offset for h in headers], base_offset=run.entries[0].offset, next_offset=run.next_offset)
