"""The order of one partition's appends, decided without sockets: a broker of a few lines answers."""

import asyncio
import itertools
import random
from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tidelog.client.acks import Ack
from tidelog.client.appends import SEQUENCES, Append, Batch, PartitionQueue
from tidelog.errors import (
    ConditionFailed,
    NotReady,
    OutcomeUnknown,
    OutOfOrderSequence,
    RecordTooLarge,
    Throttled,
    TidelogError,
    TimedOut,
    UnknownProducer,
)
from tidelog.records.batch import scan
from tidelog.records.codec import Producer as Identity
from tidelog.records.codec import decode_values

LATER = 1000.0


class Queue:
    """A queue under test, with what was released."""

    def __init__(self, *, idempotent: bool = True, sequence: int = 0) -> None:
        self.released = 0
        self.queue = PartitionQueue(
            "t", 0, compression="none", idempotent=idempotent, max_in_flight=5, chance=random.Random(1), released=self._release
        )  # fmt: skip
        if idempotent:
            self.queue.identify(Identity(7, 0, sequence))

    def _release(self, size: int) -> None:
        self.released += size

    def add(self, *values: bytes, deadline: float = LATER, expected: int | None = None) -> "asyncio.Future[Ack]":
        batch = Batch(opened_at_ms=5, deadline=deadline, expected_next_offset=expected)
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        batch.indices.append(0)
        batch.futures.append(future)
        for value in values:
            batch.add(value, None, (), None, len(value))
        self.queue.closed.append(batch)
        return future

    def take_all(self, now: float = 0) -> list[Append]:
        found = []
        while (append := self.queue.take(now)) is not None:
            found.append(append)
        return found


def sequence(append: Append) -> int:
    return scan(append.data)[0].base_sequence


def producer_id(append: Append) -> int:
    return scan(append.data)[0].producer_id


async def test_sequences_count_records_and_wrap_around_to_zero() -> None:
    q = Queue(sequence=SEQUENCES - 3)
    for count in (2, 4, 1):
        q.add(*[b"v"] * count)
    first, second = q.take_all()[:2]
    q.queue.succeeded(first, 0)
    q.queue.succeeded(second, 2)
    assert [sequence(first), sequence(second), q.queue.next_identity] == [SEQUENCES - 3, SEQUENCES - 1, Identity(7, 0, 4)]


async def test_no_more_than_five_are_unanswered_counted_from_the_oldest() -> None:
    q = Queue()
    for number in range(8):
        q.add(b"%d" % number)
    out = q.take_all()
    assert len(out) == 5
    for append in out[1:]:
        q.queue.succeeded(append, 1)
    assert q.take_all() == []  # the oldest is unanswered, and a broker remembers five
    q.queue.succeeded(out[0], 1)
    assert len(q.take_all()) == 3


async def started() -> tuple[Queue, list["asyncio.Future[Ack]"], list[Append]]:
    """Three in flight, after a first that is acknowledged."""
    q = Queue()
    q.add(b"first")
    q.queue.succeeded(q.take_all()[0], 0)
    futures = [q.add(b"%d" % number) for number in range(3)]
    return q, futures, q.take_all()


async def test_after_a_lost_stream_the_same_bytes_go_again_in_order_before_anything_new() -> None:
    q, _, out = await started()
    before = [append.data for append in out]
    q.queue.lost()
    q.add(b"new")
    again = q.take_all()
    assert [append.data for append in again[:3]] == before
    assert decode_values(again[3].data) == [b"new"]
    assert all(append.may_be_written for append in again[:3])


@pytest.mark.parametrize("error", [Throttled("x"), NotReady("x"), OutcomeUnknown("x")])
async def test_what_was_put_off_goes_again_only_when_all_is_answered_and_in_order(error: TidelogError) -> None:
    q, futures, out = await started()
    q.queue.refused(out[0], error, 0)
    q.add(b"new")
    assert q.take_all(10) == []
    q.queue.refused(out[1], OutOfOrderSequence("a gap"), 0)
    assert q.take_all(10) == []
    q.queue.refused(out[2], OutOfOrderSequence("a gap"), 0)
    assert q.take_all(10)[:3] == out
    for offset, append in enumerate(out):
        q.queue.succeeded(append, 1 + offset)
    assert [(await future).offset for future in futures] == [1, 2, 3]


async def test_it_waits_before_it_tries_again() -> None:
    q, _, out = await started()
    for append in out:
        q.queue.refused(append, Throttled("x"), 10)
    assert q.queue.resend_at > 10
    assert q.take_all(10) == []
    assert q.take_all(q.queue.resend_at) == out


async def test_a_refusal_fails_that_append_alone_and_what_follows_goes_under_a_new_identity() -> None:
    q, futures, out = await started()
    q.queue.refused(out[0], RecordTooLarge("x"), 0)
    with pytest.raises(RecordTooLarge):
        await futures[0]
    assert q.queue.wants_identity
    assert q.take_all() == []
    q.queue.identify(Identity(8, 0, 0))
    again = q.take_all()
    assert [producer_id(again[0]), sequence(again[0]), decode_values(again[0].data)] == [8, 0, [b"1"]]
    assert [sequence(append) for append in again] == [0, 1]


