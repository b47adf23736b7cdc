"""Planted bugs: each breaks the real code in one place, and must be found by the simulator within a stated number of seeds.

A checker that never fires proves nothing. Nothing in the product knows of these: they are patched into it here. Defences that
cover for each other are taken away in pairs. `python -m tests.sim.mutants` runs all of them. What found each is kept in
`killers.json`, and tried first the next time; `--write` also writes the table into docs/reliability.md.
"""

import argparse
import asyncio
import json
import logging
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import Pool
from pathlib import Path
from struct import Struct
from typing import Any

import pytest
from tidelog.broker import (
    broker,
    checkpointer,
    cleaner,
    decisions,
    intake,
    leadership,
    ledger,
    marker,
    membership,
    merge_sources,
    merging,
    orphans,
    outbox,
    reader,
    rebuild,
    rebuild_newer,
    rebuild_source,
    retention,
    runs,
    uploads,
)
from tidelog.broker.cleaner import Cleaner
from tidelog.broker.decisions import PartitionState
from tidelog.broker.feed import Followed
from tidelog.broker.ledger import Ledger
from tidelog.broker.quarantine import Quarantine
from tidelog.broker.references import Accepted, CommittedExtents
from tidelog.broker.requests import Bound, OffsetFound
from tidelog.errors import BrokerIdTaken, CorruptBatch, Fenced, OutcomeUnknown, StoreOutcomeUnknown, TimedOut
from tidelog.metadata import cleaning as cleaning_verbs
from tidelog.metadata import commits, extents, snapshot
from tidelog.metadata import leadership as leadership_verbs
from tidelog.metadata import membership as membership_verbs
from tidelog.metadata import retention as retention_verbs
from tidelog.metadata.commits import Committed
from tidelog.metadata.extents import ReleasedSource, expired_extents, release_expired, retention_points
from tidelog.metadata.marks import final_segments
from tidelog.metadata.store import Transaction
from tidelog.records.batch import BatchHeader, batch_end
from tidelog.segments import format as segments
from tidelog.segments.audit import ExtentAudit
from tidelog.segments.format import Origin, encode_intake

from tests.sim.scenario import simulate

Patch = pytest.MonkeyPatch
DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
KILLERS = Path(__file__).with_name("killers.json")
"""Of each mutant the first seed that found it, and as what."""


@dataclass(frozen=True)
class Mutant:
    """`name` says what the broken code does; it is to be found within so many seeds, from 1 on."""

    name: str
    breaks: str
    within: int
    mood: str | None
    """Of the runs (`tests.sim.world.draw`); None: as each seed draws it."""
    plant: Callable[[Patch], None]


