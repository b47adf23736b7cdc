"""Plans of reads: what is asked is covered, in order, once, within the limits; and partial reads of merged segments are proved."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidelog.errors import CorruptSegment
from tidelog.records.batch import scan, stamp
from tidelog.records.codec import decode_values, encode_many
from tidelog.segments.format import ChunkSource, Footer, IndexEntry, MergedRange, Origin, decode, encode_merged
from tidelog.segments.plan import RangedGet, Span, check_span, index_spans, offset_since, plan

GOLDEN = Path(__file__).parent.parent / "golden"
MERGED = (GOLDEN / "segment-v1-merged.seg").read_bytes()
TOPIC = b"t" * 16
TIME = 1_750_000_000_000


@st.composite
def runs(draw: st.DrawFn) -> list[Span]:
    """Spans of several segments as a partition has them: offsets go on, positions mostly do, with gaps or none."""
    spans = []
    offset = draw(st.integers(0, 100))
    ends = {"a": 8, "b": 8, "c": 8}
    segment = "a"
    for _ in range(draw(st.integers(1, 30))):
        segment = draw(st.sampled_from([segment, segment, *ends]))
        back = draw(st.sampled_from([False] * 9 + [True]))
        position = draw(st.integers(8, ends[segment])) if back else ends[segment] + draw(st.sampled_from([0, 0, 0, 1, 9, 10, 11, 500]))
        length = draw(st.integers(1, 120))
        next_offset = offset + draw(st.integers(1, 50))
        spans.append(Span(segment, position, length, offset, next_offset))
        ends[segment] = max(ends[segment], position + length)
        offset = next_offset
    return spans


def whole_spans(requests: list[RangedGet]) -> Iterator[tuple[Span, list[tuple[int, int]]]]:
    """Return the spans as a reader puts them together: slices until one completes its span."""
    parts: list[tuple[int, int]] = []
    for request in requests:
        for piece in request.slices:
            parts.append((piece.start, piece.end))
            if piece.completes_span:
                yield piece.span, parts
                parts = []
    assert not parts


@given(spans=runs(), at=st.floats(0, 1), budget=st.integers(0, 2000), gap=st.integers(0, 20), most=st.integers(1, 300))
@settings(max_examples=400, deadline=None)
def test_a_plan_covers_what_was_asked_in_order_once_within_its_limits(
    spans: list[Span], at: float, budget: int, gap: int, most: int
) -> None:
    first, end = spans[0].base_offset, spans[-1].next_offset
    offset = first + int(at * (end - 1 - first))
    requests = plan(spans, offset=offset, budget_bytes=budget, max_gap_bytes=gap, max_request_bytes=most)
    read = list(whole_spans(requests))
    taken = [span for span, _ in read]
    # What was asked: a run without holes from the span of the offset, and no more than the budget but for the first.
    begin = next(index for index, span in enumerate(spans) if span.base_offset <= offset < span.next_offset)
    assert taken == spans[begin : begin + len(taken)]
    assert len(taken) >= 1
    assert len(taken) == 1 or sum(span.length for span in taken) <= budget
    following = spans[begin + len(taken) : begin + len(taken) + 1]
    assert all(sum(span.length for span in [*taken, span]) > budget for span in following)
    # Every span has each of its bytes once, in order.
    for span, parts in read:
        assert (parts[0][0], parts[-1][1]) == (span.position, span.end)
        assert all(left[1] == right[0] for left, right in pairwise(parts))
    for request in requests:
        # A request reads nothing but its slices and small gaps, and no byte for two of them.
        assert (request.start, request.end) == (request.slices[0].start, request.slices[-1].end)
        assert request.end - request.start <= most
        assert all(0 <= right.start - left.end <= gap for left, right in pairwise(request.slices))
        assert all(piece.start < piece.end and piece.span.segment == request.segment for piece in request.slices)
        # Only what is larger than any request is cut.
        assert all(piece.span.length > most for piece in request.slices if piece.end - piece.start < piece.span.length)
    # Neighbours that could have been one request are one.
    for left, right in pairwise(requests):
        start, piece = left.start, right.slices[0]
        assert left.segment != right.segment or not 0 <= piece.start - left.end <= gap or piece.end - start > most


def test_neighbours_share_a_request_and_far_ones_do_not() -> None:
    spans = [
        Span("a", 8, 10, 0, 5),
        Span("a", 18, 10, 5, 9),
        Span("a", 32, 10, 9, 10),
        Span("a", 60, 10, 10, 11),
        Span("b", 70, 10, 11, 12),
    ]
    requests = plan(spans, offset=0, budget_bytes=100, max_gap_bytes=4, max_request_bytes=100)
    assert [(r.segment, r.start, r.end, len(r.slices)) for r in requests] == [("a", 8, 42, 3), ("a", 60, 70, 1), ("b", 70, 80, 1)]


def test_a_span_larger_than_a_request_is_cut_and_its_rest_shares_a_request_with_the_next() -> None:
    spans = [Span("a", 8, 10, 0, 1), Span("a", 18, 250, 1, 2), Span("a", 268, 10, 2, 3)]
    requests = plan(spans, offset=0, budget_bytes=1000, max_gap_bytes=0, max_request_bytes=100)
    assert [(r.start, r.end, [p.completes_span for p in r.slices]) for r in requests] == [
        (8, 18, [True]),
        (18, 118, [False]),
        (118, 218, [False]),
        (218, 278, [True, True]),
    ]


def test_nothing_is_planned_beyond_the_last_span() -> None:
    assert plan([], offset=0, budget_bytes=10, max_gap_bytes=0, max_request_bytes=10) == []
    assert plan([Span("a", 8, 10, 0, 5)], offset=5, budget_bytes=10, max_gap_bytes=0, max_request_bytes=10) == []


@pytest.mark.parametrize("base_offset", [6, 4])
def test_a_hole_or_an_overlap_in_the_offsets_is_refused_and_never_read_over(base_offset: int) -> None:
    spans = [Span("a", 8, 10, 0, 5), Span("a", 18, 10, base_offset, 9)]
    with pytest.raises(ValueError, match=f"begins at offset {base_offset}, but the one before it ends at 5"):
        plan(spans, offset=0, budget_bytes=100, max_gap_bytes=0, max_request_bytes=100)


# ---- merged segments


def merged(sizes: list[int], *, holes: list[int], times: list[int]) -> tuple[bytes, Span, Footer]:
    """Return a merged segment of a batch of one value of each size, offsets left out before each, and its extent."""
    offset = 1000
    batches = []
    for size, hole, time in zip(sizes, holes, times, strict=True):
        batch = bytearray(encode_many([Random(offset).randbytes(size)], timestamps_ms=time))
        offset = stamp(batch, scan(batch), base_offset=offset + hole, leader_epoch=3)
        batches.append(bytes(batch))
    data = b"".join(batches)
    source = ChunkSource(TOPIC, 0, [data], scan(data))
    parts, footer = encode_merged(source, Origin("c", "b", 1, 2, 3), base_offset=1000, next_offset=offset + 7)
    return b"".join(parts), Span("m", 8, len(data), 1000, offset + 7), footer


@st.composite
def merged_segments(draw: st.DrawFn) -> tuple[bytes, Span, Footer]:
    count = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.sampled_from([0, 100, 20_000, 65_000, 70_000, 150_000]), min_size=count, max_size=count))
    holes = draw(st.lists(st.sampled_from([0, 0, 5]), min_size=count, max_size=count))
    times = draw(st.lists(st.integers(TIME, TIME + 20), min_size=count, max_size=count))
    return merged(sizes, holes=holes, times=times)


@given(
    segment=merged_segments(),
    at=st.floats(0, 1),
    budget=st.sampled_from([0, 65_536, 200_000, 10**9]),
    most=st.sampled_from([50_000, 10**6]),
)
@settings(max_examples=40, deadline=None)
def test_a_partial_read_of_a_merged_segment_finds_every_record_from_the_offset_on(
    segment: tuple[bytes, Span, Footer], at: float, budget: int, most: int
) -> None:
    data, extent, footer = segment
    offset = extent.base_offset + int(at * (extent.next_offset - 1 - extent.base_offset))
    requests = plan(index_spans(extent, footer), offset=offset, budget_bytes=budget, max_gap_bytes=0, max_request_bytes=most)
    found = []
    end = None
    for span, parts in whole_spans(requests):
        body = b"".join(data[start:end] for start, end in parts)
        check_span(span, body)
        headers = scan(body)  # whole batches, from the first byte to the last
        assert all(span.base_offset <= header.base_offset and header.next_offset <= span.next_offset for header in headers)
        found += [(h.base_offset, decode_values(body[h.position : h.position + h.size])) for h in headers]
        end = span.next_offset
    assert end is not None
    assert end > offset
    every = [(h.base_offset, decode_values(data[8 + h.position : 8 + h.position + h.size])) for h in scan(data[8 : footer.chunks[0].end])]
    assert [row for row in found if row[0] >= offset] == [row for row in every if offset <= row[0] < end]


@given(segment=merged_segments(), time=st.integers(TIME - 2, TIME + 22))
@settings(max_examples=60, deadline=None)
def test_a_read_by_time_begins_at_the_entry_of_the_first_record_as_late(segment: tuple[bytes, Span, Footer], time: int) -> None:
    data, extent, footer = segment
    late = [h.base_offset for h in scan(data[8 : footer.chunks[0].end]) if h.max_timestamp_ms >= time]
    offset = offset_since(footer, time)
    if not late:
        assert offset is None
        return
    assert offset is not None
    holding = next(span for span in index_spans(extent, footer) if span.base_offset <= late[0] < span.next_offset)
    [first] = plan(index_spans(extent, footer), offset=offset, budget_bytes=0, max_gap_bytes=0, max_request_bytes=10**9)
    assert first.slices[0].span == holding


def test_only_the_entries_that_are_wanted_are_read() -> None:
    extent = Span("golden", 8, decode(MERGED).chunks[0].length, 1000, 2300)
    first, second = index_spans(extent, decode(MERGED))
    assert [(s.base_offset, s.next_offset) for s in (first, second)] == [(1000, 1700), (1700, 2300)]
    assert (first.position, first.end, second.end) == (8, second.position, extent.end)
    [request] = plan([first, second], offset=1700, budget_bytes=10**9, max_gap_bytes=0, max_request_bytes=10**9)
    assert (request.start, request.end) == (second.position, second.end)
    check_span(second, MERGED[request.start : request.end])


def test_every_flipped_byte_of_an_entry_is_found_and_so_is_a_length() -> None:
    data, extent, footer = merged([300, 70_000, 200], holes=[0, 0, 0], times=[TIME] * 3)
    *_, last = index_spans(extent, footer)
    good = data[last.position : last.end]
    check_span(last, memoryview(good))
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 1
        with pytest.raises(CorruptSegment, match=r"index says that \d+ bytes have CRC-32C") as caught:
            check_span(last, damaged)
        assert caught.value.position == last.position
    for wrong in (good[:-1], good + b"x", b""):
        with pytest.raises(CorruptSegment, match=f"were to be read, but {len(wrong)} came"):
            check_span(last, wrong)
    with pytest.raises(CorruptSegment, match="but 1 came"):
        check_span(Span("intake", 8, 2, 0, 1), b"x")
    check_span(Span("intake", 8, 2, 0, 1), b"xx")  # its batches carry their own


@pytest.mark.parametrize("change", [{"position": 9}, {"length": 5}, {"base_offset": 999}, {"next_offset": 2299}])
def test_an_extent_and_a_footer_that_disagree_are_refused(change: dict[str, int]) -> None:
    says = {"position": 8, "length": decode(MERGED).chunks[0].length, "base_offset": 1000, "next_offset": 2300, **change}
    with pytest.raises(CorruptSegment, match="but its footer"):
        index_spans(Span("golden", **says), decode(MERGED))


def test_an_intake_segment_has_no_index() -> None:
    footer = decode((GOLDEN / "segment-v1-intake.seg").read_bytes())
    chunk = footer.chunks[0]
    with pytest.raises(CorruptSegment, match="but its footer"):
        index_spans(Span("golden", chunk.position, chunk.length, 0, 3), footer)
    with pytest.raises(ValueError, match="read the extent"):
        offset_since(footer, TIME)


def test_planning_takes_linear_time() -> None:
    """Counted, not timed: each span is looked at a fixed number of times however many there are."""

    class Counted:
        def __init__(self) -> None:
            self.compared = 0

        def __eq__(self, other: object) -> bool:
            self.compared += 1
            return self is other

        def __hash__(self) -> int:
            return 1

    for count in (1000, 10_000):
        segment = Counted()
        spans = [Span(segment, 8 + 10 * index, 10, index, index + 1) for index in range(count)]
        plan(spans, offset=0, budget_bytes=10**9, max_gap_bytes=0, max_request_bytes=100)
        assert segment.compared <= count


def test_an_index_of_a_gibibyte_is_cut_into_spans() -> None:
    entries = tuple(IndexEntry(65 * index, TIME + index, 8 + 65_536 * index, 0) for index in range(16_383))
    [chunk] = decode(MERGED).chunks
    whole = Footer(
        decode(MERGED).kind,
        decode(MERGED).origin,
        (type(chunk)(TOPIC, 0, 8, 65_536 * 16_383, 16_383, 16_383 * 65, TIME + 16_382, 0),),
        MergedRange(0, 65 * 16_383, 1, 1, entries),
    )
    spans = index_spans(Span("big", 8, 65_536 * 16_383, 0, 65 * 16_383), whole)
    requests = plan(spans, offset=65 * 8000 + 3, budget_bytes=8 * 1024 * 1024, max_gap_bytes=0, max_request_bytes=1024 * 1024)
    assert [request.end - request.start for request in requests] == [1024 * 1024] * 8
    assert requests[0].slices[0].span.base_offset == 65 * 8000
    assert offset_since(whole, TIME + 9000) == 65 * 9000
