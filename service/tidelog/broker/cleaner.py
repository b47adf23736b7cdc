"""The cleaner: one broker at a time deletes the objects that nobody needs any more (I7), and nothing else.

A round collects candidates, renews the marker (I11), and only then lets SQL condemn them, deletes them, and forgets them: in
this order. The marker so covers every release that made a candidate, and a metadata store that does not know of it is
noticed. Dying anywhere between two steps costs nothing but doing one again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from tidelog.broker.marker import renew
from tidelog.broker.orphans import Candidate, OrphanScan
from tidelog.broker.quarantine import Quarantine
from tidelog.broker.retention import DeletedTopics
from tidelog.broker.steps import Steps
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable, StoreError, TimeTravel
from tidelog.metadata.cleaning import ReleasedSegment, acquire_cleaner, backlog, condemn, forget_released, orphans, released_segments
from tidelog.metadata.membership import ClusterState, cluster_state
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.objects.store import ObjectStore
from tidelog.randomness import Random
from tidelog.telemetry import get_logger

T = TypeVar("T")
_WEATHER = (MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable, StoreError)
_LEASE_INTERVALS = 3
"""A cleaner keeps its lease for so many of its intervals."""
_MOST_AT_ONCE = 1000
"""Objects in one DELETE: as many as S3 takes."""
_LEAST_AT_ONCE = 32
"""Segments condemned in one step, however slow; each may have an extent in every partition."""
_log = get_logger(__name__)


class Cleaner:
    """Cleans while it holds the lease of the cleaner."""

    def __init__(
        self, *, broker_epoch: int, store: MetadataStore, bucket: ObjectStore, topics: DeletedTopics, settings: Settings, clock: Clock,
        chance: Random, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._broker_epoch = broker_epoch
        self._store = store
        self._bucket = bucket
        self._topics = topics
        self._settings = settings
        self._chance = chance
        self._metrics = metrics
        self._scan = OrphanScan(store=store, bucket=bucket, settings=settings, clock=clock, metrics=metrics)
        self._steps = Steps(least=_LEAST_AT_ONCE, most=_MOST_AT_ONCE, clock=clock)
        self._quarantine = Quarantine("cleaning", first_ms=settings.cleaner_interval_ms, retry_ms=settings.cleaner_retry_ms, clock=clock)
        self._clock = clock
        self._renew_at = 0.0
        self._failing = False
        self._after = _BEGINNING
        self._more = False
        """More has been released than one round takes."""
        self._candidates_found: list[Candidate] = []
        """Which of them are orphans is not known yet."""
        self._orphans: dict[str, Candidate] = {}
        """By key: found, but not deleted yet; what is an orphan stays one (I7)."""

    async def run(self) -> None:
        """Clean, whenever this broker's turn has come, until cancelled. Raises TimeTravel: then nothing was deleted."""
        try:
            while True:
                if not self._more:
                    await asyncio.sleep(self._settings.cleaner_interval_ms / 1000 * self._chance.uniform(0.8, 1.2))
                await self._turn()
        finally:
            self._metrics.cleaner_lease.set(0)

    async def _turn(self) -> None:
        self._more = False
        try:
            if await self._hold():
                cleaned = await self.clean()
                self._more = cleaned and self._after != _BEGINNING
                self._metrics.cleaner_rounds["cleaned" if cleaned else "nothing"].inc()
                self._failing = False
        except TimeTravel as error:
            self._metrics.cleaner_rounds["time_travel"].inc()
            _log.critical("nothing_is_deleted", problem=str(error))
            raise
        except _WEATHER as error:
            self._metrics.cleaner_rounds["failed"].inc()
            if not self._failing:  # once, until it goes well again
                _log.warning("cleaning_waits", reason=error.reason, problem=str(error))
            self._failing = True
        finally:
            self._metrics.cleaner_quarantined.set(len(self._quarantine))

    async def clean(self) -> bool:
        """Do one round; return whether there was anything to do."""
        await self._topics.work()
        await self._look_at_backlog()
        notes = await self._candidates()
        if self._settings.orphan_cleaning and len(self._orphans) < self._settings.cleaner_listed_objects:
            if not self._candidates_found:
                self._candidates_found = await self._scan.look()
            await self._in_parts(list(self._candidates_found), self._look_for_orphans)
        doomed = [each for each in self._orphans.values() if not self._quarantine.holds(each.key)]
        if not notes and not doomed:
            return False
        # I11: after the candidates were read, so that it covers their releases; and before anything goes.
        await renew(self._bucket, self._cluster_state)
        await self._in_parts(notes, self._clean_released)
        await self._in_parts(doomed, self._delete_orphans)
        await self._look_at_backlog()
        return True

    async def _hold(self) -> bool:
        ttl_ms = max(self._settings.lease_ms, _LEASE_INTERVALS * self._settings.cleaner_interval_ms)
        now = self._clock.monotonic()
        held = await self._store.run(acquire_cleaner, broker_epoch=self._broker_epoch, ttl_ms=ttl_ms)
        self._metrics.cleaner_lease.set(held)
        self._renew_at = now + self._settings.cleaner_interval_ms / 1000
        return held

    async def _cluster_state(self) -> ClusterState:
        return await self._store.run(cluster_state)

    async def _look_at_backlog(self) -> None:
        found = await self._store.run(backlog)
        self._metrics.released_segments.set(found.segments)
        self._metrics.released_oldest_seconds.set(found.oldest_ms / 1000)

    async def _candidates(self) -> list[ReleasedSegment]:
        """Return the next released segments past the readers' grace; those that cannot go yet are passed by, and come round again."""
        most = self._settings.cleaner_round_segments
        found = await self._store.run(
            released_segments,
            grace_ms=self._settings.reader_grace_ms,
            limit=most,
            after=self._after,
            copied=self._settings.checkpoint_interval_ms > 0,
        )
        self._after = _place(found[-1]) if len(found) == most else _BEGINNING
        return [note for note in found if not self._quarantine.holds(note.key)]

    async def _in_parts(self, items: Sequence[T], work: Callable[[Sequence[T]], Awaitable[None]]) -> None:
        """Do work on as many items at a time as fit into a step; end early where another broker has become the cleaner."""
        rest: Iterator[T] = iter(items)
        while some := list(islice(rest, self._steps.size)):
            await work(some)
            if self._clock.monotonic() >= self._renew_at and not await self._hold():
                return

    async def _clean_released(self, notes: Sequence[ReleasedSegment]) -> None:
        try:
            async with self._steps.step(len(notes)):
                verdict = await self._store.run(condemn, notes=notes)
        except _WEATHER as error:
            if len(notes) == 1:  # it may be the one that cannot be done
                self._quarantine.failed(notes[0].key, str(error))
            raise
        doomed = [note for note in notes if (note.broker_epoch, note.sequence) in verdict.condemned]
        refused = await self._delete([note.key for note in doomed])
        gone = [note for note in doomed if note.key not in refused]
        # Those that are still referred to are noted anew by their next release.
        kept = [note for note in notes if (note.broker_epoch, note.sequence) in verdict.referenced]
        await self._store.run(forget_released, notes=gone + kept)
        self._metrics.objects_deleted["released"].inc(len(gone))
        self._metrics.deleted_bytes["released"].inc(sum(verdict.bytes.get((note.broker_epoch, note.sequence), 0) for note in gone))

    async def _look_for_orphans(self, candidates: Sequence[Candidate]) -> None:
        async with self._steps.step(len(candidates)):
            found = await self._store.run(orphans, segments=[(each.broker_epoch, each.sequence) for each in candidates])
        self._orphans |= {each.key: each for each in candidates if (each.broker_epoch, each.sequence) in found}
        del self._candidates_found[: len(candidates)]

    async def _delete_orphans(self, doomed: Sequence[Candidate]) -> None:
        refused = await self._delete([each.key for each in doomed])
        gone = [each for each in doomed if each.key not in refused]
        for each in gone:
            del self._orphans[each.key]
        if gone:
            _log.info("orphans_deleted", objects=len(gone), first=gone[0].key)
        self._metrics.objects_deleted["orphan"].inc(len(gone))
        self._metrics.deleted_bytes["orphan"].inc(sum(each.size for each in gone))

    async def _delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects; return those that the store refused, which are tried again ever more slowly."""
        if not keys:
            return {}
        refused = await self._bucket.delete_many(keys)
        for key in keys:
            if key in refused:
                self._metrics.deletions_refused.inc()
                self._quarantine.failed(key, refused[key])
            else:
                self._quarantine.done(key)
        return refused


_BEGINNING = (-1, -1, -1)


def _place(note: ReleasedSegment) -> tuple[int, int, int]:
    return note.released_at_ms, note.broker_epoch, note.sequence
