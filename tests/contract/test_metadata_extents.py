"""Look-ups, retention, merging and the cleaner's decisions, on every metadata store (I5, I6, I7, I11)."""

from dataclasses import replace

import pytest
from tidelog.errors import Fenced, TimeTravel
from tidelog.metadata.cleaning import (
    Verdict,
    acquire_cleaner,
    condemn,
    drop_deleted_topic,
    expire_producers,
    forget_released,
    judge,
    released_segments,
)
from tidelog.metadata.commits import Committed, Refused
from tidelog.metadata.extents import (
    Extent,
    ReleasedSource,
    advance_log_start,
    advance_log_starts,
    expired_extents,
    find_references,
    offset_for_time,
    read_extents,
    release_expired,
    retention_points,
    swap,
)
from tidelog.metadata.leadership import LedPartition, ProducerWindow
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import cluster_state, end_epoch
from tidelog.metadata.retention import Rule, apply_retention
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import delete_topic

from tests.contract.metadata_steps import append, extent, join, lead, topic


async def begin(store: MetadataStore, *, segments: int) -> tuple[int, LedPartition, tuple[Extent, ...]]:
    """One broker leads one partition with one extent of ten records from each of several segments."""
    broker = (await join(store, "b0")).broker_epoch
    [partition] = await topic(store)
    led = (await lead(store, broker, [partition]))[partition]
    pieces = [extent(broker, n + 1, timestamp=1000 * (n + 1)) for n in range(segments)]
    assert await append(store, led, broker, *pieces) == Committed(10 * segments)
    return broker, led, await extents_of(store, partition)


async def extents_of(store: MetadataStore, partition_id: int, start: int = 0, most: int = 100) -> tuple[Extent, ...]:
    return (await store.run(read_extents, positions=[(partition_id, start)], max_extents=most)).partitions[0].extents


def keyed(*extents: Extent) -> list[ReleasedSource]:
    return [ReleasedSource(e, f"intake/{e.sequence}") for e in extents]


async def merge(store: MetadataStore, led: LedPartition, sources: tuple[Extent, ...], *, sequence: int) -> bool:
    merged = replace(
        sources[0], next_offset=sources[-1].next_offset, sequence=sequence, level=1, record_count=sum(s.record_count for s in sources)
    )
    return await store.run(swap, partition_id=led.partition_id, leader_epoch=led.leader_epoch, sources=keyed(*sources), merged=merged)


async def test_a_look_up_begins_with_the_extent_that_holds_the_offset(metadata_store: MetadataStore) -> None:
    _, led, _ = await begin(metadata_store, segments=5)
    assert [e.base_offset for e in await extents_of(metadata_store, led.partition_id, 25, most=2)][:2] == [20, 30]
    assert [e.base_offset for e in await extents_of(metadata_store, led.partition_id, 30)] == [30, 40]
    assert await extents_of(metadata_store, led.partition_id, 50) == ()


async def test_many_partitions_are_looked_up_at_once_and_all_learn_their_bounds(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=3)
    led = await lead(metadata_store, broker, ids)
    for n, i in enumerate(ids[:2]):
        await append(metadata_store, led[i], broker, *(extent(broker, s, position=8 + 100 * n) for s in (1, 2, 3)))
    read = await metadata_store.run(read_extents, positions=[(ids[0], 0), (ids[1], 15), (ids[2], 0), (9999, 0)], max_extents=2)
    assert [(p.partition_id, p.high_watermark) for p in read.partitions] == [(ids[0], 30), (ids[1], 30), (ids[2], 0)]
    assert [e.base_offset for e in read.partitions[0].extents] == [0, 10, 20]


async def test_a_partition_far_behind_leaves_room_for_the_others(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=2)
    led = await lead(metadata_store, broker, ids)
    for n, i in enumerate(ids):
        await append(metadata_store, led[i], broker, *(extent(broker, s, position=8 + 100 * n) for s in range(1, 9)))
    read = await metadata_store.run(read_extents, positions=[(ids[0], 15), (ids[1], 70)], max_extents=4, max_extents_each=2)
    assert [[e.base_offset for e in p.extents] for p in read.partitions] == [[10, 20, 30], [70]]


async def test_an_offset_is_found_by_time(metadata_store: MetadataStore) -> None:
    _, led, extents = await begin(metadata_store, segments=3)
    partition = led.partition_id
    assert await metadata_store.run(offset_for_time, partition_id=partition, timestamp_ms=1001) == extents[1]
    assert await metadata_store.run(offset_for_time, partition_id=partition, timestamp_ms=0) == extents[0]
    assert await metadata_store.run(offset_for_time, partition_id=partition, timestamp_ms=3001) is None
    await metadata_store.run(advance_log_start, partition_id=partition, leader_epoch=led.leader_epoch, to=20)
    assert await metadata_store.run(offset_for_time, partition_id=partition, timestamp_ms=0) == extents[2]


