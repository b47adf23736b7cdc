"""The leader's commit queue by itself: references go in by hand, SQL is a real SQLite in memory."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from tidelog.broker.ledger import Ledger, LedgerSession
from tidelog.broker.references import Accepted, Answer, AppendReference, Reference
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.errors import TimeTravel
from tidelog.executors import InlineExecutor
from tidelog.metadata.extents import Extent, read_extents
from tidelog.metadata.leadership import take_over
from tidelog.metadata.membership import initialise, register
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig, create_topic
from tidelog.metrics import Metrics

T = TypeVar("T")
TOPIC_ID = "0102030405060708090a0b0c0d0e0f10"
PARTITIONS = 3
LEADER, WRITER = 1, 2
"""Broker epochs: the writer registered after the leader."""


def reference(sequence: int, *, number: int, leader_epoch: int = 1, partition_id: int = 1, appends: int = 1, **more: Any) -> Reference:
    """A reference to `appends` appends of one record, 100 bytes each, back to back."""
    asked = tuple(AppendReference(8 + 100 * index, 100, 1, 0) for index in range(appends))
    return replace(Reference(partition_id, WRITER, sequence, leader_epoch, number, 0, 0, 0, asked), **more)


class Answers:
    """The intake's end of a link."""

    def __init__(self) -> None:
        self.got: list[Answer] = []
        self.breaks = 0

    def answered(self, answers: Sequence[Answer]) -> None:
        self.got += answers

    def broken(self) -> None:
        self.breaks += 1


@dataclass
class Scene:
    store: MetadataStore
    ledger: Ledger
    metrics: Metrics
    membership_version: int
    handed_to: list[int] = field(default_factory=list)
    lease: dict[str, bool] = field(default_factory=dict)

    def session(self) -> tuple[LedgerSession, Answers]:
        answers = Answers()
        return self.ledger.session(WRITER, answers), answers

    async def work(self, done: Callable[[], bool]) -> None:
        """Let the ledger commit until `done`."""
        running = asyncio.ensure_future(self.ledger.run())
        try:
            async with asyncio.timeout(10):
                while not done():
                    if running.done():
                        running.result()
                    await asyncio.sleep(0)
        finally:
            running.cancel()
            await asyncio.wait([running])

    def commits(self) -> float:
        """How many transactions have committed."""
        return self.metrics.registry.get_sample_value("tidelog_commit_seconds_count") or 0

    async def extents(self, partition_id: int = 1) -> list[Extent]:
        found = await self.store.run(read_extents, positions=[(partition_id, 0)], max_extents=1000)
        return list(found.partitions[0].extents)


@asynccontextmanager
async def scene(**settings: Any) -> AsyncIterator[Scene]:
    store = await open_sqlite(IN_MEMORY, clock=SystemClock(), executor=InlineExecutor())
    await store.run(initialise, cluster_id="c" * 32, format_version=1)
    for name in ("leader", "writer"):
        joined = await store.run(register, broker_id=name, incarnation=name, zone="", address="a:1", peer_address="a:1", ttl_ms=1_000_000)
    await store.run(create_topic, topic_id=TOPIC_ID, name="t", partitions=PARTITIONS, config=TopicConfig())
    handed_to: list[int] = []
    metrics = Metrics()
    lease = {"stands": True}
    ledger = Ledger(
        store=store,
        broker_epoch=LEADER,
        settings=Settings.model_validate(settings),
        chance=random.Random(1),
        lease_stands=lambda: lease["stands"],
        publish=lambda news: None,
        changed=lambda: None,
        handed_over=handed_to.append,
        clock=SystemClock(),
        metrics=metrics,
    )
    taken = await store.run(
        take_over, broker_epoch=LEADER, membership_version=joined.membership_version, partition_ids=range(1, PARTITIONS + 1)
    )
    for led in taken:
        ledger.lead(led)
    try:
        yield Scene(store, ledger, metrics, joined.membership_version, handed_to, lease)
    finally:
        await store.close()


async def test_a_membership_read_before_a_writer_began_does_not_make_its_references_count_twice() -> None:
    async with scene() as at:
        before, _ = at.session()
        before.offer([reference(1, number=0)])
        at.ledger.forget_writers(frozenset({LEADER}))  # of a poll that began before the writer registered
        after, answers = at.session()  # the link broke: the intake sends again what was not answered
        after.offer([reference(1, number=0)])
        await at.work(lambda: bool(answers.got))
        assert [answer.outcomes for answer in answers.got] == [(Accepted(0, 1, 1),)]
        assert [(extent.base_offset, extent.next_offset) for extent in await at.extents()] == [(0, 1)]


async def test_a_leader_whose_lease_may_have_lapsed_takes_nothing() -> None:
    async with scene() as at:
        session, answers = at.session()
        at.lease["stands"] = False
        session.offer([reference(1, number=0)])
        await at.work(lambda: len(answers.got) == 1)
        assert (answers.got[0].outcomes, await at.extents()) == (None, [])
        at.lease["stands"] = True
        session.offer([reference(1, number=0)])
        await at.work(lambda: len(answers.got) == 2)
        assert answers.got[1].outcomes == (Accepted(0, 1, 1),)


