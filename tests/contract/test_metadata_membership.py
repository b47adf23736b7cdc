"""Registration, leases and the end of epochs, on every metadata store (I6)."""

import pytest
from tidelog.errors import BrokerIdTaken, ConditionFailed, Fenced, UnknownTopic
from tidelog.metadata.commits import Committed, NotLeader
from tidelog.metadata.leadership import set_fencing_token, take_over, transfer
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import (
    allocate_producer_ids,
    cluster_state,
    end_epoch,
    end_every_epoch,
    end_expired_epochs,
    initialise,
    membership,
    renew_lease,
    set_draining,
)
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig, alter_topic, catalog_changes, create_partitions, create_topic, delete_topic, topics

from tests.contract.metadata_steps import TOPIC_ID, TTL_MS, append, expire_now, extent, join, lead, topic, unbroken_for_long


async def test_a_cluster_is_named_once(metadata_store: MetadataStore) -> None:
    first = await metadata_store.run(initialise, cluster_id="one", format_version=1)
    second = await metadata_store.run(initialise, cluster_id="two", format_version=1)
    assert first == second
    assert second.cluster_id == "one"


async def test_every_registration_gets_an_epoch_never_given_before(metadata_store: MetadataStore) -> None:
    first = await join(metadata_store, "b0")
    await metadata_store.run(expire_now, "b0")
    second = await join(metadata_store, "b0", incarnation="another")
    third = await join(metadata_store, "b1")
    assert first.broker_epoch < second.broker_epoch < third.broker_epoch
    assert first.membership_version < second.membership_version < third.membership_version


async def test_the_same_incarnation_asking_again_gets_the_same_epoch(metadata_store: MetadataStore) -> None:
    assert await join(metadata_store, "b0") == await join(metadata_store, "b0")