async def test_the_log_start_moves_forward_only_and_never_beyond_the_end(metadata_store: MetadataStore) -> None:
    _, led, _ = await begin(metadata_store, segments=3)

    async def advance(to: int) -> int:
        return await metadata_store.run(advance_log_start, partition_id=led.partition_id, leader_epoch=led.leader_epoch, to=to)

    assert [await advance(15), await advance(5), await advance(99)] == [15, 15, 30]
    with pytest.raises(Fenced, match="step down"):
        await metadata_store.run(advance_log_start, partition_id=led.partition_id, leader_epoch=99, to=30)


async def test_retention_asks_for_whole_extents_by_size_and_by_commit_time(metadata_store: MetadataStore) -> None:
    _, led, extents = await begin(metadata_store, segments=3)

    async def point(before: int | None, keep: int | None) -> int:
        limits = [(led.partition_id, before or 0, -1 if keep is None else keep)]
        return (await metadata_store.run(retention_points, limits=limits))[led.partition_id]

    assert await point(None, 200) == 10
    assert await point(None, 201) == 0  # without the first extent there would be less
    assert await point(None, 1) == 20
    assert await point(None, 0) == 30
    assert await point(None, 1000) == 0
    assert await point(extents[0].commit_time_ms, None) == 0
    assert await point(extents[0].commit_time_ms + 1, None) == 30


async def test_retention_moves_many_log_starts_at_once_and_passes_by_what_is_led_by_another(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    one, two, three = await topic(metadata_store, count=3)
    led = await lead(metadata_store, broker, [one, two, three])
    for number, partition in enumerate((one, two)):  # nothing is in the third
        pieces = [extent(broker, 10 * number + n, timestamp=1) for n in range(1, 4)]
        assert await append(metadata_store, led[partition], broker, *pieces) == Committed(30)

    async def applied(**kept_bytes: int) -> dict[int, int]:
        names = {"one": one, "two": two, "three": three}
        rules = [Rule(names[name], led[names[name]].leader_epoch, -1, kept) for name, kept in kept_bytes.items()]
        return await metadata_store.run(apply_retention, rules=rules)

    assert await applied(one=-1, two=-1, three=-1) == {one: 0, two: 0, three: 0}
    assert await applied(two=100, one=200, three=0) == {one: 10, two: 20, three: 0}
    assert await applied(one=1000, two=1000) == {one: 10, two: 20}, "they never go back"
    led[two] = replace(led[two], leader_epoch=led[two].leader_epoch - 1)
    assert await applied(one=0, two=0) == {one: 30}
    assert await metadata_store.run(advance_log_starts, moves=[(two, led[two].leader_epoch, 30), (99, 1, 5)]) == {}
    assert await metadata_store.run(apply_retention, rules=[Rule(99, 1, 1, 1)]) == {}


async def test_a_partition_whose_topic_is_gone_has_nothing_to_release(metadata_store: MetadataStore) -> None:
    """Two brokers clear a deleted topic away; one of them comes too late."""
    broker, led, extents = await begin(metadata_store, segments=2)
    partition = led.partition_id
    await metadata_store.run(delete_topic, topic_id=led.topic_id)
    await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(*extents))
    assert await metadata_store.run(drop_deleted_topic, topic_id=led.topic_id)
    assert await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(*extents)) == 0
    assert (await metadata_store.run(expired_extents, partition_ids=[partition], limit=10)).extents == ()
    assert await metadata_store.run(retention_points, limits=[(partition, 1, 0)]) == {}
    with pytest.raises(Fenced):
        await metadata_store.run(advance_log_start, partition_id=partition, leader_epoch=led.leader_epoch, to=1)
    with pytest.raises(Fenced):
        await merge(metadata_store, led, extents, sequence=9)


async def test_expired_extents_give_way_and_their_answers_stay_until_the_object_goes(metadata_store: MetadataStore) -> None:
    broker, led, extents = await begin(metadata_store, segments=3)
    partition = led.partition_id
    await metadata_store.run(advance_log_start, partition_id=partition, leader_epoch=led.leader_epoch, to=15)
    expired = (await metadata_store.run(expired_extents, partition_ids=[partition], limit=10)).extents
    assert expired == extents[:1]
    assert await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(*extents)) == 1
    assert await extents_of(metadata_store, partition) == extents[1:]
    found, _ = await metadata_store.run(find_references, segments=[(partition, broker, 1)])
    assert found == extents[:1]
    assert [note.key for note in await metadata_store.run(released_segments, grace_ms=0, limit=10)] == ["intake/1"]
    assert await metadata_store.run(released_segments, grace_ms=600_000, limit=10) == ()


