"""What this broker knows of topics, partitions, leaders and members: a copy of the metadata store's, kept fresh by polls.

Good for finding one's way only. Whatever decides (who may commit, where a log ends) is asked of SQL.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tidelog.errors import TimeTravel, UnknownPartition, UnknownTopic
from tidelog.metadata.leadership import Leadership
from tidelog.metadata.membership import Broker, Membership
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import CatalogChanges, Topic, catalog_changes


@dataclass(frozen=True, slots=True)
class PartitionRef:
    """A partition by all its names."""

    partition_id: int
    topic_id: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads a partition, and under which leader epoch."""

    broker: Broker
    leader_epoch: int


class Catalog:
    """Topics, partitions, leaders and members, as of the last poll."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._version = 0
        self.topics_version = 0
        """Grows with every change of topics."""
        self._membership = Membership(0, 0, ())
        self._members: dict[int, Broker] = {}
        self._topics: dict[str, Topic] = {}
        self._names: dict[str, str] = {}
        self._partitions: dict[str, dict[int, int]] = {}
        self._refs: dict[int, PartitionRef] = {}
        self._leaders: dict[int, Leadership] = {}
        self._listeners: list[Callable[[], None]] = []
        self.revision = 0
        """Raised by every change of what this knows."""
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def membership(self) -> Membership:
        """All members, with the version that take-over and transfer are conditional on."""
        return self._membership

    def broker(self, broker_epoch: int) -> Broker | None:
        """Return a member by its epoch."""
        return self._members.get(broker_epoch)

    def topics(self) -> list[Topic]:
        """Return all topics, by name."""
        return [self._topics[self._names[name]] for name in sorted(self._names)]

    def topic(self, name: str) -> Topic | None:
        """Return a topic by name, as of the last poll."""
        topic_id = self._names.get(name)
        return None if topic_id is None else self._topics[topic_id]

    def partition(self, topic: str, partition: int) -> PartitionRef | None:
        """Return a partition by topic name and number, as of the last poll."""
        partition_id = self._partitions.get(self._names.get(topic, ""), {}).get(partition)
        return None if partition_id is None else self._refs[partition_id]

    def partition_by_id(self, partition_id: int) -> PartitionRef | None:
        """Return a partition by its id."""
        return self._refs.get(partition_id)

    def leaderships(self) -> dict[int, Leadership]:
        """Return who leads each partition, on paper, by partition id. Not to be changed."""
        return self._leaders

    def leader(self, partition_id: int) -> Leader | None:
        """Return a partition's leader, where it is a member."""
        leadership = self._leaders.get(partition_id)
        if leadership is None or leadership.leader_broker_epoch is None:
            return None
        broker = self._members.get(leadership.leader_broker_epoch)
        return None if broker is None else Leader(broker, leadership.leader_epoch)

    async def find(self, topic: str, partition: int) -> PartitionRef:
        """Return a partition, asking SQL where the last poll did not know it. Raises UnknownTopic, UnknownPartition."""
        found = self.partition(topic, partition)
        if found is None:
            await self.refresh()
            found = self.partition(topic, partition)
        if found is None:
            raise self.unknown(topic, partition)
        return found

    def unknown(self, topic: str, partition: int) -> UnknownTopic | UnknownPartition:
        """Return the error for a partition that is not there."""
        known = self.topic(topic)
        if known is None:
            return UnknownTopic(
                f"topic {topic!r} was asked for, but there is no such topic; create it, or list topics to see what there is"
            )
        return UnknownPartition(
            f"partition {partition} of topic {topic!r} was asked for, but its partitions are 0 to {known.partitions - 1}; choose one"
        )

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every refresh that changed something."""
        self._listeners.append(listener)

    async def refresh(self) -> None:
        """Bring this up to what the metadata store says now; callers at the same time share a poll that begins after they asked.

        Raises TimeTravel where the metadata store has gone back behind what it said before (I11).
        """
        if self._refreshing is not None and not self._refreshing.done():
            await asyncio.wait([self._refreshing])  # it may have read before what the caller is after
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh())
            self._refreshing.add_done_callback(_heard)
        await asyncio.shield(self._refreshing)

    def led_by(self, leaderships: Iterable[Leadership]) -> None:
        """Note changes of leadership that this broker made itself, before a poll tells."""
        for leadership in leaderships:
            known = self._leaders.get(leadership.partition_id)
            if leadership.partition_id in self._refs and (known is None or leadership.leader_epoch > known.leader_epoch):
                self._leaders[leadership.partition_id] = leadership
        self._tell()

    async def _refresh(self) -> None:
        changes = await self._store.run(catalog_changes, since=self._version, membership_since=self._membership.version)
        if changes.version < self._version:
            raise TimeTravel(
                f"the metadata store counts {changes.version} changes of topics and leaders, but had counted {self._version} before: it was"
                " replaced by an older copy. This broker ends; bring back the newer database, or rebuild it from the bucket"
            )
        if self._apply(changes):
            self._tell()

    def _apply(self, changes: CatalogChanges) -> bool:
        changed = False
        if changes.membership is not None and changes.membership.version > self._membership.version:
            self._membership = changes.membership
            self._members = {broker.broker_epoch: broker for broker in changes.membership.brokers}
            changed = True
        if changes.version <= self._version:
            return changed
        self._version = changes.version
        if changes.topics or changes.complete:
            self.topics_version = changes.version
        if changes.complete:
            for topic_id in self._topics.keys() - {topic.topic_id for topic in changes.topics}:
                self._forget_topic(topic_id)
        for topic in changes.topics:
            self._take_topic(topic)
        for row in changes.partitions:
            known = self._leaders.get(row.partition_id)
            if row.topic_id not in self._topics:
                continue
            if known is None or row.leader_epoch >= known.leader_epoch:
                self._leaders[row.partition_id] = row
            if row.partition_id not in self._refs:
                topic = self._topics[row.topic_id]
                self._refs[row.partition_id] = PartitionRef(row.partition_id, row.topic_id, topic.name, row.partition)
                self._partitions.setdefault(row.topic_id, {})[row.partition] = row.partition_id
        return True

    def _take_topic(self, topic: Topic) -> None:
        if topic.deleted:
            self._forget_topic(topic.topic_id)
            return
        self._topics[topic.topic_id] = topic
        self._names[topic.name] = topic.topic_id

    def _forget_topic(self, topic_id: str) -> None:
        gone = self._topics.pop(topic_id, None)
        if gone is not None and self._names.get(gone.name) == topic_id:
            del self._names[gone.name]
        for partition_id in self._partitions.pop(topic_id, {}).values():
            self._leaders.pop(partition_id, None)
            self._refs.pop(partition_id, None)

    def _tell(self) -> None:
        self.revision += 1
        for listener in self._listeners:
            listener()


def _heard(refresh: asyncio.Task[None]) -> None:
    if not refresh.cancelled():
        refresh.exception()  # those who asked may have left
