"""Which extents of a partition to merge next, and when to look again. Pure: knows rows, not bytes.

Small extents become one in two steps, so that each byte is written twice at most while a segment of the target's size comes
about. Of n rows that are needed for a target, the first step joins about √n, and the second joins about √n of those: then the
rows that wait are fewest (2√n) for two writes. Where rows are large, one step does. Further steps are left to what is odd: rows so
few or small that a limit of age or number comes first. `level` counts the steps.

A run never reaches over a gap, a full extent or one that is barred, and what is committed first is merged first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, sqrt

from tidelog.metadata.extents import Extent

FULL_SHARE = 2
"""An extent of one of so many parts of the target is full: it is not merged again."""
_ONE_STEP = 8
"""Where the first step would give one of so many parts of the target, it waits for all of it."""
_SETTLED_GROWTH = 4
"""What has settled is merged where it becomes so many times as large as its largest part: so a byte is rarely written again."""


@dataclass(frozen=True, slots=True)
class MergeLimits:
    """What to aim at."""

    target_bytes: int
    least_extents: int
    """The first step joins so many at least."""
    most_extents: int
    """Any step joins so many at most; so many wait at most for the next one."""
    max_age_ms: int
    """Extents of intake segments wait so long at most: until then they keep whole segments of many partitions alive."""
    settle_ms: int
    """What is left is merged when nothing has been committed for so long."""
    max_span_ms: int | None = None
    """Commit times in one merged extent lie within this, for retention takes whole extents only. None: any."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What to do with one partition."""

    runs: tuple[tuple[Extent, ...], ...]
    """Adjacent extents, each to become one; runs have none in common."""
    settled_offset: int
    """Below this nothing is left to be merged, ever."""
    more_extents: int
    """Look again when so many more have been committed, …"""
    more_bytes: int
    """… or so many bytes …"""
    look_at_ms: int | None
    """… or at this time of the store's clock; None: time alone changes nothing."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Extents that the same step would join, as many as may be."""

    extents: tuple[Extent, ...]
    level: int
    ended_by: str
    """`bytes`, `count`, `span`; `end`: more may come; `barrier`: nothing will."""

    @property
    def length(self) -> int:
        return sum(extent.length for extent in self.extents)


def plan(
    extents: Sequence[Extent],
    limits: MergeLimits,
    *,
    now_ms: int,
    eagerness: float = 1.0,
    barred: Iterable[Extent] = (),
    whole: bool = True,
) -> MergePlan:
    """Plan one partition, given its extents from `settled_offset` of an earlier plan on, or from the log start.

    `eagerness` above 1: the first step joins fewer (others that share their objects are merged now). `barred`: not to be touched.
    `whole`: these are all up to the end of the log.
    """
    barriers = frozenset(barred)
    runs: list[tuple[Extent, ...]] = []
    unsettled: int | None = None
    at: list[int] = []
    more_extents, more_bytes = limits.least_extents, limits.target_bytes
    begun = _begun(extents, limits)
    for sequence, last in _sequences(extents, limits, barriers):
        is_open = last and whole
        for piece in _pieces(sequence, limits, begun, now_ms=now_ms, is_open=last):
            first = piece.extents[0]
            needed = _needed(piece, limits)
            asked = needed if piece.level else needed / eagerness
            raw = [extent.commit_time_ms for extent in piece.extents if extent.level == 0]
            counted = len(piece.extents) >= max(2, asked) or piece.length >= limits.target_bytes
            due = piece.ended_by in ("bytes", "count", "span", "barrier") or counted
            enough = len(piece.extents) >= 2
            if raw:
                aged_at = raw[0] + limits.max_age_ms
                due, enough = due or now_ms >= aged_at, enough or now_ms >= aged_at
                at.append(aged_at)
            if due and enough:
                runs.append(piece.extents)
            if unsettled is None and ((due and enough) or piece.ended_by == "end" or raw):
                unsettled = first.base_offset
            if piece.ended_by == "end" and limits.max_span_ms is not None:
                at.append(begun[first] + limits.max_span_ms + 1)
            if piece.level == 0 and piece.ended_by == "end":
                more_extents = max(1, needed - len(piece.extents))
                more_bytes = max(1, limits.target_bytes - sum(extent.length for extent in sequence))
        if is_open and not runs and len(sequence) > 1:
            settles_at = sequence[-1].commit_time_ms + limits.settle_ms
            at.append(settles_at)
            if now_ms >= settles_at and (tail := _worth_settling(sequence, limits, begun)):
                runs.append(tail)
    settled = unsettled if unsettled is not None else extents[-1].next_offset if extents else 0
    return MergePlan(tuple(runs), settled, more_extents, more_bytes, min((each for each in at if each > now_ms), default=None))


