"""Retention: leaders move log starts forward as topics ask, and release what lies below; deleted topics go step by step.

Log starts first, extents later, objects last: a reader learns that an offset is no more before its bytes go. Which objects
may go is the cleaner's to say.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice

from tidelog.broker.catalog import Catalog
from tidelog.broker.ledger import Ledger
from tidelog.broker.lookups import object_key
from tidelog.broker.quarantine import Quarantine
from tidelog.broker.steps import Steps
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable
from tidelog.metadata.cleaning import drop_deleted_topic
from tidelog.metadata.extents import ExpiredExtents, ReleasedSource, expired_extents, release_expired
from tidelog.metadata.retention import DeletedTopic, Rule, apply_retention, deleted_topics, strip_deleted_topic
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.randomness import Random
from tidelog.telemetry import get_logger

_WEATHER = (MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable)
_PARTITIONS = 1000
"""Looked at in one statement, at most."""
_FEW_PARTITIONS = 100
"""Looked at in one statement, however slow."""
_TOPICS = 100
"""Deleted topics that are worked on in one round."""
_LEAST = 1000
"""Rows in one step, however slow: with fewer, releasing would fall behind intake on a machine that is busy."""
_log = get_logger(__name__)


class Releases:
    """Releases extents that lie below the log start, in steps."""

    def __init__(self, *, broker_epoch: int, store: MetadataStore, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._broker_epoch = broker_epoch
        self._store = store
        self._metrics = metrics
        self._steps = Steps(least=_LEAST, most=settings.release_extents, clock=clock)
        self._poisoned: set[int] = set()

    async def release(self, partition_ids: Sequence[int]) -> None:
        """Release all that lies below the log starts of these partitions. Raises MetadataError where SQL does not answer."""
        while healthy := [partition_id for partition_id in partition_ids if partition_id not in self._poisoned]:
            size = self._steps.size
            async with self._steps.step(size):
                found = await self._store.run(expired_extents, partition_ids=healthy, limit=size)
                sources = list(self._named(found))
                if sources:
                    released = await self._store.run(release_expired, broker_epoch=self._broker_epoch, sources=sources)
                    self._metrics.extents_released.inc(released)
            if len(found.extents) < size:
                return

    def _named(self, found: ExpiredExtents) -> Iterator[ReleasedSource]:
        """Name the objects; a partition of which that cannot be done is left alone from then on."""
        writers = {writer.broker_epoch: writer for writer in found.writers}
        for extent in found.extents:
            writer, place = writers.get(extent.broker_epoch), found.places.get(extent.partition_id)
            if writer is not None and place is not None:
                topic_id, partition = place
                yield ReleasedSource(extent, object_key(extent, writer, topic_id=topic_id, partition=partition))
            elif place is not None and extent.partition_id not in self._poisoned:  # else its topic has gone meanwhile
                self._poisoned.add(extent.partition_id)
                self._metrics.retention_poisoned.inc()
                _log.error(
                    "partition_not_released",
                    topic_id=place[0],
                    partition=place[1],
                    problem=f"its extent at offset {extent.base_offset} is of broker epoch {extent.broker_epoch}, but no such writer is"
                    " known; the metadata store has lost rows: restore it",
                )


class Retention:
    """Keeps, of what this broker leads, as much as the topics say."""

    def __init__(
        self, *, store: MetadataStore, catalog: Catalog, ledger: Ledger, releases: Releases, settings: Settings, clock: Clock,
        chance: Random, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._store = store
        self._catalog = catalog
        self._ledger = ledger
        self._releases = releases
        self._settings = settings
        self._chance = chance
        self._metrics = metrics
        self._steps = Steps(least=_FEW_PARTITIONS, most=_PARTITIONS, clock=clock)
        self._quarantine = Quarantine("retention", first_ms=settings.retention_interval_ms, retry_ms=settings.cleaner_retry_ms, clock=clock)

    async def run(self) -> None:
        """Look at all that is led, again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.retention_interval_ms / 1000 * self._chance.uniform(0.8, 1.2))
            try:
                await self.look()
            except _WEATHER as error:
                self._metrics.retention_passes["failed"].inc()
                _log.info("retention_waits", problem=str(error))
            else:
                self._metrics.retention_passes["done"].inc()

    async def look(self) -> None:
        """Look once at all that is led now."""
        led = [each for each in sorted(self._ledger.led().items()) if not self._quarantine.holds(str(each[0]))]
        while some := led[: self._steps.size]:
            rules = [rule for partition_id, epoch in some if (rule := self._rule(partition_id, epoch)) is not None]
            try:
                async with self._steps.step(len(some)):
                    starts = await self._store.run(apply_retention, rules=rules)
            except _WEATHER as error:
                if len(some) > 1:  # it may have been too much at once
                    continue
                self._quarantine.failed(str(some[0][0]), str(error))
                raise
            del led[: len(some)]
            for partition_id, _ in some:
                self._quarantine.done(str(partition_id))
            self._metrics.log_starts_moved.inc(self._ledger.log_starts(starts))
            await self._releases.release(sorted(starts))

    def _rule(self, partition_id: int, leader_epoch: int) -> Rule | None:
        """Return what the topic asks now, so that a change of it needs no restart; None where it is deleted."""
        ref = self._catalog.partition_by_id(partition_id)
        topic = None if ref is None else self._catalog.topic(ref.topic)
        if ref is None or topic is None or topic.topic_id != ref.topic_id:
            return None
        return Rule(partition_id, leader_epoch, topic.config.retention_ms, topic.config.retention_bytes)


class DeletedTopics:
    """Takes deleted topics away. Nobody leads them, so it is the work of whoever cleans."""

    def __init__(self, *, store: MetadataStore, releases: Releases, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._releases = releases
        self._metrics = metrics
        self._steps = Steps(least=_LEAST, most=settings.release_extents, clock=clock)
        self._quarantine = Quarantine("topics", first_ms=settings.cleaner_interval_ms, retry_ms=settings.cleaner_retry_ms, clock=clock)

    async def work(self) -> None:
        """Take away what can be: all of the topics that are deleted by now, but for their objects.

        One that cannot be taken away is tried again ever more slowly, and keeps neither the others nor the cleaner from going on.
        """
        for topic in await self._store.run(deleted_topics, limit=_TOPICS + len(self._quarantine)):
            if self._quarantine.holds(topic.topic_id):
                continue
            try:
                await self._take_away(topic)
            except _WEATHER as error:
                self._quarantine.failed(topic.topic_id, str(error))
                _log.info("topic_waits", topic_id=topic.topic_id, problem=str(error))
                return  # it may be the weather
            self._quarantine.done(topic.topic_id)

    async def _take_away(self, topic: DeletedTopic) -> None:
        ids = iter(topic.partition_ids)
        while some := list(islice(ids, _PARTITIONS)):
            await self._releases.release(some)
        while True:
            size = self._steps.size
            async with self._steps.step(size):
                gone = await self._store.run(strip_deleted_topic, topic_id=topic.topic_id, limit=size)
            if gone < size:
                break
        if await self._store.run(drop_deleted_topic, topic_id=topic.topic_id):
            self._metrics.topics_dropped.inc()
            _log.info("topic_dropped", topic_id=topic.topic_id)
