"""Which extents, of all that were ever told of, make up a partition: pure.

A merged extent covers exactly what its sources did, so extents of a partition lie within each other or side by side. Of those whose
objects are there, the fewest that follow on each other without a gap are taken; an object that is missing is used only where nothing
else covers its offsets.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tidelog.metadata.extents import Extent


@dataclass(frozen=True, slots=True)
class Candidate:
    """An extent that a checkpoint or a merged segment tells of."""

    extent: Extent
    present: bool
    """Whether its object is there."""


@dataclass(frozen=True, slots=True)
class Cover:
    """Extents that follow on each other."""

    chosen: tuple[Candidate, ...]
    complete: bool
    """Whether they reach from the log start to the end."""


def cover(candidates: Iterable[Candidate], *, log_start: int, end: int) -> Cover:
    """Return the extents from the one that holds `log_start` to `end` at least, and beyond it as far as they follow on each other."""
    by_base: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_base[candidate.extent.base_offset].append(candidate)
    best: dict[int, tuple[tuple[int, int, int], Candidate]] = {}
    for base in sorted(by_base, reverse=True):
        for candidate in by_base[base]:
            extent = candidate.extent
            rest = best.get(extent.next_offset)
            missing, reached, count = rest[0] if rest is not None else (0, -extent.next_offset, 0)
            if rest is None and extent.next_offset < end:
                continue  # leads nowhere
            missing += 0 if candidate.present else extent.record_count
            worth = (missing, reached, count + 1)
            if base not in best or worth < best[base][0]:
                best[base] = worth, candidate
    starts = [base for base, (_, first) in best.items() if base <= log_start < first.extent.next_offset]
    if not starts:  # what the log begins with is told by nobody; or there is nothing in it
        starts = [base for base in best if base >= log_start]
    at = min(starts, key=lambda base: (best[base][0][0], base), default=-1) if log_start < end or end in best else -1
    complete = log_start == end or (at in best and at <= log_start)
    chosen: list[Candidate] = []
    while at in best:
        chosen.append(best[at][1])
        at = chosen[-1].extent.next_offset
    return Cover(tuple(chosen), complete)
