"""What readers find in memory: bounded by bytes, each block fetched once, and a scan leaves the tail alone."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidelog.broker.cache import BlockCache, ReadStats, RecordCache, Span
from tidelog.broker.pace import Slots, keep_pace
from tidelog.broker.runs import StampedBatches, plan_merged, stamp_parts
from tidelog.clock import SystemClock
from tidelog.errors import CorruptSegment, Draining, ObjectNotFound, StoreError
from tidelog.metadata.extents import Extent
from tidelog.objects.memory import MemoryStore
from tidelog.records.batch import scan
from tidelog.records.codec import encode_many
from tidelog.segments.format import IndexEntry

KIB = 1024


def some(records: int = 10, value_bytes: int = 90) -> bytes:
    return encode_many([b"x" * value_bytes] * records, timestamps_ms=1)


def stamped(base_offset: int, *, records: int = 10, batches: int = 1) -> StampedBatches:
    return stamp_parts([some(records)] * batches, base_offset=base_offset, leader_epoch=1)


# ---- batches


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=8), base=st.integers(0, 10**12), max_bytes=st.integers(1, 2000))
def test_cuts_are_whole_batches_that_follow_one_another(counts: list[int], base: int, max_bytes: int) -> None:
    batches = stamp_parts([some(count) for count in counts], base_offset=base, leader_epoch=3)
    offset, found = base, b""
    while offset < batches.next_offset:
        cut = batches.cut(offset, max_bytes=max_bytes)
        assert cut is not None
        headers = scan(cut.batches)
        assert cut.base_offset == headers[0].base_offset == offset
        assert cut.next_offset == headers[-1].next_offset > offset
        assert len(headers) == 1 or len(cut.batches) <= max_bytes
        found += cut.batches
        offset = cut.next_offset
    assert [header.record_count for header in scan(found)] == counts
    assert batches.cut(offset, max_bytes=1) is None


def test_a_partial_read_of_a_merged_segment_covers_whole_entries() -> None:
    extent = Extent(1, 0, 400, 1, 1, 8, 400, 400, 1, 0, 0, 1)
    index = [IndexEntry(offset, 0, 8 + offset, 0) for offset in (0, 100, 200, 300)]
    found = [
        (run.position, run.end, run.next_offset) for run in (plan_merged(extent, "k", index, at, max_bytes=200) for at in (0, 150, 399))
    ]
    assert found == [(8, 208, 200), (108, 308, 300), (308, 408, 400)]
    assert plan_merged(extent, "k", index, 250, max_bytes=1).length == 100, "at least one"


# ---- recent batches


def test_what_was_taken_in_is_found_stamped_and_as_it_was() -> None:
    cache = RecordCache(max_bytes=100 * KIB)
    part = some()
    assert cache.took_in(7, 100, 5, [part, part], scan(part) * 2) == 120
    found = cache.find(7, 115)
    assert found is not None
    cut = found.cut(115, max_bytes=1)
    assert cut is not None
    [header] = scan(cut.batches)
    assert (header.base_offset, header.leader_epoch) == (110, 5)
    assert scan(part)[0].base_offset == 0, "what intake holds is not touched"
    assert [cache.find(7, offset) for offset in (99, 120)] == [None, None]
    assert cache.find(8, 100) is None


def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    cache = RecordCache(max_bytes=16 * KIB)
    part = some()
    for number in range(50):
        cache.took_in(1, 10 * number, 1, [part], scan(part))
        cache.find(1, 0)
        assert cache.used_bytes <= 16 * KIB
    assert cache.find(1, 0) is not None, "used all the time"
    assert cache.find(1, 490) is not None, "the newest"
    assert cache.find(1, 10) is None


def test_a_part_counts_as_much_as_it_keeps_alive() -> None:
    cache = RecordCache(max_bytes=1000 * KIB)
    part = some()
    message = memoryview(bytes(100 * KIB) + part)
    cache.took_in(1, 0, 1, [message[100 * KIB :]], scan(part))
    assert cache.used_bytes < 2 * KIB, "a small part of a large message is copied"
    message = memoryview(bytes(500) + part)
    cache.took_in(1, 10, 1, [message[500:]], scan(part))
    assert cache.used_bytes > 2 * len(part) + 500


def test_what_is_larger_than_all_memory_is_not_kept() -> None:
    cache = RecordCache(max_bytes=KIB)
    part = some(records=100)
    cache.took_in(1, 0, 1, [part], scan(part))
    cache.keep(1, stamped(0, records=100), tail=True)
    assert cache.find(1, 0) is None
    assert cache.used_bytes == 0


def test_the_past_has_a_share_of_its_own() -> None:
    cache = RecordCache(max_bytes=32 * KIB)
    for number in range(10):
        cache.keep(1, stamped(10 * number), tail=True)
    for number in range(100):
        cache.keep(2, stamped(10 * number), tail=False)
    assert all(cache.find(1, 10 * number) is not None for number in range(10))
    assert cache.find(2, 990) is not None
    assert cache.used_bytes <= 32 * KIB


def test_what_covers_more_takes_the_place_of_what_covers_less() -> None:
    cache = RecordCache(max_bytes=100 * KIB)
    cache.keep(1, stamped(0), tail=False)
    cache.keep(1, stamped(0, batches=3), tail=True)
    cache.keep(1, stamped(0), tail=True)
    found = cache.find(1, 25)
    assert found is not None
    assert cache.used_bytes == found.size


def test_bytes_that_changed_in_memory_are_dropped() -> None:
    cache = RecordCache(max_bytes=100 * KIB)
    part = bytearray(some())
    cache.took_in(1, 0, 1, [part], scan(part))
    part[70] ^= 1
    assert cache.find(1, 5) is None
    assert cache.used_bytes == 0


# ---- blocks


class Counting(MemoryStore):
    def __init__(self) -> None:
        super().__init__(clock=SystemClock())
        self.gets: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        self.gets.append((key, position))
        await self.gate.wait()
        return await super().get_range(key, position, length)


async def blocks(size: int = 100 * KIB, *, max_bytes: int = 64 * KIB) -> tuple[Counting, BlockCache, bytes]:
    store = Counting()
    content = random.Random(1).randbytes(size)
    await store.put_new("a", [content])
    return store, BlockCache(store, block_bytes=4 * KIB, max_bytes=max_bytes, stats=ReadStats()), content


async def test_spans_come_back_whole_whatever_blocks_they_lie_in() -> None:
    _, cache, content = await blocks()
    chance = random.Random(2)
    for _ in range(200):
        position = chance.randrange(len(content))
        length = chance.randrange(1, min(20 * KIB, len(content) - position) + 1)
        [parts] = await cache.read([Span("a", position, length)], slots=Slots(4))
        assert b"".join(parts) == content[position : position + length]
        assert cache.used_bytes <= 64 * KIB
    await cache.close()


async def test_a_block_that_many_want_is_fetched_once_and_who_leaves_takes_nothing_away() -> None:
    store, cache, content = await blocks()
    store.gate.clear()
    slots = Slots(1)
    first = asyncio.ensure_future(cache.read([Span("a", 0, 10)], slots=slots))
    others = [asyncio.ensure_future(cache.read([Span("a", 5, 10)], slots=slots)) for _ in range(7)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    store.gate.set()
    assert all(b"".join(parts) == content[5:15] for [parts] in await asyncio.gather(*others))
    assert store.gets == [("a", 0)]
    await cache.close()


async def test_pieces_of_more_objects_than_memory_holds_are_fetched_once_and_keep_no_blocks() -> None:
    store, cache, content = await blocks(max_bytes=16 * KIB)
    for number in range(40):
        await store.put_new(f"small/{number}", [content[: 4 * KIB]])
    spans = [Span(f"small/{number}", 100, 50) for number in range(40)]
    found = await cache.read(spans, slots=Slots(3))
    assert [b"".join(parts) for parts in found] == [content[100:150]] * 40
    assert len(store.gets) == len(set(store.gets)) == 40
    assert sum(memoryview(part.obj if isinstance(part, memoryview) else part).nbytes for parts in found for part in parts) == 40 * 50
    await cache.close()


async def test_what_is_asked_for_again_and_again_outlives_a_scan() -> None:
    store, cache, _ = await blocks(size=1000 * KIB)
    slots = Slots(4)

    async def scan(start: int, end: int) -> None:
        for position in range(start, end, 2 * KIB):
            await cache.read([Span("a", position, 100)], slots=slots)

    await cache.read([Span("a", 0, 10)], slots=slots)
    await scan(4 * KIB, 100 * KIB)
    await cache.read([Span("a", 0, 10)], slots=slots)
    assert store.gets.count(("a", 0)) == 2, "it had gone"
    await scan(100 * KIB, 1000 * KIB)
    await cache.read([Span("a", 0, 10)], slots=slots)
    assert store.gets.count(("a", 0)) == 2
    assert cache.used_bytes <= 64 * KIB
    await cache.close()


async def test_many_who_scan_side_by_side_fetch_each_block_once() -> None:
    store, cache, _ = await blocks(size=1000 * KIB)
    slots = Slots(4)
    for position in range(0, 1000 * KIB, 2 * KIB):
        for behind in range(0, 60 * KIB, 4 * KIB):
            await cache.read([Span("a", max(0, position - behind), 100)], slots=slots)
    assert len(store.gets) == len(set(store.gets)) == 250
    await cache.close()


async def test_a_block_that_came_short_is_fetched_again_and_then_an_error() -> None:
    store, cache, _ = await blocks(size=5 * KIB)
    await cache.read([Span("a", 4 * KIB, 1 * KIB)], slots=Slots(1))
    with pytest.raises(CorruptSegment, match="only 5120 came"):
        await cache.read([Span("a", 0, 6 * KIB)], slots=Slots(1))
    assert store.gets.count(("a", 4 * KIB)) == 2
    await cache.close()


async def test_fetching_ahead_is_limited_and_its_errors_reach_nobody_but_those_who_ask() -> None:
    store, cache, _ = await blocks(size=1000 * KIB)
    store.gate.clear()
    cache.fetch_ahead([Span("a", 0, 500 * KIB), Span("gone", 0, 10)], slots=Slots(8))
    await asyncio.sleep(0)
    assert len(store.gets) == 4, "a quarter of memory"
    store.gate.set()
    cache.fetch_ahead([Span("gone", 0, 10)], slots=Slots(8))
    with pytest.raises(ObjectNotFound):
        await cache.read([Span("gone", 0, 10)], slots=Slots(8))
    await cache.close()


async def test_closing_leaves_nothing_on_its_way() -> None:
    store, cache, _ = await blocks()
    store.gate.clear()
    cache.fetch_ahead([Span("a", 0, 10)], slots=Slots(1))
    waiting = asyncio.ensure_future(cache.read([Span("a", 0, 10)], slots=Slots(1)))
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(Draining):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- pace


async def test_slots_are_given_in_the_order_of_asking_and_come_back_from_those_who_leave() -> None:
    slots = Slots(4)
    slots.allowed = 2
    order: list[int] = []
    release = asyncio.Event()

    async def hold(number: int) -> None:
        async with slots.slot():
            order.append(number)
            await release.wait()

    tasks = [asyncio.ensure_future(hold(number)) for number in range(6)]
    await asyncio.sleep(0)
    assert order == [0, 1]
    tasks[0].cancel()
    tasks[2].cancel()
    slots.allowed = 3
    for _ in range(5):  # turns of the loop: one leaves, one is given its place, one wakes
        await asyncio.sleep(0)
    assert order == [0, 1, 3, 4]
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 1, 3, 4, 5]
    assert slots.free == 3
    assert not slots.busy.is_set()


class LaggingClock:
    """Each look at it finds the event loop late by `lag` seconds."""

    def __init__(self) -> None:
        self.lag = 0.0
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.025 / 2 + self.lag / 2
        return self.now - (0.025 / 2 + self.lag / 2)

    def wall_ms(self) -> int:
        return 0


async def test_fewer_run_at_once_while_the_event_loop_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidelog.broker.pace._LOOK_EVERY_SECONDS", 0.0005)
    slots, clock = Slots(8), LaggingClock()
    keeping = asyncio.ensure_future(keep_pace(slots, clock=clock, max_lag_seconds=0.02))
    clock.lag = 1.0

    async def until(allowed: int) -> None:
        async with asyncio.timeout(10):
            while slots.allowed != allowed:
                await asyncio.sleep(0.001)

    async with slots.slot():
        await until(1)
        clock.lag = -0.025
        await until(8)
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_an_error_of_the_store_reaches_all_who_wait() -> None:
    _, cache, _ = await blocks()
    found = await asyncio.gather(*(cache.read([Span("gone", 0, 1)], slots=Slots(1)) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(error, StoreError) for error in found)
    await cache.close()
