"""Whether an append is accepted, and at which offsets: the leader's decision, without any I/O.

Made in the order in which references are taken, against the partition's committed state and everything that is pending
on top of it. What is pending may fall away (its writer ended); then all that follows is decided again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tidelog.broker.references import AppendReference, ProducerSequence, RefusedAppend
from tidelog.errors import ConditionFailed, OutOfOrderSequence, ProducerFenced, Throttled, UnknownProducer
from tidelog.metadata.leadership import LedPartition, ProducerWindow

WINDOW_BATCHES = 5
_SEQUENCES = 2**31


@dataclass(frozen=True, slots=True)
class Accept:
    """The append gets these offsets, once they are committed."""

    base_offset: int


@dataclass(frozen=True, slots=True)
class Join:
    """The append is a duplicate: it has the offsets of an earlier one, which may still be pending."""

    base_offset: int


Decision = Accept | Join | RefusedAppend


class PartitionState:
    """One led partition's end and producers: committed, and with what is pending."""

    def __init__(self, led: LedPartition, *, max_producers: int) -> None:
        self.next_offset = led.next_offset
        """Committed: the high watermark."""
        self.pending_next = led.next_offset
        self.fencing_token = led.fencing_token
        self._max_producers = max_producers
        self._committed = {window.producer_id: window for window in led.producers}
        self._pending: dict[int, ProducerWindow] = {}

    def decide(self, append: AppendReference) -> Decision:
        """Decide one append, and remember it as pending where it is accepted."""
        sequence = append.sequence
        if sequence is not None:
            window = self._pending.get(sequence.producer_id) or self._committed.get(sequence.producer_id)
            first_seen = _find(window, sequence)
            if first_seen is not None:
                return Join(first_seen)
            refusal = self._check_sequence(window, sequence)
            if refusal is not None:
                return refusal
        refusal = self._check_conditions(append)
        if refusal is not None:
            return refusal
        base_offset = self.pending_next
        self.pending_next += append.record_count
        if sequence is not None:
            self._pending[sequence.producer_id] = _with(window, sequence, base_offset)
        return Accept(base_offset)

    def roll_back(self) -> None:
        """Forget all that is pending; it is to be decided again."""
        self.pending_next = self.next_offset
        self._pending.clear()

    def committed(self, next_offset: int, windows: Mapping[int, ProducerWindow]) -> None:
        """Note that SQL has all up to `next_offset`, and these producers' windows."""
        self.next_offset = next_offset
        self._committed.update(windows)
        for producer_id, window in windows.items():
            if self._pending.get(producer_id) == window:
                del self._pending[producer_id]

    def window(self, producer_id: int) -> ProducerWindow:
        """Return a producer's window with all that is pending, as it is to be committed."""
        return self._pending.get(producer_id) or self._committed[producer_id]

    def forget_producer(self, producer_id: int) -> None:
        """Forget a producer that SQL has forgotten. What it has pending is remembered until it is committed."""
        self._committed.pop(producer_id, None)

    def _check_sequence(self, window: ProducerWindow | None, sequence: ProducerSequence) -> RefusedAppend | None:
        who = f"producer {sequence.producer_id}"
        if window is None:
            if sequence.first != 0:
                return _refused(
                    UnknownProducer,
                    f"{who} appended from sequence {sequence.first}, but the partition remembers nothing of it: its state has expired,"
                    " or its first append never arrived; get a new producer id",
                )
            if self._full():
                return _refused(
                    Throttled,
                    f"{who} is new, but the partition remembers {self._max_producers} producers already (max_producers_per_partition);"
                    " use fewer producers, or let unused ones expire",
                )
            return None
        if sequence.producer_epoch < window.producer_epoch:
            return _refused(
                ProducerFenced,
                f"{who} appended in its epoch {sequence.producer_epoch}, but epoch {window.producer_epoch} has begun; stop this producer",
            )
        expected = 0 if sequence.producer_epoch > window.producer_epoch else (window.batches[-1][1] + 1) % _SEQUENCES
        if sequence.first != expected:
            return _refused(
                OutOfOrderSequence,
                f"{who} appended from sequence {sequence.first}, but {expected} comes next; an append before it is missing, or this one"
                f" is older than the last {WINDOW_BATCHES} that are remembered",
            )
        return None

    def _full(self) -> bool:
        """Say whether no more producers can be remembered. Counts those that are in both only where it matters: it takes long."""
        most = self._max_producers
        return len(self._committed) + len(self._pending) >= most and len(self._committed.keys() | self._pending.keys()) >= most

    def _check_conditions(self, append: AppendReference) -> RefusedAppend | None:
        if append.expected_next_offset is not None and append.expected_next_offset != self.pending_next:
            return _refused(
                ConditionFailed,
                f"the append expected the partition to end at offset {append.expected_next_offset}, but it ends at {self.pending_next};"
                " read what came in between, and decide again",
            )
        if append.fencing_token is not None and append.fencing_token != self.fencing_token:
            return _refused(
                ConditionFailed, "the append showed a fencing token that is not the partition's; somebody else has taken over: stop"
            )
        return None


def _find(window: ProducerWindow | None, sequence: ProducerSequence) -> int | None:
    if window is None or window.producer_epoch != sequence.producer_epoch:
        return None
    for first, last, base_offset in window.batches:
        if first == sequence.first and last == sequence.last:
            return base_offset
    return None


def _with(window: ProducerWindow | None, sequence: ProducerSequence, base_offset: int) -> ProducerWindow:
    before = () if window is None or window.producer_epoch != sequence.producer_epoch else window.batches
    batches = (*before, (sequence.first, sequence.last, base_offset))
    return ProducerWindow(sequence.producer_id, sequence.producer_epoch, batches[-WINDOW_BATCHES:])


def _refused(
    error: type[ConditionFailed | OutOfOrderSequence | ProducerFenced | Throttled | UnknownProducer], message: str
) -> RefusedAppend:
    return RefusedAppend(error.reason, message)