async def test_a_new_identity_waits_until_all_before_it_are_answered() -> None:
    q, _, out = await started()
    q.queue.refused(out[1], RecordTooLarge("x"), 0)
    q.queue.identify(Identity(8, 0, 0))
    assert q.take_all() == []
    q.queue.succeeded(out[0], 1)
    assert q.take_all() == [out[2]]


async def test_a_refusal_of_the_last_gives_its_sequences_back() -> None:
    q, _, out = await started()
    q.queue.refused(out[2], RecordTooLarge("x"), 0)
    q.queue.succeeded(out[0], 1)
    q.queue.succeeded(out[1], 2)
    q.add(b"new")
    (new,) = q.take_all()
    assert sequence(new) == sequence(out[2])
    assert not q.queue.wants_identity


async def test_a_refusal_of_what_may_be_written_is_unknown_not_failed() -> None:
    q, futures, _ = await started()
    q.queue.lost()
    again = q.take_all()
    q.queue.refused(again[0], ConditionFailed("x"), 0)
    for future in futures:
        with pytest.raises(OutcomeUnknown):
            await future
    assert not q.queue.unfinished
    q.add(b"new")
    assert q.queue.wants_identity


async def test_a_brokers_fault_says_nothing_of_what_was_done() -> None:
    q, futures, out = await started()
    q.queue.refused(out[0], TidelogError("an error that was not expected"), 0)
    with pytest.raises(OutcomeUnknown):
        await futures[0]


async def test_an_expired_producer_goes_on_under_a_new_identity_without_loss() -> None:
    q = Queue()
    q.add(b"first")
    q.queue.succeeded(q.take_all()[0], 0)
    future = q.add(b"late")
    (append,) = q.take_all()
    q.queue.refused(append, UnknownProducer("expired"), 0)
    assert q.queue.wants_identity
    q.queue.identify(Identity(9, 0, 0))
    (again,) = q.take_all(10)
    assert (producer_id(again), sequence(again), again is append) == (9, 0, True)
    q.queue.succeeded(again, 1)
    assert (await future).offset == 1


async def test_a_gap_that_cannot_be_repaired_fails_what_is_in_flight_as_what_it_is() -> None:
    q, futures, out = await started()
    q.queue.refused(out[0], OutcomeUnknown("x"), 0)
    for append in out[1:]:
        q.queue.refused(append, OutOfOrderSequence("a gap"), 0)
    (again, *_) = q.take_all(10)
    q.queue.refused(again, OutOfOrderSequence("still a gap"), 10)
    q.queue.lost()
    for future in futures:
        with pytest.raises(OutcomeUnknown):
            await future
    assert q.queue.next_identity is None


async def test_at_the_deadline_what_may_be_written_is_unknown_and_what_cannot_be_has_timed_out() -> None:
    q, futures, out = await started()
    never_sent = q.add(b"new", deadline=1)
    q.queue.closed[-1].deadline = 1
    for append in out:
        append.deadline = 1
    q.queue.refused(out[0], Throttled("x"), 0)
    q.queue.refused(out[1], OutOfOrderSequence("x"), 0)
    q.queue.expire(2)
    with pytest.raises(TimedOut):
        await futures[0]
    with pytest.raises(TimedOut):
        await futures[1]
    with pytest.raises(TimedOut):
        await futures[2]  # it was out, but cannot have passed the gap
    with pytest.raises(TimedOut):
        await never_sent
    assert not q.queue.unfinished


async def test_an_unanswered_append_is_unknown_at_its_deadline() -> None:
    q, futures, out = await started()
    out[0].deadline = 1
    q.queue.expire(2)
    for future in futures:
        with pytest.raises(OutcomeUnknown):
            await future
    assert q.queue.next_identity is None


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("answer", [None, OutcomeUnknown("x"), ConditionFailed("x"), UnknownProducer("x"), OutOfOrderSequence("x")])
async def test_an_answer_after_the_deadline_changes_nothing(answer: TidelogError | None, idempotent: bool) -> None:
    q = Queue(idempotent=idempotent)
    future = q.add(b"late", deadline=10)
    q.add(b"next")
    out = q.take_all()
    q.queue.expire(10)
    released = q.released
    if answer is None:
        q.queue.succeeded(out[0], 0)
    else:
        assert not q.queue.refused(out[0], answer, 11)
    assert isinstance(future.exception(), OutcomeUnknown)
    assert q.released == released, "once is enough: more would let the buffer grow beyond its limit"
    q.queue.identify(Identity(8, 0, 0))
    assert [decode_values(append.data) for append in q.take_all(11)] == ([] if idempotent else [[b"next"]])