@dataclass(frozen=True)
class Verdict:
    """How a mutant was found: by which seed, the first from 1 on, and as what. No seed: it survived."""

    mutant: str
    seed: int | None
    found: str
    seconds: float


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, *, breaks: str, within: int, mood: str | None = None) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def register(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[name] = Mutant(name, breaks, within, mood, plant)
        return plant

    return register


def killers() -> dict[str, tuple[int, str]]:
    """Return the seed that found each mutant the last time, and as what."""
    return {name: (seed, found) for name, (seed, found) in json.loads(KILLERS.read_text()).items()}


def quick() -> list[str]:
    """Return of each thing that may break the mutant that is found soonest."""
    known = killers()
    soonest: dict[str, str] = {}
    for name in sorted(MUTANTS.keys() & known.keys(), key=lambda name: (known[name][0], name)):
        soonest.setdefault(MUTANTS[name].breaks, name)
    return list(soonest.values())


def hunt(name: str, known: int | None = None) -> Verdict:
    """Run seeds with a bug planted until it is found, the `known` one first; the same seed without it must be well."""
    planted = MUTANTS[name]
    began = time.monotonic()
    logging.disable(logging.CRITICAL)
    try:
        for seed in (*([] if known is None else [known]), *range(1, planted.within + 1)):
            with pytest.MonkeyPatch.context() as patch:
                planted.plant(patch)
                found = _found(seed, planted.mood)
            if found:
                assert not _found_unplanted(seed, planted.mood), f"seed {seed} fails without {name!r}, too"
                return Verdict(name, seed, found, time.monotonic() - began)
    finally:
        logging.disable(logging.NOTSET)
    return Verdict(name, None, "", time.monotonic() - began)


def _found(seed: int, mood: str | None) -> str:
    try:
        violations = simulate(seed, to_first=True, mood=mood).violations
    except Exception as error:  # noqa: BLE001  a run that dies of a bug has found it
        return f"the run died: {error!r}"
    return violations[0].name if violations else ""


@cache
def _found_unplanted(seed: int, mood: str | None) -> str:
    return _found(seed, mood)


# ---- the leader's order


@mutant("appends are acknowledged before their commit", breaks="I2", within=3)
def _(patch: Patch) -> None:
    decide = Ledger._decide

    def early(self: Ledger, led: Any, taken: Any, index: int) -> None:
        waiting = len(led.pending)
        decide(self, led, taken, index)
        if len(led.pending) > waiting:
            base = led.pending[-1].base_offset
            self._settle(taken, index, Accepted(base, base + taken.reference.appends[index].record_count, led.epoch))

    patch.setattr(Ledger, "_decide", early)


@mutant("readers are told of commits before they are done", breaks="I2", within=40)
def _(patch: Patch) -> None:
    gather = Ledger._gather

    def early(self: Ledger) -> Any:
        proposals = gather(self)
        for proposal in proposals:
            rows = ledger._as_rows(proposal)
            if rows:
                self._publish(CommittedExtents(proposal.led.partition_id, rows, rows[-1].next_offset, 0))
        return proposals

    patch.setattr(Ledger, "_gather", early)


def _commit_without(patch: Patch, *, epoch: bool = False, end: bool = False, writer: bool = False, resolved: bool = False) -> None:
    """Let the commit not look at some of what it depends on."""
    decide = commits._decide

    def lenient(proposal: Any, state: Any, marks: dict[int, int], found: Any) -> Any:
        state = (proposal.leader_epoch if epoch else state[0], proposal.next_offset if end else state[1])
        if resolved:
            marks = dict.fromkeys(marks, 0)
        if writer:
            marks = dict.fromkeys((extent.broker_epoch for extent in proposal.extents), 0) | marks
        return decide(proposal, state, marks, found)

    patch.setattr(commits, "_decide", lenient)


def _commit_forgetful(patch: Patch) -> None:
    """Let the commit not look for what it committed before."""
    committed_before = commits._committed_before
    patch.setattr(commits, "_committed_before", lambda tx, proposals: ({}, committed_before(tx, proposals)[1]))


@mutant("a commit does not compare the leader epoch", breaks="I1", within=100, mood="quiet")
def _(patch: Patch) -> None:
    _commit_without(patch, epoch=True)


@mutant("a commit compares neither leader epoch nor log end", breaks="I1", within=100, mood="quiet")
def _(patch: Patch) -> None:
    _commit_without(patch, epoch=True, end=True)


@mutant("a commit does not look whether the writer's epoch has ended", breaks="I7", within=100, mood="hostile")
def _(patch: Patch) -> None:
    _commit_without(patch, writer=True)


@mutant("a commit does not look whether the sequence is resolved", breaks="I7", within=100, mood="hostile")
def _(patch: Patch) -> None:
    _commit_without(patch, resolved=True)


@mutant("a commit whose answer is unknown counts as done", breaks="I5", within=100)
def _(patch: Patch) -> None:
    async def once(self: Ledger, partitions: Sequence[commits.PartitionCommit]) -> dict[int, commits.Outcome]:
        try:
            return await self._store.run(commits.commit, broker_epoch=self._broker_epoch, partitions=partitions)
        except ledger._NOT_NOW:
            return {proposal.partition_id: Committed(commits._end(proposal)) for proposal in partitions}

    patch.setattr(Ledger, "_commit", once)


@mutant("retried references are looked up neither by the leader nor by the commit", breaks="I5", within=100, mood="hostile")
def _(patch: Patch) -> None:
    patch.setattr(Ledger, "must_look_up", lambda self, references: frozenset())
    _commit_forgetful(patch)


@mutant("a look-up that fails counts as nothing found, and the commit does not look", breaks="I5", within=100, mood="hostile")
def _(patch: Patch) -> None:
    look_up = Ledger.look_up

    async def hopeful(self: Ledger, segments: frozenset[tuple[int, int, int]]) -> Any:
        try:
            return await look_up(self, segments)
        except ledger._NOT_NOW:
            return ledger._LookUp(asked=segments)

    patch.setattr(Ledger, "look_up", hopeful)
    _commit_forgetful(patch)


@mutant("producers' state is not loaded at take-over", breaks="I8", within=40)
def _(patch: Patch) -> None:
    take_over = leadership_verbs.take_over

    def bare(tx: Transaction, **asked: Any) -> Any:
        return tuple(replace(led, producers=()) for led in take_over(tx, **asked))

    bare.__name__ = "take_over"
    patch.setattr(leadership, "take_over", bare)


@mutant("producers' state is not committed with their records", breaks="I8", within=3)
def _(patch: Patch) -> None:
    propose = Ledger._propose

    def bare(self: Ledger, led: Any) -> Any:
        proposal = propose(self, led)
        return replace(proposal, commit=replace(proposal.commit, producers=()))

    patch.setattr(Ledger, "_propose", bare)


@mutant("neither duplicates nor gaps are noticed", breaks="I8", within=40)
def _(patch: Patch) -> None:
    patch.setattr(decisions, "_find", lambda window, sequence: None)
    patch.setattr(PartitionState, "_check_sequence", lambda self, window, sequence: None)


@mutant("duplicates are taken for gaps", breaks="I8", within=100)
def _(patch: Patch) -> None:
    patch.setattr(decisions, "_find", lambda window, sequence: None)


@mutant("a duplicate is answered with a wrong offset", breaks="I8", within=100)
def _(patch: Patch) -> None:
    find = decisions._find

    def beside(window: Any, sequence: Any) -> int | None:
        found = find(window, sequence)
        return None if found is None else found + 1

    patch.setattr(decisions, "_find", beside)


@mutant("an append within an extent is answered with the extent's offset", breaks="I5", within=100, mood="hostile")
def _(patch: Patch) -> None:
    def first(reference: Any, found: Any) -> dict[int, int]:
        return {
            append.position: extent.base_offset
            for extent in found
            for append in reference.appends
            if extent.position <= append.position < extent.position + extent.length
        }

    patch.setattr(ledger, "committed_offsets", first)


@mutant("what follows a refused append is not decided again", breaks="I1", within=100, mood="hostile")
def _(patch: Patch) -> None:
    def kept(self: Ledger, proposal: Any, refused: Any) -> None:
        led = proposal.led
        sources = dict(zip(proposal.commit.extents, proposal.sources, strict=True))
        out = {id(item): item for each in refused.extents for item in sources[each.extent]}
        for item in out.values():
            self._settle(item.taken, item.index, ledger._never_seen(item.taken.reference))
            if not item.taken.missing:
                self._reply(item.taken)
        self._pending -= len(out)
        led.pending = [item for item in led.pending if id(item) not in out]

    patch.setattr(Ledger, "_without", kept)


@mutant("conditions are held against what is committed, not what is pending", breaks="I4", within=100)
def _(patch: Patch) -> None:
    check = PartitionState._check_conditions

    def lenient(self: PartitionState, append: Any) -> Any:
        end, self.pending_next = self.pending_next, self.next_offset
        try:
            return check(self, append)
        finally:
            self.pending_next = end

    patch.setattr(PartitionState, "_check_conditions", lenient)


@mutant("fencing tokens are not compared", breaks="fencing", within=100)
def _(patch: Patch) -> None:
    check = PartitionState._check_conditions
    patch.setattr(PartitionState, "_check_conditions", lambda self, append: check(self, replace(append, fencing_token=None)))


@mutant("a new fencing token begins no new leader epoch", breaks="fencing", within=100)
def _(patch: Patch) -> None:
    set_token = leadership_verbs.set_fencing_token

    def mild(tx: Transaction, *, partition_id: int, **asked: Any) -> Any:
        done = set_token(tx, partition_id=partition_id, **asked)
        tx.execute("UPDATE partitions SET leader_epoch = leader_epoch - 1 WHERE partition_id = :id", id=partition_id)
        return replace(done, leader_epoch=-1)

    mild.__name__ = "set_fencing_token"
    patch.setattr(broker, "set_fencing_token", mild)


@mutant("a step-down does not answer, nor does the next leader begin anew", breaks="I1", within=100)
def _(patch: Patch) -> None:
    """A leader that finds itself fenced goes on with the state it has, under the epoch that SQL names."""

    def go_on(self: Ledger, proposal: Any, outcome: Any) -> None:
        if isinstance(outcome, commits.NotLeader):
            proposal.led.epoch = outcome.leader_epoch
        conclude(self, proposal, outcome)

    def stay(self: Ledger, partition_id: int) -> None:
        if partition_id not in self._led:
            step_down(self, partition_id)

    conclude, step_down = Ledger._conclude, Ledger.step_down
    patch.setattr(Ledger, "_conclude", go_on)
    patch.setattr(Ledger, "step_down", stay)


# ---- the references' protocol


def _take_each(patch: Patch, prepare: Callable[[Ledger, Any], Any]) -> None:
    take = Ledger.take

    def one_by_one(self: Ledger, session: Any, references: Any, known: Any = ledger._NOTHING) -> None:
        for reference in references:
            take(self, session, [prepare(self, reference)], known)

    patch.setattr(Ledger, "take", one_by_one)


def _whatever_number(self: Ledger, reference: Any) -> Any:
    led = self._led.get(reference.partition_id)
    if led is not None:
        led.writers.setdefault(reference.broker_epoch, ledger._Writer()).expected = reference.number
    return reference


@mutant("references are taken whatever their number", breaks="order of references", within=100)
def _(patch: Patch) -> None:
    _take_each(patch, _whatever_number)


@mutant("references are taken whatever their number, and sent in any order", breaks="order of references", within=40)
def _(patch: Patch) -> None:
    _take_each(patch, _whatever_number)
    renumber = outbox.Outbox._renumber

    def backwards(self: outbox.Outbox, queue: Any, leader_epoch: int) -> None:
        queue.outstanding.sort(key=lambda each: -each.sequence)
        renumber(self, queue, leader_epoch)

    patch.setattr(outbox.Outbox, "_renumber", backwards)


@mutant("references are taken whatever their leader epoch and number", breaks="I1", within=100)
def _(patch: Patch) -> None:
    def whatever(self: Ledger, reference: Any) -> Any:
        led = self._led.get(reference.partition_id)
        if led is not None:
            reference = replace(reference, leader_epoch=led.epoch)
        return _whatever_number(self, reference)

    _take_each(patch, whatever)


@mutant("an answer of another leader epoch is believed", breaks="order of references", within=100, mood="contended")
def _(patch: Patch) -> None:
    answered = outbox.Outbox.answered

    def gullible(self: outbox.Outbox, answers: Any) -> None:
        queues = self._queues
        answered(self, [replace(a, leader_epoch=queues[a.partition_id].epoch) if a.partition_id in queues else a for a in answers])

    patch.setattr(outbox.Outbox, "answered", gullible)


@mutant("references are sent before their upload is done", breaks="I2", within=3)
def _(patch: Patch) -> None:
    upload = uploads.Uploads._upload

    async def early(self: uploads.Uploads, sequence: int, sources: Any, give_up_at: Any) -> Any:
        who = self._identity
        _, footer = encode_intake(sources, Origin(who.cluster_id, who.broker_id, who.broker_epoch, sequence, self._clock.wall_ms()))
        self._spawn(upload(self, sequence, sources, give_up_at))
        return footer

    patch.setattr(uploads.Uploads, "_upload", early)


@mutant("an upload whose outcome is unknown counts as done", breaks="I2", within=100)
def _(patch: Patch) -> None:
    class Optimist:
        def __init__(self, bucket: Any) -> None:
            self._bucket = bucket

        async def put_new(self, key: str, parts: Any) -> None:
            try:
                await self._bucket.put_new(key, parts)
            except StoreOutcomeUnknown:
                return

    begin = uploads.Uploads.__init__

    def hopeful(self: uploads.Uploads, *, bucket: Any, **parts: Any) -> None:
        optimist: Any = Optimist(bucket)
        begin(self, bucket=optimist, **parts)

    patch.setattr(uploads.Uploads, "__init__", hopeful)


@mutant("an upload that is tried again gets another key", breaks="I3", within=100)
def _(patch: Patch) -> None:
    class Renaming:
        def __init__(self, bucket: Any) -> None:
            self._bucket = bucket
            self._tried: dict[str, int] = defaultdict(int)

        async def put_new(self, key: str, parts: Any) -> None:
            self._tried[key] += 1
            again = self._tried[key] - 1
            await self._bucket.put_new(key if not again else f"{key}-{again}", parts)

    begin = uploads.Uploads.__init__

    def renaming(self: uploads.Uploads, *, bucket: Any, **parts: Any) -> None:
        other: Any = Renaming(bucket)
        begin(self, bucket=other, **parts)

    patch.setattr(uploads.Uploads, "__init__", renaming)


@mutant("uploads are reported as they come, not in the order of their segments", breaks="order of references", within=100)
def _(patch: Patch) -> None:
    def as_they_come(self: uploads.Uploads) -> None:
        for sequence, (report, result) in list(self._order.items()):
            if result is not None:
                del self._order[sequence]
                report(result)

    patch.setattr(uploads.Uploads, "_report_in_order", as_they_come)


# ---- intake and its answers


@mutant("an unknown outcome is reported as not done", breaks="I5", within=100)
def _(patch: Patch) -> None:
    patch.setattr("tidelog.broker.intake.OutcomeUnknown", TimedOut)


@mutant("when an epoch ends, what was sent to leaders is reported as not done", breaks="I5", within=100, mood="hostile")
def _(patch: Patch) -> None:
    end = intake.Intake.end

    def sure(self: intake.Intake) -> None:
        for segment in self._live.values():
            segment.released = False
        end(self)

    patch.setattr(intake.Intake, "end", sure)


@mutant("an append is sent to its leader after it was reported as not done", breaks="I4", within=100)
def _(patch: Patch) -> None:
    reference = intake.Intake._reference

    def forgetful(self: intake.Intake, segment: Any, chunk: Any, position: int) -> Any:
        for append in chunk.appends:
            append.answered = False
        return reference(self, segment, chunk, position)

    patch.setattr(intake.Intake, "_reference", forgetful)


@mutant("on an unknown outcome offset 0 is acknowledged", breaks="I4", within=100)
def _(patch: Patch) -> None:
    fail = intake.Intake._fail

    def cheerful(self: intake.Intake, append: Any, error: Any) -> None:
        if isinstance(error, OutcomeUnknown):
            self._succeed(append, Accepted(0, append.record_count, 0))
        else:
            fail(self, append, error)

    patch.setattr(intake.Intake, "_fail", cheerful)


@mutant("the resolved mark runs ahead of what is resolved", breaks="I7", within=40)
def _(patch: Patch) -> None:
    patch.setattr(intake.Intake, "resolved_sequence", property(lambda self: self._sequence))


@mutant("references that nobody waits for are sent on", breaks="I7", within=100)
def _(patch: Patch) -> None:
    patch.setattr(outbox.Outbox, "withdraw", lambda self, reference: None)


@mutant("bytes of an upload that nobody waits for are not given back", breaks="I10", within=100)
def _(patch: Patch) -> None:
    upload_ended = intake.Intake._upload_ended

    def leaking(self: intake.Intake, segment: Any) -> None:
        if segment.sequence not in self._live:
            segment.cost_bytes = 0
        upload_ended(self, segment)

    patch.setattr(intake.Intake, "_upload_ended", leaking)


# ---- membership and leadership


@mutant("a leader that loads a partition again keeps its leader epoch", breaks="I1", within=100)
def _(patch: Patch) -> None:
    take_over = leadership_verbs.take_over

    def unchanged(tx: Transaction, *, broker_epoch: int, **asked: Any) -> Any:
        own = {row[0] for row in tx.rows("SELECT partition_id FROM partitions WHERE leader_broker_epoch = :own", own=broker_epoch)}
        taken = []
        for led in take_over(tx, broker_epoch=broker_epoch, **asked):
            back = led.partition_id in own
            if back:
                tx.execute("UPDATE partitions SET leader_epoch = leader_epoch - 1 WHERE partition_id = :id", id=led.partition_id)
            taken.append(replace(led, leader_epoch=led.leader_epoch - back))
        return tuple(taken)

    unchanged.__name__ = "take_over"
    patch.setattr(leadership, "take_over", unchanged)


@mutant("the same broker epoch is given twice", breaks="I6", within=3)
def _(patch: Patch) -> None:
    register = membership_verbs.register

    def again(tx: Transaction, **asked: Any) -> Any:
        given = register(tx, **asked)
        tx.execute("UPDATE cluster SET next_broker_epoch = next_broker_epoch - 1")
        return given

    again.__name__ = "register"
    patch.setattr(membership, "register", again)


@mutant("nobody may end his own expired epoch", breaks="liveness", within=100)
def _(patch: Patch) -> None:
    register = membership_verbs.register

    def stern(tx: Transaction, *, broker_id: str, incarnation: str, **asked: Any) -> Any:
        holders = tx.rows("SELECT incarnation FROM brokers WHERE broker_id = :id", id=broker_id)
        if holders and holders[0].incarnation != incarnation:
            raise BrokerIdTaken("taken", expires_in_ms=0)
        return register(tx, broker_id=broker_id, incarnation=incarnation, **asked)

    stern.__name__ = "register"
    patch.setattr(membership, "register", stern)


@mutant("epochs are ended without waiting one lease after an outage", breaks="availability", within=100)
def _(patch: Patch) -> None:
    end_expired = membership_verbs.end_expired_epochs

    def hasty(tx: Transaction, *, broker_epoch: int, **asked: Any) -> Any:
        tx.execute("UPDATE brokers SET unbroken_since_ms = 0 WHERE broker_epoch = :own", own=broker_epoch)
        return end_expired(tx, broker_epoch=broker_epoch, **asked)

    hasty.__name__ = "end_expired_epochs"
    patch.setattr(membership, "end_expired_epochs", hasty)


@mutant("a lease is counted from the answer to its renewal", breaks="lease", within=100, mood="hostile")
def _(patch: Patch) -> None:
    renew = membership.Lease._renew

    async def late(self: membership.Lease) -> None:
        await renew(self)
        self._deadline = self._clock.monotonic() + membership._SAFE_SHARE * self._settings.lease_ms / 1000

    patch.setattr(membership.Lease, "_renew", late)


@mutant("a lease is never doubted", breaks="lease", within=100, mood="hostile")
def _(patch: Patch) -> None:
    patch.setattr(membership.Lease, "stands", lambda self: True)


@mutant("a broker whose epoch has ended lives on", breaks="lease", within=100)
def _(patch: Patch) -> None:
    renew, report = membership.Lease._renew, membership.Lease._report

    async def deaf(self: membership.Lease) -> None:
        try:
            await renew(self)
        except Fenced:
            self._deadline = self._clock.monotonic() + self._settings.lease_ms / 1000

    async def deaf_too(self: membership.Lease, resolved: int) -> None:
        try:
            await report(self, resolved)
        except Fenced:
            return

    patch.setattr(membership.Lease, "_renew", deaf)
    patch.setattr(membership.Lease, "_report", deaf_too)


# ---- merging


@mutant("a swap compares neither its sources nor its leader epoch", breaks="I1", within=100, mood="hostile")
def _(patch: Patch) -> None:
    def blind(tx: Transaction, *, partition_id: int, leader_epoch: int, sources: Any, merged: Any) -> bool:
        if not extents._present(tx, merged) and not final_segments(tx, segments=[(merged.broker_epoch, merged.sequence)]):
            extents._release(tx, sources, by=merged.broker_epoch)
            row = {name: getattr(merged, name) for name in merged.__dataclass_fields__}
            values = ", ".join(f":{name}" for name in row)
            tx.execute(f"INSERT INTO extents ({', '.join(row)}) VALUES ({values}) ON CONFLICT DO NOTHING", **row)
        return True

    blind.__name__ = "swap"
    patch.setattr(ledger, "swap", blind)


@mutant("a merged segment takes its place before it is written", breaks="I2", within=3)
def _(patch: Patch) -> None:
    async def early(self: merging.Merging, run: Any, key: str, origin: Any, prefetched: Any) -> Any:
        made = merging._Made()
        parts = [bytes(part) async for part in self._bytes_of(run, origin, prefetched, made)]
        asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(self._bucket.put_new(key, parts)))
        return made.footer

    patch.setattr(merging.Merging, "_write", early)