async def test_what_was_merged_since_it_was_found_expired_is_not_released(metadata_store: MetadataStore) -> None:
    """The merged extent begins where the expired one began, and holds records above the log start."""
    broker, led, extents = await begin(metadata_store, segments=3)
    partition = led.partition_id
    await metadata_store.run(advance_log_start, partition_id=partition, leader_epoch=led.leader_epoch, to=10)
    expired = (await metadata_store.run(expired_extents, partition_ids=[partition], limit=10)).extents
    assert await merge(metadata_store, led, extents, sequence=9)
    merged = await extents_of(metadata_store, partition)
    assert await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(*expired)) == 0
    assert await extents_of(metadata_store, partition) == merged


async def test_a_swap_puts_the_merged_extent_in_place_once(metadata_store: MetadataStore) -> None:
    _, led, extents = await begin(metadata_store, segments=4)
    assert await merge(metadata_store, led, extents[1:3], sequence=9)
    assert await merge(metadata_store, led, extents[1:3], sequence=9), "the second attempt answers as the first"
    assert [(e.base_offset, e.sequence) for e in await extents_of(metadata_store, led.partition_id)] == [(0, 1), (10, 9), (30, 4)]


async def test_a_swap_of_sources_that_are_not_as_they_were_changes_nothing(metadata_store: MetadataStore) -> None:
    _, led, extents = await begin(metadata_store, segments=3)
    assert await merge(metadata_store, led, extents[:2], sequence=9)
    before = await extents_of(metadata_store, led.partition_id)
    assert not await merge(metadata_store, led, extents[1:], sequence=10)
    assert await extents_of(metadata_store, led.partition_id) == before


async def test_a_swap_by_a_former_leader_is_fenced(metadata_store: MetadataStore) -> None:
    broker, led, extents = await begin(metadata_store, segments=2)
    await lead(metadata_store, broker, [led.partition_id])
    with pytest.raises(Fenced):
        await merge(metadata_store, led, extents, sequence=9)


async def test_a_swap_for_an_object_that_may_be_deleted_changes_nothing(metadata_store: MetadataStore) -> None:
    """I7: the merged object's writer must be able to have it committed still."""
    broker, led, extents = await begin(metadata_store, segments=2)
    await metadata_store.run(report_resolved, broker_epoch=broker, sequence=9)
    assert not await merge(metadata_store, led, extents, sequence=9)
    assert await merge(metadata_store, led, extents, sequence=10)


async def test_nothing_is_condemned_while_it_may_be_committed_or_is_referred_to(metadata_store: MetadataStore) -> None:
    broker, led, extents = await begin(metadata_store, segments=3)
    await merge(metadata_store, led, extents[:2], sequence=9)
    segments = [(broker, s) for s in (1, 2, 3, 8, 9)]
    assert (await metadata_store.run(judge, segments=segments)).condemned == frozenset()
    await metadata_store.run(report_resolved, broker_epoch=broker, sequence=1)
    verdict = await metadata_store.run(judge, segments=segments)
    assert verdict == Verdict(frozenset({(broker, 1)}), frozenset({(broker, 3), (broker, 9)}))
    await metadata_store.run(end_epoch, broker_epoch=broker)
    verdict = await metadata_store.run(judge, segments=segments)
    assert verdict.condemned == frozenset({(broker, 1), (broker, 2), (broker, 8)})


async def test_only_what_was_released_as_long_ago_as_its_note_said_is_condemned(metadata_store: MetadataStore) -> None:
    """A release after the note was read begins the readers' grace anew, and no marker tells of it yet."""
    broker, led, extents = await begin(metadata_store, segments=3)
    await merge(metadata_store, led, extents[:2], sequence=9)
    await metadata_store.run(end_epoch, broker_epoch=broker)
    notes = await metadata_store.run(released_segments, grace_ms=0, limit=10)
    assert [note.sequence for note in notes] == [1, 2]
    read_before = [replace(notes[0], released_at_ms=notes[0].released_at_ms - 1), notes[1]]
    verdict = await metadata_store.run(condemn, notes=read_before)
    assert verdict == Verdict(frozenset({(broker, 2)}), frozenset())
    assert verdict.bytes == {(broker, 2): 100}
    left = await metadata_store.run(lambda tx: tx.rows("SELECT sequence FROM released_extents"))
    assert [row.sequence for row in left] == [1]


