"""Merging: small extents of the partitions that are led here become large ones, a few at a time, while nobody waits for it.

What to merge is `merge_plan`'s; the bytes are `merge_sources`'. Here it is brought about, in this order: a sequence is held, the
merged object is made durable under it (I2), the leader's queue swaps the rows, the sequence is resolved (I7). Whatever breaks off
leaves an object that nothing refers to, whose sequence is resolved or whose epoch has ended: the cleaner's. Nothing that is
remembered here decides anything, so a leader that begins anew only looks again.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from tidelog.broker.catalog import Catalog, PartitionRef
from tidelog.broker.intake import Intake
from tidelog.broker.ledger import Ledger
from tidelog.broker.lookups import Lookups
from tidelog.broker.merge_plan import MergeLimits, plan
from tidelog.broker.merge_sources import MergeSources
from tidelog.broker.pace import ByteBudget, Slots, keep_pace
from tidelog.broker.references import CommittedExtents
from tidelog.broker.uploads import Identity
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import (
    CorruptSegment,
    MetadataOutcomeUnknown,
    MetadataUnavailable,
    MetadataUnusable,
    ObjectNotFound,
    StoreError,
    StoreOutcomeUnknown,
    StoreUnavailable,
)
from tidelog.executors import Executor
from tidelog.metadata.extents import Extent, PartitionExtents, ReleasedSource, dated_extents
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig
from tidelog.metrics import MergeOutcome, Metrics
from tidelog.objects.store import Bytes, ObjectStore
from tidelog.randomness import Random
from tidelog.segments.format import Footer, MergedEncoder, Origin
from tidelog.segments.keys import MergedKey
from tidelog.telemetry import get_logger

_log = get_logger(__name__)
_NO_METADATA = (MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable)
_LOOK_EVERY_S = 1.0
_FIRST_LOOK_WITHIN_S = 10.0
_FIRST_LOOKS_PER_S = 100
"""After a take-over, so that not all partitions are looked up at once."""
_COMPANIONS = 2
"""Partitions that have one of so many parts of what they wait for are merged with one that has all: their bytes lie in the same objects,
which are read once for all of them."""
_LOOKED_UP_AT_ONCE = 8
_MOST_IN_A_ROUND = 256
"""Partitions that are looked at before others have their turn."""
_STREAMS_IN_A_ROUND = 2
_WINDOW = 4
"""So many times as many extents of a partition are looked up as are merged at most: all that waits, of every step."""
_SPAN_SHARE = 8
"""A merged extent holds one of so many parts of what retention keeps, at most: it goes as a whole."""
_PACK_SHARE = 4
_QUARANTINE_S = 3600.0
_MOST_QUARANTINED = 10_000
_PAUSE_S = (5.0, 15.0)
"""Between attempts at a partition whose merge failed."""
_ATTEMPTS = 4
_PATIENCE_S = 60.0
"""For one merge, beside the time that its bytes take: as long as it lasts, it holds the resolved mark."""
_BACKOFF_S = (0.05, 0.5)


@dataclass(slots=True)
class _Watched:
    """What is known of a partition that is led here: when to look at it again."""

    leader_epoch: int
    at: float
    """On the broker's clock."""
    extents: int = 0
    bytes: int = 0
    """Committed since the last look."""
    more_extents: int = 1
    more_bytes: int = 1
    settled_offset: int = 0


@dataclass(frozen=True, slots=True)
class _Run:
    """Extents that are to become one."""

    ref: PartitionRef
    leader_epoch: int
    sources: tuple[ReleasedSource, ...]

    @property
    def extents(self) -> list[Extent]:
        return [source.extent for source in self.sources]

    @property
    def length(self) -> int:
        return sum(source.extent.length for source in self.sources)


@dataclass(slots=True)
class _Made:
    """What has come of a run's bytes."""

    footer: Footer | None = None
    parts: list[Bytes] = field(default_factory=list)


