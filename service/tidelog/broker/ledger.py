"""The leader's commit queue: references from all intakes come in, one transaction at a time goes out.

Takes references in each intake's order, decides their appends against what is pending, and commits all that waits for
all led partitions together; the next batch gathers meanwhile. Knows nothing of bytes, nor of who should lead.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate

from tidelog.broker.decisions import Join, PartitionState
from tidelog.broker.references import (
    Accepted,
    Answer,
    AnswerReceiver,
    AppendOutcome,
    AppendReference,
    CommittedExtents,
    Reference,
    RefusedAppend,
    Unknown,
)
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import Fenced, MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable
from tidelog.metadata.cleaning import expire_producers
from tidelog.metadata.commits import Committed, NewExtent, NotLeader, Outcome, PartitionCommit, Refused, commit
from tidelog.metadata.extents import Extent, ReleasedSource, find_references, swap
from tidelog.metadata.leadership import LedPartition, transfer
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import CommitOutcome, Metrics
from tidelog.randomness import Random

_NOT_NOW = (MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable)
_EXPIRE_EVERY = 0.1
"""Of the time after which a producer is forgotten: how often one looks for some."""
_OUTCOMES_AT_ONCE = 1000
"""Each keeps the event loop busy for some 30 µs, and there may be very many; others shall have their turn in between."""
_BACKOFF_BASE_S = 0.02
_BACKOFF_MOST_S = 1.0


@dataclass(slots=True, eq=False)
class _Taken:
    """A reference that was taken in its turn; kept until its intake no longer wants the answer."""

    reference: Reference
    session: "LedgerSession"
    outcomes: list[AppendOutcome | None]
    missing: int


@dataclass(slots=True, eq=False)
class _Item:
    """One append that waits for a commit."""

    taken: _Taken
    index: int
    base_offset: int
    duplicate: bool

    @property
    def append(self) -> AppendReference:
        return self.taken.reference.appends[self.index]


@dataclass(frozen=True, slots=True)
class _LookUp:
    """What SQL said of segments, as (partition id, broker epoch, sequence), that an earlier leader epoch may have committed."""

    asked: frozenset[tuple[int, int, int]] = frozenset()
    found: Mapping[tuple[int, int, int], Sequence[Extent]] = field(default_factory=dict)
    final: frozenset[tuple[int, int]] = frozenset()
    """Those, as (broker epoch, sequence), that nobody can commit any more."""


_NOTHING = _LookUp()


@dataclass(frozen=True, slots=True)
class _Swap:
    """Extents that are to give way to a merged one, once no commit is under way."""

    leader_epoch: int
    sources: Sequence[ReleasedSource]
    merged: Extent
    done: "asyncio.Future[bool]"


@dataclass(slots=True)
class _Writer:
    """What one intake has sent for one partition under this leader epoch."""

    expected: int = 0
    taken: dict[int, _Taken] = field(default_factory=dict)


class _Led:
    """One partition under one leader epoch. Thrown away on any doubt: it comes back under a new epoch."""

    __slots__ = ("closing", "dead", "epoch", "log_start_offset", "partition_id", "pending", "state", "writers")

    def __init__(self, led: LedPartition, *, max_producers: int) -> None:
        self.partition_id = led.partition_id
        self.epoch = led.leader_epoch
        self.log_start_offset = led.log_start_offset
        self.state = PartitionState(led, max_producers=max_producers)
        self.writers: dict[int, _Writer] = {}
        self.pending: list[_Item] = []
        self.closing: int | None = None
        """The broker epoch it is to be handed to; nothing is taken any more."""
        self.dead = False


@dataclass(frozen=True, slots=True)
class _Proposal:
    led: _Led
    items: list[_Item]
    commit: PartitionCommit
    sources: list[list[_Item]]
    """For each extent, the appends that it holds."""


class LedgerSession:
    """The leader's end of a link from one intake: keeps its references in order, and brings it the answers."""

    def __init__(self, ledger: "Ledger", writer_epoch: int, receiver: AnswerReceiver) -> None:
        self._ledger = ledger
        self._writer_epoch = writer_epoch
        self._receiver: AnswerReceiver | None = receiver
        self._waiting: deque[Sequence[Reference]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._answers: list[Answer] = []

    def offer(self, references: Sequence[Reference]) -> None:
        """Take references, in order; those of another writer than the link's are not looked at."""
        references = [reference for reference in references if reference.broker_epoch == self._writer_epoch]
        if self._serving is None and not self._ledger.must_look_up(references):
            self._ledger.take(self, references)
            return
        self._waiting.append(references)
        if self._serving is None:
            self._serving = asyncio.ensure_future(self._serve())

    def close(self) -> None:
        """Nobody waits for answers any more."""
        self._receiver = None
        self._waiting.clear()
        self._ledger.closed(self)

    def broken(self) -> None:
        """The leader is going: tell the intake."""
        receiver = self._receiver
        self.close()
        if receiver is not None:
            receiver.broken()

    def answer(self, answer: Answer) -> None:
        """Send an answer, together with others of this turn of the event loop."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers.append(answer)

    def _flush(self) -> None:
        outcomes = accumulate(len(answer.outcomes or ()) for answer in self._answers)
        count = next((number for number, total in enumerate(outcomes, start=1) if total >= _OUTCOMES_AT_ONCE), len(self._answers))
        answers, self._answers = self._answers[:count], self._answers[count:]
        if self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        if self._receiver is not None and answers:
            self._receiver.answered(answers)

    async def _serve(self) -> None:
        try:
            while self._waiting:
                wanted = self._ledger.must_look_up(self._waiting[0])
                try:
                    known = await self._ledger.look_up(wanted) if wanted else _NOTHING
                except _NOT_NOW:
                    known = _NOTHING
                if self._waiting:  # else closed meanwhile
                    self._ledger.take(self, self._waiting.popleft(), known)
        except BaseException:
            self.broken()
            raise
        finally:
            self._serving = None


class Ledger:
    """All partitions that this broker leads in its present epoch."""

    def __init__(
        self,
        *,
        store: MetadataStore,
        broker_epoch: int,
        settings: Settings,
        chance: Random,
        lease_stands: Callable[[], bool],
        publish: Callable[[CommittedExtents], None],
        changed: Callable[[], None],
        handed_over: Callable[[int], None],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._broker_epoch = broker_epoch
        self._settings = settings
        self._chance = chance
        self._lease_stands = lease_stands
        self._publish = publish
        self._changed = changed
        """Told when partitions were stepped down from or handed over: leadership is to be looked at."""
        self._handed_over = handed_over
        """Told to which broker epoch partitions were handed: it should look, too."""
        self._clock = clock
        self._metrics = metrics
        self._led: dict[int, _Led] = {}
        self._dirty: dict[int, _Led] = {}
        self._closing: dict[int, _Led] = {}
        self._membership_version = 0
        self._sessions: dict[LedgerSession, None] = {}
        """In the order in which they were opened, as everything is told that several hear: so a run can be repeated."""
        self._answers_kept: dict[int, deque[tuple[int, _Writer, int]]] = {}
        """Per intake, what it may still ask about: (sequence, writer, number), ascending."""
        self._pending = 0
        self._swaps: deque[_Swap] = deque()
        self._work = asyncio.Event()
        self._expire_at = clock.monotonic() + settings.producer_expiry_ms / 1000 * _EXPIRE_EVERY
        self.leads_nothing = asyncio.Event()
        self.leads_nothing.set()

    # ---- leading

    def led(self) -> dict[int, int]:
        """Return the leader epoch of each partition that is led here, by partition id."""
        return {partition_id: led.epoch for partition_id, led in self._led.items()}

    def leads(self, partition_id: int) -> bool:
        """Say whether the partition is led here."""
        return partition_id in self._led

    @property
    def pending(self) -> int:
        """How many appends wait for a commit."""
        return self._pending

    def lead(self, led: LedPartition) -> None:
        """Begin to lead a partition, as it was loaded when it was taken over."""
        self.step_down(led.partition_id)
        self.leads_nothing.clear()
        self._led[led.partition_id] = _Led(led, max_producers=self._settings.max_producers_per_partition)

    def step_down(self, partition_id: int) -> None:
        """Lead a partition no longer. What waits is answered "not now"; a commit under way decides nothing here any more."""
        led = self._led.pop(partition_id, None)
        if led is None:
            return
        if not self._led:
            self.leads_nothing.set()
        led.dead = True
        self._dirty.pop(partition_id, None)
        self._closing.pop(partition_id, None)
        self._pending -= len(led.pending)
        for writer in led.writers.values():
            for taken in writer.taken.values():
                if taken.missing:
                    self._not_now(taken.session, taken.reference)

    def log_starts(self, starts: Mapping[int, int]) -> int:
        """Take log starts as they are in SQL, by partition id, and tell who follows; return how many are news here."""
        news = 0
        for partition_id, start in starts.items():
            led = self._led.get(partition_id)
            if led is not None and start > led.log_start_offset:
                led.log_start_offset = start
                news += 1
                # What lies below a log start is committed, also by a commit of which this has not heard yet.
                self._publish(CommittedExtents(partition_id, (), max(led.state.next_offset, start), start))
        return news

    def hand_over(self, partition_ids: Iterable[int], *, to_broker_epoch: int, membership_version: int) -> None:
        """Hand partitions to another member, each once its queue is empty; until then nothing new is taken for them."""
        self._membership_version = membership_version
        for partition_id in partition_ids:
            led = self._led.get(partition_id)
            if led is not None:
                led.closing = to_broker_epoch
                self._closing[partition_id] = led
        self._work.set()

    async def swap(self, *, leader_epoch: int, sources: Sequence[ReleasedSource], merged: Extent) -> bool:
        """Put a merged extent in the place of its sources, in the queue: commits of this leader do not wait for its locks.

        Returns whether it is in place; False is final. Raises as `MetadataStore.run` does, where asking again is right (I5).
        A cancelled caller learns nothing.
        """
        request = _Swap(leader_epoch, sources, merged, asyncio.get_running_loop().create_future())
        self._swaps.append(request)
        self._work.set()
        return await request.done

    def end(self) -> None:
        """Step down from everything and break all links: the broker epoch is over."""
        for partition_id in list(self._led):
            self.step_down(partition_id)
        for session in list(self._sessions):
            session.broken()

    # ---- references

    def session(self, writer_epoch: int, receiver: AnswerReceiver) -> LedgerSession:
        """Open the leader's end of a link from the intake of `writer_epoch`."""
        session = LedgerSession(self, writer_epoch, receiver)
        self._sessions[session] = None
        return session

    def closed(self, session: LedgerSession) -> None:
        """Forget a session."""
        self._sessions.pop(session, None)

    def must_look_up(self, references: Sequence[Reference]) -> frozenset[tuple[int, int, int]]:
        """Return the segments, as (partition id, broker epoch, sequence), that have to be looked up in SQL first.

        These are references that an earlier leader epoch has seen: it may have committed them. Looked up after this epoch
        began, so that nothing of an earlier one can still arrive (I1).
        """
        wanted = set()
        for reference in references:
            if 0 < reference.tried_epoch < reference.leader_epoch and self._in_turn(reference):
                wanted.add((reference.partition_id, reference.broker_epoch, reference.sequence))
        return frozenset(wanted)

    async def look_up(self, segments: frozenset[tuple[int, int, int]]) -> _LookUp:
        """Ask SQL for the extents of these segments, and which of the segments nobody can commit any more."""
        extents, final = await self._store.run(find_references, segments=segments)
        found: dict[tuple[int, int, int], list[Extent]] = {}
        for extent in extents:
            found.setdefault((extent.partition_id, extent.broker_epoch, extent.sequence), []).append(extent)
        return _LookUp(segments, found, final)

    def take(self, session: LedgerSession, references: Sequence[Reference], known: _LookUp = _NOTHING) -> None:
        """Take references in order, with what SQL said of those that had to be looked up."""
        stands = self._lease_stands()
        unasked = self.must_look_up(references) - known.asked  # leadership may have changed while SQL was asked
        for reference in references:
            led = self._led.get(reference.partition_id)
            if led is None or led.epoch != reference.leader_epoch or not stands:
                self._not_now(session, reference)
                continue
            writer = led.writers.setdefault(reference.broker_epoch, _Writer())
            self._forget_resolved(reference)
            writer.expected = max(writer.expected, reference.lowest_wanted)
            earlier = writer.taken.get(reference.number)
            if earlier is not None:
                earlier.session = session
                if not earlier.missing:
                    self._reply(earlier)
                continue
            segment = (reference.partition_id, reference.broker_epoch, reference.sequence)
            full = self._pending >= self._settings.max_pending_references
            if reference.number != writer.expected or led.closing is not None or full or segment in unasked:
                self._not_now(session, reference)
                continue
            writer.expected += 1
            taken = _Taken(reference, session, [None] * len(reference.appends), len(reference.appends))
            writer.taken[reference.number] = taken
            self._answers_kept.setdefault(reference.broker_epoch, deque()).append((reference.sequence, writer, reference.number))
            self._decide_all(led, taken, known.found.get(segment, ()), over=segment[1:] in known.final)
            if not taken.missing:
                self._reply(taken)
        if self._dirty:
            self._work.set()

    def forget_writers(self, living: frozenset[int]) -> None:
        """Forget what was answered to intakes of epochs that have ended; SQL refuses whatever may still come of them.

        Epochs are given in ascending order: one above all of `living` may have begun after these were read. Forgotten too
        early, its references would be taken a second time while the first are pending.
        """
        newest = max(living, default=0)
        for broker_epoch in self._answers_kept.keys() - living:
            if broker_epoch < newest:
                del self._answers_kept[broker_epoch]
        for led in self._led.values():
            for broker_epoch in led.writers.keys() - living:
                if broker_epoch < newest:
                    del led.writers[broker_epoch]

    def _in_turn(self, reference: Reference) -> bool:
        led = self._led.get(reference.partition_id)
        if led is None or led.epoch != reference.leader_epoch:
            return False
        writer = led.writers.get(reference.broker_epoch)
        return writer is None or reference.number not in writer.taken

    def _forget_resolved(self, reference: Reference) -> None:
        """Forget the answers that an intake wants no more. What of them is still pending goes on."""
        kept = self._answers_kept.get(reference.broker_epoch)
        while kept and kept[0][0] <= reference.resolved_sequence:
            _, writer, number = kept.popleft()
            writer.taken.pop(number, None)

    def _decide_all(self, led: _Led, taken: _Taken, found: Sequence[Extent], *, over: bool) -> None:
        committed = committed_offsets(taken.reference, found)
        for index, append in enumerate(taken.reference.appends):
            base_offset = committed.get(append.position)
            if base_offset is not None:  # I5: an earlier leader epoch committed it
                self._settle(taken, index, Accepted(base_offset, base_offset + append.record_count, led.epoch))
            elif over:
                self._settle(taken, index, _never_seen(taken.reference))
            else:
                self._decide(led, taken, index)

    def _decide(self, led: _Led, taken: _Taken, index: int) -> None:
        append = taken.reference.appends[index]
        decision = led.state.decide(append)
        if isinstance(decision, RefusedAppend):
            self._settle(taken, index, decision)
            return
        duplicate = isinstance(decision, Join)
        if duplicate and decision.base_offset < led.state.next_offset:
            end = decision.base_offset + append.record_count
            self._settle(taken, index, Accepted(decision.base_offset, end, led.epoch, duplicate=True))
            return
        led.pending.append(_Item(taken, index, decision.base_offset, duplicate))
        self._pending += 1
        self._dirty[led.partition_id] = led

    def _settle(self, taken: _Taken, index: int, outcome: AppendOutcome) -> None:
        if taken.outcomes[index] is None:
            taken.missing -= 1
        taken.outcomes[index] = outcome

    def _reply(self, taken: _Taken) -> None:
        reference = taken.reference
        outcomes = tuple(outcome for outcome in taken.outcomes if outcome is not None)
        taken.session.answer(Answer(reference.partition_id, reference.broker_epoch, reference.leader_epoch, reference.number, outcomes))

    def _not_now(self, session: LedgerSession, reference: Reference) -> None:
        session.answer(Answer(reference.partition_id, reference.broker_epoch, reference.leader_epoch, reference.number, None))

    # ---- commits, one at a time

    async def run(self) -> None:
        """Commit what waits, and hand over what is to be handed over, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._expire_at - self._clock.monotonic())):
                    await self._work.wait()
            self._work.clear()
            while self._dirty or self._swaps or self._ready_to_hand_over():
                proposals = self._gather()
                if proposals:
                    outcomes = await self._commit([proposal.commit for proposal in proposals])
                    for proposal in proposals:
                        self._conclude(proposal, outcomes[proposal.led.partition_id])
                await self._hand_over()
                await self._swap_one()
            await self._expire_producers()

    async def _expire_producers(self) -> None:
        """Forget producers that have not appended for long: from time to time, in the queue, so that no commit is under way."""
        now = self._clock.monotonic()
        if now < self._expire_at:
            return
        self._expire_at = now + self._settings.producer_expiry_ms / 1000 * _EXPIRE_EVERY
        try:
            gone = await self._store.run(expire_producers, partition_ids=list(self._led), unused_for_ms=self._settings.producer_expiry_ms)
        except _NOT_NOW:
            return  # the next time will do
        for partition_id, producer_id in gone:
            led = self._led.get(partition_id)
            if led is not None:
                led.state.forget_producer(producer_id)

    def _gather(self) -> list[_Proposal]:
        """Return what the next transaction takes; beyond its limits the other partitions wait for the one after it.

        What has gathered in an outage must fit into the time that a statement is given, or it would never be committed.
        """
        proposals: list[_Proposal] = []
        extents = 0
        while self._dirty and len(proposals) < self._settings.commit_max_partitions and extents < self._settings.commit_max_extents:
            partition_id = next(iter(self._dirty))
            proposal = self._propose(self._dirty.pop(partition_id))
            proposals.append(proposal)
            extents += len(proposal.commit.extents)
        return proposals

    def _propose(self, led: _Led) -> _Proposal:
        extents: list[NewExtent] = []
        sources: list[list[_Item]] = []
        producers = set()
        for item in led.pending:
            if item.duplicate:
                continue
            append, reference = item.append, item.taken.reference
            last = extents[-1] if extents else None
            if (
                last is not None
                and (last.broker_epoch, last.sequence) == (reference.broker_epoch, reference.sequence)
                and last.position + last.length == append.position
            ):
                extents[-1] = NewExtent(
                    last.broker_epoch,
                    last.sequence,
                    last.position,
                    last.length + append.length,
                    last.record_count + append.record_count,
                    max(last.max_timestamp_ms, append.max_timestamp_ms),
                )
                sources[-1].append(item)
            else:
                extents.append(
                    NewExtent(
                        reference.broker_epoch,
                        reference.sequence,
                        append.position,
                        append.length,
                        append.record_count,
                        append.max_timestamp_ms,
                    )
                )
                sources.append([item])
            if append.sequence is not None:
                producers.add(append.sequence.producer_id)
        windows = tuple(led.state.window(producer_id) for producer_id in sorted(producers))
        proposed = PartitionCommit(led.partition_id, led.epoch, led.state.next_offset, tuple(extents), windows)
        return _Proposal(led, list(led.pending), proposed, sources)

    async def _commit(self, partitions: Sequence[PartitionCommit]) -> dict[int, Outcome]:
        """Commit, and go on trying: the same proposal may be sent any number of times (I5)."""
        backoff_s = _BACKOFF_BASE_S
        began = self._clock.monotonic()
        self._metrics.commit_partitions.observe(len(partitions))
        while True:
            try:
                outcomes = await self._store.run(commit, broker_epoch=self._broker_epoch, partitions=partitions)
            except _NOT_NOW as error:
                unknown = isinstance(error, MetadataOutcomeUnknown)
                self._metrics.commits["unknown" if unknown else "not_done"].inc(len(partitions))
                await asyncio.sleep(self._chance.uniform(0, backoff_s))
                backoff_s = min(backoff_s * 2, _BACKOFF_MOST_S)
            else:
                self._metrics.commit_seconds.observe(self._clock.monotonic() - began)
                return outcomes

    def _conclude(self, proposal: _Proposal, outcome: Outcome) -> None:
        led = proposal.led
        kinds: dict[type[Outcome], CommitOutcome] = {Committed: "committed", NotLeader: "not_leader", Refused: "refused"}
        self._metrics.commits[kinds[type(outcome)]].inc()
        if led.dead:
            return
        if isinstance(outcome, Committed):
            self._accept(proposal, outcome)
        elif isinstance(outcome, NotLeader):  # I1: step down, reload, come back with a new epoch
            self._metrics.fenced.inc()
            self.step_down(led.partition_id)
            self._changed()
        else:
            self._without(proposal, outcome)
        if led.pending and not led.dead:
            self._dirty[led.partition_id] = led

    def _accept(self, proposal: _Proposal, outcome: Committed) -> None:
        led = proposal.led
        del led.pending[: len(proposal.items)]
        self._pending -= len(proposal.items)
        led.state.committed(outcome.next_offset, {window.producer_id: window for window in proposal.commit.producers})
        for item in proposal.items:
            end = item.base_offset + item.append.record_count
            self._settle(item.taken, item.index, Accepted(item.base_offset, end, led.epoch, duplicate=item.duplicate))
            if not item.taken.missing:
                self._reply(item.taken)
        self._settle_joined(led)
        self._publish(CommittedExtents(led.partition_id, _as_rows(proposal), outcome.next_offset, led.log_start_offset))

    def _settle_joined(self, led: _Led) -> None:
        """Answer duplicates that came in while the append they repeat was being committed."""
        waiting = []
        for item in led.pending:
            if item.duplicate and item.base_offset < led.state.next_offset:
                end = item.base_offset + item.append.record_count
                self._settle(item.taken, item.index, Accepted(item.base_offset, end, led.epoch, duplicate=True))
                if not item.taken.missing:
                    self._reply(item.taken)
            else:
                waiting.append(item)
        self._pending -= len(led.pending) - len(waiting)
        led.pending = waiting

    def _without(self, proposal: _Proposal, refused: Refused) -> None:
        """Take out the appends of extents that may not be committed, and decide all others again, in their order."""
        led = proposal.led
        sources = dict(zip(proposal.commit.extents, proposal.sources, strict=True))
        out: set[int] = set()
        for each in refused.extents:
            for item in sources[each.extent]:
                base_offset = committed_offsets(item.taken.reference, each.found).get(item.append.position)
                if base_offset is None:
                    self._settle(item.taken, item.index, _never_seen(item.taken.reference))
                else:
                    end = base_offset + item.append.record_count
                    self._settle(item.taken, item.index, Accepted(base_offset, end, led.epoch))
                out.add(id(item))
                if not item.taken.missing:
                    self._reply(item.taken)
        again = [item for item in led.pending if id(item) not in out]
        self._pending -= len(led.pending)
        led.pending = []
        led.state.roll_back()
        for item in again:
            self._decide(led, item.taken, item.index)
            if not item.taken.missing:
                self._reply(item.taken)

    # ---- merged extents

    async def _swap_one(self) -> None:
        """Do the swap that waits longest; commits that gathered meanwhile come before the next."""
        if not self._swaps:
            return
        request = self._swaps.popleft()
        if request.done.done():  # nobody waits for it any more
            return
        partition_id = request.merged.partition_id
        try:
            swapped = await self._store.run(
                swap, partition_id=partition_id, leader_epoch=request.leader_epoch, sources=request.sources, merged=request.merged
            )
        except Fenced:  # I1: step down, reload, come back with a new epoch
            swapped = False
            led = self._led.get(partition_id)
            if led is not None and led.epoch == request.leader_epoch:
                self._metrics.fenced.inc()
                self.step_down(partition_id)
                self._changed()
        except Exception as error:  # noqa: BLE001  it belongs to whoever asked; commits go on
            if not request.done.done():
                request.done.set_exception(error)
            return
        if not request.done.done():
            request.done.set_result(swapped)

    # ---- handing over

    def _ready_to_hand_over(self) -> bool:
        return any(not led.pending for led in self._closing.values())

    async def _hand_over(self) -> None:
        targets: dict[int, list[_Led]] = {}
        for led in list(self._closing.values()):
            if not led.pending and led.closing is not None:
                targets.setdefault(led.closing, []).append(led)
        for to_broker_epoch, leds in targets.items():
            try:
                await self._store.run(
                    transfer,
                    to_broker_epoch=to_broker_epoch,
                    membership_version=self._membership_version,
                    led=[(led.partition_id, led.epoch) for led in leds],
                )
            except Fenced:  # the membership has changed: nothing was done, somebody else may be desired now
                for led in leds:
                    led.closing = None
                    self._closing.pop(led.partition_id, None)
            except _NOT_NOW:
                self._give_up(leds)  # it may have happened: come back under a new epoch
                self._handed_over(to_broker_epoch)
            else:
                self._metrics.transfers.inc(len(leds))
                self._give_up(leds)
                self._handed_over(to_broker_epoch)
            self._changed()

    def _give_up(self, leds: Iterable[_Led]) -> None:
        for led in leds:
            if not led.dead:
                self.step_down(led.partition_id)


def committed_offsets(reference: Reference, found: Sequence[Extent]) -> dict[int, int]:
    """Return the base offsets of those of a reference's appends that extents cover, by position.

    An append may lie inside an extent: its offset is the extent's, plus the records of the appends between.
    """
    offsets: dict[int, int] = {}
    for extent in found:
        offset = extent.base_offset
        for append in reference.appends:
            if extent.position <= append.position < extent.position + extent.length:
                offsets[append.position] = offset
                offset += append.record_count
    return offsets


def _never_seen(reference: Reference) -> Unknown:
    return Unknown(
        f"segment {reference.sequence} of broker epoch {reference.broker_epoch} can be committed no more, because its writer's epoch has"
        " ended or has reported it as resolved, and the append was not seen committed; whether it is, a reader can tell"
    )


def _as_rows(proposal: _Proposal) -> tuple[Extent, ...]:
    rows = []
    offset = proposal.commit.next_offset
    for extent in proposal.commit.extents:
        end = offset + extent.record_count
        rows.append(
            Extent(
                partition_id=proposal.led.partition_id,
                base_offset=offset,
                next_offset=end,
                broker_epoch=extent.broker_epoch,
                sequence=extent.sequence,
                position=extent.position,
                length=extent.length,
                record_count=extent.record_count,
                level=0,
                max_timestamp_ms=extent.max_timestamp_ms,
                commit_time_ms=0,
                leader_epoch=proposal.commit.leader_epoch,
            )
        )
        offset = end
    return tuple(rows)