@mutant("a merged segment whose write is unknown counts as written", breaks="I5", within=100)
def _(patch: Patch) -> None:
    class Optimist:
        def __init__(self, bucket: Any) -> None:
            self._bucket = bucket

        async def put_new(self, key: str, parts: Any) -> None:
            with suppress(StoreOutcomeUnknown):
                await self._bucket.put_new(key, parts)

        async def put_stream(self, key: str, parts: Any) -> None:
            with suppress(StoreOutcomeUnknown):
                await self._bucket.put_stream(key, parts)

        async def get_range(self, key: str, position: int, length: int) -> bytes:
            return bytes(await self._bucket.get_range(key, position, length))

    begin = merging.Merging.__init__

    def hopeful(self: merging.Merging, *, bucket: Any, **parts: Any) -> None:
        optimist: Any = Optimist(bucket)
        begin(self, bucket=optimist, **parts)

    patch.setattr(merging.Merging, "__init__", hopeful)


@mutant("merged batches are stamped with the leader epoch of whoever merges", breaks="I3", within=40)
def _(patch: Patch) -> None:
    stamp = runs.stamp_intake

    def later(spans: Any, parts: Any) -> Any:
        return stamp([replace(span, extent=replace(span.extent, leader_epoch=span.extent.leader_epoch + 1)) for span in spans], parts)

    patch.setattr(merge_sources, "stamp_intake", later)


