"""Which bytes to get for a read: spans of a partition become few ranged requests. Pure; knows neither stores nor SQL.

A span is read whole or not at all, because only whole does it have boundaries of batches and something to check it by:

- Of an *intake* segment a span is an extent. It has no index; its batches carry their own CRCs.
- Of a *merged* segment, which may be far larger than what is wanted, `index_spans` makes one span of each entry of the
  sparse index. The plan then takes the entries that are wanted and no others, and `check_span` proves each by its CRC.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from crc32c import crc32c

from tidelog.errors import CorruptSegment
from tidelog.records.batch import Buffer
from tidelog.segments.format import Footer


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a segment, at least one, that hold a range of one partition's offsets."""

    segment: Hashable
    """Names the object; equal for spans of the same one."""
    position: int
    """From the object's first byte."""
    length: int
    base_offset: int
    next_offset: int
    crc32c: int | None = None
    """Of the bytes, where it is known: for entries of a sparse index."""

    @property
    def end(self) -> int:
        """Position after the last byte."""
        return self.position + self.length


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a request that belong to a span: all of it, unless the span is larger than a request may be."""

    span: Span
    start: int
    """Position in the object, as the request's are."""
    end: int

    @property
    def completes_span(self) -> bool:
        """Whether the span is whole once this has come."""
        return self.end == self.span.end


@dataclass(frozen=True, slots=True)
class RangedGet:
    """One request: bytes `start` to `end` of a segment. What lies between two slices is read and dropped."""

    segment: Hashable
    start: int
    end: int
    slices: tuple[Slice, ...]
    """In the order of offsets, and of positions."""


def plan(spans: Iterable[Span], *, offset: int, budget_bytes: int, max_gap_bytes: int, max_request_bytes: int) -> list[RangedGet]:
    """Return the requests that read a run of spans from the one that holds `offset`, in the order of offsets.

    Spans are taken while they fit `budget_bytes` together (what is dropped between them not counted), the first one
    always: a reader makes progress with any budget. Spans of one segment share a request where they follow one another
    with at most `max_gap_bytes` between them and the request keeps to `max_request_bytes`. A span that is larger than
    that is cut over several requests; no other is. Spans must ascend without a gap in their offsets: raises ValueError,
    because reading on would skip records.
    """
    requests: list[RangedGet] = []
    open_slices: list[Slice] = []
    for piece in _pieces(_taken(spans, offset, budget_bytes), max_request_bytes):
        if open_slices and not _fits(piece, open_slices, max_gap_bytes, max_request_bytes):
            requests.append(_request(open_slices))
            open_slices = []
        open_slices.append(piece)
    if open_slices:
        requests.append(_request(open_slices))
    return requests


def _taken(spans: Iterable[Span], offset: int, budget_bytes: int) -> Iterator[Span]:
    taken_bytes = 0
    before: Span | None = None
    for span in spans:
        if before is not None and span.base_offset != before.next_offset:
            raise ValueError(f"a span begins at offset {span.base_offset}, but the one before it ends at {before.next_offset}")
        before = span
        if span.next_offset <= offset:
            continue
        if taken_bytes and taken_bytes + span.length > budget_bytes:
            return
        taken_bytes += span.length
        yield span


def _pieces(spans: Iterable[Span], max_request_bytes: int) -> Iterator[Slice]:
    for span in spans:
        for start in range(span.position, span.end, max_request_bytes):
            yield Slice(span, start, min(start + max_request_bytes, span.end))


def _fits(piece: Slice, slices: Sequence[Slice], max_gap_bytes: int, max_request_bytes: int) -> bool:
    last = slices[-1]
    return (
        piece.span.segment == last.span.segment
        and 0 <= piece.start - last.end <= max_gap_bytes
        and piece.end - slices[0].start <= max_request_bytes
    )


def _request(slices: Sequence[Slice]) -> RangedGet:
    return RangedGet(slices[0].span.segment, slices[0].start, slices[-1].end, tuple(slices))


# ---- the sparse index of merged segments


def index_spans(extent: Span, footer: Footer) -> list[Span]:
    """Return one span for each entry of a merged segment's index, in the place of the extent that is the whole chunk.

    Together they hold exactly the extent's bytes and offsets; offsets that compaction removed belong to the entry before
    them. Raises CorruptSegment where the extent and the footer do not speak of the same bytes and offsets.
    """
    merged = footer.merged
    chunk = footer.chunks[0]
    found = (chunk.position, chunk.length, merged and merged.base_offset, merged and merged.next_offset)
    wanted = (extent.position, extent.length, extent.base_offset, extent.next_offset)
    if merged is None or found != wanted:
        raise CorruptSegment(
            f"its extent says (position, length, base offset, next offset) {wanted}, but its footer {found}", position=chunk.position
        )
    places = [*(entry.position for entry in merged.index), chunk.end]
    offsets = [merged.base_offset, *(entry.offset for entry in merged.index[1:]), merged.next_offset]
    return [
        Span(extent.segment, start, end - start, base_offset, next_offset, entry.crc32c)
        for entry, (start, end), (base_offset, next_offset) in zip(merged.index, pairwise(places), pairwise(offsets), strict=True)
    ]


def offset_since(footer: Footer, timestamp_ms: int) -> int | None:
    """Return the offset to read a merged segment from to meet its first record of this time or later; None without one.

    It begins the entry that holds that record; no record before the entry is as late.
    """
    merged = footer.merged
    if merged is None:
        raise ValueError("an intake segment has no index; read the extent")
    at = bisect_left(merged.index, timestamp_ms, key=lambda entry: entry.max_timestamp_ms)
    return merged.index[at].offset if at < len(merged.index) else None


def check_span(span: Span, data: Buffer) -> None:
    """Compare the bytes that came for a span with its length, and its CRC where it is known. Raises CorruptSegment."""
    if len(data) != span.length:
        raise CorruptSegment(f"{span.length} bytes were to be read, but {len(data)} came", position=span.position)
    if span.crc32c is None:
        return
    found = crc32c(data)
    if found != span.crc32c:
        raise CorruptSegment(
            f"the index says that {span.length} bytes have CRC-32C {span.crc32c:#010x}, but those that came give {found:#010x}",
            position=span.position,
        )
