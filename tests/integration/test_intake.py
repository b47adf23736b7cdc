"""What an intake does with appends while its bucket is slow, silent or broken: outcomes, order, bytes held."""

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from tidelog.broker.broker import Broker
from tidelog.broker.intake import APPEND_BYTES, BATCH_BYTES, COPIES, Budget
from tidelog.broker.requests import AppendRequest
from tidelog.clock import Clock
from tidelog.errors import Draining, NotReady, RecordTooLarge, StoreOutcomeUnknown, Throttled, TimedOut
from tidelog.metadata.membership import end_epoch
from tidelog.metadata.topics import TopicConfig
from tidelog.objects.memory import MemoryStore
from tidelog.objects.store import Bytes

from tests.cluster import QUICK, Cluster, append, batch, on_virtual_time, until
from tests.virtual_time import VirtualClock

SETTINGS = QUICK.model_copy(update={"lease_ms": 60_000, "append_timeout_ms": 60_000, "puts_per_second": 1000})


class Bucket(MemoryStore):
    """Holds uploads up, or breaks them, by the number of their segment."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.held: dict[int, asyncio.Event] = {}
        self.broken: dict[int, Exception] = {}
        self.begun: list[int] = []
        self.keys: list[str] = []

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        if not key.startswith("intake/"):
            await super().put_new(key, parts)
            return
        sequence = int(key.rpartition("/")[2][:20])
        self.begun.append(sequence)
        self.keys.append(key)
        await asyncio.sleep(0.01)
        if sequence in self.held:
            await self.held[sequence].wait()
        if sequence in self.broken:
            raise self.broken[sequence]
        await super().put_new(key, parts)


async def begin(cluster: Cluster, **settings: Any) -> tuple[Broker, Bucket]:
    bucket = cluster.bucket = Bucket(VirtualClock())
    broker = await cluster.start("one", SETTINGS.model_copy(update=settings))
    await broker.create_topic("clicks", partitions=2, config=TopicConfig())
    return broker, bucket


async def sealed(broker: Broker, bucket: Bucket, *values: bytes, **more: Any) -> "asyncio.Future[Any]":
    """Append, and wait until the segment is on its way."""
    before = max(bucket.begun, default=0)
    future = broker.append(AppendRequest("clicks", 0, batch(*values), **more))
    await until(lambda: max(bucket.begun, default=0) > before)
    return future


async def seconds_until_sealed(broker: Broker, bucket: Bucket, size: int, **more: Any) -> float:
    now = asyncio.get_running_loop().time
    began = now()
    await sealed(broker, bucket, bytes(size), **more)
    return now() - began


@on_virtual_time
async def test_a_segment_leaves_when_nothing_is_on_its_way_and_the_budget_of_requests_allows(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster, max_latency_ms=5000, puts_per_second=0.5)
    waited = []
    for _ in range(3):
        waited.append(await seconds_until_sealed(broker, bucket, 10))
        assert broker.life is not None
        await broker.life.intake.drained()
    assert [round(each) for each in waited] == [0, 2, 2]


@on_virtual_time
async def test_beside_others_on_their_way_a_segment_leaves_by_size_or_when_its_time_is_up(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster, segment_bytes=8192, max_latency_ms=5000)
    bucket.held = dict.fromkeys(range(1, 10), asyncio.Event())
    assert await seconds_until_sealed(broker, bucket, 10) < 0.1, "nothing is on its way"
    assert 5 <= await seconds_until_sealed(broker, bucket, 10) < 5.1, "it waits for company"
    assert 0.5 <= await seconds_until_sealed(broker, bucket, 10, max_latency_ms=500) < 0.6, "as long as is asked for"
    assert await seconds_until_sealed(broker, bucket, 1000) < 0.1, "an eighth of a segment is worth a request"


@on_virtual_time
async def test_a_full_segment_waits_for_no_budget_of_requests(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster, segment_bytes=8192, max_latency_ms=5000, puts_per_second=0.01)
    await sealed(broker, bucket, b"takes what the budget has")
    assert 5 <= await seconds_until_sealed(broker, bucket, 1000) < 5.1
    assert await seconds_until_sealed(broker, bucket, 8192) < 0.1


@on_virtual_time
async def test_beyond_the_limit_of_open_sequences_nothing_is_sealed(cluster: Cluster) -> None:
    """Uploaded or not: what a leader does not answer piles up no further."""
    broker, bucket = await begin(cluster, max_open_sequences=2)
    bucket.held = {1: asyncio.Event(), 2: asyncio.Event()}
    futures = [await sealed(broker, bucket, b"%d" % number) for number in range(2)]
    futures += [broker.append(AppendRequest("clicks", 0, batch(b"%d" % number))) for number in (2, 3)]
    bucket.held[2].set()  # in the bucket, but its reference may not go before the first one's
    await asyncio.sleep(1)
    assert broker.life is not None
    assert (bucket.begun, broker.life.intake.open_sequences) == ([1, 2], 2)
    bucket.held[1].set()
    assert [(await future).base_offset for future in futures] == [0, 1, 2, 3]
    assert bucket.begun == [1, 2, 3], "those that waited left together"


@on_virtual_time
async def test_a_sequence_that_is_lent_holds_the_mark_and_nothing_else(cluster: Cluster) -> None:
    """A merge may take long: neither sealing nor draining waits for it."""
    broker, _ = await begin(cluster, max_open_sequences=1)
    assert broker.life is not None
    intake = broker.life.intake
    lent = intake.new_sequence()
    for number in range(3):
        await append(broker, "clicks", b"%d" % number)
    assert (intake.open_sequences, intake.resolved_sequence) == (0, lent - 1)
    await intake.drained()
    intake.resolve(lent)
    assert intake.resolved_sequence == lent + 3


@on_virtual_time
async def test_a_leader_that_does_not_answer_is_asked_again_on_a_new_link(cluster: Cluster) -> None:
    """Half-open: the link looks well, and nothing comes of what is sent."""
    settings = SETTINGS.model_copy(update={"peer_timeout_ms": 2000})
    one, two = [await cluster.start(name, settings) for name in ("one", "two")]
    await one.create_topic("clicks", partitions=8, config=TopicConfig())
    await until(lambda: two.life is not None and bool(two.life.ledger.led()))
    assert two.life is not None
    partition = one.catalog.partition_by_id(next(iter(two.life.ledger.led())))
    assert partition is not None
    cluster.network.silent = {("one", "two")}
    waiting = asyncio.ensure_future(append(one, "clicks", b"a", partition=partition.partition))
    await asyncio.sleep(1)
    cluster.network.silent = set()
    began = asyncio.get_running_loop().time()
    assert (await waiting).base_offset == 0
    assert 0.5 < asyncio.get_running_loop().time() - began < 2.5


@on_virtual_time
async def test_no_append_waits_longer_than_the_longest_time_out(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster, max_append_timeout_ms=2000)
    bucket.held[1] = asyncio.Event()
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimedOut):
        await append(broker, "clicks", b"a", timeout_ms=10**9)
    assert asyncio.get_running_loop().time() - began < 2.2


@on_virtual_time
async def test_a_caller_who_leaves_takes_nothing_back(cluster: Cluster) -> None:
    """I5: wherever the append is at that moment."""
    broker, bucket = await begin(cluster)
    bucket.held[1] = asyncio.Event()
    for future in (await sealed(broker, bucket, b"on its way"), broker.append(AppendRequest("clicks", 0, batch(b"waits for company")))):
        future.cancel()
    bucket.held[1].set()
    assert (await append(broker, "clicks", b"c")).base_offset == 2


@on_virtual_time
async def test_bytes_are_freed_once_their_append_is_answered_and_need_no_collector(cluster: Cluster) -> None:
    """I10: what is held and counted by nobody would otherwise be as much as comes in between two collections."""
    broker, _ = await begin(cluster, cache_bytes=0)
    gc.collect()
    gc.disable()
    try:
        batches = memoryview(batch(b"a"))
        held = weakref.ref(batches)
        future = broker.append(AppendRequest("clicks", 0, batches))
        del batches
        await future
        await until(lambda: held() is None)
    finally:
        gc.enable()


@on_virtual_time
async def test_a_defect_that_one_segment_meets_fails_its_appends_and_holds_up_no_other(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster)
    bucket.broken[1] = ValueError("no such thing as weather")
    first = await sealed(broker, bucket, b"a")
    with pytest.raises(NotReady, match="not done: ValueError"):
        await first
    assert (await append(broker, "clicks", b"b")).base_offset == 0
    assert broker.intake_bytes == 0


@on_virtual_time
async def test_a_defect_of_the_broker_ends_it(cluster: Cluster) -> None:
    """Rather than leave it half alive."""
    broker, bucket = await begin(cluster)
    assert broker.life is not None

    def defect(references: object) -> None:
        raise ZeroDivisionError("a defect")

    broker.life.outbox.submit = defect  # type: ignore[method-assign]
    await sealed(broker, bucket, b"a")
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await cluster.tasks.pop("one")


@on_virtual_time
async def test_an_upload_that_hangs_holds_up_others_only_as_long_as_somebody_waits_for_it(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster)
    bucket.held[1] = asyncio.Event()
    first = await sealed(broker, bucket, b"a", timeout_ms=1000)
    second = await sealed(broker, bucket, b"b")
    began = asyncio.get_running_loop().time()
    assert (await second).base_offset == 0
    assert asyncio.get_running_loop().time() - began < 2
    with pytest.raises(TimedOut, match="it was not done, and will not be"):
        await first
    assert broker.intake_bytes == COPIES * len(batch(b"a")) + APPEND_BYTES + BATCH_BYTES, "its bytes are still being sent"
    bucket.held[1].set()
    await until(lambda: broker.intake_bytes == 0)
    assert (await append(broker, "clicks", b"c")).base_offset == 1


@on_virtual_time
async def test_a_place_that_an_upload_leaves_is_taken_whatever_the_others_do(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster, max_uploads=2)
    bucket.held = {1: asyncio.Event(), 2: asyncio.Event()}
    futures = [await sealed(broker, bucket, b"%d" % number) for number in range(2)]
    futures.append(broker.append(AppendRequest("clicks", 0, batch(b"2"))))
    await asyncio.sleep(1)
    assert bucket.begun == [1, 2]
    bucket.held[2].set()  # while the first hangs
    await until(lambda: bucket.begun == [1, 2, 3], seconds=1)
    bucket.held[1].set()
    assert [(await future).base_offset for future in futures] == [0, 1, 2]


@on_virtual_time
async def test_bytes_count_until_their_upload_is_over_across_the_end_of_an_epoch(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster)
    bucket.held[1] = asyncio.Event()
    first = await sealed(broker, bucket, bytes(1000))
    assert broker.life is not None
    before = broker.life.identity.broker_epoch
    await cluster.store.run(end_epoch, broker_epoch=before)
    with pytest.raises(NotReady, match="it was not done"):
        await first
    await until(lambda: broker.life is not None and broker.life.identity.broker_epoch > before)
    assert broker.intake_bytes > 3000
    bucket.held[1].set()
    await until(lambda: broker.intake_bytes == 0)


@on_virtual_time
async def test_an_upload_that_is_tried_again_has_the_same_key(cluster: Cluster) -> None:
    """I5: the first attempt may have happened, or happen later; under another key it would be there twice."""
    broker, bucket = await begin(cluster)
    bucket.broken[1] = StoreOutcomeUnknown("weather")
    future = await sealed(broker, bucket, b"a")
    await until(lambda: len(bucket.keys) >= 3)
    del bucket.broken[1]
    assert (await future).base_offset == 0
    assert len(set(bucket.keys)) == 1


@on_virtual_time
async def test_bytes_are_given_back_by_every_outcome(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster)
    bucket.broken = {1: StoreOutcomeUnknown("weather"), 2: NotReady("defect")}
    outcomes = [await sealed(broker, bucket, b"x", timeout_ms=500) for _ in range(3)]
    outcomes.append(broker.append(AppendRequest("clicks", 0, batch(b"y"), expected_next_offset=77)))
    await asyncio.gather(*outcomes, return_exceptions=True)
    assert [type(each.exception()).__name__ for each in outcomes] == ["TimedOut", "NotReady", "NoneType", "ConditionFailed"]
    await until(lambda: broker.intake_bytes == 0)


@on_virtual_time
async def test_what_small_appends_cost_in_memory_is_counted(cluster: Cluster) -> None:
    """I10: their bytes are the smallest part of it."""
    broker, bucket = await begin(cluster, append_timeout_ms=200_000)
    await append(broker, "clicks", b"warm")
    bucket.held = dict.fromkeys(range(1000), asyncio.Event())
    gc.collect()
    tracemalloc.start()
    try:
        kept = [broker.append(AppendRequest("clicks", 0, bytes(batch(b"x")))) for _ in range(5000)]
        await asyncio.sleep(1)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < broker.intake_bytes < 3 * used
    next(iter(bucket.held.values())).set()
    await asyncio.gather(*kept)


@on_virtual_time
async def test_a_draining_broker_sends_what_it_has_at_once_and_refuses_the_rest(cluster: Cluster) -> None:
    broker, bucket = await begin(cluster, max_latency_ms=30_000)
    bucket.held[1] = asyncio.Event()
    first = await sealed(broker, bucket, b"a")
    second = broker.append(AppendRequest("clicks", 0, batch(b"b")))
    await asyncio.sleep(0.1)
    assert bucket.begun == [1], "it waits for company"
    assert broker.life is not None
    broker.life.intake.drain()
    await until(lambda: bucket.begun == [1, 2], seconds=1)
    refusals = []
    for _ in range(2):
        with pytest.raises(Draining) as refused:
            broker.append(AppendRequest("clicks", 0, batch(b"c")))
        refusals.append(refused.value)
    assert refusals[0] is not refusals[1], "one that is raised again and again would keep all that it was raised for"
    bucket.held[1].set()
    await broker.life.intake.drained()
    assert [(await first).base_offset, (await second).base_offset] == [0, 1]


def test_an_append_that_can_never_fit_is_not_told_to_come_back() -> None:
    budget = Budget(1000)
    budget.take(600)
    with pytest.raises(Throttled, match="600 of intake_budget_bytes = 1000 are in use"):
        budget.take(401)
    with pytest.raises(RecordTooLarge, match="split it"):
        budget.take(1001)