@mutant("a sequence is not held while its segment is merged, and the swap does not look", breaks="I7", within=100)
def _(patch: Patch) -> None:
    new_sequence = intake.Intake.new_sequence

    def unheld(self: intake.Intake) -> int:
        sequence = new_sequence(self)
        self.resolve(sequence)
        return sequence

    patch.setattr(intake.Intake, "new_sequence", unheld)
    patch.setattr(extents, "final_segments", lambda tx, segments: frozenset())


# ---- reading


_HEADER = Struct(">qiibIhiqqqhii")


@mutant("bytes that were read are not checked", breaks="I3", within=100)
def _(patch: Patch) -> None:
    def unchecked(data: Any) -> list[BatchHeader]:
        headers, position = [], 0
        while position < len(data):
            end = batch_end(data, position)
            if end is None:
                raise CorruptBatch("no batch", position=position)
            base, _, epoch, _, crc, attributes, last, *times, producer, producer_epoch, sequence, count = _HEADER.unpack_from(
                data, position
            )
            headers.append(
                BatchHeader(
                    position,
                    end - position,
                    base,
                    epoch,
                    attributes,
                    last,
                    times[0],
                    times[1],
                    producer,
                    producer_epoch,
                    sequence,
                    count,
                    crc,
                )
            )
            position = end
        return headers

    patch.setattr(runs, "scan", unchecked)


