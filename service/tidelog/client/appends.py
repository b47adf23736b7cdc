"""One partition's appends on their way: gathered, built once, in flight in order, answered, sent again.

Decides, and knows nothing of streams or brokers: `take` gives what is to be written next, and the producer tells what
became of it. What keeps records in order and neither lost nor doubled (I4, I5):

- An append's bytes are built once. At most `max_in_flight` are unanswered, counted from the oldest, as brokers remember
  so many of a producer.
- Where something has to be sent again, nothing goes out until all that is out has been answered (or its stream is
  gone); then all that is unanswered goes again, in order, before anything new.
- An append *may be written* from the moment that an attempt's answer is lost, or says so. Then it is sent again as it
  is until its deadline, and is never reported as failed.
- A refusal leaves a gap in the sequences, which nothing that follows can pass. So what follows was not written; it
  goes on under a new identity, with its bytes' header written anew. The first append of an identity leads: it waits
  until all before it are answered.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum

from tidelog.client.acks import Ack
from tidelog.client.backoff import pause_s
from tidelog.client.inputs import Headers
from tidelog.errors import InvalidRequest, OutcomeUnknown, OutOfOrderSequence, ProducerFenced, TidelogError, TimedOut, UnknownProducer
from tidelog.randomness import Random
from tidelog.records.codec import Producer as Identity
from tidelog.records.codec import Record, encode, encode_many, reassigned

SEQUENCES = 1 << 31
_LEAVE_AFTER_ATTEMPTS = 3


class Batch:
    """Records of one partition that travel together, as columns; a column that nothing needs is None."""

    __slots__ = (
        "deadline", "due", "ended", "expected_next_offset", "finished", "futures", "headers", "indices", "is_plain", "keys", "opened_at_ms",
        "size", "timestamps", "values",
    )  # fmt: skip

    def __init__(self, *, opened_at_ms: int, deadline: float, expected_next_offset: int | None = None) -> None:
        self.opened_at_ms = opened_at_ms
        self.deadline = deadline
        self.expected_next_offset = expected_next_offset
        self.due = False
        self.ended = False
        self.is_plain = True
        """Values are all there is."""
        self.size = 0
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] | None = None
        self.timestamps: list[int] | None = None
        self.headers: list[Headers] | None = None
        self.indices: list[int] = []
        self.futures: list[asyncio.Future[Ack]] = []
        """Each waits for the record of the index beside it."""
        self.finished: asyncio.Future[None] | None = None

    def add(self, value: bytes | None, key: bytes | None, headers: Headers, timestamp_ms: int | None, size: int) -> None:
        """Add one record."""
        self.is_plain = False
        before = len(self.values)
        self.values.append(value)
        self.size += size
        if key is not None or self.keys is not None:
            if self.keys is None:
                self.keys = [None] * before
            self.keys.append(key)
        if timestamp_ms is not None or self.timestamps is not None:
            if self.timestamps is None:
                self.timestamps = [self.opened_at_ms] * before
            self.timestamps.append(self.opened_at_ms if timestamp_ms is None else timestamp_ms)
        if headers or self.headers is not None:
            if self.headers is None:
                self.headers = [()] * before
            self.headers.append(headers)

    def add_many(self, values: list[bytes | None], keys: list[bytes | None] | None, timestamps: list[int] | None, size: int) -> None:
        """Add columns of records without headers; the lists are the batch's from now on."""
        self.is_plain = self.is_plain and keys is None and timestamps is None
        before, more = len(self.values), len(values)
        if before:
            self.values += values
        else:
            self.values = values
        self.size += size
        if keys is not None or self.keys is not None:
            self.keys = [None] * before if self.keys is None else self.keys
            self.keys += keys if keys is not None else [None] * more
        if timestamps is not None or self.timestamps is not None:
            self.timestamps = [self.opened_at_ms] * before if self.timestamps is None else self.timestamps
            self.timestamps += timestamps if timestamps is not None else [self.opened_at_ms] * more
        if self.headers is not None:
            self.headers += [()] * more

    def encode(self, compression: str, identity: Identity) -> bytes:
        """Return the batch's bytes."""
        if self.headers is None:
            times = self.opened_at_ms if self.timestamps is None else self.timestamps
            return encode_many(self.values, keys=self.keys, timestamps_ms=times, compression=compression, producer=identity)
        count = len(self.values)
        rows = zip(self.values, self.keys or [None] * count, self.timestamps or [self.opened_at_ms] * count, self.headers, strict=True)
        records = [Record(value, key, timestamp, tuple(headers)) for value, key, timestamp, headers in rows]
        return encode(records, compression=compression, producer=identity)

    def succeed(self, topic: str, partition: int, base_offset: int) -> None:
        """Tell all who wait where their records are."""
        times, opened = self.timestamps, self.opened_at_ms
        for index, future in zip(self.indices, self.futures, strict=True):
            if not future.done():
                future.set_result(Ack(topic, partition, base_offset + index, opened if times is None else times[index]))
        self._end()

    def fail(self, error: TidelogError) -> None:
        """Tell all who wait why not."""
        for future in self.futures:
            if not future.done():
                future.set_exception(error)
        self._end()

    def _end(self) -> None:
        self.ended = True
        self.futures = []
        if self.finished is not None and not self.finished.done():
            self.finished.set_result(None)


