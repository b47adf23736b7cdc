"""Intake: takes appends for any partition, gathers them into segments, and sees each append to its outcome.

One intake belongs to one broker epoch and ends with it. When to seal a segment is decided here; `uploads` carries it to
the bucket and `outbox` its references to the leaders.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tidelog.broker.catalog import PartitionRef
from tidelog.broker.outbox import Outbox, Outstanding
from tidelog.broker.references import Accepted, AppendOutcome, AppendReference, ProducerSequence, RefusedAppend
from tidelog.broker.requests import Appended, AppendRequest
from tidelog.broker.uploads import UploadFailed, Uploads
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import (
    BrokerError,
    ConditionFailed,
    CorruptBatch,
    Draining,
    NotReady,
    OutcomeUnknown,
    OutOfOrderSequence,
    ProducerFenced,
    RecordTooLarge,
    Throttled,
    TidelogError,
    TimedOut,
    UnknownProducer,
)
from tidelog.metrics import AppendResult, Metrics, SealReason
from tidelog.records.batch import BatchHeader, BatchLimits, Buffer, check_append, unstamp
from tidelog.segments.format import ChunkSource, Footer

COPIES = 3
"""Of an append's bytes that are in memory at once, at worst: as it came, as it waits, and joined for its upload."""
APPEND_BYTES = 1024
BATCH_BYTES = 256
"""What is kept beside the bytes of an append, and of each of its batches, here and at the leader: most of the cost of a small one."""
_ENOUGH = 8
"""This part of a full segment is worth a request of its own, where the budget of requests allows."""
_SWEEP_S = 0.05
_SEQUENCES = 2**31
_REFUSALS: dict[str, type[BrokerError]] = {
    error.reason: error for error in (ConditionFailed, OutOfOrderSequence, ProducerFenced, Throttled, UnknownProducer)
}


_RESULTS: dict[type[TidelogError], AppendResult] = {
    Throttled: "throttled",
    NotReady: "not_ready",
    Draining: "not_ready",
    TimedOut: "timed_out",
    OutcomeUnknown: "unknown",
}


class Budget:
    """Bytes of appends that may be in memory at once (I10); shared by all epochs of a broker."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, cost_bytes: int) -> None:
        """Take from the budget. Raises Throttled where there is not enough left, RecordTooLarge where there never is."""
        if cost_bytes > self.limit_bytes:
            raise RecordTooLarge(
                f"the append needs {cost_bytes} bytes, every copy and every batch counted, but intake_budget_bytes is {self.limit_bytes};"
                " split it"
            )
        if self.used_bytes + cost_bytes > self.limit_bytes:
            raise Throttled(
                f"the append needs {cost_bytes} bytes, but {self.used_bytes} of intake_budget_bytes = {self.limit_bytes} are in use;"
                " it was not done: send it again a little later, or to another broker"
            )
        self.used_bytes += cost_bytes

    def give_back(self, cost_bytes: int) -> None:
        """Give back what was taken."""
        self.used_bytes -= cost_bytes


@dataclass(slots=True, eq=False)
class _Append:
    """One append on its way. It is answered once; what happens to the bytes afterwards nobody waits for."""

    batches: Buffer
    headers: Sequence[BatchHeader]
    began: float
    deadline: float
    result: "asyncio.Future[Appended]"
    sequence: ProducerSequence | None
    expected_next_offset: int | None
    fencing_token: str | None
    record_count: int
    max_timestamp_ms: int
    answered: bool = False
    """Whether its outcome is settled. Not `result.done()`: a caller who cancels that takes nothing back (I5)."""


@dataclass(slots=True, eq=False)
class _Chunk:
    ref: PartitionRef
    appends: list[_Append] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Segment:
    """A segment that gathers appends, or is on its way."""

    opened_at: float
    seal_at: float
    deadline: float = float("inf")
    """The earliest of its appends'."""
    chunks: dict[int, _Chunk] = field(default_factory=dict)
    length: int = 0
    cost_bytes: int = 0
    sequence: int = 0
    outstanding: dict[int, Outstanding] = field(default_factory=dict)
    """References that are not answered, by partition id."""
    uploading: bool = False
    released: bool = False
    sealed_at: float = 0.0
    uploaded_at: float = 0.0


