"""Topics and what brokers are told of them, on every metadata store."""

from tidelog.metadata.cleaning import drop_deleted_topic
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import delete_topic

from tests.contract.metadata_steps import TOPIC_ID, join, topic

OTHER_ID = "f" * 32


async def test_a_partition_id_is_never_given_twice(metadata_store: MetadataStore) -> None:
    """Not even once its topic is gone without a trace: the offsets of groups and the memory of brokers go by it (I6)."""
    await join(metadata_store, "b0")
    first = await topic(metadata_store, count=2)
    await metadata_store.run(delete_topic, topic_id=TOPIC_ID)
    assert await metadata_store.run(drop_deleted_topic, topic_id=TOPIC_ID)
    assert not set(first) & set(await topic(metadata_store, count=2, topic_id=OTHER_ID))
