"""Looks in the bucket for segments that no row knows: what a crash, an unknown outcome or a late write left behind.

Lists only what it must. A scan goes through what each writer has written since the last one, up to its resolved mark, and
through nothing of writers that have ended and been seen to their end. Every 24th goes through all segments, merged ones
included: so it finds what was written late, or left by a merge that came to nothing. A request lists 1,000 objects, so a scan
costs about one for each writer that is alive and for each 1,000 new objects, a whole one for each 1,000 objects there are.

What it finds are candidates: whether they are orphans SQL says (`metadata.cleaning.orphans`).
"""

from collections import deque
from dataclasses import dataclass

from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.metadata.cleaning import WriterState, forget_writers, writer_states
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.objects.store import ObjectInfo, ObjectStore
from tidelog.segments.keys import IntakeKey, MergedKey, parse_key

WHOLE_EVERY = 24
"""Scans; the first one is whole."""
SEGMENTS = ("intake/", "merged/")
"""The prefixes below which all segments lie."""


@dataclass(slots=True)
class _Area:
    """A part of the bucket that is being listed."""

    prefix: str
    position: str
    writer: WriterState | None = None
    """Whose segments these are; None: anyone's."""
    open: bool = False
    """Something was passed over that is too young, or not resolved: whatever follows is looked at again the next time."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A segment in the bucket that is old enough to be an orphan."""

    key: str
    broker_epoch: int
    sequence: int
    size: int
    age_ms: int


class OrphanScan:
    """Goes through the bucket in steps; where it stands is remembered in memory only, so a new cleaner begins anew."""

    def __init__(self, *, store: MetadataStore, bucket: ObjectStore, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._bucket = bucket
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._areas: deque[_Area] = deque()
        self._found: list[Candidate] = []
        """Since the last answer; what fails halfway loses none."""
        self._settled: dict[int, str] = {}
        """Of each writer, up to which key everything was looked at."""
        self._ended_since: dict[int, float] = {}
        self._finished: set[int] = set()
        """Writers that have ended, of whom nothing more is to come."""
        self._scans = 0
        self._next_at = clock.monotonic()

    async def look(self) -> list[Candidate]:
        """Return candidates among the next `cleaner_listed_objects` objects; none while no scan is due."""
        if not self._areas:
            if self._clock.monotonic() < self._next_at:
                return []
            await self._begin()
        left = self._settings.cleaner_listed_objects
        while self._areas and left > 0:
            area = self._areas[0]
            left = await self._list(area, left)
            if left > 0:
                self._areas.popleft()
                self._end(area)
        if not self._areas:
            await self._conclude()
        found, self._found = self._found, []
        return found

    async def _begin(self) -> None:
        writers = await self._store.run(writer_states)
        whole = self._scans % WHOLE_EVERY == 0
        self._scans += 1
        self._next_at = self._clock.monotonic() + self._settings.orphan_scan_interval_ms / 1000
        for writer in writers:
            if writer.ended:
                self._ended_since.setdefault(writer.broker_epoch, self._clock.monotonic())
        if whole:
            self._areas.extend(_Area(prefix, "") for prefix in SEGMENTS)
        for writer in writers:
            prefix = f"intake/{writer.broker_id}/{writer.broker_epoch:010}/"
            settled = self._settled.get(writer.broker_epoch, "")
            seen = parse_key(settled)
            all_seen = not writer.ended and seen is not None and seen.sequence >= writer.resolved_sequence
            if not whole and not all_seen and writer.broker_epoch not in self._finished:
                self._areas.append(_Area(prefix, settled, writer))

    async def _list(self, area: _Area, left: int) -> int:
        """List some of an area; return how many objects may still be listed. 0: the area may go on."""
        now_ms = self._clock.wall_ms()
        async for info in self._bucket.list(area.prefix, start_after=area.position):
            key = parse_key(info.key)
            age_ms = now_ms - info.modified_ms
            young = age_ms < self._settings.orphan_age_seconds * 1000
            writer = area.writer
            if writer is not None and not writer.ended and key is not None and key.sequence > writer.resolved_sequence:
                return left  # what follows is not resolved either
            self._metrics.objects_listed.inc()
            left -= 1
            area.open = area.open or young
            area.position = info.key
            if key is not None and not young:
                self._found.append(candidate(info, key, age_ms))
                if writer is not None and not area.open:
                    self._settled[writer.broker_epoch] = info.key
            if left == 0:
                return 0
        return left

    def _end(self, area: _Area) -> None:
        writer = area.writer
        if writer is not None and writer.ended and not area.open:
            seen_for_s = self._clock.monotonic() - self._ended_since[writer.broker_epoch]
            if seen_for_s >= self._settings.orphan_age_seconds:
                self._finished.add(writer.broker_epoch)

    async def _conclude(self) -> None:
        """Forget writers of whom nothing is left."""
        self._metrics.orphan_scans.inc()
        if self._finished:
            for epoch in await self._store.run(forget_writers, broker_epochs=sorted(self._finished)):
                self._settled.pop(epoch, None)
                self._ended_since.pop(epoch, None)
                self._finished.discard(epoch)


def candidate(info: ObjectInfo, key: IntakeKey | MergedKey, age_ms: int) -> Candidate:
    """Return an object of the bucket as a candidate."""
    return Candidate(info.key, key.broker_epoch, key.sequence, info.size, age_ms)
