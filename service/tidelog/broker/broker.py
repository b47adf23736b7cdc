"""A broker: one process's part of the cluster, over its ports. The server drives it; a simulator can, too.

Holds what outlives a broker epoch (the catalog, caches, the budget of bytes); each epoch is a `Life`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from tidelog.broker.cache import ReadStats
from tidelog.broker.catalog import Catalog
from tidelog.broker.cleaning_plan import CleaningPlan, plan_cleaning
from tidelog.broker.feed import Feed, FeedHub, HubSession, NewsReceiver
from tidelog.broker.intake import Budget, append_result
from tidelog.broker.ledger import LedgerSession
from tidelog.broker.life import Life
from tidelog.broker.lookups import Lookups
from tidelog.broker.marker import FORMAT_VERSION, check_epochs, renew
from tidelog.broker.membership import begin
from tidelog.broker.reader import PartitionCursor, Reader
from tidelog.broker.references import AnswerReceiver, CommittedExtents, Peers
from tidelog.broker.requests import Appended, AppendRequest, OffsetFound, Position
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import (
    Draining,
    Fenced,
    InvalidRequest,
    MetadataOutcomeUnknown,
    MetadataUnavailable,
    MetadataUnusable,
    NotReady,
    OffsetOutOfRange,
    OutcomeUnknown,
    TidelogError,
    TimeTravel,
    TopicExists,
    UnknownTopic,
)
from tidelog.executors import Executor
from tidelog.metadata import membership as members
from tidelog.metadata import topics as topic_verbs
from tidelog.metadata.extents import advance_log_start
from tidelog.metadata.leadership import set_fencing_token
from tidelog.metadata.membership import Membership
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import PartitionState, Topic, TopicConfig
from tidelog.metrics import Metrics
from tidelog.objects.store import ObjectStore
from tidelog.randomness import Random, new_uuid
from tidelog.telemetry import get_logger

_log = get_logger(__name__)
_LOOKS_IN_A_POLL = 10
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


class Broker:
    """One broker. `run` is its life; everything else may be called while it runs."""

    def __init__(
        self, *, store: MetadataStore, bucket: ObjectStore, peers: Peers, settings: Settings, clock: Clock, chance: Random,
        executor: Executor, metrics: Metrics, broker_id: str,
    ) -> None:  # fmt: skip
        self._store = store
        self._bucket = bucket
        self._peers = peers
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._executor = executor
        self._broker_id = broker_id
        self._incarnation = new_uuid(chance)
        self._cluster_id = ""
        self._budget = Budget(settings.intake_budget_bytes)
        self._metrics = metrics
        self.catalog = Catalog(store)
        self.catalog.on_change(self._catalog_changed)
        self.life: Life | None = None
        self._hub = FeedHub()
        stats = ReadStats()
        lookups = Lookups(store, max_extents_each=settings.read_ahead_extents, stats=stats)
        self._feed = Feed(
            catalog=self.catalog, peers=peers, lookups=lookups, own_epoch=self._own_epoch, settings=settings, chance=chance, stats=stats
        )
        self.reader = Reader(
            metadata=store,
            objects=bucket,
            feed=self._feed,
            lookups=lookups,
            settings=settings,
            clock=clock,
            executor=executor,
            stats=stats,
        )
        self._draining = False
        self._news = asyncio.Event()
        """Of the catalog, for whoever clears it before."""
        self._refuse_from = float("inf")
        """When to begin to refuse appends, having been asked to drain: until then balancers may still send some."""
        self._why_not_ready = "it has not registered yet"

    # ---- life

    async def start(self) -> None:
        """Find out which cluster this is, and that bucket and metadata store belong together (I11). Raises TimeTravel."""
        state = await self._store.run(members.initialise, cluster_id=new_uuid(self._chance), format_version=FORMAT_VERSION)
        self._cluster_id = state.cluster_id
        await check_epochs(self._bucket, self._cluster_state, await self._store.run(members.broker_ids))
        await renew(self._bucket, self._cluster_state)

    async def run(self, *, address: str, peer_address: str) -> None:
        """Register, serve, and come back under a new epoch whenever one has ended, until drained or cancelled.

        `address` is what clients are told, `peer_address` what brokers are. Raises BrokerIdTaken, TimeTravel.
        """
        async with self._feed, self.reader:
            await self._live(address, peer_address)

    async def _live(self, address: str, peer_address: str) -> None:
        earlier = 0
        while not self._draining:
            identity, lease = await begin(
                store=self._store,
                cluster_id=self._cluster_id,
                broker_id=self._broker_id,
                incarnation=self._incarnation,
                addresses=(address, peer_address),
                settings=self._settings,
                clock=self._clock,
                chance=self._chance,
                membership_changed=self._membership_changed,
                metrics=self._metrics,
            )
            if identity.broker_epoch <= earlier:
                raise TimeTravel(
                    f"broker {self._broker_id!r} had epoch {earlier} and was given {identity.broker_epoch}: the metadata store was replaced"
                    " by an older copy. This broker ends; bring back the newer database, or rebuild it from the bucket"
                )
            earlier = identity.broker_epoch
            life = self.life = Life(
                identity=identity,
                lease=lease,
                store=self._store,
                bucket=self._bucket,
                catalog=self.catalog,
                peers=self._peers,
                settings=self._settings,
                clock=self._clock,
                chance=self._chance,
                executor=self._executor,
                budget=self._budget,
                took_in=self.reader.took_in,
                publish=self._publish,
                lookups=self.reader.lookups,
                metrics=self._metrics,
            )
            try:
                await life.run()
            except* Fenced:
                if not self._draining:
                    _log.warning("epoch_ended", broker_id=self._broker_id, broker_epoch=identity.broker_epoch)
                self._why_not_ready = "its epoch has ended; it registers anew"
            finally:
                self.life = None
            self._incarnation = new_uuid(self._chance)

    async def drain_and_end(self) -> None:
        """Leave without a loss: appends go elsewhere, what was taken is answered, partitions are handed over, the epoch ends.

        Gives up waiting after `drain_timeout_ms`; what is left then is an ordinary death of a broker.
        """
        self._draining = True
        life = self.life
        if life is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                await self._drain(life)
        with suppress(MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable):  # the lease then expires by itself
            await self._store.run_reserved(members.end_epoch, broker_epoch=life.identity.broker_epoch)

    async def _drain(self, life: Life) -> None:
        if not await self._mark_draining(life):
            return  # its epoch has ended: others have taken over
        life.look_again()
        if len(self.catalog.membership.brokers) > 1:
            await asyncio.sleep(self._settings.drain_propagation_ms / 1000)
        life.intake.drain()
        await life.intake.drained()
        while not life.ledger.leads_nothing.is_set() and self._others_stay():  # they may begin to drain themselves, or end, meanwhile
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.catalog_poll_ms / 1000):
                    await life.ledger.leads_nothing.wait()
        await self._see_others_off(life)
        await life.checkpointer.write(last=True)  # so that after a full stop the bucket alone has everything

    async def _see_others_off(self, life: Life) -> None:
        """Where all leave, let the one that writes checkpoints leave last, so that its last one has everything; for a lease at most."""

        def waits() -> bool:
            return life.lives_longest() and len(self.catalog.membership.brokers) > 1 and not self._others_stay()

        if waits():
            await life.checkpointer.write()  # there may be no time for another: some of these may have died
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.lease_ms / 1000):
                while waits():
                    self._news.clear()
                    await self._news.wait()

    def _others_stay(self) -> bool:
        """Say whether there is anybody to hand over to, as far as is known."""
        return any(not broker.draining for broker in self.catalog.membership.brokers if broker.broker_id != self._broker_id)

    async def _mark_draining(self, life: Life) -> bool:
        """Mark this life as draining, waiting for a store that is away; say whether it is still there to be marked."""
        while True:
            try:
                await self._store.run(
                    members.set_draining, broker_id=self._broker_id, draining=True, broker_epoch=life.identity.broker_epoch
                )
            except Fenced:
                return False
            except (MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable):
                await asyncio.sleep(self._chance.uniform(0.05, 0.2))
            else:
                return True

    async def _cluster_state(self) -> members.ClusterState:
        return await self._store.run(members.cluster_state)

    def _catalog_changed(self) -> None:
        self._news.set()
        if self.life is not None:
            self.life.leadership_changed()
        member = self.member()
        if member is None or not member.draining:
            self._refuse_from = float("inf")
        elif self._refuse_from == float("inf"):
            self._refuse_from = self._clock.monotonic() + self._settings.drain_propagation_ms / 1000

    def _membership_changed(self) -> None:
        if self.life is not None:
            self.life.look_again()

    def _publish(self, news: CommittedExtents) -> None:
        self._feed.committed(news)
        self._hub.publish(news)

    def _own_epoch(self) -> int | None:
        return None if self.life is None else self.life.identity.broker_epoch

    # ---- produce

    def append(self, request: AppendRequest) -> "asyncio.Future[Appended]":
        """Take an append; what can be refused at once is raised. Cancelling the future cancels nothing (I5).

        Raises UnknownTopic and UnknownPartition (as of the last poll: ask `ensure_topic`), CorruptBatch, RecordTooLarge, Throttled,
        Draining, NotReady.
        """
        ref = self.catalog.partition(request.topic, request.partition)
        if ref is None:
            raise self.catalog.unknown(request.topic, request.partition)
        try:
            if self._clock.monotonic() >= self._refuse_from:
                raise Draining("this broker was asked to drain; the append was not done: send it to another broker")
            taken = self._living().intake.append(ref, request)
        except TidelogError as error:
            result = append_result(error)
            self._metrics.appends[result].inc()
            self._metrics.append_bytes[result].inc(len(request.batches))
            raise
        self._metrics.topic_taken(request.topic, len(request.batches))
        return taken

    async def ensure_topic(self, topic: str) -> Topic:
        """Return a topic that `append` does not know yet, and does from then on; make it where that is done. Raises UnknownTopic."""
        await self.catalog.refresh()
        if self.catalog.topic(topic) is None and self._settings.auto_create_topics:
            try:
                return await self.create_topic(topic, partitions=0, config=self._default_config())
            except TopicExists:  # somebody else was first: another broker, or another call on this one
                await self.catalog.refresh()
        found = self.catalog.topic(topic)
        if found is None:
            raise UnknownTopic(f"topic {topic!r} was asked for, but there is no such topic; create it, or list topics to see what there is")
        return found

    def topic(self, name: str) -> Topic | None:
        """Return a topic as of the last poll; None where it was not known then."""
        return self.catalog.topic(name)

    async def init_producer(self) -> tuple[int, int]:
        """Return a new producer id, and its epoch."""
        return await self._store.run(members.allocate_producer_ids, count=1), 0

    async def set_fencing_token(self, topic: str, partition: int, token: str | None, *, expected: str | None) -> int:
        """Set the token that fenced appends must show; return where the partition ended then.

        Returns once nobody decides by the old token any more: the leader has come back under a new leader epoch. Raises
        UnknownTopic, UnknownPartition, ConditionFailed, OutcomeUnknown where that takes longer than `append_timeout_ms`.
        """
        ref = await self.catalog.find(topic, partition)
        done = await self._store.run(set_fencing_token, partition_id=ref.partition_id, token=token, expected=expected)
        give_up_at = self._clock.monotonic() + self._settings.append_timeout_ms / 1000
        await self._look_everywhere()
        while (leader := self.catalog.leader(ref.partition_id)) is None or leader.leader_epoch <= done.leader_epoch:
            if self._clock.monotonic() >= give_up_at:
                raise OutcomeUnknown(
                    f"the fencing token of {topic!r}/{partition} is set, but the partition has no leader yet; set the same token again"
                    " to know that it is in force"
                )
            await asyncio.sleep(self._settings.catalog_poll_ms / 1000 / _LOOKS_IN_A_POLL)
            await self.catalog.refresh()
        return done.next_offset

    # ---- consume

    @asynccontextmanager
    async def follow(self, topic: str, partition: int) -> AsyncIterator[PartitionCursor]:
        """Follow a partition while the context is open. Raises UnknownTopic, UnknownPartition."""
        ref = await self.catalog.find(topic, partition)
        async with self.reader.follow(ref) as cursor:
            yield cursor

    async def list_offset(self, topic: str, partition: int, position: Position) -> OffsetFound:
        """Return the offset that a position stands for; SQL is asked. Raises UnknownTopic, UnknownPartition."""
        return await self.reader.list_offset(await self.catalog.find(topic, partition), position)

    # ---- administration

    async def create_topic(self, name: str, *, partitions: int, config: TopicConfig) -> Topic:
        """Create a topic; 0 partitions stand for the default. Raises InvalidRequest, TopicExists."""
        _check_name(name)
        most = self._settings.max_partitions_per_topic
        if partitions > most:
            raise InvalidRequest(
                f"topic {name!r} was to get {partitions} partitions, but max_partitions_per_topic is {most}; ask for fewer"
            )
        topic = await self._store.run(
            topic_verbs.create_topic,
            topic_id=new_uuid(self._chance),
            name=name,
            partitions=partitions or self._settings.default_partitions,
            config=config,
        )
        await self._look_everywhere()
        return topic

    async def delete_topic(self, name: str) -> None:
        """Delete a topic. Raises UnknownTopic."""
        topic = await self._topic(name)
        await self._store.run(topic_verbs.delete_topic, topic_id=topic.topic_id)
        await self._look_everywhere()

    async def alter_topic(self, name: str, *, config: TopicConfig) -> Topic:
        """Set what a topic keeps. Raises UnknownTopic."""
        topic = await self._topic(name)
        altered = await self._store.run(topic_verbs.alter_topic, topic_id=topic.topic_id, config=config)
        await self._look_everywhere()
        return altered

    async def create_partitions(self, name: str, *, partitions: int) -> Topic:
        """Raise a topic's number of partitions. Raises UnknownTopic, InvalidRequest."""
        most = self._settings.max_partitions_per_topic
        if partitions > most:
            raise InvalidRequest(
                f"topic {name!r} was to get {partitions} partitions, but max_partitions_per_topic is {most}; ask for fewer"
            )
        topic = await self._topic(name)
        grown = await self._store.run(topic_verbs.create_partitions, topic_id=topic.topic_id, partitions=partitions)
        await self._look_everywhere()
        return grown

    async def topics(self, names: Sequence[str] | None) -> Sequence[Topic]:
        """Return the topics of these names that exist, or all; SQL is asked."""
        return await self._store.run(topic_verbs.topics, names=names)

    async def partitions(self, topic_id: str) -> Sequence[PartitionState]:
        """Return a topic's partitions; SQL is asked."""
        return await self._store.run(topic_verbs.partitions, topic_id=topic_id)

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        """Move the log start forward (-1: to the high watermark); return it. Raises OffsetOutOfRange, UnknownTopic, UnknownPartition."""
        ref = await self.catalog.find(topic, partition)
        while True:
            state = next((row for row in await self.partitions(ref.topic_id) if row.partition == partition), None)
            if state is None:  # its rows have gone since the catalog was read
                raise UnknownTopic(f"records of {topic!r}/{partition} were to be deleted, but the topic was deleted meanwhile")
            if before_offset > state.next_offset or before_offset < -1:
                raise OffsetOutOfRange(
                    f"records of {topic!r}/{partition} before offset {before_offset} were to be deleted, but it holds offsets"
                    f" {state.log_start_offset} to {state.next_offset}; name one of these, or -1 for all",
                    log_start_offset=state.log_start_offset,
                    high_watermark=state.next_offset,
                )
            to = state.next_offset if before_offset == -1 else before_offset
            try:
                start = await self._store.run(advance_log_start, partition_id=ref.partition_id, leader_epoch=state.leader_epoch, to=to)
            except Fenced:  # leadership has moved between the two; the log start is anybody's to move
                continue
            if self.life is not None:  # where another leads, it learns of it when it looks at what it keeps
                self.life.ledger.log_starts({ref.partition_id: start})
            await self.reader.bounds_changed(ref.partition_id)
            return start

    async def membership(self) -> Membership:
        """Return the members; SQL is asked."""
        return await self._store.run(members.membership)

    async def led_partitions(self) -> dict[int, int]:
        """Return how many partitions each broker epoch leads."""
        await self.catalog.refresh()
        counts: dict[int, int] = {}
        for row in self.catalog.leaderships().values():
            if row.leader_broker_epoch is not None:
                counts[row.leader_broker_epoch] = counts.get(row.leader_broker_epoch, 0) + 1
        return counts

    async def drain(self, broker_id: str, *, undo: bool) -> tuple[bool, int]:
        """Mark a broker as draining, or not; return whether it leads nothing any more, and how many partitions it still leads."""
        try:
            await self._store.run(members.set_draining, broker_id=broker_id, draining=not undo)
        except Fenced as error:
            raise InvalidRequest(str(error)) from error
        if self.life is not None:
            self.life.look_again()
        counts = await self.led_partitions()
        epochs = [broker.broker_epoch for broker in (await self.membership()).brokers if broker.broker_id == broker_id]
        left = sum(counts.get(epoch, 0) for epoch in epochs)
        return left == 0 and not undo, left

    async def plan_cleaning(self, most: int) -> CleaningPlan:
        """Say what a cleaner would delete now, and why, looking at up to `most` objects; 0: `cleaner_listed_objects`, the limit."""
        return await plan_cleaning(
            store=self._store,
            bucket=self._bucket,
            clock=self._clock,
            grace_ms=self._settings.reader_grace_ms,
            orphan_age_ms=self._settings.orphan_age_seconds * 1000,
            copied=self._settings.checkpoint_interval_ms > 0,
            most=min(most or self._settings.cleaner_listed_objects, self._settings.cleaner_listed_objects),
        )

    @property
    def intake_bytes(self) -> int:
        """Bytes of appends held now, every copy counted."""
        return self._budget.used_bytes

    def member(self) -> members.Broker | None:
        """Return this broker as a member; None while it has no epoch, or has not seen itself in the membership yet."""
        return None if self.life is None else self.catalog.broker(self.life.identity.broker_epoch)

    def cluster_id(self) -> str:
        """Return the cluster's id."""
        return self._cluster_id

    # ---- other brokers

    def references_from(self, writer_epoch: int, receiver: AnswerReceiver) -> LedgerSession:
        """Open the leader's end of a link. Raises NotReady."""
        return self._living().ledger.session(writer_epoch, receiver)

    def feed_to(self, receiver: NewsReceiver) -> HubSession:
        """Open the leader's end of a feed."""
        return self._hub.open(receiver)

    def nudge(self) -> None:
        """Look at leadership and membership now."""
        if self.life is not None:
            self.life.look_again()

    # ---- health

    def ready(self) -> str | None:
        """Return None where this broker takes appends, else why not, in a sentence."""
        if self._draining:
            return "this broker is about to leave"
        life = self.life
        if life is None:
            return f"this broker is not a member: {self._why_not_ready}"
        if not life.lease.stands():
            return "this broker's lease could not be renewed: the metadata store does not answer"
        member = self.member()
        if member is None:
            return "this broker has registered, but has not seen the membership yet"
        if member.draining:
            return "this broker was asked to drain"
        return None

    def _living(self) -> Life:
        if self.life is None:
            if self._draining:
                raise Draining("this broker has left the cluster; nothing was done: use another broker")
            raise NotReady(f"this broker is not a member: {self._why_not_ready}; nothing was done: try again, or try another broker")
        return self.life

    async def _topic(self, name: str) -> Topic:
        found = await self.topics([name])
        if not found:
            raise UnknownTopic(f"topic {name!r} was asked for, but there is no such topic; create it, or list topics to see what there is")
        return found[0]

    async def _look_everywhere(self) -> None:
        """See one's own change at once, and tell the other brokers to look."""
        await self.catalog.refresh()
        self.nudge()
        own = self.member()
        for broker in self.catalog.membership.brokers:
            if own is None or broker.broker_epoch != own.broker_epoch:
                self._peers.nudge(broker)

    def _default_config(self) -> TopicConfig:
        return TopicConfig(self._settings.default_retention_ms, self._settings.default_retention_bytes)


def _check_name(name: str) -> None:
    if not _TOPIC_NAME.fullmatch(name) or name in (".", "..") or name.startswith("__"):
        raise InvalidRequest(
            f"topic {name!r} was to be created; a name has 1 to 249 of the characters A-Z, a-z, 0-9, '.', '_' and '-', is not '.' or '..',"
            " and does not begin with '__'"
        )
