"""What travels between an intake and a leader: references to uploaded bytes, and the answers to them.

The rules of this protocol, each of which a model of it showed necessary:

- A reference names the leader epoch it is sent to; a leader refuses any other.
- References from one intake to one partition are numbered per leader epoch, taken only in that order, and carry the
  lowest number still wanted. After "not now" all outstanding ones are sent again, in order.
- Those that were tried under an earlier leader epoch are looked up before they are decided.
- A refusal is final only from the highest leader epoch that the reference was sent to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tidelog.metadata.extents import Extent
from tidelog.metadata.membership import Broker


@dataclass(frozen=True, slots=True)
class ProducerSequence:
    """Which of an idempotent producer's appends this is. Sequences wrap from 2³¹ - 1 to 0."""

    producer_id: int
    producer_epoch: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class AppendReference:
    """One append's bytes in a chunk, and what its acceptance depends on."""

    position: int
    """Bytes, from the object's first."""
    length: int
    record_count: int
    max_timestamp_ms: int
    sequence: ProducerSequence | None = None
    expected_next_offset: int | None = None
    fencing_token: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """The appends of one partition in one uploaded segment, in order, as sent to one leader epoch."""

    partition_id: int
    broker_epoch: int
    """Of the writer; with `sequence` it names the segment."""
    sequence: int
    leader_epoch: int
    number: int
    """Its place among this intake's references to this partition in this leader epoch, from 0."""
    lowest_wanted: int
    """The lowest number whose answer the intake still waits for."""
    tried_epoch: int
    """The highest earlier leader epoch it was sent to; 0 for none."""
    resolved_sequence: int
    """The intake wants no answer any more of this segment of its own, nor of any before it."""
    appends: tuple[AppendReference, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The append is committed at these offsets. A duplicate has those of the append that was first."""

    base_offset: int
    next_offset: int
    leader_epoch: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class RefusedAppend:
    """The append was refused by the leader; `reason` is an error's stable reason (`tidelog.errors`)."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can say: the writer's epoch ended, or its sequence was resolved, before the append was seen committed (I5)."""

    message: str


AppendOutcome = Accepted | RefusedAppend | Unknown


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one reference: an outcome for each of its appends; or None: not now, nothing was decided for good."""

    partition_id: int
    broker_epoch: int
    """Of the writer."""
    leader_epoch: int
    number: int
    outcomes: tuple[AppendOutcome, ...] | None


@dataclass(frozen=True, slots=True)
class CommittedExtents:
    """News of a partition, from its leader to those who follow it. A gap to what one knows is filled from SQL."""

    partition_id: int
    extents: tuple[Extent, ...]
    high_watermark: int
    log_start_offset: int


class AnswerReceiver(Protocol):
    """The intake's end of a link."""

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take answers, in any order."""
        ...

    def broken(self) -> None:
        """The link is gone: what was not answered may or may not have arrived."""
        ...


class ReferenceLink(Protocol):
    """An ordered stream of references to one leader."""

    def send(self, references: Sequence[Reference]) -> None:
        """Send; never blocks. Does nothing on a link that is broken."""
        ...

    def close(self) -> None:
        """End the link; `broken` is not called for it."""
        ...


class FeedReceiver(Protocol):
    """The follower's end of a feed."""

    def committed(self, news: CommittedExtents) -> None:
        """Take news of one partition."""
        ...

    def broken(self) -> None:
        """The feed is gone; news may have been missed."""
        ...


class FeedLink(Protocol):
    """A feed of one leader's commits."""

    def follow(self, partition_ids: Sequence[int]) -> None:
        """Ask for news of these partitions, too.

        Each is answered at once by news of nothing (no extents, bounds 0): whatever is committed from then on is told.
        Nothing is said of what was committed before: that is asked of SQL, after this answer.
        """
        ...

    def unfollow(self, partition_ids: Sequence[int]) -> None:
        """Ask for no more news of these partitions."""
        ...

    def close(self) -> None:
        """End the feed; `broken` is not called for it."""
        ...


class Peers(Protocol):
    """The port to other brokers. Implementations: gRPC (`server.peers`), a simulator's network."""

    def references(self, broker: Broker, receiver: AnswerReceiver) -> ReferenceLink:
        """Open a link to a broker; returns at once, failures arrive as `broken`."""
        ...

    def feed(self, broker: Broker, receiver: FeedReceiver) -> FeedLink:
        """Open a feed from a broker; returns at once, failures arrive as `broken`."""
        ...

    def nudge(self, broker: Broker) -> None:
        """Tell a broker to look at leadership and membership now rather than at its next poll. May get lost."""
        ...
