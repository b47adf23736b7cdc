"""What is asked of a broker, and what it answers: the broker's face to the server, free of any wire format."""

from dataclasses import dataclass
from enum import Enum

from tidelog.records.batch import Buffer


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """One append for one partition, accepted or refused as a whole (I4)."""

    topic: str
    partition: int
    batches: Buffer
    """Record batches, back to back. Not changed after the call."""
    timeout_ms: int = 0
    """After this its outcome is reported, whatever it is; 0: the broker's default."""
    max_latency_ms: int = 0
    """How long it may wait for company in a segment; 0: the broker's default."""
    expected_next_offset: int | None = None
    fencing_token: str | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """The append is committed at these offsets (those of the first attempt where it is a duplicate)."""

    base_offset: int
    next_offset: int
    duplicate: bool = False


class Bound(Enum):
    """A position that only the metadata store knows."""

    EARLIEST = "earliest"
    LATEST = "latest"


@dataclass(frozen=True, slots=True)
class AtTime:
    """The first record of this time or a later one; the partition's end where there is none."""

    timestamp_ms: int


Position = int | Bound | AtTime
"""An offset, or what has to be resolved into one."""


@dataclass(frozen=True, slots=True)
class OffsetFound:
    """An offset that a position stands for, and the time of the record there (-1 where there is none)."""

    offset: int
    timestamp_ms: int = -1


@dataclass(frozen=True, slots=True)
class Run:
    """A run of stamped batches of one partition, and its bounds as far as this broker knows."""

    batches: Buffer
    """Back to back; may begin before the offset asked for (clients skip); empty where there is nothing yet."""
    base_offset: int
    """Where the run begins: with its first batch, or with the offset asked for where a gap comes first."""
    next_offset: int
    """Where the next read goes on, also across gaps. Nothing between the two is left out."""
    high_watermark: int
    log_start_offset: int