class Merging:
    """The merging of one broker epoch."""

    def __init__(
        self, *, identity: Identity, store: MetadataStore, bucket: ObjectStore, catalog: Catalog, ledger: Ledger, intake: Intake,
        lookups: Lookups, settings: Settings, clock: Clock, chance: Random, executor: Executor, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._identity = identity
        self._store = store
        self._bucket = bucket
        self._catalog = catalog
        self._ledger = ledger
        self._intake = intake
        self._lookups = lookups
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._metrics = metrics
        self._pack_bytes = settings.merge_buffer_bytes // _PACK_SHARE
        self._slots = Slots(settings.max_merges)
        budget = ByteBudget(settings.merge_bytes_per_second, clock=clock)
        self._sources = MergeSources(bucket, slots=self._slots, budget=budget, executor=executor, settings=settings, metrics=metrics)
        self._watched: dict[int, _Watched] = {}
        self._quarantine: dict[Extent, float] = {}
        """Until when not to try again, on the broker's clock."""
        self._missed: dict[Extent, None] = {}
        """Whose object was not there the last time."""

    def committed(self, news: CommittedExtents) -> None:
        """Note that there is more to merge."""
        watched = self._watched.get(news.partition_id)
        if watched is not None:
            watched.extents += len(news.extents)
            watched.bytes += sum(extent.length for extent in news.extents)

    async def run(self) -> None:
        """Merge what is to be merged, until cancelled."""
        if not self._settings.merging:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_pace(self._slots, clock=self._clock, max_lag_seconds=self._settings.max_loop_lag_ms / 1000))
            group.create_task(self._go_on())

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S * self._chance.uniform(0.8, 1.2))
            due = self._due()
            if due:
                await self._round(due)

    # ---- when

    def _due(self) -> list[int]:
        """Return partitions to look at now; with one that has all it waits for, those that have half of it: they share its objects."""
        now = self._clock.monotonic()
        led = self._ledger.led()
        for gone in self._watched.keys() - led.keys():
            del self._watched[gone]
        due, companions = [], []
        within_s = min(_FIRST_LOOK_WITHIN_S, self._settings.merge_max_age_ms / 1000) + len(led) / _FIRST_LOOKS_PER_S
        for partition_id, epoch in led.items():
            watched = self._watched.get(partition_id)
            if watched is None or watched.leader_epoch != epoch:
                self._watched[partition_id] = _Watched(epoch, now + self._chance.uniform(0, within_s))
            elif now >= watched.at or watched.extents >= watched.more_extents or watched.bytes >= watched.more_bytes:
                due.append(partition_id)
            elif watched.extents * _COMPANIONS >= watched.more_extents:
                companions.append(partition_id)
        return (due + companions if due else [])[:_MOST_IN_A_ROUND]

    async def _round(self, partition_ids: Sequence[int]) -> None:
        self._end_quarantine()
        runs: list[_Run] = []
        for first in range(0, len(partition_ids), _LOOKED_UP_AT_ONCE):
            try:
                runs += await self._look(partition_ids[first : first + _LOOKED_UP_AT_ONCE])
            except _NO_METADATA:
                for partition_id in partition_ids:  # also those that were planned already: nothing comes of it
                    self._look_again(partition_id)
                return
        small = [run for run in runs if run.length <= self._pack_bytes]
        large = [run for run in runs if run.length > self._pack_bytes]
        for left in large[_STREAMS_IN_A_ROUND:]:
            self._look_again(left.ref.partition_id)
        large = large[:_STREAMS_IN_A_ROUND]
        self._metrics.merges_waiting.set(len(small) + len(large))
        try:
            for pack in _packs(small, self._pack_bytes):
                await self._merge_pack(pack)
            for run in large:
                self._metrics.merges_waiting.dec()
                async with self._slots.slot():
                    await self._merge(run)
        finally:
            self._metrics.merges_waiting.set(0)

    async def _look(self, partition_ids: Sequence[int]) -> list[_Run]:
        """Look up what partitions have, and plan each."""
        looked = [partition_id for partition_id in partition_ids if partition_id in self._watched]
        each = _WINDOW * self._settings.merge_most_extents
        now_ms, read = await self._store.run(
            dated_extents,
            positions=[(each_id, max(0, self._watched[each_id].settled_offset - 1)) for each_id in looked],  # and the one before
            max_extents_each=each,
        )
        runs: list[_Run] = []
        await self._lookups.learn_writers(extent for found in read.partitions for extent in found.extents)
        for found in read.partitions:
            try:
                runs += self._plan(found, now_ms, each)
            except MetadataUnusable as error:  # of this partition only: rows are lost
                self._look_again(found.partition_id, self._settings.merge_max_age_ms / 1000)
                _log.warning("not_merged", partition_id=found.partition_id, problem=str(error))
            await asyncio.sleep(0)  # planning takes a millisecond or more; others shall have their turn
        return runs

    def _plan(self, found: PartitionExtents, now_ms: int, each: int) -> list[_Run]:
        watched = self._watched.get(found.partition_id)
        ref = self._catalog.partition_by_id(found.partition_id)
        if watched is None:
            return []
        now = self._clock.monotonic()
        topic = None if ref is None else self._catalog.topic(ref.topic)
        if ref is None or topic is None:
            watched.at = now + _PAUSE_S[1]
            return []
        extents = [extent for extent in found.extents if extent.next_offset > found.log_start_offset]
        planned = plan(
            extents,
            self._limits(topic.config),
            now_ms=now_ms,
            eagerness=_COMPANIONS,
            barred=self._quarantine,
            whole=not extents or extents[-1].next_offset >= found.high_watermark,
        )
        watched.extents = watched.bytes = 0
        watched.more_extents, watched.more_bytes = planned.more_extents, planned.more_bytes
        watched.settled_offset = planned.settled_offset
        watched.at = float("inf") if planned.look_at_ms is None else now + max(0, planned.look_at_ms - now_ms) / 1000
        if len(found.extents) >= each and not planned.runs:
            watched.at = min(watched.at, now + _PAUSE_S[1])
        return [
            _Run(ref, watched.leader_epoch, tuple(ReleasedSource(extent, self._lookups.key(ref, extent)) for extent in run))
            for run in planned.runs
        ]

    def _limits(self, config: TopicConfig) -> MergeLimits:
        settings = self._settings
        target = settings.merge_target_bytes
        if config.retention_bytes >= 0:
            target = min(target, max(1, config.retention_bytes // _SPAN_SHARE))
        return MergeLimits(
            target_bytes=target,
            least_extents=settings.merge_least_extents,
            most_extents=max(2, settings.merge_most_extents),
            max_age_ms=settings.merge_max_age_ms,
            settle_ms=settings.merge_settle_ms,
            max_span_ms=None if config.retention_ms < 0 else config.retention_ms // _SPAN_SHARE,
        )

    def _look_again(self, partition_id: int, after_s: float = 0.0) -> None:
        watched = self._watched.get(partition_id)
        if watched is not None:
            watched.at = min(watched.at, self._clock.monotonic() + after_s)

    def _end_quarantine(self) -> None:
        now = self._clock.monotonic()
        for extent in [extent for extent, until in self._quarantine.items() if until <= now]:
            del self._quarantine[extent]
            if (watched := self._watched.get(extent.partition_id)) is not None:
                watched.settled_offset, watched.at = 0, now
        self._metrics.merge_quarantined.set(len(self._quarantine))

    # ---- one merge

    async def _merge_pack(self, pack: Sequence[_Run]) -> None:
        """Merge runs of several partitions whose bytes fit into memory: what lies together in an object is read together."""
        sources = [source for run in pack for source in run.sources if source.extent.level == 0]
        prefetched: dict[Extent, Bytes] = {}
        try:
            prefetched = await self._sources.prefetch([(source.extent, source.key) for source in sources])
        except (StoreError, CorruptSegment):
            prefetched.clear()  # each run reads by itself, and hears what is wrong
        self._metrics.merges_waiting.dec(len(pack))
        async with asyncio.TaskGroup() as group:
            for run in pack:
                group.create_task(self._merge_in_turn(run, prefetched))

    async def _merge_in_turn(self, run: _Run, prefetched: dict[Extent, Bytes]) -> None:
        async with self._slots.slot():
            await self._merge(run, prefetched)

    async def _merge(self, run: _Run, prefetched: dict[Extent, Bytes] | None = None) -> None:
        """Merge one run, whatever comes of it; a defect that one meets must not stop the others."""
        began = self._clock.monotonic()
        partition_id = run.ref.partition_id
        limit_s = _PATIENCE_S + 4 * run.length / self._settings.merge_bytes_per_second
        sequence = self._intake.new_sequence()  # held until nothing of it can be committed any more
        outcome: MergeOutcome = "failed"
        try:
            async with asyncio.timeout(limit_s):
                outcome = await self._make_and_swap(run, sequence, prefetched or {})
        except CorruptSegment as error:
            outcome = "corrupt"
            _log.error("merge_source_corrupt", topic=run.ref.topic, partition=run.ref.partition, problem=str(error))
        except ObjectNotFound as error:  # expired or merged meanwhile, by another leader; or lost
            outcome = "missing"
            _log.info("merge_source_missing", topic=run.ref.topic, partition=run.ref.partition, problem=str(error))
        except (StoreError, *_NO_METADATA, TimeoutError) as error:
            _log.info(
                "merge_put_off", topic=run.ref.topic, partition=run.ref.partition, problem=str(error) or f"not done in {limit_s:.0f} s"
            )
        except Exception as error:  # noqa: BLE001  a defect: reported, and kept from the others
            _log.error("merge_failed_unexpectedly", topic=run.ref.topic, partition=run.ref.partition, exc_info=error)
        finally:
            self._intake.resolve(sequence)
            for source in run.sources:
                if prefetched is not None:
                    prefetched.pop(source.extent, None)
        self._metrics.merges[outcome].inc()
        self._metrics.merge_seconds.observe(self._clock.monotonic() - began)
        self._look_again(partition_id, 0.0 if outcome == "merged" else self._chance.uniform(*_PAUSE_S))

    async def _make_and_swap(self, run: _Run, sequence: int, prefetched: dict[Extent, Bytes]) -> MergeOutcome:
        identity, ref = self._identity, run.ref
        first, last = run.sources[0].extent, run.sources[-1].extent
        origin = Origin(identity.cluster_id, identity.broker_id, identity.broker_epoch, sequence, self._clock.wall_ms())
        key = MergedKey(ref.topic_id, ref.partition, first.base_offset, identity.broker_id, identity.broker_epoch, sequence)
        footer = await self._write(run, str(key), origin, prefetched)
        [chunk] = footer.chunks
        if chunk.record_count != sum(extent.record_count for extent in run.extents):
            raise CorruptSegment(
                f"{key} was made of extents with {sum(extent.record_count for extent in run.extents)} records, but holds"
                f" {chunk.record_count}",
                position=chunk.position,
            )
        merged = Extent(
            partition_id=ref.partition_id,
            base_offset=first.base_offset,
            next_offset=last.next_offset,
            broker_epoch=identity.broker_epoch,
            sequence=sequence,
            position=chunk.position,
            length=chunk.length,
            record_count=chunk.record_count,
            level=max(extent.level for extent in run.extents) + 1,
            max_timestamp_ms=chunk.max_timestamp_ms,
            commit_time_ms=max(extent.commit_time_ms for extent in run.extents),  # retention is never early
            leader_epoch=last.leader_epoch,
        )
        if not await self._swap(run, merged):
            return "refused"
        self._metrics.merged_extents.inc(len(run.sources))
        self._metrics.merged_bytes.inc(chunk.length)
        return "merged"

    async def _write(self, run: _Run, key: str, origin: Origin, prefetched: dict[Extent, Bytes]) -> Footer:
        """Make the merged object durable: from memory where it fits there, else as a stream that is made anew for each attempt (I5)."""
        made = _Made()
        if run.length <= self._pack_bytes:
            async with aclosing(self._bytes_of(run, origin, prefetched, made)) as parts:
                made.parts = [part async for part in parts]
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if made.parts:
                    await self._bucket.put_new(key, made.parts)
                else:
                    async with aclosing(self._bytes_of(run, origin, prefetched, made)) as parts:
                        await self._bucket.put_stream(key, parts)
            except (StoreUnavailable, StoreOutcomeUnknown):
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(self._chance.uniform(*_BACKOFF_S) * attempt)
            else:
                break
        assert made.footer is not None
        return made.footer

    async def _bytes_of(self, run: _Run, origin: Origin, prefetched: dict[Extent, Bytes], made: _Made) -> AsyncGenerator[Bytes]:
        """Yield the merged object, whose footer is noted at its end; the same bytes each time."""
        first, last = run.sources[0].extent, run.sources[-1].extent
        encoder = MergedEncoder(
            bytes.fromhex(run.ref.topic_id), run.ref.partition, origin, base_offset=first.base_offset, next_offset=last.next_offset
        )
        yield encoder.begin()
        for source in run.sources:
            try:
                content = prefetched.get(source.extent)
                async with aclosing(self._sources.stamped(source.extent, source.key, encoder, content)) as pieces:
                    async for piece in pieces:
                        yield piece
            except CorruptSegment:
                self._let_alone(source.extent)
                raise
            except ObjectNotFound:
                if source.extent in self._missed:  # looked up again meanwhile, and still not there
                    self._let_alone(source.extent)
                    _log.error("merge_source_lost", key=source.key, remedy="run tidelog fsck; look whether something else deletes objects")
                self._missed = {source.extent: None}
                raise
        ending, made.footer = encoder.end()
        for part in ending:
            yield part

    def _let_alone(self, extent: Extent) -> None:
        if len(self._quarantine) >= _MOST_QUARANTINED:  # the oldest is tried again before its time (I10)
            del self._quarantine[next(iter(self._quarantine))]
        self._quarantine[extent] = self._clock.monotonic() + _QUARANTINE_S
        self._metrics.merge_quarantined.set(len(self._quarantine))

    async def _swap(self, run: _Run, merged: Extent) -> bool:
        """Swap, and go on trying: asked again, it says what the first attempt came to (I5)."""
        while True:
            try:
                return await self._ledger.swap(leader_epoch=run.leader_epoch, sources=run.sources, merged=merged)
            except _NO_METADATA:  # until the merge's time is up
                await asyncio.sleep(self._chance.uniform(*_BACKOFF_S))


def _packs(runs: Sequence[_Run], most_bytes: int) -> list[list[_Run]]:
    """Put runs together as far as they fit."""
    packs: list[list[_Run]] = []
    left = 0
    for run in runs:
        if not packs or run.length > left:
            packs.append([])
            left = most_bytes
        packs[-1].append(run)
        left -= run.length
    return packs