async def test_answers_are_kept_until_their_intake_has_resolved_them_and_no_longer() -> None:
    """I10: an intake sends references for years."""
    async with scene() as at:
        session, answers = at.session()
        for sequence in range(1, 50):
            session.offer([reference(sequence, number=sequence - 1, lowest_wanted=sequence - 1, resolved_sequence=sequence - 2)])
            await at.work(lambda expected=sequence: len(answers.got) == expected)  # type: ignore[misc]
        answers.got.clear()
        session.offer([reference(sequence, number=sequence - 1, lowest_wanted=47, resolved_sequence=47) for sequence in (47, 48, 49)])
        await at.work(lambda: len(answers.got) == 3)
        assert [answer.outcomes for answer in answers.got] == [None, (Accepted(47, 48, 1),), (Accepted(48, 49, 1),)]
        assert [len(kept) for kept in at.ledger._answers_kept.values()] == [2]
        at.ledger.forget_writers(frozenset({LEADER, WRITER + 1}))
        assert not at.ledger._answers_kept


async def test_beyond_its_limit_a_queue_takes_nothing_until_something_is_committed() -> None:
    async with scene(max_pending_references=2) as at:
        session, answers = at.session()
        session.offer([reference(1, number=0, appends=2), reference(2, number=1)])
        await at.work(lambda: len(answers.got) == 2)
        assert [(answer.number, answer.outcomes and len(answer.outcomes)) for answer in answers.got] == [(1, None), (0, 2)], "not now"
        session.offer([reference(2, number=1)])
        await at.work(lambda: len(answers.got) == 3)
        assert answers.got[-1].outcomes == (Accepted(2, 3, 1),)


async def test_what_gathered_in_an_outage_is_committed_in_transactions_of_bounded_size() -> None:
    async with scene(commit_max_extents=2) as at:
        session, answers = at.session()
        for number, sequence in enumerate((1, 2, 3)):
            session.offer([reference(sequence, number=number, partition_id=partition_id) for partition_id in (1, 2, 3)])
        await at.work(lambda: len(answers.got) == 9)
        assert all(answer.outcomes for answer in answers.got)
        assert at.commits() == 3
        assert [len(await at.extents(partition_id)) for partition_id in (1, 2, 3)] == [3, 3, 3]


async def test_everybody_who_was_handed_something_is_told_so_each_time() -> None:
    async with scene() as at:
        at.ledger.hand_over([1], to_broker_epoch=WRITER, membership_version=at.membership_version)
        await at.work(lambda: not at.ledger.leads(1))
        at.ledger.hand_over([2], to_broker_epoch=WRITER, membership_version=at.membership_version)
        await at.work(lambda: not at.ledger.leads(2))
        assert at.handed_to == [WRITER, WRITER]
        assert at.ledger.leads(3)


async def test_a_store_that_went_back_is_noticed_before_an_offset_is_given_twice() -> None:
    """I11: a standby that lost the last commits was promoted under a living leader."""
    async with scene() as at:
        session, answers = at.session()
        session.offer([reference(1, number=0)])
        await at.work(lambda: len(answers.got) == 1)
        await at.store.run(lambda tx: tx.execute("UPDATE partitions SET next_offset = 0"))
        await at.store.run(lambda tx: tx.execute("DELETE FROM extents"))
        session.offer([reference(2, number=1)])
        with pytest.raises(TimeTravel, match="was at leader epoch 1 and offset 1 when .* has it at 1 and 0"):
            await at.work(lambda: len(answers.got) == 2)
        assert not await at.extents()


async def test_a_partition_that_was_dropped_with_its_topic_is_no_store_that_went_back() -> None:
    async with scene() as at:
        session, answers = at.session()
        session.offer([reference(1, number=0)])
        await at.work(lambda: len(answers.got) == 1)
        for table in ("extents", "partitions"):
            await at.store.run(lambda tx, table=table: tx.execute(f"DELETE FROM {table}"))  # type: ignore[misc]
        session.offer([reference(2, number=1)])
        await at.work(lambda: len(answers.got) == 2)
        assert answers.got[1].outcomes is None
        assert not at.ledger.leads(1)


async def test_very_many_outcomes_are_told_a_thousand_at_a_time_with_turns_for_others_between() -> None:
    async with scene() as at:
        session, answers = at.session()
        session.offer([reference(number + 1, number=number, appends=400) for number in range(6)])
        told_before: list[int] = []

        def look() -> None:
            told_before.append(len(answers.got))
            if told_before[-1] < 6:
                asyncio.get_running_loop().call_soon(look)

        look()
        await at.work(lambda: len(answers.got) == 6)
        assert [answer.number for answer in answers.got] == list(range(6))
        assert {0, 3, 6} == set(told_before)
