"""One broker epoch: everything that a broker may do because SQL gave it this epoch, and that ends with it.

Thrown away whole when the epoch has ended, so that coming back is the ordinary way to begin.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress

from tidelog.broker.catalog import Catalog
from tidelog.broker.checkpointer import Checkpointer
from tidelog.broker.cleaner import Cleaner
from tidelog.broker.intake import Budget, Intake, TakesIn
from tidelog.broker.leadership import Leadership
from tidelog.broker.ledger import Ledger
from tidelog.broker.lookups import Lookups
from tidelog.broker.membership import Lease
from tidelog.broker.merging import Merging
from tidelog.broker.outbox import Outbox
from tidelog.broker.references import CommittedExtents, Peers
from tidelog.broker.retention import DeletedTopics, Releases, Retention
from tidelog.broker.scrub import Scrub
from tidelog.broker.storage import StorageCount
from tidelog.broker.uploads import Identity, Uploads
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable
from tidelog.executors import Executor
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.objects.store import ObjectStore
from tidelog.randomness import Random

_LEAST_BETWEEN_LOOKS_S = 0.01


class Life:
    """A broker from its registration to the end of its epoch."""

    def __init__(
        self, *, identity: Identity, lease: Lease, store: MetadataStore, bucket: ObjectStore, catalog: Catalog, peers: Peers,
        settings: Settings, clock: Clock, chance: Random, budget: Budget, took_in: TakesIn,
        publish: Callable[[CommittedExtents], None], lookups: Lookups, executor: Executor, metrics: Metrics,
    ) -> None:  # fmt: skip
        self.identity = identity
        self._publish = publish
        self.lease = lease
        self._catalog = catalog
        self._settings = settings
        self._chance = chance
        self._look = asyncio.Event()
        self._uploading: set[asyncio.Task[None]] = set()
        self._defect: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when a task fails that belongs to no group."""
        epoch = identity.broker_epoch
        self.ledger = Ledger(
            store=store,
            broker_epoch=epoch,
            settings=settings,
            chance=chance,
            lease_stands=lease.stands,
            publish=self._committed,
            changed=self.look_again,
            handed_over=lambda to_broker_epoch: self.leadership.handed_over(to_broker_epoch),
            metrics=metrics,
            clock=clock,
        )
        self.leadership = Leadership(
            broker_epoch=epoch,
            store=store,
            catalog=catalog,
            ledger=self.ledger,
            peers=peers,
            settings=settings,
            look_again=self.look_again,
            metrics=metrics,
        )
        uploads = Uploads(
            identity=identity, bucket=bucket, settings=settings, clock=clock, chance=chance, spawn=self._spawn, metrics=metrics
        )
        self.intake = Intake(
            uploads=uploads, budget=budget, settings=settings, clock=clock, took_in=took_in, lease_stands=lease.stands, metrics=metrics
        )
        self.outbox = Outbox(
            broker_epoch=epoch,
            catalog=catalog,
            ledger=self.ledger,
            peers=peers,
            settings=settings,
            clock=clock,
            chance=chance,
            resolved_sequence=lambda: self.intake.resolved_sequence,
            lost=self.look_again,
            metrics=metrics,
        )
        self.intake.outbox = self.outbox
        self.merging = Merging(
            identity=identity,
            store=store,
            bucket=bucket,
            catalog=catalog,
            ledger=self.ledger,
            intake=self.intake,
            lookups=lookups,
            settings=settings,
            clock=clock,
            chance=chance,
            executor=executor,
            metrics=metrics,
        )
        self.scrub = Scrub(
            bucket=bucket,
            catalog=catalog,
            ledger=self.ledger,
            lookups=lookups,
            settings=settings,
            clock=clock,
            chance=chance,
            executor=executor,
            metrics=metrics,
        )
        self.checkpointer = Checkpointer(
            identity=identity,
            store=store,
            bucket=bucket,
            settings=settings,
            clock=clock,
            executor=executor,
            metrics=metrics,
            is_mine=self.lives_longest,
        )
        releases = Releases(broker_epoch=epoch, store=store, settings=settings, clock=clock, metrics=metrics)
        self.retention = Retention(
            store=store, catalog=catalog, ledger=self.ledger, releases=releases, settings=settings, clock=clock, chance=chance,
            metrics=metrics,
        )  # fmt: skip
        self.cleaner = Cleaner(
            broker_epoch=epoch,
            store=store,
            bucket=bucket,
            topics=DeletedTopics(store=store, releases=releases, settings=settings, clock=clock, metrics=metrics),
            settings=settings,
            clock=clock,
            chance=chance,
            metrics=metrics,
        )
        self._storage = StorageCount(store=store, settings=settings, clock=clock, metrics=metrics, is_mine=self.lives_longest)

    def look_again(self) -> None:
        """Ask the metadata store now who is a member and who leads, rather than at the next poll."""
        self._look.set()

    async def run(self) -> None:
        """Live until the epoch has ended: then Fenced is raised, and everything that was taken has its outcome.

        Uploads that are under way go on to their end: a PUT cannot be taken back, and its bytes count until it is over.
        """
        try:
            async with asyncio.TaskGroup() as parts:
                parts.create_task(self.lease.keep())
                parts.create_task(self.lease.tend(lambda: self.intake.resolved_sequence))
                parts.create_task(self.ledger.run())
                parts.create_task(self.intake.run())
                parts.create_task(self.merging.run())
                parts.create_task(self.scrub.run())
                parts.create_task(self._watch())
                if self._settings.storage_count_interval_ms:
                    parts.create_task(self._storage.run())
                if self._settings.checkpoint_interval_ms:
                    parts.create_task(self.checkpointer.run())
                if self._settings.retention:
                    parts.create_task(self.retention.run())
                if self._settings.cleaning:
                    parts.create_task(self.cleaner.run())
                parts.create_task(self._fail())
        finally:
            self.intake.end()
            self.ledger.end()

    def leadership_changed(self) -> None:
        """Send what waits to the leaders that the catalog knows now."""
        self.outbox.leadership_changed()
        self.checkpointer.topics_changed(self._catalog.topics_version)

    def _committed(self, news: CommittedExtents) -> None:
        self.merging.committed(news)
        self._publish(news)

    def lives_longest(self) -> bool:
        """Say whether no member has lived longer than this one: who does what one of them is to do. Two may believe so for a moment."""
        return self.identity.broker_epoch == min((broker.broker_epoch for broker in self._catalog.membership.brokers), default=0)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._uploading.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._uploading.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._defect.done():
            self._defect.set_exception(error)

    async def _fail(self) -> None:
        await self._defect

    async def _watch(self) -> None:
        """Keep the catalog fresh, and leadership as the catalog says it should be."""
        while True:
            try:
                await self._catalog.refresh()
                await self.leadership.reconcile()
            except (MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable):
                await asyncio.sleep(self._chance.uniform(0.05, 0.2))
                continue
            await asyncio.sleep(_LEAST_BETWEEN_LOOKS_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.catalog_poll_ms / 1000 * self._chance.uniform(0.8, 1.2)):
                    await self._look.wait()
            self._look.clear()
