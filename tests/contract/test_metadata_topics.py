"""Topics and what brokers are told of them, on every metadata store."""

from tidelog.broker.catalog import Catalog
from tidelog.metadata.cleaning import drop_deleted_topic
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import catalog_changes, delete_topic

from tests.contract.metadata_steps import TOPIC_ID, join, topic

OTHER_ID = "f" * 32


async def test_a_partition_id_is_never_given_twice(metadata_store: MetadataStore) -> None:
    """Not even once its topic is gone without a trace: the offsets of groups and the memory of brokers go by it (I6)."""
    await join(metadata_store, "b0")
    first = await topic(metadata_store, count=2)
    await metadata_store.run(delete_topic, topic_id=TOPIC_ID)
    assert await metadata_store.run(drop_deleted_topic, topic_id=TOPIC_ID)
    assert not set(first) & set(await topic(metadata_store, count=2, topic_id=OTHER_ID))


async def test_a_topic_that_is_gone_without_a_trace_is_missed_by_no_catalog(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    await topic(metadata_store, count=2)
    catalog, quicker = Catalog(metadata_store), Catalog(metadata_store)
    for each in (catalog, quicker):
        await each.refresh()
        assert [known.name for known in each.topics()] == ["clicks"]
    await metadata_store.run(delete_topic, topic_id=TOPIC_ID)
    await quicker.refresh()
    assert await metadata_store.run(drop_deleted_topic, topic_id=TOPIC_ID)
    await topic(metadata_store, topic_id=OTHER_ID, name="orders")
    for each in (catalog, quicker):
        await each.refresh()
        assert [known.name for known in each.topics()] == ["orders"]
        assert len(each.leaderships()) == 1


async def test_everything_is_told_again_only_to_those_who_know_of_what_is_gone(metadata_store: MetadataStore) -> None:
    await join(metadata_store, "b0")
    await topic(metadata_store)
    before = await metadata_store.run(catalog_changes, since=0, membership_since=0)
    await metadata_store.run(delete_topic, topic_id=TOPIC_ID)
    deleted = await metadata_store.run(catalog_changes, since=before.version, membership_since=0)
    await metadata_store.run(drop_deleted_topic, topic_id=TOPIC_ID)
    await topic(metadata_store, topic_id=OTHER_ID, name="orders")
    told = [await metadata_store.run(catalog_changes, since=since, membership_since=0) for since in (before.version, deleted.version)]
    assert [(changes.complete, [each.name for each in changes.topics]) for changes in told] == [(True, ["orders"]), (False, ["orders"])]
