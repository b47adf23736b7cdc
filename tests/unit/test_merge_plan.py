"""What is merged with what, and how often a byte is written for it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidelog.broker.merge_plan import MergeLimits, is_full, plan
from tidelog.config import Settings
from tidelog.metadata.extents import Extent

MIB = 1 << 20
LIMITS = MergeLimits(target_bytes=100_000, least_extents=4, most_extents=32, max_age_ms=60_000, settle_ms=600_000)
DEFAULTS = Settings()
AS_SHIPPED = MergeLimits(
    target_bytes=DEFAULTS.merge_target_bytes,
    least_extents=DEFAULTS.merge_least_extents,
    most_extents=DEFAULTS.merge_most_extents,
    max_age_ms=DEFAULTS.merge_max_age_ms,
    settle_ms=DEFAULTS.merge_settle_ms,
    max_span_ms=DEFAULTS.default_retention_ms // 8,
)


def extent(base: int, next_offset: int, length: int, *, level: int = 0, at_ms: int = 0, sequence: int = 0) -> Extent:
    return Extent(1, base, next_offset, 1, sequence or base + 1, 8, length, next_offset - base, level, 0, at_ms, 1)


def row_of(lengths: Sequence[int], *, level: int = 0, first: int = 0, at_ms: int = 0) -> list[Extent]:
    return [extent(first + n, first + n + 1, length, level=level, at_ms=at_ms) for n, length in enumerate(lengths)]


def merged(run: Sequence[Extent]) -> Extent:
    return replace(
        run[-1],
        base_offset=run[0].base_offset,
        length=sum(e.length for e in run),
        record_count=sum(e.record_count for e in run),
        level=max(e.level for e in run) + 1,
    )


class Partition:
    """A partition as intake and merging make it; what merging writes is counted."""

    def __init__(self, limits: MergeLimits) -> None:
        self.limits = limits
        self.extents: list[Extent] = []
        self.appended = self.written = 0
        self.most_rows = 0
        self._wait: tuple[float, float, float] = (0, 0, 0)
        self._seen = [0, 0]

    def append(self, length: int, at_ms: int) -> None:
        base = self.extents[-1].next_offset if self.extents else 0
        self.extents.append(extent(base, base + 1, length, at_ms=at_ms))
        self.appended += length
        self._seen = [self._seen[0] + 1, self._seen[1] + length]
        if self._seen[0] >= self._wait[0] or self._seen[1] >= self._wait[1] or at_ms >= self._wait[2]:
            self.merge(at_ms)

    def merge(self, now_ms: int) -> None:
        """Merge as long as there is something to merge, as the broker does."""
        while True:
            unfull = [e for e in self.extents if not is_full(e, self.limits)]
            self.most_rows = max(self.most_rows, len(unfull))
            planned = plan(self.extents, self.limits, now_ms=now_ms)
            if not planned.runs:
                break
            for run in planned.runs:
                at = self.extents.index(run[0])
                assert tuple(self.extents[at : at + len(run)]) == run, "adjacent, and as they were"
                one = merged(run)
                self.written += one.length
                self.extents[at : at + len(run)] = [one]
        self._wait = planned.more_extents, planned.more_bytes, planned.look_at_ms or float("inf")
        self._seen = [0, 0]

    @property
    def amplification(self) -> float:
        return self.written / self.appended


# ---- examples


def test_nothing_is_merged_before_enough_has_come_and_one_is_told_what_to_wait_for() -> None:
    planned = plan(row_of([1000] * 5), LIMITS, now_ms=0)
    assert planned.runs == ()
    assert (planned.more_extents, planned.more_bytes, planned.look_at_ms) == (5, 95_000, 60_000)


def test_small_rows_are_joined_by_about_the_root_of_what_a_target_needs() -> None:
    rows = row_of([100] * 32)
    assert plan(rows[:-1], LIMITS, now_ms=0).more_extents == 1
    assert plan(rows, LIMITS, now_ms=0).runs == (tuple(rows),)


def test_where_a_step_would_give_much_of_the_target_the_whole_target_is_waited_for() -> None:
    rows = row_of([10_000] * 10)
    assert plan(rows[:9], LIMITS, now_ms=0).runs == ()
    assert plan(rows, LIMITS, now_ms=0).runs == (tuple(rows),)


def test_merged_ones_are_merged_again_only_into_a_full_one() -> None:
    ones = row_of([10_000] * 9, level=1)
    assert plan(ones, LIMITS, now_ms=0).runs == ()
    more = [*ones, *row_of([10_000], level=1, first=9), *row_of([100] * 3, first=10)]
    assert plan(more, LIMITS, now_ms=0).runs == (tuple(more[:10]),)


def test_full_ones_are_not_touched_and_end_what_need_not_be_looked_at() -> None:
    rows = [extent(0, 1, 60_000, level=1), extent(1, 2, 100_000, level=2), extent(2, 3, 50_000, level=2), *row_of([100] * 4, first=3)]
    planned = plan(rows, LIMITS, now_ms=0)
    assert (planned.runs, planned.settled_offset) == ((), 3)
    assert plan(rows[:3], LIMITS, now_ms=0).settled_offset == 3


def test_what_an_older_merge_left_behind_is_taken_along() -> None:
    rows = [*row_of([10_000] * 5, level=1), *row_of([100] * 2, first=5), *row_of([10_000] * 5, level=1, first=7)]
    assert plan(rows, LIMITS, now_ms=0).runs == (tuple(rows),)


def test_no_run_reaches_over_a_gap_or_over_what_is_barred() -> None:
    rows = row_of([100] * 80)
    gap = rows[:40] + rows[41:]
    for found in (plan(gap, LIMITS, now_ms=0), plan(rows, LIMITS, now_ms=0, barred=[rows[40]])):
        assert rows[40] not in [e for run in found.runs for e in run]
        assert all(one.next_offset == other.base_offset for run in found.runs for one, other in pairwise(run))
        assert {run[0].base_offset for run in found.runs} >= {0, 41}


def test_intake_segments_are_let_go_after_a_while_even_by_a_single_extent() -> None:
    rows = row_of([100])
    assert plan(rows, LIMITS, now_ms=59_999).runs == ()
    assert plan(rows, LIMITS, now_ms=60_000).runs == (tuple(rows),)
    assert plan([merged(rows)], LIMITS, now_ms=10**9).runs == ()


def test_what_has_settled_is_merged_where_it_becomes_much_larger() -> None:
    ones = row_of([1000] * 4, level=1, at_ms=1000)
    planned = plan(ones, LIMITS, now_ms=1000)
    assert (planned.runs, planned.look_at_ms) == ((), 601_000)
    assert plan(ones, LIMITS, now_ms=601_000).runs == (tuple(ones),)
    assert plan(ones[:3], LIMITS, now_ms=10**9).runs == ()
    large = [extent(0, 1, 40_000, level=2), *row_of([1000] * 5, level=1, first=1)]
    assert plan(large, LIMITS, now_ms=10**9).runs == (tuple(large[1:]),), "what is large already is not written again"


def test_commit_times_within_an_extent_are_bounded() -> None:
    limits = replace(LIMITS, max_span_ms=100_000)
    rows = [extent(n, n + 1, 100, at_ms=n * 10_000) for n in range(25)]
    assert [len(run) for run in plan(rows, limits, now_ms=250_000).runs] == [11, 11]
    planned = plan(rows, limits, now_ms=330_000)
    assert [len(run) for run in planned.runs] == [11, 11, 3]
    ones = [merged(run) for run in planned.runs]
    assert plan(ones, limits, now_ms=10**9).runs == (), "they do not grow beyond it by a further step"


def test_companions_are_merged_with_half_of_what_they_would_wait_for() -> None:
    rows = row_of([100] * 16)
    assert plan(rows, LIMITS, now_ms=0).runs == ()
    assert plan(rows, LIMITS, now_ms=0, eagerness=2).runs == (tuple(rows),)


# ---- a day of intake


@pytest.mark.parametrize(
    ("name", "length", "every_ms"),
    [
        ("1 MB/s over 100 partitions, flushed 4 times a second", 2500, 250),
        ("1 MB/s into one partition", 250_000, 250),
        ("100 KB/s over 100 partitions", 1000, 1000),
        ("10 MB/s over 10 partitions", 250_000, 250),
        ("large segments", 8 * MIB, 8000),
    ],
)
def test_over_a_day_bytes_are_written_twice_at_most_and_what_is_left_is_large(name: str, length: int, every_ms: int) -> None:
    partition = Partition(AS_SHIPPED)
    day = 24 * 3600 * 1000
    for at in range(0, day, every_ms):
        partition.append(length, at)
    assert partition.amplification <= 2, name
    assert partition.most_rows <= 600, name
    partition.merge(day + AS_SHIPPED.max_age_ms)
    partition.merge(day + AS_SHIPPED.settle_ms + AS_SHIPPED.max_age_ms)
    gib = partition.appended / 2**30
    assert len(partition.extents) <= max(4, 16 * gib), name
    assert partition.amplification <= 2, name


# ---- whatever comes

LENGTHS = st.lists(st.integers(1, 30_000), min_size=1, max_size=300)


@settings(max_examples=150, deadline=None)
@given(
    LENGTHS,
    st.lists(st.integers(0, 100_000), min_size=1, max_size=20),
    st.integers(2, 40),
    st.integers(2, 64),
    st.none() | st.integers(1000, 10_000_000),
)
def test_whatever_comes_runs_are_adjacent_and_disjoint_and_merging_ends(
    lengths: list[int], pauses: list[int], least: int, most: int, span: int | None
) -> None:
    limits = replace(LIMITS, least_extents=least, most_extents=most, max_span_ms=span)
    partition = Partition(limits)
    now = 0
    for number, length in enumerate(lengths):
        now += pauses[number % len(pauses)]
        partition.append(length, now)
        planned = plan(partition.extents, limits, now_ms=now, eagerness=2)
        taken = [e for run in planned.runs for e in run]
        assert len(taken) == len(set(taken))
        assert taken == [e for e in partition.extents if e in set(taken)]
        for run in planned.runs:
            assert len(run) <= most
            assert not any(is_full(e, limits) for e in run)
            assert all(one.next_offset == other.base_offset for one, other in pairwise(run))
            assert len(run) >= 2 or run[0].level == 0
        assert all(e.base_offset >= planned.settled_offset for e in taken)
    assert sum(e.length for e in partition.extents) == sum(lengths)
    partition.merge(now + limits.max_age_ms)
    assert all(e.level for e in partition.extents), "no intake segment is kept for ever"
    assert partition.amplification <= 2 + 2 * len(lengths).bit_length()
