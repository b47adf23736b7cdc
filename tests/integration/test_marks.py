"""Resolved marks beside commits that are under way, on PostgreSQL (I7)."""

import asyncio

from tidelog.metadata.commits import Committed, PartitionCommit, Refused, commit
from tidelog.metadata.marks import BLOCK_SEQUENCES, report_resolved
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.store import Transaction

from tests.contract.metadata_steps import append, extent, join, lead, topic


async def test_a_mark_waits_for_no_commit_and_stops_before_what_it_holds(postgres_url: str) -> None:
    """However many leaders commit a writer's segments, one after the other without a gap: its mark moves."""
    store = await open_postgres(PostgresSettings(postgres_url))
    broker = (await join(store, "b0")).broker_epoch
    ids = await topic(store, count=2)
    led = await lead(store, broker, ids)
    third = 3 * BLOCK_SEQUENCES
    holds, go_on = asyncio.Event(), asyncio.Event()

    def slowly(tx: Transaction) -> object:
        outcome = commit_of(tx, third + 5)
        holds.set()
        tx.connection.connection.run_async(lambda _driver: go_on.wait())
        return outcome

    def commit_of(tx: Transaction, sequence: int) -> object:
        proposal = PartitionCommit(ids[0], led[ids[0]].leader_epoch, 0, (extent(broker, sequence),))
        return commit(tx, broker_epoch=broker, partitions=[proposal])[ids[0]]

    slow = asyncio.ensure_future(store.run(slowly))
    await holds.wait()
    marks = [await store.run(report_resolved, broker_epoch=broker, sequence=sequence) for sequence in (70, third + 9, third + 9)]
    assert marks == [70, third - 1, third - 1]
    assert isinstance(await append(store, led[ids[1]], broker, extent(broker, 100)), Refused)
    go_on.set()
    assert await slow == Committed(10)
    assert await store.run(report_resolved, broker_epoch=broker, sequence=third + 9) == third + 9
    assert isinstance(await append(store, led[ids[1]], broker, extent(broker, third + 9)), Refused)
    assert await append(store, led[ids[1]], broker, extent(broker, third + 10)) == Committed(10)
    await store.close()


async def test_a_mark_that_has_far_to_go_goes_there_in_steps(postgres_url: str) -> None:
    """Each block takes a place in the server's table of locks."""
    store = await open_postgres(PostgresSettings(postgres_url))
    broker = (await join(store, "b0")).broker_epoch
    steps: list[int] = []
    while not steps or steps[-1] < 100_000:
        steps.append(await store.run(report_resolved, broker_epoch=broker, sequence=100_000))
    assert steps == [256 * BLOCK_SEQUENCES * (n + 1) - 1 for n in range(6)] + [100_000]
    await store.close()
