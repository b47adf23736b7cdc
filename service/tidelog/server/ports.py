"""What the server needs of a broker. `broker.broker.Broker` is one."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tidelog.broker.cleaning_plan import CleaningPlan
from tidelog.broker.references import AnswerReceiver, CommittedExtents, Reference
from tidelog.broker.requests import Appended, AppendRequest, OffsetFound, Position, Run
from tidelog.metadata.membership import Broker as Member
from tidelog.metadata.membership import Membership
from tidelog.metadata.topics import PartitionState, Topic, TopicConfig


class Cursor(Protocol):
    """One partition as a reader follows it."""

    @property
    def high_watermark(self) -> int:
        """Where the committed log ends, as far as this broker knows."""
        ...

    async def resolve(self, position: Position) -> int:
        """Return the offset that a position stands for now. Raises OffsetOutOfRange, MetadataUnavailable."""
        ...

    async def read(self, offset: int, *, max_bytes: int) -> Run:
        """Return committed batches from `offset` on, about `max_bytes` of them but at least one; empty at the high watermark.

        Raises OffsetOutOfRange, StoreError, MetadataError, CorruptSegment.
        """
        ...

    async def wait(self, offset: int) -> None:
        """Wait until the high watermark may lie beyond `offset`."""
        ...


class LedgerSession(Protocol):
    """A leader's end of a link from another broker's intake."""

    def offer(self, references: Sequence[Reference]) -> None:
        """Take references, in order; answers go to the receiver given at the opening."""
        ...

    def close(self) -> None:
        """The link is gone; nobody waits for answers any more."""
        ...


class FeedSession(Protocol):
    """A leader's end of a feed."""

    def follow(self, partition_ids: Sequence[int]) -> None:
        """Send news of these partitions."""
        ...

    def unfollow(self, partition_ids: Sequence[int]) -> None:
        """Send no more news of these partitions."""
        ...

    def close(self) -> None:
        """The feed is gone."""
        ...


class NewsReceiver(Protocol):
    """Where a feed's news goes."""

    def committed(self, news: CommittedExtents) -> None:
        """Take news of one partition."""
        ...


class LogBroker(Protocol):
    """A broker, as the server drives it. All errors are those of `tidelog.errors`."""

    # ---- produce
    def append(self, request: AppendRequest) -> "asyncio.Future[Appended]":
        """Take an append. What can be refused at once is raised; the future holds its outcome. Cancelling it cancels nothing (I5).

        Raises UnknownTopic and UnknownPartition as far as this broker knows: `ensure_topic` finds out.
        """
        ...

    async def ensure_topic(self, topic: str) -> Topic:
        """Return a topic that `append` does not know yet: asks SQL, and makes it where topics are made on first use."""
        ...

    def topic(self, name: str) -> Topic | None:
        """Return a topic as far as this broker knows without asking; None where it does not."""
        ...

    async def init_producer(self) -> tuple[int, int]:
        """Return a new producer id, and its epoch."""
        ...

    async def set_fencing_token(self, topic: str, partition: int, token: str | None, *, expected: str | None) -> int:
        """Set the token that fenced appends must show; return where the partition ended then. Raises ConditionFailed."""
        ...

    # ---- consume
    def follow(self, topic: str, partition: int) -> AbstractAsyncContextManager[Cursor]:
        """Follow a partition while the context is open. Raises UnknownTopic, UnknownPartition."""
        ...

    async def list_offset(self, topic: str, partition: int, position: Position) -> OffsetFound:
        """Return the offset that a position stands for; SQL is asked."""
        ...

    # ---- administration
    async def create_topic(self, name: str, *, partitions: int, config: TopicConfig) -> Topic:
        """Create a topic; 0 partitions stand for the default. Raises InvalidRequest, TopicExists."""
        ...

    async def delete_topic(self, name: str) -> None:
        """Delete a topic. Raises UnknownTopic."""
        ...

    async def alter_topic(self, name: str, *, config: TopicConfig) -> Topic:
        """Set what a topic keeps. Raises UnknownTopic."""
        ...

    async def create_partitions(self, name: str, *, partitions: int) -> Topic:
        """Raise a topic's number of partitions. Raises UnknownTopic, InvalidRequest."""
        ...

    async def topics(self, names: Sequence[str] | None) -> Sequence[Topic]:
        """Return the topics of these names that exist, or all; SQL is asked."""
        ...

    async def partitions(self, topic_id: str) -> Sequence[PartitionState]:
        """Return a topic's partitions; SQL is asked."""
        ...

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        """Move the log start forward (-1: to the high watermark); return it."""
        ...

    async def membership(self) -> Membership:
        """Return the members; SQL is asked."""
        ...

    async def led_partitions(self) -> dict[int, int]:
        """Return how many partitions each broker epoch leads."""
        ...

    async def drain(self, broker_id: str, *, undo: bool) -> tuple[bool, int]:
        """Mark a broker as draining, or not; return whether it leads nothing any more, and how many partitions it still leads."""
        ...

    async def plan_cleaning(self, most: int) -> CleaningPlan:
        """Say what a cleaner would delete now, and why, looking at up to `most` objects."""
        ...

    def member(self) -> Member | None:
        """Return this broker as a member; None while it has no epoch."""
        ...

    def cluster_id(self) -> str:
        """Return the cluster's id."""
        ...

    # ---- other brokers
    def references_from(self, writer_epoch: int, receiver: AnswerReceiver) -> LedgerSession:
        """Open the leader's end of a link."""
        ...

    def feed_to(self, receiver: NewsReceiver) -> FeedSession:
        """Open the leader's end of a feed."""
        ...

    def nudge(self) -> None:
        """Look at leadership and membership now."""
        ...

    # ---- health
    def ready(self) -> str | None:
        """Return None where this broker takes appends, else why not, in a sentence."""
        ...