@mutant("the end of a partition is answered from what the broker knows", breaks="stale latest", within=100)
def _(patch: Patch) -> None:
    list_offset = reader.Reader.list_offset

    async def remembered(self: reader.Reader, ref: Any, position: Any) -> OffsetFound:
        known = self.feed._followed.get(ref.partition_id)
        if position is Bound.LATEST and known is not None and known.known:
            return OffsetFound(known.high_watermark)
        return await list_offset(self, ref, position)

    patch.setattr(reader.Reader, "list_offset", remembered)


@mutant("a high watermark follows whatever was heard last", breaks="I6", within=40)
def _(patch: Patch) -> None:
    raise_to = Followed.raise_to

    def follow(self: Followed, high_watermark: int, log_start_offset: int = 0) -> None:
        raise_to(self, high_watermark, log_start_offset)
        if high_watermark:
            self.high_watermark = high_watermark

    patch.setattr(Followed, "raise_to", follow)


@mutant("news with a gap before them are added all the same", breaks="poll skip", within=100)
def _(patch: Patch) -> None:
    def add(self: Followed, extents: Any) -> bool:
        end = self._window[-1].next_offset if self._window else 0
        self._window = [*self._window, *(extent for extent in extents if extent.next_offset > end)][-self._most :]
        return True

    patch.setattr(Followed, "add", add)