TakesIn = Callable[[int, int, int, Sequence[Buffer], Sequence[BatchHeader]], None]
"""Told of bytes whose offsets are known now, so that readers have them from memory: partition id, base offset, leader epoch, and the
batches as they were appended, not stamped."""


class Intake:
    """The intake of one broker epoch."""

    def __init__(
        self,
        *,
        uploads: Uploads,
        budget: Budget,
        settings: Settings,
        clock: Clock,
        took_in: TakesIn,
        lease_stands: Callable[[], bool],
        metrics: Metrics,
    ) -> None:
        self._uploads = uploads
        self._budget = budget
        self._settings = settings
        self._clock = clock
        self._took_in = took_in
        self._lease_stands = lease_stands
        self._metrics = metrics
        self._limits = BatchLimits(
            max_append_bytes=settings.max_append_bytes,
            max_batch_bytes=settings.max_batch_bytes,
            max_batch_records=settings.max_batch_records,
            max_timestamp_skew_ms=settings.max_timestamp_skew_ms,
        )
        self._open: _Segment | None = None
        self._live: dict[int, _Segment] = {}
        """Sealed and not yet resolved, by sequence, ascending."""
        self._lent: set[int] = set()
        """Those of them that are not intake's own: they hold the mark, and nothing else."""
        self._sequence = 0
        self._tokens = 1.0
        self._tokens_at = clock.monotonic()
        self._checking = False
        self._timer: asyncio.TimerHandle | None = None
        self._refusing: Callable[[], BrokerError] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.outbox: Outbox | None = None
        """Set once by whoever wires the parts together."""

    # ---- taking appends

    def append(self, ref: PartitionRef, request: AppendRequest) -> "asyncio.Future[Appended]":
        """Take an append; return the future of its outcome. What can be refused at once is raised, and nothing was done.

        Raises CorruptBatch, RecordTooLarge, Throttled, Draining, NotReady.
        """
        if self._refusing is not None:
            raise self._refusing()
        if not self._lease_stands():
            raise NotReady(
                "this broker's lease could not be renewed, so it may not take appends; nothing was done: try again, or try another broker"
            )
        settings = self._settings
        headers = check_append(request.batches, limits=self._limits, now_ms=self._clock.wall_ms())
        sequence = _sequence(headers)
        size = len(request.batches)
        cost = COPIES * size + APPEND_BYTES + BATCH_BYTES * len(headers)
        self._budget.take(cost)
        now = self._clock.monotonic()
        timeout_ms = min(request.timeout_ms or settings.append_timeout_ms, settings.max_append_timeout_ms)
        append = _Append(
            batches=_unstamped(request.batches, headers),
            headers=headers,
            began=now,
            deadline=now + timeout_ms / 1000,
            result=asyncio.get_running_loop().create_future(),
            sequence=sequence,
            expected_next_offset=request.expected_next_offset,
            fencing_token=request.fencing_token,
            record_count=sum(header.record_count for header in headers),
            max_timestamp_ms=max(header.max_timestamp_ms for header in headers),
        )
        latency_ms = min(request.max_latency_ms or settings.max_latency_ms, timeout_ms // 2)
        self._add(ref, append, cost, now, now + latency_ms / 1000)
        return append.result

    def refuse(self, error: Callable[[], BrokerError]) -> None:
        """Take nothing more; `error` makes what says why, a new one each time: a raised one holds on to what raised it."""
        self._refusing = error

    async def drained(self) -> None:
        """Wait until every append that was taken has its outcome."""
        await self._idle.wait()

    @property
    def resolved_sequence(self) -> int:
        """No reference to this or a lower sequence will be sent again (I7)."""
        return next(iter(self._live)) - 1 if self._live else self._sequence

    @property
    def open_sequences(self) -> int:
        """How many of intake's own sequences are not resolved."""
        return len(self._live) - len(self._lent)

    @property
    def open_bytes(self) -> int:
        """Bytes in the open segment."""
        return self._open.length if self._open is not None else 0

    def new_sequence(self) -> int:
        """Take a sequence for a segment that is not intake's; `resolve` it when it is done with."""
        self._sequence += 1
        self._live[self._sequence] = _Segment(0.0, 0.0, sequence=self._sequence)
        self._lent.add(self._sequence)
        return self._sequence

    def resolve(self, sequence: int) -> None:
        """Say that nothing of a segment is going to be committed any more."""
        segment = self._live.pop(sequence, None)
        self._lent.discard(sequence)
        if segment is not None:
            self._give_back(segment)
        self._check_soon()

    def _give_back(self, segment: _Segment) -> None:
        """Give back what a segment took from the budget, unless its upload still holds the bytes."""
        if not segment.uploading:
            self._budget.give_back(segment.cost_bytes)
            segment.cost_bytes = 0

    def _add(self, ref: PartitionRef, append: _Append, cost_bytes: int, now: float, seal_at: float) -> None:
        segment = self._open
        if segment is None:
            segment = self._open = _Segment(opened_at=now, seal_at=seal_at)
            self._idle.clear()
        chunk = segment.chunks.get(ref.partition_id)
        if chunk is None:
            chunk = segment.chunks[ref.partition_id] = _Chunk(ref)
        chunk.appends.append(append)
        segment.length += len(append.batches)
        segment.cost_bytes += cost_bytes
        segment.deadline = min(segment.deadline, append.deadline)
        segment.seal_at = min(segment.seal_at, seal_at)
        self._check_soon()

    # ---- sealing

    def _check_soon(self) -> None:
        """Look, once in this turn of the event loop, whether the open segment is to be sealed."""
        if not self._checking:
            self._checking = True
            asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        self._checking = False
        segment = self._open
        if segment is None:
            if not self.open_sequences:
                self._idle.set()
            return
        now = self._clock.monotonic()
        if self._uploads.full or self.open_sequences >= self._settings.max_open_sequences:
            return  # looked at again when an upload ends, or a segment is resolved
        if self._refusing is not None:
            self._seal(segment, "drain", now)
        elif segment.length >= self._settings.segment_bytes:
            self._seal(segment, "size", now)
        elif now >= segment.seal_at:
            self._seal(segment, "deadline", now)
        elif self._worth_a_request(segment) and self._within_request_budget(now):
            self._seal(segment, "idle", now)
        else:
            self._look_again_at(segment, now)

    def _worth_a_request(self, segment: _Segment) -> bool:
        """Say whether to seal before time: when nothing is on its way, or when enough has come together meanwhile."""
        return self._uploads.in_flight == 0 or segment.length * _ENOUGH >= self._settings.segment_bytes

    def _look_again_at(self, segment: _Segment, now: float) -> None:
        at = segment.seal_at
        if self._worth_a_request(segment):
            at = min(at, now + (1 - self._tokens) / self._settings.segment_puts_per_second)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._check_soon)

    def _within_request_budget(self, now: float) -> bool:
        rate = self._settings.segment_puts_per_second
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._tokens_at) * rate)
        self._tokens_at = now
        return self._tokens >= 1

    def _seal(self, segment: _Segment, reason: SealReason, now: float) -> None:
        self._open = None
        self._metrics.segments_sealed[reason].inc()
        self._metrics.segment_bytes.observe(segment.length)
        self._metrics.segment_partitions.observe(len(segment.chunks))
        self._metrics.append_seconds["wait"].observe(now - segment.opened_at)
        segment.sealed_at = now
        self._tokens = max(0.0, self._tokens - 1)
        self._sequence += 1
        segment.sequence = self._sequence
        self._live[segment.sequence] = segment
        sources = []
        for chunk in segment.chunks.values():
            chunk.appends = [append for append in chunk.appends if not append.answered]
            if chunk.appends:
                sources.append(
                    ChunkSource(
                        topic_id=bytes.fromhex(chunk.ref.topic_id),
                        partition=chunk.ref.partition,
                        parts=[append.batches for append in chunk.appends],
                        headers=[header for append in chunk.appends for header in append.headers],
                    )
                )
        if not sources:
            self.resolve(segment.sequence)
            return
        segment.uploading = True
        self._uploads.begin(
            segment.sequence,
            sources,
            lambda: self._latest_deadline(segment),
            report=lambda result: self._uploaded(segment, result),
            ended=lambda: self._upload_ended(segment),
        )
        self._check_soon()

    def _latest_deadline(self, segment: _Segment) -> float:
        waiting = [append.deadline for chunk in segment.chunks.values() for append in chunk.appends if not append.answered]
        return max(waiting, default=0.0)

    def _upload_ended(self, segment: _Segment) -> None:
        segment.uploading = False
        if segment.sequence not in self._live:  # nobody waited for it any more
            self._give_back(segment)
        self._check_soon()

    # ---- after the upload, in the order of sequences

    def _uploaded(self, segment: _Segment, result: Footer | UploadFailed | None) -> None:
        """Send the references of an uploaded segment; or fail its appends, whose references never left (I2)."""
        if segment.sequence not in self._live:
            return
        segment.released = True
        segment.uploaded_at = self._clock.monotonic()
        self._metrics.append_seconds["upload"].observe(segment.uploaded_at - segment.sealed_at)
        if not isinstance(result, Footer):
            error: BrokerError = TimedOut("the segment of this append could not be uploaded in time; it was not done")
            for chunk in segment.chunks.values():
                for append in chunk.appends:
                    self._fail(append, result.error if isinstance(result, UploadFailed) else error)
            self.resolve(segment.sequence)
            return
        positions = {(chunk.topic_id, chunk.partition): chunk.position for chunk in result.chunks}
        references = []
        for chunk in segment.chunks.values():
            if not chunk.appends:
                continue
            position = positions[bytes.fromhex(chunk.ref.topic_id), chunk.ref.partition]
            reference = self._reference(segment, chunk, position)
            if reference is not None:
                references.append(reference)
        segment.outstanding = {reference.partition_id: reference for reference in references}
        if not references:
            self.resolve(segment.sequence)
            return
        assert self.outbox is not None
        self.outbox.submit(references)

    def _reference(self, segment: _Segment, chunk: _Chunk, position: int) -> Outstanding | None:
        """Return the reference of a chunk, without the appends whose time was up before it left: those are not done."""
        appends: list[_Append] = []
        references: list[AppendReference] = []
        for append in chunk.appends:
            if not append.answered:
                appends.append(append)
                references.append(
                    AppendReference(
                        position,
                        len(append.batches),
                        append.record_count,
                        append.max_timestamp_ms,
                        append.sequence,
                        append.expected_next_offset,
                        append.fencing_token,
                    )
                )
            position += len(append.batches)
        chunk.appends = appends
        if not appends:
            return None
        return Outstanding(chunk.ref.partition_id, segment.sequence, tuple(references), partial(self._answered, segment, chunk))

    def _answered(self, segment: _Segment, chunk: _Chunk, reference: Outstanding, outcomes: Sequence[AppendOutcome]) -> None:
        for append, outcome in zip(chunk.appends, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                if not outcome.duplicate:
                    self._took_in(chunk.ref.partition_id, outcome.base_offset, outcome.leader_epoch, (append.batches,), append.headers)
                self._succeed(append, outcome)
            elif isinstance(outcome, RefusedAppend):
                self._fail(append, _REFUSALS.get(outcome.reason, BrokerError)(outcome.message))
            else:
                self._fail(append, OutcomeUnknown(outcome.message))
        self._done_with(segment, reference)

    def _done_with(self, segment: _Segment, reference: Outstanding) -> None:
        segment.outstanding.pop(reference.partition_id, None)
        if not segment.outstanding:
            self._metrics.append_seconds["order"].observe(self._clock.monotonic() - segment.uploaded_at)
            self.resolve(segment.sequence)

    def _succeed(self, append: _Append, outcome: Accepted) -> None:
        if append.answered:
            return
        append.answered = True
        if not append.result.done():
            append.result.set_result(Appended(outcome.base_offset, outcome.next_offset, outcome.duplicate))
        self._count(append, "duplicate" if outcome.duplicate else "accepted")

    def _fail(self, append: _Append, error: BrokerError) -> None:
        if append.answered:
            return
        append.answered = True
        if not append.result.done():
            append.result.set_exception(error)
            append.result.exception()  # the caller may be gone; that is no defect
        self._count(append, append_result(error))

    def _count(self, append: _Append, result: AppendResult) -> None:
        metrics = self._metrics
        metrics.appends[result].inc()
        metrics.append_records[result].inc(append.record_count)
        metrics.append_bytes[result].inc(len(append.batches))
        metrics.append_seconds["total"].observe(self._clock.monotonic() - append.began)

    # ---- deadlines

    async def run(self) -> None:
        """Answer appends whose time is up, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = self._clock.monotonic()
            for segment in [*self._live.values(), *([self._open] if self._open else [])]:
                if now >= segment.deadline:
                    self._time_out(segment, now)
            if self.outbox is not None:
                self.outbox.check_links()

    def _time_out(self, segment: _Segment, now: float) -> None:
        next_deadline = float("inf")
        for chunk in segment.chunks.values():
            for append in chunk.appends:
                if append.answered:
                    continue
                if append.deadline > now:
                    next_deadline = min(next_deadline, append.deadline)
                elif segment.released:  # I5: its reference is out, so it may be committed, or may be yet
                    self._fail(
                        append, OutcomeUnknown("the append was uploaded, but no answer came in time whether it is committed; it may be")
                    )
                else:
                    self._fail(append, TimedOut("the append could not be uploaded in time; it was not done, and will not be"))
        segment.deadline = next_deadline
        if segment.released:
            for reference in list(segment.outstanding.values()):
                chunk = segment.chunks[reference.partition_id]
                if all(append.answered for append in chunk.appends):
                    assert self.outbox is not None
                    self.outbox.withdraw(reference)
                    self._done_with(segment, reference)
        elif segment.uploading and next_deadline == float("inf"):  # nobody waits: those that follow need not either
            self.resolve(segment.sequence)
            self._uploads.pass_over(segment.sequence)

    def end(self) -> None:
        """The broker epoch is over: answer everything now. What was sent may be committed; what was not, will never be."""
        self.refuse(
            lambda: NotReady(
                "this broker's epoch has ended and it registers anew; the append was not done: try again, or try another broker"
            )
        )
        if self._timer is not None:
            self._timer.cancel()
        if self.outbox is not None:
            self.outbox.end()
        for segment in [*self._live.values(), *([self._open] if self._open else [])]:
            for chunk in segment.chunks.values():
                for append in chunk.appends:
                    if segment.released:
                        self._fail(
                            append, OutcomeUnknown("the append was sent to its leader when this broker's epoch ended; it may be committed")
                        )
                    else:
                        self._fail(append, NotReady("this broker's epoch ended before the append was sent to its leader; it was not done"))
            self._give_back(segment)
        self._open = None
        self._live.clear()
        self._lent.clear()
        self._idle.set()

    def drain(self) -> None:
        """Take nothing more, but see what was taken to its end."""
        self.refuse(lambda: Draining("this broker is about to leave; the append was not done: send it to another broker"))
        self._check_soon()


def _sequence(headers: Sequence[BatchHeader]) -> ProducerSequence | None:
    """Return which of its producer's appends this is. All its batches must be one producer's, one after the other."""
    first = headers[0]
    follows = first.base_sequence
    for header in headers:
        if (header.producer_id, header.producer_epoch) != (first.producer_id, first.producer_epoch):
            raise CorruptBatch("the batches of one append come from different producers; send an append for each", position=header.position)
        if first.producer_id >= 0:
            if header.base_sequence != follows:
                raise CorruptBatch(
                    f"its base sequence is {header.base_sequence}, but {follows} follows the batch before it", position=header.position
                )
            follows = (follows + header.record_count) % _SEQUENCES
    if first.producer_id < 0:
        return None
    return ProducerSequence(first.producer_id, first.producer_epoch, first.base_sequence, (follows - 1) % _SEQUENCES)


def _unstamped(batches: Buffer, headers: Sequence[BatchHeader]) -> Buffer:
    """Return the batches as intake stores them; most clients send them that way, which saves a copy."""
    if all(header.base_offset == 0 and header.leader_epoch == -1 for header in headers):
        return batches
    copy = bytearray(batches)
    unstamp(copy, headers)
    return copy


def append_result(error: TidelogError) -> AppendResult:
    """Return under which result an append that ended so is counted."""
    return _RESULTS.get(type(error), "refused")
