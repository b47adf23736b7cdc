"""The leader's decisions: pure, in order, against what is committed and what is pending."""

import pytest
from tidelog.broker.decisions import Accept, Decision, Join, PartitionState
from tidelog.broker.references import AppendReference, ProducerSequence, RefusedAppend
from tidelog.metadata.leadership import LedPartition, ProducerWindow

MOST = 2**31 - 1


def state(*windows: ProducerWindow, next_offset: int = 10, token: str | None = None, max_producers: int = 100) -> PartitionState:
    return PartitionState(LedPartition(1, "t", 0, 1, 0, next_offset, token, windows), max_producers=max_producers)


def append(sequence: int | None = None, *, count: int = 1, producer: int = 7, epoch: int = 0, **conditions: object) -> AppendReference:
    who = None if sequence is None else ProducerSequence(producer, epoch, sequence, (sequence + count - 1) % (MOST + 1))
    return AppendReference(8, 100, count, 0, who, **conditions)  # type: ignore[arg-type]


def reason(decision: Decision) -> str:
    assert isinstance(decision, RefusedAppend)
    return decision.reason


def test_offsets_follow_what_is_pending() -> None:
    at = state()
    assert [at.decide(append(count=3)), at.decide(append()), at.next_offset] == [Accept(10), Accept(13), 10]


def test_a_duplicate_of_what_is_pending_joins_it() -> None:
    at = state()
    assert at.decide(append(0, count=5)) == Accept(10)
    assert at.decide(append(0, count=5)) == Join(10)
    at.committed(15, {7: at.window(7)})
    assert at.decide(append(0, count=5)) == Join(10)


def test_sequences_wrap_and_five_batches_are_remembered() -> None:
    at = state(ProducerWindow(7, 0, ((MOST - 1, MOST - 1, 3),)))
    assert at.decide(append(MOST, count=3)) == Accept(10)
    assert [at.decide(append(sequence)) for sequence in (2, 3, 4, 5)] == [Accept(offset) for offset in (13, 14, 15, 16)]
    assert at.decide(append(MOST, count=3)) == Join(10)
    assert at.decide(append(6)) == Accept(17)
    assert reason(at.decide(append(MOST, count=3))) == "OUT_OF_ORDER_SEQUENCE"


def test_gaps_strangers_and_earlier_epochs_are_refused_and_change_nothing() -> None:
    at = state(ProducerWindow(7, 4, ((0, 0, 3),)))
    assert reason(at.decide(append(2, epoch=4))) == "OUT_OF_ORDER_SEQUENCE"
    assert reason(at.decide(append(0, epoch=3))) == "PRODUCER_FENCED"
    assert reason(at.decide(append(1, epoch=5))) == "OUT_OF_ORDER_SEQUENCE"
    assert reason(at.decide(append(3, producer=8))) == "UNKNOWN_PRODUCER"
    assert at.decide(append(1, epoch=4)) == Accept(10)
    assert at.decide(append(0, epoch=5)) == Accept(11)


def test_conditions_look_at_what_is_pending_and_at_the_token() -> None:
    at = state(token="mine")
    assert at.decide(append(expected_next_offset=10)) == Accept(10)
    assert reason(at.decide(append(expected_next_offset=10))) == "CONDITION_FAILED"
    assert at.decide(append(expected_next_offset=11, fencing_token="mine")) == Accept(11)
    assert reason(at.decide(append(fencing_token="other"))) == "CONDITION_FAILED"


def test_what_fell_away_is_decided_again_as_if_it_had_never_been() -> None:
    at = state()
    assert [at.decide(append(0)), at.decide(append(0))] == [Accept(10), Join(10)]
    at.roll_back()
    assert at.decide(append(0)) == Accept(10)


def test_a_commit_leaves_later_appends_pending() -> None:
    at = state()
    at.decide(append(0))
    first = at.window(7)
    at.decide(append(1))
    at.committed(11, {7: first})
    assert at.decide(append(2)) == Accept(12)
    at.roll_back()
    assert at.decide(append(1)) == Accept(11)


def test_producers_are_counted_once_whether_committed_or_pending() -> None:
    at = state(ProducerWindow(1, 0, ((0, 0, 1),)), ProducerWindow(2, 0, ((0, 0, 2),)), max_producers=3)
    for producer in (1, 2):
        assert isinstance(at.decide(append(1, producer=producer)), Accept)
    assert isinstance(at.decide(append(0, producer=3)), Accept), "the third, though the first two have more pending"
    refused = at.decide(append(0, producer=4))
    assert reason(refused) == "THROTTLED"


@pytest.mark.parametrize("sequence", [0, 1])
def test_a_forgotten_producer_begins_anew_or_not_at_all(sequence: int) -> None:
    at = state(ProducerWindow(7, 0, ((0, 0, 3),)))
    at.forget_producer(7)
    decision = at.decide(append(sequence))
    assert decision == Accept(10) if sequence == 0 else reason(decision) == "UNKNOWN_PRODUCER"
