"""What a rebuild says: what came back, and what could not be known."""

from dataclasses import dataclass, field
from typing import Literal

Newer = Literal["append", "aside"]
"""What becomes of records that may have been committed after the checkpoint."""


@dataclass(frozen=True, slots=True)
class UnknownOrder:
    """Records of one partition that are newer than the checkpoint: whether they were all acknowledged, and in which order, is not known."""

    topic: str
    partition: int
    records: int
    bytes: int
    segments: int
    base_offset: int | None
    """Where they were appended; None: left aside."""
    next_offset: int | None
    duplicates: int
    """Batches that were left out because an idempotent producer had sent them before, or because a merged segment has them."""


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets of one partition, and what is the matter with them."""

    topic: str
    partition: int
    base_offset: int
    next_offset: int
    problem: str


@dataclass
class Report:
    """What was rebuilt, and what could not be known."""

    cluster_id: str = ""
    checkpoint: str = ""
    checkpoint_taken_at_ms: int = 0
    """What segments do not tell (topics and their settings, tokens, deletes of records, groups' offsets) is as of then."""
    drained: bool = False
    """Whether the checkpoint was taken when the last broker had drained, and nothing shows that one has begun since."""
    dry_run: bool = False
    newer: Newer = "append"
    topics: int = 0
    partitions: int = 0
    extents: int = 0
    exact_records: int = 0
    """Records that are there, and whose offsets are certain."""
    producers: int = 0
    producers_forgotten: int = 0
    """Idempotent producers that appended after the checkpoint: their state is not known, so they are refused, and begin anew."""
    group_offsets: int = 0
    next_broker_epoch: int = 0
    next_producer_id: int = 0
    commit_count: int = 0
    unknown_order: list[UnknownOrder] = field(default_factory=list)
    log_starts_moved: list[OffsetRange] = field(default_factory=list)
    missing: list[OffsetRange] = field(default_factory=list)
    unplaced: list[OffsetRange] = field(default_factory=list)
    unknown_topics: dict[str, int] = field(default_factory=dict)
    """Records in segments of topics that no checkpoint tells of, by topic id: made after it, or dropped before."""
    damaged: list[str] = field(default_factory=list)
    """Objects that were to be used and could not, with what is wrong with each."""
    aside: list[str] = field(default_factory=list)
    """Keys of the segments with records that have found no place, damaged ones included. Each was copied below `aside/`."""

    @property
    def certain(self) -> bool:
        """Whether nothing is in doubt: what segments do not tell can only have changed while a broker was there."""
        return self.exact and self.drained

    @property
    def exact(self) -> bool:
        """Whether all records that were found are at the offsets that they were acknowledged with."""
        return self.whole and not self.unknown_order

    @property
    def whole(self) -> bool:
        """Whether all that was found has its place; else records are lost or left aside, and somebody has to look after them."""
        return not (self.log_starts_moved or self.missing or self.unplaced or self.unknown_topics or self.damaged)

    def of_unknown_topic(self, topic_id: str, records: int) -> None:
        """Count records of a topic that no checkpoint tells of."""
        self.unknown_topics[topic_id] = self.unknown_topics.get(topic_id, 0) + records