def is_full(extent: Extent, limits: MergeLimits) -> bool:
    """Say whether an extent is as large as it needs to be. One of an intake segment never is: its object holds others' bytes, too."""
    return extent.level > 0 and extent.length * FULL_SHARE >= limits.target_bytes


def _begun(extents: Sequence[Extent], limits: MergeLimits) -> dict[Extent, int]:
    """Return when the first record of each was committed, at the earliest: a merged one began where the one before it ended.

    Of one that has none before it, the first step is taken to have waited as long as it may, and any other to have taken all the
    span that there is: else what comes first could grow for ever.
    """
    begun: dict[Extent, int] = {}
    before: Extent | None = None
    for extent in extents:
        if extent.level == 0:
            begun[extent] = extent.commit_time_ms
        elif before is not None and before.next_offset == extent.base_offset:
            begun[extent] = before.commit_time_ms
        else:
            begun[extent] = extent.commit_time_ms - (limits.max_age_ms if extent.level == 1 else limits.max_span_ms or 0)
        before = extent
    return begun


def _sequences(extents: Sequence[Extent], limits: MergeLimits, barriers: frozenset[Extent]) -> Iterator[tuple[list[Extent], bool]]:
    """Yield what lies between gaps, full extents and barred ones, and whether it is the last, to which more may come."""
    sequence: list[Extent] = []
    for extent in extents:
        if sequence and sequence[-1].next_offset != extent.base_offset:
            yield sequence, False
            sequence = []
        if extent in barriers or is_full(extent, limits):
            if sequence:
                yield sequence, False
            sequence = []
        else:
            sequence.append(extent)
    if sequence:
        yield sequence, True


def _pieces(sequence: Sequence[Extent], limits: MergeLimits, begun: dict[Extent, int], *, now_ms: int, is_open: bool) -> Iterator[_Piece]:
    """Cut a sequence where levels, span, number or bytes say so.

    An extent counts for as many steps as any after it: those before are older, and are not to be left behind.
    """
    at = 0
    while at < len(sequence):  # what fills a target is joined whatever it is: the newest of it is written once only
        taken, ended_by = _prefix(sequence, at, limits, begun)
        if ended_by != "bytes":
            break
        whole = tuple(sequence[at : at + taken])
        yield _Piece(whole, max(extent.level for extent in whole), ended_by)
        at += taken
    sequence = sequence[at:]
    levels: list[int] = []
    for extent in reversed(sequence):
        levels.append(max(extent.level, levels[-1] if levels else 0))
    levels.reverse()
    groups = [(level, [extent for _, extent in found]) for level, found in groupby(zip(levels, sequence, strict=True), key=lambda e: e[0])]
    for level, group in groups:
        at = 0
        while at < len(group):
            taken, ended_by = _prefix(group, at, limits, begun)
            if ended_by == "end":
                expired = limits.max_span_ms is not None and now_ms - begun[group[at]] > limits.max_span_ms
                ended_by = "span" if expired else "end" if is_open else "barrier"
            yield _Piece(tuple(group[at : at + taken]), level, ended_by)
            at += taken


def _prefix(group: Sequence[Extent], at: int, limits: MergeLimits, begun: dict[Extent, int]) -> tuple[int, str]:
    length = 0
    for count, extent in enumerate(group[at:]):
        if limits.max_span_ms is not None and count and extent.commit_time_ms - begun[group[at]] > limits.max_span_ms:
            return count, "span"
        length += extent.length
        if length >= limits.target_bytes:
            return count + 1, "bytes"
        if count + 1 == limits.most_extents:
            return count + 1, "count"
    return len(group) - at, "end"


def _needed(piece: _Piece, limits: MergeLimits) -> int:
    """Return how many extents the next step waits for."""
    if piece.level:
        return limits.most_extents
    of_target = limits.target_bytes * len(piece.extents) / max(1, piece.length)
    needed = max(limits.least_extents, ceil(sqrt(of_target)))
    if needed * _ONE_STEP >= of_target:
        needed = ceil(of_target)
    return min(needed, limits.most_extents)


def _worth_settling(sequence: Sequence[Extent], limits: MergeLimits, begun: dict[Extent, int]) -> tuple[Extent, ...]:
    """Return the longest end of a sequence that becomes much larger than its parts."""
    for first in range(max(0, len(sequence) - limits.most_extents), len(sequence) - 1):
        taken, _ = _prefix(sequence, first, limits, begun)
        tail = tuple(sequence[first : first + taken])
        if first + taken == len(sequence) and sum(e.length for e in tail) >= _SETTLED_GROWTH * max(e.length for e in tail):
            return tail
    return ()
