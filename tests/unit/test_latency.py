"""The store that is as slow as S3: how long its calls take."""

import asyncio
import random
from array import array
from collections.abc import Awaitable, Callable
from statistics import median

import pytest
from tidelog.objects.latency import Latencies, Latency, SlowStore
from tidelog.objects.memory import MemoryStore

from tests.virtual_time import VirtualClock, run

INSTANT = Latency(1e-6, 2e-6)


def seconds(
    call: Callable[[SlowStore], Awaitable[object]], *, times: int = 1, latencies: Latencies | None = None, seed: int = 1
) -> list[float]:
    """How long calls take on virtual time, in ascending order."""

    async def main() -> list[float]:
        store = SlowStore(MemoryStore(clock=VirtualClock()), chance=random.Random(seed), latencies=latencies)
        await store.put_new("k", [b"x" * 1000])
        took = []
        for _ in range(times):
            began = VirtualClock().monotonic()
            await call(store)
            took.append(VirtualClock().monotonic() - began)
        await store.close()
        return sorted(took)

    return run(main)


async def listed(store: SlowStore) -> list[str]:
    return [found.key async for found in store.list()]


@pytest.mark.parametrize(
    ("call", "latency"),
    [
        (lambda store: store.put_new("k", [b"x" * 1000]), Latency(40, 200)),
        (lambda store: store.get_range("k", 0, 1), Latency(15, 100)),
        (lambda store: store.head("k"), Latency(10, 60)),
        (listed, Latency(30, 150)),
        (lambda store: store.delete_many(["none"]), Latency(30, 150)),
    ],
    ids=["put", "get", "head", "list", "delete"],
)
def test_each_verb_has_its_median_and_its_tail(call: Callable[[SlowStore], Awaitable[object]], latency: Latency) -> None:
    took = seconds(call, times=3000)
    assert median(took) * 1000 == pytest.approx(latency.p50_ms, rel=0.05)
    assert took[int(0.99 * len(took))] * 1000 == pytest.approx(latency.p99_ms, rel=0.2)


def test_a_latency_passes_through_its_two_points() -> None:
    chance = random.Random(5)
    drawn = sorted(Latency(40, 200).draw_seconds(chance) for _ in range(50_000))
    assert drawn[25_000] == pytest.approx(0.040, rel=0.02)
    assert drawn[49_500] == pytest.approx(0.200, rel=0.05)
    assert drawn[0] > 0


def test_bytes_take_their_time_whatever_the_shape_of_their_memory() -> None:
    """A view of eight-byte items has an eighth as many items as bytes."""
    content = array("Q", range(1_000_000))
    latencies = Latencies(put=INSTANT, get=INSTANT, bytes_per_second=1e6)
    [took] = seconds(lambda store: store.put_new("big", [memoryview(content)]), latencies=latencies)
    assert took == pytest.approx(8.0, rel=0.01)

    async def write_and_read(store: SlowStore) -> None:
        await store.put_new("big", [memoryview(content)])
        assert await store.get_range("big", 0, 8_000_000) == content.tobytes()

    [both] = seconds(write_and_read, latencies=latencies)
    assert both == pytest.approx(16.0, rel=0.01)


def test_every_thousand_listed_objects_cost_a_page() -> None:
    latencies = Latencies(put=INSTANT, list_page=Latency(100, 100.001))

    async def fill_and_list(store: SlowStore) -> None:
        for number in range(2500):
            await store.put_new(f"many/{number:05}", [b""])
        assert len(await listed(store)) == 2501

    [took] = seconds(fill_and_list, latencies=latencies)
    assert took == pytest.approx(0.3, rel=0.2)


def test_the_same_seed_gives_the_same_waits() -> None:
    def waits(seed: int) -> list[float]:
        return seconds(lambda store: store.head("k"), times=20, seed=seed)

    assert waits(1) == waits(1)
    assert waits(1) != waits(2)


def test_a_cancelled_caller_does_not_stop_the_write_that_still_waits() -> None:
    """I5: as with the store that it imitates."""

    async def main() -> None:
        inner = MemoryStore(clock=VirtualClock())
        store = SlowStore(inner, chance=random.Random(1), latencies=Latencies(put=Latency(1e6, 2e6)))
        task = asyncio.ensure_future(store.put_new("k", [b"x"]))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert [found async for found in inner.list()] == []
        await store.close()
        assert [found.key async for found in inner.list()] == ["k"]

    run(main)