class State(Enum):
    """Of an append in the window."""

    WAITING = "to be sent, for the first time or again"
    OUT = "sent, and not answered"
    DONE = "answered, but something before it is not"


class Append:
    """A batch as bytes."""

    __slots__ = ("attempts", "batch", "count", "data", "deadline", "identity", "may_be_written", "request_id", "sent_as_head", "state")

    def __init__(self, batch: Batch, data: bytes, identity: Identity) -> None:
        self.batch = batch
        self.data = data
        self.count = len(batch.values)
        self.deadline = batch.deadline
        self.identity: Identity | None = identity
        self.state = State.WAITING
        self.may_be_written = False
        self.sent_as_head = False
        self.attempts = 0
        self.request_id = 0
        batch.values, batch.keys, batch.headers = [], None, None  # the bytes have them

    @property
    def leads(self) -> bool:
        """Whether it waits until all before it are answered: as the first of an identity (or, harmlessly, after a wrap-around)."""
        return self.alone or self.identity is None or self.identity.base_sequence == 0

    @property
    def alone(self) -> bool:
        """Whether nothing may be sent behind it: it may well be refused, and then leaves no gap."""
        return self.batch.expected_next_offset is not None


class PartitionQueue:
    """The appends of one partition.

    `released` is told the bytes of each batch that ended, whichever way.
    """

    def __init__(
        self, topic: str, partition: int, *, compression: str, idempotent: bool, max_in_flight: int, chance: Random,
        released: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.topic = topic
        self.partition = partition
        self.listed = False
        self.open: Batch | None = None
        self.closed: deque[Batch] = deque()
        self.window: deque[Append] = deque()
        self.next_identity: Identity | None = None if idempotent else Identity()
        """Under which, and with which sequence, the next batch is built; None: it has to be asked for."""
        self.resend_at = 0.0
        self.identifying = False
        """Whether a new identity is being asked for."""
        self._idempotent = idempotent
        self._compression = compression
        self._max_in_flight = max_in_flight if idempotent else 1  # without sequences, one at a time keeps order
        self._chance = chance
        self._released = released
        self._repairing = False
        self._unrepairable: TidelogError | None = None

    # ---- what is there

    @property
    def has_room(self) -> bool:
        """Whether a batch that is due could go at once."""
        return len(self.window) + len(self.closed) < self._max_in_flight

    @property
    def wants_identity(self) -> bool:
        """Whether there is something that only a new identity can send."""
        return self.next_identity is None and self.unfinished

    @property
    def unfinished(self) -> bool:
        """Whether anything is not answered."""
        return bool(self.window or self.closed or self.open)

    def batches(self) -> list[Batch]:
        """Return all that is not answered."""
        found = [append.batch for append in self.window if append.state is not State.DONE]
        return found + list(self.closed) + ([self.open] if self.open else [])

    def close_open(self) -> None:
        """Let the open batch take no more."""
        if self.open is not None:
            self.closed.append(self.open)
            self.open = None

    # ---- out

    def identify(self, identity: Identity) -> None:
        """Go on under a new identity, from its first sequence; what waits for one is given it."""
        self.next_identity = identity
        for append in self.window:
            if append.identity is None:
                append.identity = self._claim(append.count)
                append.data = reassigned(append.data, append.identity)

    def _claim(self, count: int) -> Identity:
        """Return the identity with sequences for so many records."""
        identity = self.next_identity
        assert identity is not None
        if self._idempotent:
            following = (identity.base_sequence + count) % SEQUENCES
            self.next_identity = Identity(identity.producer_id, identity.producer_epoch, following)
        return identity

    def take(self, now: float) -> Append | None:
        """Return the append to be written next, which is out from now on; None where there is none yet."""
        if self._repairing:
            if self._unrepairable or now < self.resend_at or any(append.state is State.OUT for append in self.window):
                return None
            self._repairing = False
        for append in self.window:
            if append.state is State.WAITING:
                return self._send(append)
            if append.alone and append.state is State.OUT:
                return None
        if self.next_identity is None or len(self.window) >= self._max_in_flight:
            return None
        made = self._build()
        return None if made is None else self._send(made)

    def _send(self, append: Append) -> Append | None:
        head = append is self.window[0]
        if append.identity is None or (append.leads and not head):
            return None
        append.state = State.OUT
        append.sent_as_head = head
        append.attempts += 1
        return append

    def _build(self) -> Append | None:
        while True:
            if not self.closed:
                if self.open is None or not self.open.due:
                    return None
                self.close_open()
            batch = self.closed.popleft()
            identity = self._claim(len(batch.values))
            try:
                append = Append(batch, batch.encode(self._compression, identity), identity)
            except Exception as error:  # noqa: BLE001  nothing of it has left, whatever is wrong with it: its sequences are given back
                self.next_identity = identity
                self._fail(batch, error if isinstance(error, TidelogError) else _unfit(error))
                continue
            self.window.append(append)
            return append

    # ---- back

    def succeeded(self, append: Append, base_offset: int) -> None:
        """Take the answer that an append is committed, now or by an earlier attempt."""
        if append.batch.ended:
            return  # too late: it was reported as unknown
        append.state = State.DONE
        append.batch.succeed(self.topic, self.partition, base_offset)
        self._released(append.batch.size)
        self._settle()

    def refused(self, append: Append, error: TidelogError, now: float) -> bool:
        """Take the answer that an append is not committed, or may be; return whether another broker should be asked."""
        if append.batch.ended:
            return False
        append.state = State.WAITING
        if isinstance(error, OutcomeUnknown) or type(error) is TidelogError:  # a broker's fault says nothing of what was done
            append.may_be_written = True
        if error.retriable and (self._idempotent or not append.may_be_written):
            self._again(now, append.attempts)
            return append.attempts % _LEAVE_AFTER_ATTEMPTS == 0
        if isinstance(error, OutOfOrderSequence | UnknownProducer | ProducerFenced):
            if append.sent_as_head:
                self._unrepairable = error
            self._again(now, append.attempts if append.sent_as_head else 0)
        elif append.may_be_written:
            self._give_up(append, error)
        else:
            self._drop(append, error)
        self._settle()
        return False

    def lost(self) -> None:
        """Take it that the stream is gone: what was out may be written."""
        for append in list(self.window):
            if append.state is State.OUT:
                append.state = State.WAITING
                append.may_be_written = True
                if not self._idempotent:
                    self._give_up(append, OutcomeUnknown("the connection broke"))
        self._settle()

    def expire(self, now: float) -> None:
        """End what has passed its deadline."""
        while head := next((append for append in self.window if append.state is not State.DONE and append.deadline <= now), None):
            if head.may_be_written or head.state is State.OUT:
                self._give_up(head, OutcomeUnknown("no answer came in time"))
            else:
                self._drop(head, TimedOut(f"{self._named(head.count)} could not be appended in time; it was not written; try again later"))
        while self.batches_waiting and self.batches_waiting[0].deadline <= now:
            batch = self.closed.popleft() if self.closed else self._pop_open()
            self._fail(batch, TimedOut(f"{self._named(len(batch.values))} could not be sent in time; it was not written; try again later"))
        self._settle()

    @property
    def batches_waiting(self) -> list[Batch]:
        """Batches that are not built yet."""
        return list(self.closed) + ([self.open] if self.open else [])

    def fail_all(self, error: TidelogError) -> None:
        """End everything: as unknown what may be written, with `error` what is not."""
        for append in list(self.window):
            if append.state is not State.DONE:
                doubtful = append.may_be_written or append.state is State.OUT
                self._fail(append.batch, self._unknown(append, error) if doubtful else error)
        if any(append.state is not State.DONE for append in self.window):
            self._forget_identity()
        self.window.clear()
        while self.batches_waiting:
            self._fail(self.closed.popleft() if self.closed else self._pop_open(), error)
        self._repairing, self._unrepairable = False, None

    # ---- decisions

    def _again(self, now: float, attempts: int) -> None:
        self._repairing = True
        self.resend_at = max(self.resend_at, now + pause_s(attempts, self._chance)) if attempts else self.resend_at

    def _settle(self) -> None:
        """Let go of answered heads, and begin anew where repair has failed and nothing is out any more."""
        while self.window and self.window[0].state is State.DONE:
            self.window.popleft()
        if not self.window:
            self._repairing, self.resend_at = False, 0.0
        if self._unrepairable is None or any(append.state is State.OUT for append in self.window):
            return
        error, self._unrepairable = self._unrepairable, None
        unanswered = [append for append in self.window if append.state is not State.DONE]
        self._forget_identity()
        if any(append.may_be_written for append in unanswered):
            for append in unanswered:
                self._fail(append.batch, self._unknown(append, error) if append.may_be_written else error)
            self.window.clear()
        else:  # each was refused by a broker: nothing is written, and all can go under a new identity
            for append in unanswered:
                append.identity = None

    def _drop(self, append: Append, error: TidelogError) -> None:
        """End an append that is not written and never will be."""
        behind = self._behind(append)
        self.window.remove(append)
        self._fail(append.batch, error)
        if not self._idempotent:
            return
        if not behind and self.next_identity is not None and append.identity is not None:
            self.next_identity = append.identity
            return
        self._forget_identity()
        for follower in behind:  # none can have passed the gap
            follower.state, follower.identity, follower.may_be_written = State.WAITING, None, False
            follower.request_id = 0

    def _give_up(self, append: Append, error: TidelogError) -> None:
        """End an append that may be written, and what may be written if it is."""
        for follower in self._behind(append):
            if follower.may_be_written or follower.state is State.OUT:
                self._fail(follower.batch, self._unknown(follower, error))
                self.window.remove(follower)
            else:
                follower.identity = None
        self._fail(append.batch, self._unknown(append, error))
        self.window.remove(append)
        if self._idempotent:
            self._forget_identity()

    def _behind(self, append: Append) -> list[Append]:
        appends = list(self.window)
        return [follower for follower in appends[appends.index(append) + 1 :] if follower.state is not State.DONE]

    def _forget_identity(self) -> None:
        if self._idempotent:
            self.next_identity = None

    def _pop_open(self) -> Batch:
        batch, self.open = self.open, None
        assert batch is not None
        return batch

    def _fail(self, batch: Batch, error: TidelogError) -> None:
        batch.fail(error)
        self._released(batch.size)

    def _named(self, count: int) -> str:
        return f"an append of {count} records to {self.topic}/{self.partition}"

    def _unknown(self, append: Append, cause: TidelogError) -> OutcomeUnknown:
        error = OutcomeUnknown(
            f"{self._named(append.count)} may be committed, or may become so: {cause};"
            " read the partition to find out before you send it again"
        )
        error.__cause__ = cause
        return error


def _unfit(error: Exception) -> InvalidRequest:
    unfit = InvalidRequest(f"these records cannot be put into a batch: {error!r}; nothing of them was sent")
    unfit.__cause__ = error
    return unfit
