"""What a cleaner would delete now, and why: a dry run, which any broker can do, and which changes nothing."""

from dataclasses import dataclass
from typing import Literal

from tidelog.broker.orphans import SEGMENTS, Candidate, candidate
from tidelog.clock import Clock
from tidelog.metadata.cleaning import ReviewState, orphans, review
from tidelog.metadata.store import MetadataStore
from tidelog.objects.store import ObjectStore
from tidelog.segments.keys import parse_key

_PART = 1000
"""Candidates that SQL is asked about at once."""


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """One object, and what would become of it."""

    key: str
    reason: Literal["released", "orphan"]
    state: ReviewState | Literal["young"]
    """`young`: an orphan that is not old enough yet."""
    bytes: int
    """Of its released extents; of an orphan the whole object's. 0 where it may not go."""
    age_ms: int
    """Since its last release, or since it was written."""


@dataclass(frozen=True, slots=True)
class CleaningPlan:
    """What a cleaner would do."""

    objects: tuple[PlannedObject, ...]
    listed: int
    """Objects of the bucket that were looked at for orphans."""
    complete: bool
    """Whether that is all there is, of released segments and of objects in the bucket."""


async def plan_cleaning(
    *, store: MetadataStore, bucket: ObjectStore, clock: Clock, grace_ms: int, orphan_age_ms: int, copied: bool, most: int
) -> CleaningPlan:
    """Look at up to `most` released segments and up to `most` objects of the bucket. Raises TimeTravel as the cleaner would."""
    released = await store.run(review, grace_ms=grace_ms, limit=most, copied=copied)
    objects = [PlannedObject(each.key, "released", each.state, each.bytes, each.age_ms) for each in released]
    candidates, complete = await _listed(bucket, clock, most)
    for first in range(0, len(candidates), _PART):
        part = candidates[first : first + _PART]
        found = await store.run(orphans, segments=[(each.broker_epoch, each.sequence) for each in part])
        objects += (
            PlannedObject(each.key, "orphan", "deletable" if each.age_ms >= orphan_age_ms else "young", each.size, each.age_ms)
            for each in part
            if (each.broker_epoch, each.sequence) in found
        )
    return CleaningPlan(tuple(objects), len(candidates), complete and len(released) < most)


async def _listed(bucket: ObjectStore, clock: Clock, most: int) -> tuple[list[Candidate], bool]:
    """Return the first segments in the bucket, and whether these are all."""
    now_ms = clock.wall_ms()
    found: list[Candidate] = []
    for prefix in SEGMENTS:
        async for info in bucket.list(prefix):
            if len(found) == most:
                return found, False
            key = parse_key(info.key)
            if key is not None:
                found.append(candidate(info, key, now_ms - info.modified_ms))
    return found, True
