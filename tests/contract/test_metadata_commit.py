"""The commit, on every metadata store: I1, I5, I7 and I8 in one transaction."""

import asyncio
from dataclasses import replace

import pytest
from tidelog.errors import TimeTravel
from tidelog.metadata.commits import Committed, NotLeader, PartitionCommit, Refusal, Refused, commit
from tidelog.metadata.extents import Extent, ReleasedSource, find_references, read_extents, swap
from tidelog.metadata.leadership import ProducerWindow
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import cluster_state, end_epoch
from tidelog.metadata.store import MetadataStore

from tests.contract.metadata_steps import append, extent, join, lead, topic


async def extents_of(store: MetadataStore, partition_id: int, start: int = 0) -> tuple[Extent, ...]:
    read = await store.run(read_extents, positions=[(partition_id, start)], max_extents=1000)
    return read.partitions[0].extents


async def test_offsets_are_given_in_order_and_the_high_watermark_follows(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    first = await append(metadata_store, led, broker, extent(broker, 1), extent(broker, 2, records=5))
    second = await append(metadata_store, led, broker, extent(broker, 3, records=1), at=15)
    assert (first, second) == (Committed(15), Committed(16))
    read = await metadata_store.run(read_extents, positions=[(partition, 0)], max_extents=10)
    assert [(e.base_offset, e.next_offset, e.sequence) for e in read.partitions[0].extents] == [(0, 10, 1), (10, 15, 2), (15, 16, 3)]
    assert read.partitions[0].high_watermark == 16
    assert [(w.broker_epoch, w.broker_id, w.incarnation) for w in read.writers] == [(broker, "b0", "life-of-b0")]


async def test_a_commit_at_another_offset_than_the_logs_end_changes_nothing(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    await append(metadata_store, led, broker, extent(broker, 1))
    before = await extents_of(metadata_store, partition)
    assert await append(metadata_store, led, broker, extent(broker, 2), at=7) == NotLeader(led.leader_epoch, 10)
    assert await extents_of(metadata_store, partition) == before


async def test_a_store_that_is_behind_what_a_leader_was_told_is_noticed_and_commits_nothing(metadata_store: MetadataStore) -> None:
    """I11: whatever became of the store, log ends and leader epochs never go back (I6)."""
    broker = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=2)
    led = await lead(metadata_store, broker, ids)
    whole = PartitionCommit(ids[0], led[ids[0]].leader_epoch, 0, (extent(broker, 1),))
    for leader_epoch, offset in ((led[ids[1]].leader_epoch, 7), (led[ids[1]].leader_epoch + 1, 0)):
        behind = PartitionCommit(ids[1], leader_epoch, offset, (extent(broker, 1, position=200),))
        with pytest.raises(TimeTravel, match=f"partition {ids[1]} was at leader epoch {leader_epoch} and offset {offset} when"):
            await metadata_store.run(commit, broker_epoch=broker, partitions=[whole, behind])
    assert await extents_of(metadata_store, ids[0]) == ()


async def test_a_partition_that_is_gone_has_no_leader(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    proposal = PartitionCommit(99, 0, 0, (extent(broker, 1),))
    assert await metadata_store.run(commit, broker_epoch=broker, partitions=[proposal]) == {99: NotLeader(0, 0)}
    assert await metadata_store.run(find_references, segments=[(99, broker, 1)]) == ((), frozenset())


async def test_a_former_leader_commits_nothing_and_learns_who_it_is_not(metadata_store: MetadataStore) -> None:
    old = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    stale = (await lead(metadata_store, old, [partition]))[partition]
    fresh = (await lead(metadata_store, old, [partition]))[partition]
    assert fresh.leader_epoch == stale.leader_epoch + 1
    assert await append(metadata_store, stale, old, extent(old, 1)) == NotLeader(fresh.leader_epoch, 0)
    assert await extents_of(metadata_store, partition) == ()


async def test_partitions_no_longer_led_drop_out_and_the_rest_commits(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=3)
    led = await lead(metadata_store, broker, ids)
    await lead(metadata_store, broker, [ids[1]])
    proposals = [PartitionCommit(i, led[i].leader_epoch, 0, (extent(broker, 1, position=8 + 100 * n),)) for n, i in enumerate(ids)]
    outcomes = await metadata_store.run(commit, broker_epoch=broker, partitions=proposals)
    assert [type(outcomes[i]) for i in ids] == [Committed, NotLeader, Committed]
    assert [len(await extents_of(metadata_store, i)) for i in ids] == [1, 0, 1]


async def test_the_same_commit_again_answers_as_before_and_writes_nothing(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    pieces = (extent(broker, 1), extent(broker, 2, records=3))
    window = (ProducerWindow(5, 0, ((0, 12, 0),)),)
    assert await append(metadata_store, led, broker, *pieces, producers=window) == Committed(13)
    assert await append(metadata_store, led, broker, extent(broker, 3), at=13) == Committed(23)
    before = await extents_of(metadata_store, partition)
    assert await append(metadata_store, led, broker, *pieces, producers=window) == Committed(13)
    assert await extents_of(metadata_store, partition) == before


async def test_the_same_commit_again_answers_as_before_even_after_a_take_over(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    assert await append(metadata_store, led, broker, extent(broker, 1)) == Committed(10)
    await lead(metadata_store, broker, [partition])
    assert await append(metadata_store, led, broker, extent(broker, 1)) == Committed(10)


async def test_bytes_that_were_committed_before_are_refused_with_the_extents_that_hold_them(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    await append(metadata_store, led, broker, extent(broker, 1, position=8, length=200))
    inside = extent(broker, 1, position=108, length=100)
    outcome = await append(metadata_store, led, broker, inside, extent(broker, 2), at=10)
    assert isinstance(outcome, Refused)
    [refused] = outcome.extents
    assert (refused.extent, refused.refusal, [e.base_offset for e in refused.found]) == (inside, Refusal.COMMITTED_BEFORE, [0])
    assert len(await extents_of(metadata_store, partition)) == 1


async def test_neighbouring_bytes_of_the_same_chunk_are_no_repetition(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    await append(metadata_store, led, broker, extent(broker, 1, position=8, length=100))
    assert await append(metadata_store, led, broker, extent(broker, 1, position=108, length=100), at=10) == Committed(20)


async def test_an_answer_is_found_after_its_extent_was_merged_away(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    await append(metadata_store, led, broker, extent(broker, 1), extent(broker, 2))
    old = await extents_of(metadata_store, partition)
    merged = replace(old[0], next_offset=20, sequence=3, record_count=20, length=200, level=1)
    assert await metadata_store.run(
        swap,
        partition_id=partition,
        leader_epoch=led.leader_epoch,
        sources=[ReleasedSource(e, f"key-{e.sequence}") for e in old],
        merged=merged,
    )
    assert await append(metadata_store, led, broker, extent(broker, 1), extent(broker, 2)) == Committed(20)
    again = await append(metadata_store, led, broker, extent(broker, 2), at=20)
    assert isinstance(again, Refused)
    assert again.extents[0].refusal is Refusal.COMMITTED_BEFORE


async def test_a_reference_of_an_ended_writer_is_refused(metadata_store: MetadataStore) -> None:
    leader = (await join(metadata_store, "b0")).broker_epoch
    writer = (await join(metadata_store, "b1")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, leader, [partition]))[partition]
    await metadata_store.run(end_epoch, broker_epoch=writer)
    outcome = await append(metadata_store, led, leader, extent(leader, 1), extent(writer, 1))
    assert isinstance(outcome, Refused)
    assert [(r.extent.broker_epoch, r.refusal) for r in outcome.extents] == [(writer, Refusal.WRITER_ENDED)]
    assert await append(metadata_store, led, leader, extent(leader, 1)) == Committed(10)


async def test_a_reference_of_a_writer_that_never_was_is_refused(metadata_store: MetadataStore) -> None:
    leader = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, leader, [partition]))[partition]
    outcome = await append(metadata_store, led, leader, extent(999, 1))
    assert isinstance(outcome, Refused)


async def test_a_reference_to_a_resolved_sequence_is_refused_and_the_next_one_is_not(metadata_store: MetadataStore) -> None:
    leader = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, leader, [partition]))[partition]
    await metadata_store.run(report_resolved, broker_epoch=leader, sequence=4)
    outcome = await append(metadata_store, led, leader, extent(leader, 4))
    assert isinstance(outcome, Refused)
    assert outcome.extents[0].refusal is Refusal.SEQUENCE_RESOLVED
    assert await append(metadata_store, led, leader, extent(leader, 5)) == Committed(10)


async def test_producer_state_is_committed_with_the_extents_and_loaded_at_take_over(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    first = ProducerWindow(5, 0, ((0, 9, 0),))
    other = ProducerWindow(6, 2, ((2147483640, 1, 0),))
    await append(metadata_store, led, broker, extent(broker, 1), producers=(first, other))
    grown = ProducerWindow(5, 0, ((0, 9, 0), (10, 19, 10)))
    await append(metadata_store, led, broker, extent(broker, 2), at=10, producers=(grown,))
    refused = ProducerWindow(5, 0, ((10, 19, 10), (20, 29, 20)))
    await append(metadata_store, led, broker, extent(999, 1), at=20, producers=(refused,))
    again = (await lead(metadata_store, broker, [partition]))[partition]
    assert again.producers == (grown, other)
    assert again.next_offset == 20


async def test_every_commit_is_counted_by_its_leader_and_refused_ones_are_not(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=2)
    led = await lead(metadata_store, broker, ids)
    before = (await metadata_store.run(cluster_state)).commit_count
    await append(metadata_store, led[ids[0]], broker, extent(broker, 1))
    await append(metadata_store, led[ids[0]], broker, extent(broker, 1))
    await append(metadata_store, led[ids[1]], broker, extent(999, 1))
    assert (await metadata_store.run(cluster_state)).commit_count == before + 1


async def test_a_retried_reference_learns_what_is_committed_and_what_can_never_be(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    gone = (await join(metadata_store, "b1")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    await append(metadata_store, led, broker, extent(gone, 1), extent(broker, 2))
    await metadata_store.run(end_epoch, broker_epoch=gone)
    asked = [(partition, gone, 1), (partition, gone, 2), (partition, broker, 2), (partition, broker, 3)]
    found, final = await metadata_store.run(find_references, segments=asked)
    assert sorted((e.broker_epoch, e.sequence, e.base_offset) for e in found) == sorted([(gone, 1, 0), (broker, 2, 10)])
    assert final == {(gone, 1), (gone, 2)}


async def test_two_leaders_at_once_never_give_an_offset_twice(metadata_store: MetadataStore) -> None:
    """A former and a present leader race with many commits; each offset is given once, without gaps (I1)."""
    one = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, one, [partition]))[partition]

    async def press(worker: int) -> int:
        done, at = 0, 0
        for sequence in range(worker * 100 + 1, worker * 100 + 16):
            outcome = await append(metadata_store, led, one, extent(one, sequence), at=at)
            if isinstance(outcome, NotLeader):
                at = outcome.next_offset
            else:
                assert isinstance(outcome, Committed)
                done, at = done + 1, outcome.next_offset
        return done

    done = sum(await asyncio.gather(*(press(worker) for worker in range(4))))
    extents = await extents_of(metadata_store, partition)
    assert done == len(extents) > 0
    assert [e.base_offset for e in extents] == [10 * n for n in range(len(extents))]


@pytest.mark.parametrize("count", [1000])
async def test_a_thousand_partitions_commit_in_one_transaction(metadata_store: MetadataStore, count: int) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=count)
    led = await lead(metadata_store, broker, ids)
    proposals = [
        PartitionCommit(i, led[i].leader_epoch, 0, (extent(broker, 1, position=8 + 100 * n),), (ProducerWindow(n, 0, ((0, 9, 0),)),))
        for n, i in enumerate(ids)
    ]
    outcomes = await metadata_store.run(commit, broker_epoch=broker, partitions=proposals)
    assert set(outcomes.values()) == {Committed(10)}