async def test_what_was_condemned_is_never_committed_afterwards(metadata_store: MetadataStore) -> None:
    broker, led, _ = await begin(metadata_store, segments=1)
    await metadata_store.run(report_resolved, broker_epoch=broker, sequence=5)
    assert (await metadata_store.run(judge, segments=[(broker, 5)])).condemned == frozenset({(broker, 5)})
    assert isinstance(await append(metadata_store, led, broker, extent(broker, 5), at=10), Refused)


async def test_a_segment_of_an_epoch_never_given_out_stops_the_cleaner(metadata_store: MetadataStore) -> None:
    broker, _, _ = await begin(metadata_store, segments=1)
    with pytest.raises(TimeTravel, match="restored from an older copy"):
        await metadata_store.run(judge, segments=[(broker, 1), (broker + 1, 1)])


async def test_a_note_renewed_after_it_was_read_is_not_forgotten(metadata_store: MetadataStore) -> None:
    _, led, extents = await begin(metadata_store, segments=3)
    await merge(metadata_store, led, extents[:2], sequence=9)
    notes = await metadata_store.run(released_segments, grace_ms=0, limit=10)
    renewed = replace(notes[0], released_at_ms=notes[0].released_at_ms - 1)
    await metadata_store.run(forget_released, notes=[renewed, notes[1]])
    assert await metadata_store.run(released_segments, grace_ms=0, limit=10) == notes[:1]


async def test_a_store_from_before_extents_gave_way_does_not_fit_the_bucket_any_more(metadata_store: MetadataStore) -> None:
    """I11: an older copy names objects that may be gone by now. So the count of commits rises with swaps and releases, too."""
    broker, led, extents = await begin(metadata_store, segments=3)
    begun = (await metadata_store.run(cluster_state)).commit_count
    assert await merge(metadata_store, led, extents[:2], sequence=9)
    await metadata_store.run(advance_log_start, partition_id=led.partition_id, leader_epoch=led.leader_epoch, to=30)
    swapped = (await metadata_store.run(cluster_state)).commit_count
    assert await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(extents[2])) == 1
    assert await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(extents[2])) == 0
    assert (begun + 1, begun + 2) == (swapped, (await metadata_store.run(cluster_state)).commit_count)


async def test_one_broker_cleans_at_a_time(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    two = (await join(metadata_store, "b1")).broker_epoch
    assert await metadata_store.run(acquire_cleaner, broker_epoch=one, ttl_ms=600_000)
    assert await metadata_store.run(acquire_cleaner, broker_epoch=one, ttl_ms=600_000)
    assert not await metadata_store.run(acquire_cleaner, broker_epoch=two, ttl_ms=600_000)
    await metadata_store.run(end_epoch, broker_epoch=one)
    assert await metadata_store.run(acquire_cleaner, broker_epoch=two, ttl_ms=-1)
    three = (await join(metadata_store, "b2")).broker_epoch
    assert await metadata_store.run(acquire_cleaner, broker_epoch=three, ttl_ms=600_000), "the lease has expired"


async def test_producers_that_were_not_used_are_forgotten(metadata_store: MetadataStore) -> None:
    broker, led, _ = await begin(metadata_store, segments=1)
    await append(metadata_store, led, broker, extent(broker, 2), at=10, producers=(ProducerWindow(5, 0, ((0, 9, 10),)),))
    some = [led.partition_id]
    assert await metadata_store.run(expire_producers, partition_ids=some, unused_for_ms=600_000) == ()
    assert await metadata_store.run(expire_producers, partition_ids=some, unused_for_ms=-600_000) == ((led.partition_id, 5),)
    assert (await lead(metadata_store, broker, [led.partition_id]))[led.partition_id].producers == ()


async def test_a_deleted_topic_goes_once_its_extents_are_released(metadata_store: MetadataStore) -> None:
    broker, led, extents = await begin(metadata_store, segments=2)
    await metadata_store.run(delete_topic, topic_id=led.topic_id)
    assert not isinstance(await append(metadata_store, led, broker, extent(broker, 3), at=20), Committed)
    assert not await metadata_store.run(drop_deleted_topic, topic_id=led.topic_id)
    assert await metadata_store.run(release_expired, broker_epoch=broker, sources=keyed(*extents)) == 2
    assert await metadata_store.run(drop_deleted_topic, topic_id=led.topic_id)
    assert await metadata_store.run(drop_deleted_topic, topic_id=led.topic_id)
    assert len(await metadata_store.run(released_segments, grace_ms=0, limit=10)) == 2