async def test_a_conditional_append_travels_alone() -> None:
    q, _, out = await started()
    conditional = q.add(b"only if", expected=4)
    q.add(b"after")
    assert q.take_all() == []
    for offset, append in enumerate(out):
        q.queue.succeeded(append, offset + 1)
    (alone,) = q.take_all()
    assert alone.batch.expected_next_offset == 4
    q.queue.refused(alone, ConditionFailed("x"), 0)
    with pytest.raises(ConditionFailed):
        await conditional
    (after,) = q.take_all()
    assert sequence(after) == sequence(alone)


async def test_without_idempotence_one_is_in_flight_and_what_may_be_written_is_not_sent_again() -> None:
    q = Queue(idempotent=False)
    futures = [q.add(b"a"), q.add(b"b"), q.add(b"c")]
    (first,) = q.take_all()
    assert (producer_id(first), sequence(first)) == (-1, -1)
    q.queue.refused(first, Throttled("x"), 0)
    assert q.take_all(10) == [first]
    q.queue.lost()
    with pytest.raises(OutcomeUnknown):
        await futures[0]
    (second,) = q.take_all(10)
    q.queue.refused(second, OutcomeUnknown("x"), 10)
    with pytest.raises(OutcomeUnknown):
        await futures[1]
    assert len(q.take_all(10)) == 1


class Model:
    """One partition of a broker that keeps the contract: sequences, a window of five, gaps refused."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.states: dict[int, deque[tuple[int, int, int]]] = {}

    def append(self, data: bytes) -> int:
        (header,) = scan(data)
        state = self.states.get(header.producer_id)
        for first, _, offset in state or ():
            if first == header.base_sequence:
                return offset
        if state is None and header.base_sequence:
            raise UnknownProducer("x")
        if state is not None and header.base_sequence != state[-1][0] + state[-1][1]:
            raise OutOfOrderSequence("x")
        base = len(self.values)
        self.states.setdefault(header.producer_id, deque(maxlen=5)).append((header.base_sequence, header.record_count, base))
        self.values += decode_values(data)
        return base


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_happens_nothing_is_lost_doubled_reordered_or_falsely_reported(data: st.DataObject) -> None:
    """Values are acknowledged where they are; a failed one is nowhere; those of one kind of outcome stay in order."""

    async def play() -> None:
        q, model = Queue(), Model()
        futures: list[asyncio.Future[Ack]] = []
        on_the_way: list[tuple[int, Append, bytes]] = []
        stale: list[bytes] = []
        next_producer = 100
        request_ids = itertools.count(1)
        for step in range(data.draw(st.integers(5, 60))):
            if q.queue.wants_identity:
                next_producer += 1
                q.queue.identify(Identity(next_producer, 0, 0))
            do = data.draw(st.sampled_from(["add", "take", "answer", "answer", "throttle", "refuse", "unknown", "lose", "late", "expire"]))
            if do == "add":
                futures.append(q.add(b"%d" % len(futures), deadline=data.draw(st.sampled_from([LATER, step * 10.0 + 30]))))
            elif do == "take":
                for append in q.take_all(now=step * 10.0):
                    append.request_id = next(request_ids)
                    on_the_way.append((append.request_id, append, append.data))
            elif do == "expire":
                q.queue.expire(step * 10.0)
            elif do == "lose":
                stale += [sent for _, _, sent in on_the_way if data.draw(st.booleans())]
                q.queue.lost()
                on_the_way = []
            elif do == "late" and stale:  # what a dead stream carried arrives after all, in its order
                await settle(model, stale.pop(0))
            elif on_the_way and do in ("answer", "throttle", "refuse", "unknown"):
                request_id, append, sent = on_the_way.pop(0)  # brokers decide a partition's appends in order
                if append.request_id != request_id:
                    await settle(model, sent)  # it went on under a new identity meanwhile, and so the answer is not for it
                    continue
                if do == "throttle":
                    q.queue.refused(append, Throttled("x"), step * 10.0)
                    continue
                if do == "refuse":
                    q.queue.refused(append, RecordTooLarge("x"), step * 10.0)
                    continue
                if do == "unknown" and data.draw(st.booleans()):
                    q.queue.refused(append, OutcomeUnknown("x"), step * 10.0)
                    continue
                try:
                    offset = model.append(sent)
                except TidelogError as error:
                    q.queue.refused(append, error, step * 10.0)
                else:
                    if do == "unknown":
                        q.queue.refused(append, OutcomeUnknown("x"), step * 10.0)
                    else:
                        q.queue.succeeded(append, offset)
        for data_of_old in stale:
            await settle(model, data_of_old)
        found = [int(value or b"") for value in model.values]
        assert len(set(found)) == len(found)
        acknowledged = []
        for number, future in enumerate(futures):
            if not future.done():
                continue
            if future.exception() is None:
                assert found[future.result().offset] == number
                acknowledged.append(number)
            elif not isinstance(future.exception(), OutcomeUnknown):
                assert number not in found
        assert [number for number in found if number in set(acknowledged)] == acknowledged

    asyncio.run(play())


async def settle(model: Model, data: bytes) -> None:
    """Let bytes of a dead stream arrive; a refusal is heard by nobody."""
    try:
        model.append(data)
    except (UnknownProducer, OutOfOrderSequence):
        return