@mutant("the beginning of a partition may be set back", breaks="I6", within=100)
def _(patch: Patch) -> None:
    def anywhere(tx: Transaction, *, partition_id: int, leader_epoch: int, to: int) -> int:
        leadership_verbs.lock_led(tx, partition_id=partition_id, leader_epoch=leader_epoch)
        tx.execute("UPDATE partitions SET log_start_offset = :to WHERE partition_id = :id", to=to, id=partition_id)
        return to

    anywhere.__name__ = "advance_log_start"
    patch.setattr(broker, "advance_log_start", anywhere)


# ---- retention and cleaning


def _named(name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
    verb.__name__ = name
    return verb


@mutant("the cleaner goes by age alone", breaks="I7", within=40)
def _(patch: Patch) -> None:
    patch.setattr(cleaner, "orphans", _named("orphans", lambda tx, segments: frozenset(segments)))


@mutant("what was released is deleted whoever may still commit or read it", breaks="I7", within=40)
def _(patch: Patch) -> None:
    def reckless(tx: Transaction, *, notes: Any) -> Any:
        return cleaning_verbs.Verdict(frozenset((note.broker_epoch, note.sequence) for note in notes), frozenset())

    patch.setattr(cleaner, "condemn", _named("condemn", reckless))


@mutant("the cleaner looks at extents first, and a second later at their writers", breaks="I7", within=100, mood="hostile")
def _(patch: Patch) -> None:
    tables = ("extents", "released_extents", "released_segments")

    async def backwards(self: Cleaner, candidates: Any) -> None:
        wanted = sorted({(each.broker_epoch, each.sequence) for each in candidates})
        known = await self._store.run(cleaning_verbs._with_rows, tables, wanted)
        await asyncio.sleep(1)
        final = await self._store.run(final_segments, segments=wanted)
        self._orphans |= {each.key: each for each in candidates if (each.broker_epoch, each.sequence) in final - known}
        del self._candidates_found[: len(candidates)]

    patch.setattr(Cleaner, "_look_for_orphans", backwards)
    patch.setattr(orphans, "WHOLE_EVERY", 1)


@mutant("what was released is deleted without the readers' grace", breaks="I7", within=40)
def _(patch: Patch) -> None:
    released = cleaning_verbs.released_segments
    patch.setattr(
        cleaner, "released_segments", _named("released_segments", lambda tx, *, grace_ms, **asked: released(tx, grace_ms=0, **asked))
    )


@mutant("a segment is condemned although it was released again", breaks="I7", within=100, mood="hostile")
def _(patch: Patch) -> None:
    condemn = cleaning_verbs.condemn

    def careless(tx: Transaction, *, notes: Any) -> Any:
        now = {(row.broker_epoch, row.sequence): row.released_at_ms for row in tx.rows("SELECT * FROM released_segments")}
        found = [replace(note, released_at_ms=now.get((note.broker_epoch, note.sequence), note.released_at_ms)) for note in notes]
        return condemn(tx, notes=found)

    patch.setattr(cleaner, "condemn", _named("condemn", careless))


@mutant("the cleaner renews no marker", breaks="I11", within=3)
def _(patch: Patch) -> None:
    async def nothing(*_: object) -> None: ...

    patch.setattr(cleaner, "renew", nothing)


@mutant("the cleaner renews the marker before it reads what was released", breaks="I11", within=100, mood="hostile")
def _(patch: Patch) -> None:
    clean, renew = Cleaner.clean, marker.renew

    async def early(self: Cleaner) -> bool:
        await renew(self._bucket, self._cluster_state)
        return await clean(self)

    async def nothing(*_: object) -> None: ...

    patch.setattr(Cleaner, "clean", early)
    patch.setattr(cleaner, "renew", nothing)


@mutant("extents are released before the log start has moved", breaks="retention", within=40)
def _(patch: Patch) -> None:
    apply = retention_verbs.apply_retention

    def hasty(tx: Transaction, *, rules: Any) -> Any:
        points = {}
        for rule in rules:
            point = retention_points(tx, limits=[(rule.partition_id, 0, rule.retention_bytes)])[rule.partition_id]
            [row] = tx.rows("SELECT log_start_offset AS at FROM partitions WHERE partition_id = :id", id=rule.partition_id)
            if point > row.at:
                points[rule.partition_id] = row.at
                tx.execute("UPDATE partitions SET log_start_offset = :to WHERE partition_id = :id", to=point, id=rule.partition_id)
        found = expired_extents(tx, partition_ids=sorted(points), limit=100)
        release_expired(tx, broker_epoch=found.extents[0].broker_epoch if found.extents else 0,
                        sources=[ReleasedSource(extent, "intake/x/0000000001/x") for extent in found.extents])  # fmt: skip
        for partition_id, before in points.items():
            tx.execute("UPDATE partitions SET log_start_offset = :to WHERE partition_id = :id", to=before, id=partition_id)
        return {} if points else apply(tx, rules=rules)

    patch.setattr(retention, "apply_retention", _named("release_expired", hasty))


@mutant("whoever asks for what is not kept any more is served", breaks="retention", within=40)
def _(patch: Patch) -> None:
    async def anything(self: reader.PartitionCursor, found: Any, offset: int) -> None: ...

    patch.setattr(reader.PartitionCursor, "_check_range", anything)


@mutant("what could not be deleted is never tried again", breaks="liveness", within=100)
def _(patch: Patch) -> None:
    patch.setattr(Quarantine, "holds", lambda self, item: item in self._failures)


@mutant("deleted topics are left as they are", breaks="liveness", within=40)
def _(patch: Patch) -> None:
    async def nothing(self: retention.DeletedTopics) -> None: ...

    patch.setattr(retention.DeletedTopics, "work", nothing)


@mutant("segments say that they are another cluster's", breaks="I11", within=10)
def _(patch: Patch) -> None:
    patch.setattr(uploads, "Origin", lambda cluster_id, *rest: Origin(cluster_id[::-1], *rest))


@mutant("the footer of a segment counts a record too many", breaks="format", within=10)
def _(patch: Patch) -> None:
    chunk = segments._chunk

    def counted(source: Any, position: int) -> Any:
        made = chunk(source, position)
        return replace(made, record_count=made.record_count + 1)

    patch.setattr(segments, "_chunk", counted)


@mutant("a release is not noted for the cleaner", breaks="I7", within=40)
def _(patch: Patch) -> None:
    release = extents._release

    def unnoted(tx: Transaction, *args: Any, **kwargs: Any) -> int:
        moved = release(tx, *args, **kwargs)
        tx.execute("DELETE FROM released_segments")
        return moved

    patch.setattr(extents, "_release", unnoted)


@mutant("a scrub believes whatever it reads", breaks="scrub", within=10)
def _(patch: Patch) -> None:
    patch.setattr(ExtentAudit, "feed", lambda _self, _piece: "")
    patch.setattr(ExtentAudit, "finish", lambda _self: "")


# ---- checkpoints, and what is rebuilt of them


@mutant("a checkpoint leaves out the first extent that came since the one before", breaks="rebuild", within=20)
def _(patch: Patch) -> None:
    def later(tx: Transaction, *, positions: Any, **asked: Any) -> Any:
        return snapshot.read_progress(tx, positions=[(partition_id, at + bool(at)) for partition_id, at in positions], **asked)

    later.__name__ = "read_progress"
    patch.setattr(checkpointer, "read_progress", later)


@mutant("a rebuilt store gives broker epochs again", breaks="I6", within=20)
def _(patch: Patch) -> None:
    patch.setattr(rebuild, "EPOCH_LEAP", 0)


@mutant("a rebuild takes brokers that no checkpoint names for ended ones", breaks="rebuild", within=40)
def _(patch: Patch) -> None:
    def final(self: Any, segment: tuple[int, int]) -> bool:
        sequence, ended = self.known.get(segment[0], (-1, True))
        return bool(ended) or segment[1] <= sequence

    patch.setattr(rebuild_source.Marks, "is_final", final)


@mutant("a rebuild takes writers that were forgotten for living ones", breaks="rebuild", within=40)
def _(patch: Patch) -> None:
    def final(self: Any, segment: tuple[int, int]) -> bool:
        sequence, ended = self.known.get(segment[0], (-1, False))
        return bool(ended) or segment[1] <= sequence

    patch.setattr(rebuild_source.Marks, "is_final", final)


@mutant("a rebuild remembers producers that have appended since the checkpoint", breaks="I8", within=20)
def _(patch: Patch) -> None:
    producers = rebuild._Rebuild._producers

    def all_of_them(self: Any) -> Any:
        self._forgotten = set()
        return producers(self)

    patch.setattr(rebuild._Rebuild, "_producers", all_of_them)


@mutant("a rebuild appends what an idempotent producer had sent before", breaks="rebuild", within=40)
def _(patch: Patch) -> None:
    patch.setattr(rebuild_newer.Line, "take", lambda self, batch: [batch])


# ---- running them


def table(known: Mapping[str, tuple[int, str]]) -> str:
    rows = ["| mutant | breaks | seeds needed | found as |", "|---|---|---|---|"]
    rows += [f"| {name} | {mutant.breaks} | {known[name][0]} | {known[name][1]} |" for name, mutant in MUTANTS.items() if name in known]
    return "\n".join(rows)


def write(known: Mapping[str, tuple[int, str]]) -> None:
    kept = {name: known[name] for name in MUTANTS if name in known}
    KILLERS.write_text("{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in kept.items()) + "\n}\n")
    text = DOCS.read_text()
    new = f"<!-- mutants -->\n{table(kept)}\n<!-- /mutants -->"
    DOCS.write_text(re.sub(r"<!-- mutants -->.*<!-- /mutants -->", lambda _: new, text, flags=re.DOTALL))


def _hunt(known: Mapping[str, tuple[int, str]], name: str) -> Verdict:
    return hunt(name, known[name][0] if name in known else None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only those whose names hold one of these words")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--anew", action="store_true", help="count seeds from 1 again, whatever found each the last time")
    parser.add_argument("--write", action="store_true", help=f"note what found each, and write the table into {DOCS.name}")
    asked = parser.parse_args()
    names = [name for name in MUTANTS if not asked.words or any(word in name for word in asked.words)]
    found: dict[str, Verdict] = {}
    known = {} if asked.anew else killers()
    names.sort(key=lambda name: name in known)  # those that take long begin first
    with Pool(asked.processes, maxtasksperchild=1) as pool:
        for verdict in pool.imap_unordered(partial(_hunt, known), names):
            found[verdict.mutant] = verdict
            how = f"seed {verdict.seed}: {verdict.found}" if verdict.seed else "SURVIVED"
            print(f"{verdict.mutant}: {how} ({verdict.seconds:.0f} s)", flush=True)
    survived = [name for name in names if found[name].seed is None]
    print(f"{len(names)} mutants, {len(survived)} survived")
    if asked.write:
        write(killers() | {name: (verdict.seed, verdict.found) for name, verdict in found.items() if verdict.seed is not None})
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
