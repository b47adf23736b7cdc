"""Taking a partition over by a fencing token: once it is set, nothing of a writer with another token is committed."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import tidelog
from tidelog.broker.requests import Appended
from tidelog.config import Settings
from tidelog.errors import ConditionFailed, InvalidRequest, OutcomeUnknown, UnknownPartition, UnknownTopic
from tidelog.metadata.topics import TopicConfig

from tests.cluster import QUICK, Cluster, append, open_cluster, until


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with open_cluster() as cluster:
        yield cluster


async def test_what_is_under_way_with_another_token_is_refused_and_the_new_one_is_in_force_everywhere(cluster: Cluster) -> None:
    brokers = [await cluster.start(name) for name in ("one", "two", "three")]
    await brokers[0].create_topic("t", partitions=1, config=TopicConfig())
    await until(lambda: all(len(broker.catalog.topics()) == 1 for broker in brokers))
    current = ""
    for turn in range(10):
        mine = f"writer-{turn}"
        taker = brokers[turn % 3]
        late = [asyncio.ensure_future(append(broker, "t", b"late", fencing_token=current)) for broker in brokers for _ in range(20)]
        await asyncio.sleep(0.002 * turn)
        end = await taker.set_fencing_token("t", 0, mine, expected=current)
        first = await asyncio.gather(*(append(broker, "t", b"mine", fencing_token=mine) for broker in brokers))
        assert min(done.base_offset for done in first) == end
        for outcome in await asyncio.gather(*late, return_exceptions=True):
            if isinstance(outcome, Appended):
                assert outcome.next_offset <= end
            else:
                assert isinstance(outcome, ConditionFailed)
        current = mine
    assert (await append(brokers[0], "t", b"who shows none is not looked at")).base_offset > 0


async def test_a_token_is_set_where_it_is_the_expected_one_and_a_partition_without_a_leader_says_so(cluster: Cluster) -> None:
    hasty = Settings.model_validate(QUICK.model_dump() | {"lease_ms": 60_000, "append_timeout_ms": 300})
    one, two = await cluster.start("one", hasty), await cluster.start("two", hasty)
    await one.create_topic("t", partitions=8, config=TopicConfig())
    with pytest.raises(ConditionFailed, match="somebody else"):
        await one.set_fencing_token("t", 0, "a", expected="b")
    with pytest.raises(UnknownPartition):
        await one.set_fencing_token("t", 8, "a", expected=None)
    await until(lambda: two.life is not None and len(two.life.ledger.led()) > 0)
    assert two.life is not None
    partition = next(ref.partition for ref in map(one.catalog.partition_by_id, two.life.ledger.led()) if ref is not None)
    await cluster.kill("two")  # whose lease goes on for long
    with pytest.raises(OutcomeUnknown, match="set the same token again"):
        await one.set_fencing_token("t", partition, "a", expected="")


async def test_a_writer_that_was_taken_over_from_is_told(tidelog_service: str) -> None:
    async with tidelog.connect(tidelog_service) as log:
        await log.admin.create_topic("fenced", partitions=1)
        assert await log.admin.set_fencing_token("fenced", 0, "one", expected="") == 0
        async with log.producer(fencing_token="one") as old:
            assert (await old.send("fenced", b"a")).offset == 0
            end = await log.admin.set_fencing_token("fenced", 0, "two", expected="one")
            with pytest.raises(ConditionFailed, match="fencing token"):
                await old.send("fenced", b"late")
        async with log.producer(fencing_token="two") as new, log.producer() as anyone:
            assert (await new.send("fenced", b"b")).offset == end == 1
            assert (await anyone.send("fenced", b"c")).offset == 2
            await log.admin.set_fencing_token("fenced", 0, None)
            with pytest.raises(ConditionFailed):
                await new.send("fenced", b"late")
        for token in ("", "x" * 256):
            with pytest.raises(InvalidRequest, match="1 to 255"):
                await log.admin.set_fencing_token("fenced", 0, token)
        with pytest.raises(UnknownTopic):
            await log.admin.set_fencing_token("nowhere", 0, "a")
