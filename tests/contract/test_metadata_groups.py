"""Rows of consumer groups, on every metadata store (I9)."""

import pytest
from tidelog.errors import Fenced
from tidelog.metadata.groups import (
    GroupOffset,
    GroupState,
    commit_group_offsets,
    delete_group,
    group_offsets,
    list_groups,
    read_group,
    write_group,
)
from tidelog.metadata.store import MetadataStore

from tests.contract.metadata_steps import join, lead, topic


class Coordinator:
    """The leader of the groups' partition."""

    def __init__(self, store: MetadataStore, partition_id: int, leader_epoch: int) -> None:
        self.store, self.partition_id, self.leader_epoch = store, partition_id, leader_epoch

    async def write(self, generation: int, previous: int, state: str = "{}") -> None:
        await self.store.run(
            write_group,
            group=GroupState("g", generation, state),
            previous_generation=previous,
            coordinator_partition_id=self.partition_id,
            leader_epoch=self.leader_epoch,
        )

    async def commit(self, generation: int, *offsets: GroupOffset) -> None:
        await self.store.run(
            commit_group_offsets,
            group_id="g",
            generation=generation,
            offsets=offsets,
            coordinator_partition_id=self.partition_id,
            leader_epoch=self.leader_epoch,
        )


@pytest.fixture
async def coordinator(metadata_store: MetadataStore) -> Coordinator:
    broker = (await join(metadata_store, "b0")).broker_epoch
    [partition] = await topic(metadata_store, name="__groups")
    led = (await lead(metadata_store, broker, [partition]))[partition]
    return Coordinator(metadata_store, partition, led.leader_epoch)


async def test_a_generation_follows_the_one_before_and_no_other(coordinator: Coordinator) -> None:
    await coordinator.write(1, 0, "first")
    await coordinator.write(1, 0, "first")
    await coordinator.write(2, 1, "second")
    with pytest.raises(Fenced, match="it is at 2; read it again"):
        await coordinator.write(2, 1, "another")
    with pytest.raises(Fenced):
        await coordinator.write(1, 0, "again")
    assert await coordinator.store.run(read_group, group_id="g") == GroupState("g", 2, "second")
    assert await coordinator.store.run(list_groups) == ("g",)


async def test_an_offset_commit_of_an_old_generation_is_refused(coordinator: Coordinator) -> None:
    await coordinator.write(1, 0)
    await coordinator.commit(1, GroupOffset(1, 10), GroupOffset(2, 20, "note"))
    await coordinator.write(2, 1)
    with pytest.raises(Fenced, match="join again"):
        await coordinator.commit(1, GroupOffset(1, 11))
    await coordinator.commit(2, GroupOffset(1, 12))
    assert await coordinator.store.run(group_offsets, group_id="g") == (GroupOffset(1, 12), GroupOffset(2, 20, "note"))


async def test_of_several_offsets_of_one_partition_the_last_counts(coordinator: Coordinator) -> None:
    await coordinator.write(1, 0)
    await coordinator.commit(1, GroupOffset(1, 10), GroupOffset(2, 5), GroupOffset(1, 7, "back"))
    assert await coordinator.store.run(group_offsets, group_id="g") == (GroupOffset(1, 7, "back"), GroupOffset(2, 5))


async def test_a_former_coordinator_writes_nothing(coordinator: Coordinator) -> None:
    await coordinator.write(1, 0)
    former = Coordinator(coordinator.store, coordinator.partition_id, coordinator.leader_epoch - 1)
    with pytest.raises(Fenced):
        await former.write(2, 1)
    with pytest.raises(Fenced):
        await former.commit(1, GroupOffset(1, 10))


async def test_a_group_is_deleted_with_its_offsets_in_its_own_generation(coordinator: Coordinator) -> None:
    await coordinator.write(3, 0)
    await coordinator.commit(3, GroupOffset(1, 10))
    place = {"coordinator_partition_id": coordinator.partition_id, "leader_epoch": coordinator.leader_epoch}
    with pytest.raises(Fenced):
        await coordinator.store.run(delete_group, group_id="g", generation=2, **place)
    await coordinator.store.run(delete_group, group_id="g", generation=3, **place)
    await coordinator.store.run(delete_group, group_id="g", generation=3, **place)
    assert await coordinator.store.run(read_group, group_id="g") is None
    assert await coordinator.store.run(group_offsets, group_id="g") == ()