async def test_a_live_id_is_never_taken(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    with pytest.raises(BrokerIdTaken, match=r"another process holds it for \d+ ms more; wait until") as caught:
        await join(metadata_store, "b0", incarnation="another")
    assert 0 < caught.value.expires_in_ms <= TTL_MS


async def test_a_lease_is_renewed_until_its_epoch_has_ended(metadata_store: MetadataStore) -> None:
    broker = await join(metadata_store, "b0")
    lease = await metadata_store.run(renew_lease, broker_id="b0", broker_epoch=broker.broker_epoch, ttl_ms=TTL_MS)
    assert lease.expires_at_ms == lease.now_ms + TTL_MS
    assert await metadata_store.run(end_epoch, broker_epoch=broker.broker_epoch)
    assert not await metadata_store.run(end_epoch, broker_epoch=broker.broker_epoch)
    with pytest.raises(Fenced, match="register anew"):
        await metadata_store.run(renew_lease, broker_id="b0", broker_epoch=broker.broker_epoch, ttl_ms=TTL_MS)
    with pytest.raises(Fenced, match="register anew"):
        await metadata_store.run(report_resolved, broker_epoch=broker.broker_epoch, sequence=1)


async def test_only_a_broker_with_an_unbroken_lease_ends_expired_epochs(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    two = (await join(metadata_store, "b1")).broker_epoch
    await metadata_store.run(expire_now, "b1")
    young = await metadata_store.run(end_expired_epochs, broker_id="b0", broker_epoch=one, ttl_ms=TTL_MS)
    assert young == ()
    await metadata_store.run(unbroken_for_long, "b0")
    before = (await metadata_store.run(membership)).version
    assert await metadata_store.run(end_expired_epochs, broker_id="b0", broker_epoch=one, ttl_ms=TTL_MS) == (two,)
    after = await metadata_store.run(membership)
    assert (after.version, [b.broker_id for b in after.brokers]) == (before + 1, ["b0"])


async def test_after_an_outage_nobody_is_ended_by_someone_whose_own_lease_had_expired(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    await join(metadata_store, "b1")
    await metadata_store.run(unbroken_for_long, "b0")
    for name in ("b0", "b1"):
        await metadata_store.run(expire_now, name)
    assert await metadata_store.run(end_expired_epochs, broker_id="b0", broker_epoch=one, ttl_ms=TTL_MS) == ()
    lease = await metadata_store.run(renew_lease, broker_id="b0", broker_epoch=one, ttl_ms=TTL_MS)
    assert lease.unbroken_since_ms == lease.now_ms
    assert await metadata_store.run(end_expired_epochs, broker_id="b0", broker_epoch=one, ttl_ms=TTL_MS) == ()


@pytest.mark.parametrize(("left", "ends"), [(0.6, True), (0.4, False)])
async def test_a_lease_that_was_renewed_late_counts_as_broken(metadata_store: MetadataStore, left: float, ends: bool) -> None:
    """An outage that was long enough for one lease, but not for all, ends nobody's epoch either."""
    one, other = [(await join(metadata_store, name)).broker_epoch for name in ("b0", "b1")]
    await metadata_store.run(unbroken_for_long, "b0")
    await metadata_store.run(expire_now, "b1")
    wear = "UPDATE brokers SET lease_expires_at_ms = :at WHERE broker_id = 'b0'"
    await metadata_store.run(lambda tx: tx.execute(wear, at=int(tx.now_ms() + left * TTL_MS)))
    await metadata_store.run(renew_lease, broker_id="b0", broker_epoch=one, ttl_ms=TTL_MS)
    ended = await metadata_store.run(end_expired_epochs, broker_id="b0", broker_epoch=one, ttl_ms=TTL_MS)
    assert ended == ((other,) if ends else ())


async def test_every_epoch_ends_at_once_where_a_lock_proves_the_brokers_dead(metadata_store: MetadataStore) -> None:
    epochs = [(await join(metadata_store, name)).broker_epoch for name in ("b0", "b1")]
    assert await metadata_store.run(end_every_epoch) == tuple(epochs)
    assert (await metadata_store.run(membership)).brokers == ()


async def test_the_resolved_mark_never_goes_back(metadata_store: MetadataStore) -> None:
    broker = (await join(metadata_store, "b0")).broker_epoch
    await metadata_store.run(report_resolved, broker_epoch=broker, sequence=9)
    await metadata_store.run(report_resolved, broker_epoch=broker, sequence=3)
    marks = await metadata_store.run(lambda tx: tx.rows("SELECT sequence FROM resolved_marks"))
    assert [row.sequence for row in marks] == [9]


async def test_draining_is_a_change_of_membership_and_only_once(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    before = (await metadata_store.run(membership)).version
    assert await metadata_store.run(set_draining, broker_id="b0", draining=True) == before + 1
    assert await metadata_store.run(set_draining, broker_id="b0", draining=True) == before + 1
    assert (await metadata_store.run(membership)).brokers[0].draining
    with pytest.raises(Fenced, match="not a member"):
        await metadata_store.run(set_draining, broker_id="nobody", draining=True)


async def test_a_broker_that_leaves_does_not_drain_whoever_came_after_it(metadata_store: MetadataStore) -> None:
    before = (await join(metadata_store, "b0", incarnation="first")).broker_epoch
    await metadata_store.run(expire_now, "b0")
    after = (await join(metadata_store, "b0", incarnation="second")).broker_epoch
    with pytest.raises(Fenced, match=f"asked in epoch {before}, which has ended"):
        await metadata_store.run(set_draining, broker_id="b0", draining=True, broker_epoch=before)
    assert not (await metadata_store.run(membership)).brokers[0].draining
    await metadata_store.run(set_draining, broker_id="b0", draining=True, broker_epoch=after)
    assert (await metadata_store.run(membership)).brokers[0].draining


async def test_producer_ids_are_never_given_twice(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    first = await metadata_store.run(allocate_producer_ids, count=100)
    assert await metadata_store.run(allocate_producer_ids, count=1) == first + 100


async def test_take_over_begins_a_new_leader_epoch_and_leaves_live_leaders_alone(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    two = (await join(metadata_store, "b1")).broker_epoch
    ids = await topic(metadata_store, count=2)
    first = await lead(metadata_store, one, [ids[0]])
    assert first[ids[0]].leader_epoch == 1
    assert set(await lead(metadata_store, two, ids)) == {ids[1]}
    await metadata_store.run(end_epoch, broker_epoch=one)
    again = await lead(metadata_store, two, ids)
    assert {i: again[i].leader_epoch for i in ids} == {ids[0]: 2, ids[1]: 2}


async def test_take_over_under_an_old_membership_is_fenced(metadata_store: MetadataStore) -> None:
    one = await join(metadata_store, "b0")
    await join(metadata_store, "b1")
    ids = await topic(metadata_store)
    with pytest.raises(Fenced, match="read the membership again"):
        await metadata_store.run(take_over, broker_epoch=one.broker_epoch, membership_version=one.membership_version, partition_ids=ids)


async def test_a_broker_whose_epoch_has_ended_takes_nothing_over(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store)
    await metadata_store.run(end_epoch, broker_epoch=one)
    with pytest.raises(Fenced, match="no member"):
        await lead(metadata_store, one, ids)


async def test_a_transfer_fences_the_giver_and_the_taker_begins_an_epoch_of_its_own(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    two = (await join(metadata_store, "b1")).broker_epoch
    ids = await topic(metadata_store, count=2)
    led = await lead(metadata_store, one, ids)
    version = (await metadata_store.run(membership)).version
    offered = [(ids[0], led[ids[0]].leader_epoch), (ids[1], 77)]
    assert await metadata_store.run(transfer, to_broker_epoch=two, membership_version=version, led=offered) == (ids[0],)
    changed = await metadata_store.run(catalog_changes, since=0, membership_since=0)
    assert {p.partition_id: (p.leader_broker_epoch, p.leader_epoch) for p in changed.partitions} == {ids[0]: (two, 2), ids[1]: (one, 1)}
    assert (await lead(metadata_store, two, ids))[ids[0]].leader_epoch == 3


async def test_a_fencing_token_that_is_set_fences_the_leader_who_does_not_know_it(metadata_store: MetadataStore) -> None:
    """I1: what was decided under the old token is not committed, and who takes over has the new one."""
    broker = (await join(metadata_store, "b0")).broker_epoch
    (partition_id,) = await topic(metadata_store)
    old = (await lead(metadata_store, broker, [partition_id]))[partition_id]
    assert isinstance(await append(metadata_store, old, broker, extent(broker, 1, records=3)), Committed)
    done = await metadata_store.run(set_fencing_token, partition_id=partition_id, token="writer-1")
    assert (done.next_offset, done.leader_epoch > old.leader_epoch) == (3, True)
    assert isinstance(await append(metadata_store, old, broker, extent(broker, 2), at=3), NotLeader)
    new = (await lead(metadata_store, broker, [partition_id]))[partition_id]
    assert (new.fencing_token, new.leader_epoch > done.leader_epoch) == ("writer-1", True)


async def test_a_fencing_token_is_set_only_where_it_is_the_expected_one(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    (partition_id,) = await topic(metadata_store)

    async def set_to(token: str | None, expected: str | None) -> None:
        await metadata_store.run(set_fencing_token, partition_id=partition_id, token=token, expected=expected)

    with pytest.raises(ConditionFailed):
        await set_to("one", "none yet")
    await set_to("one", "")
    await set_to("one", "")  # the same again: the first answer may have been lost (I5)
    with pytest.raises(ConditionFailed):
        await set_to("two", "")
    await set_to("two", "one")
    await set_to("three", None)
    await set_to(None, "three")
    await set_to("four", "")
    await metadata_store.run(delete_topic, topic_id=TOPIC_ID)
    with pytest.raises(UnknownTopic):
        await set_to("five", None)


async def test_changes_are_told_once_to_those_who_ask_with_the_last_version(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=2)
    start = await metadata_store.run(catalog_changes, since=0, membership_since=0)
    assert len(start.partitions) == 2
    await lead(metadata_store, one, [ids[1]])
    after = await metadata_store.run(catalog_changes, since=start.version, membership_since=0)
    assert ([p.partition_id for p in after.partitions], after.topics) == ([ids[1]], ())
    assert (await metadata_store.run(catalog_changes, since=after.version, membership_since=0)).partitions == ()


async def test_topics_are_created_altered_grown_and_deleted(metadata_store: MetadataStore) -> None:
    one = (await join(metadata_store, "b0")).broker_epoch
    ids = await topic(metadata_store, count=1)
    created = await metadata_store.run(topics)
    assert [(t.name, t.partitions) for t in created] == [("clicks", 1)]
    assert await topic(metadata_store, count=1) == ids
    grown = await metadata_store.run(create_partitions, topic_id=created[0].topic_id, partitions=3)
    assert grown.partitions == 3
    altered = await metadata_store.run(alter_topic, topic_id=created[0].topic_id, config=TopicConfig(retention_ms=5, compact=True))
    assert (await metadata_store.run(topics, names=["clicks", "none"])) == (altered,)
    await lead(metadata_store, one, ids)
    await metadata_store.run(delete_topic, topic_id=created[0].topic_id)
    assert await metadata_store.run(topics) == ()
    assert await lead(metadata_store, one, ids) == {}
    again = await metadata_store.run(create_topic, topic_id="f" * 32, name="clicks", partitions=1, config=TopicConfig())
    assert again.topic_id == "f" * 32


async def test_the_cluster_knows_the_next_epoch_and_its_commits(metadata_store: MetadataStore) -> None:
    epoch = (await join(metadata_store, "b0")).broker_epoch
    state = await metadata_store.run(cluster_state)
    assert (state.next_broker_epoch, state.commit_count) == (epoch + 1, 0)
