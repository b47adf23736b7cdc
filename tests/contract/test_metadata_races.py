"""Transactions of many connections at once, on every metadata store: whoever is first, nothing is given twice (I1, I5, I6, I7, I9)."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import TypeVar

from tidelog.errors import Fenced, TopicExists
from tidelog.metadata.cleaning import Verdict, judge
from tidelog.metadata.commits import Committed, NotLeader, Outcome, Refused
from tidelog.metadata.extents import Extent, ReleasedSource, advance_log_start, expired_extents, read_extents, release_expired, swap
from tidelog.metadata.groups import GroupOffset, GroupState, commit_group_offsets, group_offsets, read_group, write_group
from tidelog.metadata.leadership import LedPartition, take_over
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import allocate_producer_ids, end_epoch, membership
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig, create_topic, topics

from tests.contract.metadata_steps import append, extent, join, lead, topic

T = TypeVar("T")


async def together(*work: Awaitable[T]) -> list[T | BaseException]:
    """Begin all at once; return what each gave or raised."""
    return await asyncio.gather(*work, return_exceptions=True)


async def test_brokers_that_register_at_once_get_epochs_of_their_own(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "first")
    joined = await asyncio.gather(*(join(metadata_store, f"b{n}") for n in range(12)))
    assert len({each.broker_epoch for each in joined}) == 12
    assert len({each.membership_version for each in joined}) == 12
    assert (await metadata_store.run(membership)).version == max(each.membership_version for each in joined)


async def test_one_process_that_registers_many_times_at_once_gets_one_epoch(metadata_store: MetadataStore) -> None:
    """It did not hear the answers (I5)."""
    await join(metadata_store, "first")
    assert len(set(await asyncio.gather(*(join(metadata_store, "b0") for _ in range(8))))) == 1


async def test_of_processes_that_want_one_id_one_gets_it(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "first")
    work = (join(metadata_store, "b0", incarnation=f"life-{n}") for n in range(8))
    assert Counter(type(each).__name__ for each in await together(*work)) == {"Registration": 1, "BrokerIdTaken": 7}


async def test_a_partition_gets_one_leader_of_all_who_take_it_over(metadata_store: MetadataStore) -> None:
    epochs = [(await join(metadata_store, f"b{n}")).broker_epoch for n in range(6)]
    ids = await topic(metadata_store, count=40)
    version = (await metadata_store.run(membership)).version
    taken = await asyncio.gather(
        *(metadata_store.run(take_over, broker_epoch=e, membership_version=version, partition_ids=ids[n:] + ids[:n])
          for n, e in enumerate(epochs))
    )  # fmt: skip
    assert sorted(led.partition_id for each in taken for led in each) == ids
    assert {led.leader_epoch for each in taken for led in each} == {1}


async def test_producer_ids_are_given_once(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    firsts = await asyncio.gather(*(metadata_store.run(allocate_producer_ids, count=n + 1) for n in range(10)))
    given = [first + n for first, count in zip(firsts, range(1, 11), strict=True) for n in range(count)]
    assert len(set(given)) == len(given) == 55


async def test_of_topics_of_one_name_one_is_made(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    work = (
        metadata_store.run(create_topic, topic_id=f"{n % 4:032x}", name="clicks", partitions=2, config=TopicConfig()) for n in range(12)
    )
    made = await together(*work)
    assert {each.topic_id for each in made if not isinstance(each, BaseException)} == {(await metadata_store.run(topics))[0].topic_id}
    assert Counter(type(each).__name__ for each in made) == {"Topic": 3, TopicExists.__name__: 9}


async def test_many_attempts_at_one_commit_are_one_commit(metadata_store: MetadataStore) -> None:
    """Earlier attempts whose outcome is unknown may be under way still (I5)."""
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    outcomes = await asyncio.gather(*(append(metadata_store, led, broker, extent(broker, 1), extent(broker, 2)) for _ in range(8)))
    assert set(outcomes) == {Committed(20)}
    assert len(await extents_of(metadata_store, partition)) == 2


async def test_what_is_condemned_while_it_is_committed_is_never_referred_to(metadata_store: MetadataStore) -> None:
    """I7: a cleaner looks at segments again and again while they are committed, resolved, and their writer ends."""
    leader = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=8)
    led = await lead(metadata_store, leader, ids)
    for round_ in range(4):
        writer = (await join(metadata_store, f"writer-{round_}")).broker_epoch
        segments = [(writer, sequence) for sequence in range(1, 9)]

        async def write(n: int, writer: int = writer) -> Outcome:
            at = (await metadata_store.run(read_extents, positions=[(ids[n], 0)], max_extents=1)).partitions[0].high_watermark
            return await append(metadata_store, led[ids[n]], leader, extent(writer, n + 1), at=at)

        async def clean(segments: list[tuple[int, int]] = segments) -> list[Verdict]:
            return [await metadata_store.run(judge, segments=segments) for _ in range(6)]

        async def give_up(writer: int = writer) -> None:
            await metadata_store.run(report_resolved, broker_epoch=writer, sequence=4)
            await metadata_store.run(end_epoch, broker_epoch=writer)

        outcomes, verdicts, _ = await asyncio.gather(asyncio.gather(*(write(n) for n in range(8))), clean(), give_up())
        condemned = {segment for verdict in verdicts for segment in verdict.condemned}
        live = {(e.broker_epoch, e.sequence) for i in ids for e in await extents_of(metadata_store, i)}
        assert not condemned & live
        for n, outcome in enumerate(outcomes):
            assert isinstance(outcome, Committed | Refused)
            assert isinstance(outcome, Committed) == (segments[n] in live)


async def test_merging_and_retention_beside_commits_leave_no_gap(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [partition]))[partition]
    done = asyncio.Event()

    async def write() -> int:
        for n in range(30):
            assert await append(metadata_store, led, broker, extent(broker, n + 1), at=10 * n) == Committed(10 * n + 10)
        done.set()
        return 300

    async def merge() -> int:
        merged = 0
        while not done.is_set():
            found = [e for e in await extents_of(metadata_store, partition) if e.level == 0][:3]
            if len(found) == 3:
                merged += await metadata_store.run(
                    swap, partition_id=partition, leader_epoch=led.leader_epoch, sources=keyed(*found), merged=joined(*found)
                )
        return merged

    async def expire() -> int:
        released, start = 0, 0
        while not done.is_set():
            start = await metadata_store.run(advance_log_start, partition_id=partition, leader_epoch=led.leader_epoch, to=start + 7)
            found = (await metadata_store.run(expired_extents, partition_ids=[partition], limit=2)).extents
            await asyncio.sleep(0)
            released += await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(*found))
        return released

    end, *_ = await asyncio.gather(write(), merge(), merge(), expire())
    [state] = (await metadata_store.run(read_extents, positions=[(partition, 0)], max_extents=1000)).partitions
    assert (state.high_watermark, state.extents[-1].next_offset) == (end, end)
    assert state.extents[0].base_offset <= state.log_start_offset
    assert all(one.next_offset == other.base_offset for one, other in zip(state.extents, state.extents[1:], strict=False))


async def test_a_group_goes_on_by_one_of_all_who_change_it_and_old_generations_commit_nothing(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [place] = await topic(metadata_store)
    led = (await lead(metadata_store, broker, [place]))[place]
    for generation in range(1, 5):
        states = [f'"{generation}/{n}"' for n in range(5)]
        results = await together(
            *(
                metadata_store.run(
                    write_group,
                    group=GroupState("g", generation, state),
                    previous_generation=generation - 1,
                    coordinator_partition_id=place,
                    leader_epoch=led.leader_epoch,
                )
                for state in states
            ),
            *(commit_offsets(metadata_store, led, generation - 1 + n, offset=100 * generation + n) for n in range(2)),
        )
        assert Counter(type(each) for each in results[:5]) == {type(None): 1, Fenced: 4}
        winner = states[results.index(None)]
        assert await metadata_store.run(read_group, group_id="g") == GroupState("g", generation, winner)
        kept = {offset.next_offset for offset in await metadata_store.run(group_offsets, group_id="g")}
        went_through = {100 * generation + n for n in range(2) if results[5 + n] is None}
        assert kept <= went_through | {100 * g + n for g in range(1, generation) for n in range(2)}
        assert not went_through or kept & went_through


async def commit_offsets(store: MetadataStore, led: LedPartition, generation: int, *, offset: int) -> None:
    await store.run(
        commit_group_offsets,
        group_id="g",
        generation=generation,
        offsets=[GroupOffset(led.partition_id, offset)],
        coordinator_partition_id=led.partition_id,
        leader_epoch=led.leader_epoch,
    )


async def test_a_former_leader_s_commits_stop_where_the_next_one_s_begin(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store)
    led = (await lead(metadata_store, one, [partition]))[partition]

    async def write(led: LedPartition, first_sequence: int) -> int:
        at = led.next_offset
        for sequence in range(first_sequence, first_sequence + 12):
            outcome = await append(metadata_store, led, one, extent(one, sequence), at=at)
            if isinstance(outcome, NotLeader):
                return at
            assert isinstance(outcome, Committed)
            at = outcome.next_offset
        return at

    async def take_over_and_write() -> tuple[int, int]:
        nxt = (await lead(metadata_store, one, [partition]))[partition]
        return nxt.next_offset, await write(nxt, 100)

    former, (begin, end) = await asyncio.gather(write(led, 1), take_over_and_write())
    extents = await extents_of(metadata_store, partition)
    assert former == begin
    assert [e.leader_epoch for e in extents] == [1] * (begin // 10) + [2] * ((end - begin) // 10)


async def extents_of(store: MetadataStore, partition_id: int) -> tuple[Extent, ...]:
    return (await store.run(read_extents, positions=[(partition_id, 0)], max_extents=1000)).partitions[0].extents


def keyed(*extents: Extent) -> list[ReleasedSource]:
    return [ReleasedSource(e, f"intake/{e.sequence}") for e in extents]


def joined(*sources: Extent) -> Extent:
    first, last = sources[0], sources[-1]
    count = last.next_offset - first.base_offset
    sequence = 1000 + first.base_offset
    return Extent(
        first.partition_id, first.base_offset, last.next_offset, first.broker_epoch, sequence, 8, 10 * count, count, 1,
        last.max_timestamp_ms, last.commit_time_ms, last.leader_epoch,
    )  # fmt: skip
