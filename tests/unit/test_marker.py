"""What the bucket knows of its metadata store (I11)."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
from tidelog.broker.marker import FORMAT_VERSION, Marker, check_epochs, newest_marker, renew
from tidelog.clock import SystemClock
from tidelog.errors import TimeTravel
from tidelog.metadata.membership import ClusterState
from tidelog.objects.memory import MemoryStore
from tidelog.objects.store import ObjectInfo
from tidelog.segments.keys import IntakeKey

OURS, OTHERS = "a" * 32, "b" * 32


@dataclass
class Store:
    """What the metadata store answers."""

    commits: int = 0
    next_epoch: int = 1
    cluster_id: str = OURS

    async def ask(self) -> ClusterState:
        return ClusterState(self.cluster_id, FORMAT_VERSION, 1, self.next_epoch, self.commits)


def bucket() -> MemoryStore:
    return MemoryStore(clock=SystemClock())


async def test_the_marker_with_the_highest_count_counts_and_a_few_older_ones_stay() -> None:
    there, store = bucket(), Store()
    for store.commits in (0, 9, 10, 11, 200):
        await renew(there, store.ask)
    assert await newest_marker(there) == Marker(OURS, 200, FORMAT_VERSION)
    assert [found.key async for found in there.list()] == [f"cluster/{count:020}.json" for count in (10, 11, 200)]


async def test_an_older_copy_of_the_store_is_refused() -> None:
    there = bucket()
    await renew(there, Store(commits=100).ask)
    with pytest.raises(TimeTravel, match="has seen 99 commits, but the bucket knows of 100"):
        await renew(there, Store(commits=99).ask)


async def test_another_clusters_store_is_refused() -> None:
    there = bucket()
    await renew(there, Store().ask)
    with pytest.raises(TimeTravel, match="belongs to cluster a"):
        await renew(there, Store(commits=5, cluster_id=OTHERS).ask)


async def test_a_broker_that_asked_a_moment_later_is_no_sign_of_an_older_store() -> None:
    """Two brokers begin while others commit."""
    store = Store(commits=100)

    class Meanwhile(MemoryStore):
        """Another broker renews the marker right before this one looks."""

        def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
            if not others:
                others.append(True)
                store.commits += 1
                self._objects.update(ahead._objects)
            return super().list(prefix, start_after=start_after)

    others: list[bool] = []
    ahead = bucket()
    await renew(ahead, Store(commits=101).ask)
    assert (await renew(Meanwhile(clock=SystemClock()), store.ask)).commit_count == 101


async def test_a_marker_that_goes_while_it_is_read_is_looked_for_again() -> None:
    class Busy(MemoryStore):
        """Other brokers renew the marker so often that the newest one is deleted before it is read."""

        async def get_range(self, key: str, position: int, length: int) -> bytes:
            if not read:
                read.append(key)
                for count in (1, 2, 3):
                    await renew(self, Store(commits=count).ask)
            return await super().get_range(key, position, length)

    read: list[str] = []
    there = Busy(clock=SystemClock())
    await renew(there, Store().ask)
    assert await newest_marker(there) == Marker(OURS, 3, FORMAT_VERSION)


@pytest.mark.parametrize("content", [b"my cluster", b"", b"{}", b" " * 4096 + b'{"cluster_id": "c"}'])
async def test_something_else_under_the_markers_names_is_refused(content: bytes) -> None:
    there = bucket()
    await there.put_new("cluster/readme", [content])
    with pytest.raises(TimeTravel, match="cannot be read"):
        await renew(there, Store().ask)


def segment(broker_id: str, epoch: int) -> str:
    return str(IntakeKey(broker_id, epoch, 1, "0" * 32))


async def filled(keys: Sequence[str]) -> MemoryStore:
    there = bucket()
    for key in keys:
        await there.put_new(key, [b"x"])
    return there


@pytest.mark.parametrize("known_ids", [(), ("b",), ("a", "z"), ("0", "b-1", "c"), ("z", "b0", "b-1", "b", "a")])
async def test_a_segment_of_an_epoch_that_was_never_given_out_is_proof_whoever_wrote_it(known_ids: Sequence[str]) -> None:
    folders = ("a", "b", "b-1", "b0", "z")
    for epoch, broker_id in itertools.product((4, 5, 12_345_678_901), folders):
        there = await filled([segment(each, 3) for each in folders] + [segment(broker_id, epoch), f"merged/{OURS}/0/x", "cluster/0"])
        if epoch < 5:
            await check_epochs(there, Store(next_epoch=5).ask, known_ids)
        else:
            with pytest.raises(TimeTravel, match=f"epochs below 5, but the bucket holds '{segment(broker_id, epoch)}'"):
                await check_epochs(there, Store(next_epoch=5).ask, known_ids)


@pytest.mark.parametrize("known_ids", [(), ("a",)])
async def test_an_epoch_that_is_given_out_meanwhile_is_none(known_ids: Sequence[str]) -> None:
    there = await filled([segment("a", 5)])
    answers = itertools.chain((5,), itertools.repeat(6))

    async def ask() -> ClusterState:
        return await Store(next_epoch=next(answers)).ask()

    await check_epochs(there, ask, known_ids)


async def test_a_broker_id_that_the_store_knows_costs_one_request_and_some_go_at_the_same_time() -> None:
    class Slow(MemoryStore):
        asked = 0
        at_once = 0
        most = 0

        async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
            self.asked += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            await asyncio.sleep(0)
            self.at_once -= 1
            async for found in super().list(prefix, start_after=start_after):
                yield found

    there = Slow(clock=SystemClock())
    known_ids = [f"b{number}" for number in range(100)]
    for broker_id in known_ids:
        await there.put_new(segment(broker_id, 3), [b"x"])
    await check_epochs(there, Store(next_epoch=5).ask, known_ids)
    assert there.asked == 101
    assert 1 < there.most <= 16


@pytest.mark.parametrize("known_ids", [(), ("a",)])
async def test_something_else_beside_the_brokers_folders_is_passed_by(known_ids: Sequence[str]) -> None:
    there = await filled(["intake/0.txt", segment("a", 3), "intake/b.txt", "intake/readme", segment("z", 5)])
    with pytest.raises(TimeTravel, match=f"but the bucket holds '{segment('z', 5)}'"):
        await check_epochs(there, Store(next_epoch=5).ask, known_ids)
    await check_epochs(there, Store(next_epoch=6).ask, known_ids)


async def test_a_bucket_without_segments_says_nothing() -> None:
    await check_epochs(bucket(), Store().ask)
