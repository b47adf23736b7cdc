"""The producer over real sockets, against brokers that drop streams, answer late, twice, or not at all."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
import tidelog
from kafka.partitioner.default import murmur2
from tidelog.client.acks import Ack
from tidelog.errors import (
    ConditionFailed,
    InvalidRequest,
    NotReady,
    OutcomeUnknown,
    RecordTooLarge,
    Throttled,
    TidelogError,
    TimedOut,
    UnknownPartition,
    UnknownTopic,
)
from tidelog.proto.v1 import log_pb2
from tidelog.records.batch import scan

from tests.fake_broker import (
    OK,
    Cluster,
    CuttingProxy,
    Fate,
    committed_but_unheard,
    draining,
    lost_before,
    not_ready,
    refused,
    running_cluster,
    throttled,
    too_large,
    unknown,
)

T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    """What must come, but not how soon."""
    return await asyncio.wait_for(work, 30)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as found:
        found.topics |= {"one": 1, "four": 4}
        yield found


def fates(cluster: Cluster, *first: Fate) -> None:
    """Let the appends that come meet these, and then nothing bad."""
    left = list(first)
    for broker in cluster.brokers:
        broker.fate = lambda append: left.pop(0) if left else OK


async def test_an_acknowledgement_says_where_the_record_is(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        await soon(producer.send("four", b"before", partition=3))
        ack = await soon(producer.send("four", b"v", key=b"k", headers=[("h", b"x"), ("n", None)], timestamp_ms=77, partition=3))
    assert ack == Ack("four", 3, 1, 77)
    assert cluster.records("four", 3)[1] == (b"v", b"k", 77, (("h", b"x"), ("n", None)), 1)


async def test_records_that_are_sent_together_travel_together_in_order(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=20) as producer:
        futures = [producer.send_nowait("one", b"%d" % number) for number in range(1000)]
        offsets = [(await soon(future)).offset for future in futures]
    assert offsets == list(range(1000))
    assert cluster.values("one") == [b"%d" % number for number in range(1000)]
    assert len(cluster.batches["one", 0]) < 10


async def test_records_without_a_key_stay_with_a_partition_for_a_batch_and_then_go_to_another(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=50, batch_bytes=4096) as producer:
        await soon(producer.send("four", b"v"))  # its partitions are known from now on
        small = await soon(asyncio.gather(*(producer.send("four", b"v") for _ in range(50))))
        assert len({ack.partition for ack in small}) == 1
        large = await soon(asyncio.gather(*(producer.send("four", bytes(1000)) for _ in range(200))))
    counts = Counter(ack.partition for ack in large)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) < 120, "none gets most of them"


async def test_a_key_goes_to_the_partition_that_kafka_gives_it(cluster: Cluster) -> None:
    keys = [b"user-%d" % number for number in range(50)]
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        acks = await soon(producer.send_many("four", keys, keys=keys))
        single = [await soon(producer.send_nowait("four", b"", key=key)) for key in keys[:3]]
    assert [ack.partition for ack in acks] == [(murmur2(key) & 0x7FFFFFFF) % 4 for key in keys]
    assert [ack.partition for ack in single] == [ack.partition for ack in acks[:3]]
    for key, ack in zip(keys, acks, strict=True):
        assert cluster.values("four", ack.partition)[ack.offset] == key


async def test_send_many_gives_ranges_and_uses_all_partitions(cluster: Cluster) -> None:
    values = [b"%0100d" % number for number in range(30_000)]
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        acks = await soon(producer.send_many("four", values))
    assert len(acks) == len(values)
    assert sum(found.next_offset - found.base_offset for found in acks.ranges) == len(values)
    assert len({found.partition for found in acks.ranges}) > 1
    for index in (0, 1, 15_000, 29_999, -1):
        assert cluster.values("four", acks[index].partition)[acks[index].offset] == values[index]


async def test_closing_sends_what_is_buffered(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=60_000) as producer:
        future = producer.send_nowait("one", b"v")
    assert (await future).offset == 0
    with pytest.raises(InvalidRequest, match="not open"):
        producer.send_nowait("one", b"v")


async def test_flush_does_not_linger(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=60_000) as producer:
        futures = [producer.send_nowait("four", b"v", partition=partition) for partition in range(4)]
        await soon(producer.flush())
        assert all(future.done() for future in futures)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_batches_are_compressed_as_asked(cluster: Cluster, compression: str) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(compression=compression) as producer:
        await soon(producer.send_many("one", [b"x" * 100] * 100))
    assert scan(cluster.batches["one", 0][0])[0].compression == compression
    assert cluster.values("one") == [b"x" * 100] * 100


@pytest.mark.parametrize(
    "first",
    [
        [committed_but_unheard()],
        [lost_before()],
        [OK, committed_but_unheard(), lost_before(), committed_but_unheard()],
        [throttled(), OK, not_ready()],
        [unknown(committed=True)],
        [unknown(committed=False), OK, OK],
        [draining()],
        [OK, unknown(committed=True), throttled(), unknown(committed=False), committed_but_unheard()],
    ],
    ids=["unheard", "lost", "three losses", "put off", "unknown, written", "unknown, not written", "draining", "all sorts"],
)
async def test_whatever_a_broker_does_each_record_is_there_once_and_in_order(first: list[Fate]) -> None:
    async with running_cluster("", "") as cluster:
        cluster.topics["one"] = 1
        fates(cluster, *first)
        values = [b"%d" % number for number in range(300)]
        servers = [broker.address for broker in cluster.brokers]
        async with tidelog.connect(servers) as log, log.producer(linger_ms=0, batch_bytes=64) as producer:
            futures = []
            for value in values:
                futures.append(producer.send_nowait("one", value))
                if len(futures) % 10 == 0:
                    await asyncio.sleep(0)
            acks = [await soon(future) for future in futures]
        assert cluster.values("one") == values
        assert [ack.offset for ack in acks] == list(range(300))


async def test_a_retry_has_the_same_bytes(cluster: Cluster) -> None:
    fates(cluster, committed_but_unheard(), throttled())
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        await soon(producer.send("one", b"v"))
    sent = [data for _, _, data in cluster.brokers[0].appends]
    assert len(sent) == 3
    assert len(set(sent)) == 1


async def test_answers_may_come_late_and_out_of_order(cluster: Cluster) -> None:
    first_answer = asyncio.Event()
    fates(cluster, Fate(hold=first_answer))
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=0) as producer:
        first = producer.send_nowait("one", b"a")
        await asyncio.sleep(0)
        while not cluster.values("one"):
            await asyncio.sleep(0.01)
        second = producer.send_nowait("one", b"b")
        assert (await soon(second)).offset == 1
        assert not first.done()
        first_answer.set()
        assert (await soon(first)).offset == 0


async def test_a_refused_record_fails_alone_and_what_follows_it_arrives(cluster: Cluster) -> None:
    fates(cluster, OK, too_large())
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=0, batch_bytes=1) as producer:
        await soon(producer.send("one", b"first"))
        futures = [producer.send_nowait("one", b"%d" % number) for number in range(10)]
        with pytest.raises(RecordTooLarge):
            await soon(futures[0])
        for future in futures[1:]:
            await soon(future)
    assert cluster.values("one") == [b"first"] + [b"%d" % number for number in range(1, 10)]


async def test_an_expired_producer_goes_on_without_anyone_noticing(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        await soon(producer.send("one", b"a"))
        cluster.producers.clear()
        assert (await soon(producer.send("one", b"b"))).offset == 1
    assert cluster.values("one") == [b"a", b"b"]


async def test_without_a_word_until_the_deadline_the_outcome_is_unknown(cluster: Cluster) -> None:
    cluster.brokers[0].fate = lambda append: unknown(committed=True)
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(delivery_timeout_ms=300) as producer:
        with pytest.raises(OutcomeUnknown, match="may be committed"):
            await soon(producer.send("one", b"v"))
    assert cluster.values("one") == [b"v"]


async def test_a_silent_broker_does_not_hold_a_record_beyond_its_deadline(cluster: Cluster) -> None:
    cluster.brokers[0].fate = lambda append: Fate(hold=asyncio.Event())
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(delivery_timeout_ms=300) as producer:
        with pytest.raises(OutcomeUnknown):
            await soon(producer.send("one", b"v"))


async def test_a_broker_that_takes_records_and_never_answers_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is well: only the answers do not come."""
    monkeypatch.setattr("tidelog.client.producer._LATE_S", 0.1)
    async with running_cluster("", "") as cluster:
        cluster.topics["one"] = 1
        silent, other = cluster.brokers
        silent.fate = lambda append: Fate(hold=asyncio.Event())
        async with tidelog.connect(silent.address) as log, log.producer(request_timeout_ms=100, delivery_timeout_ms=20_000) as producer:
            assert (await soon(producer.send("one", b"v"))).offset == 0
        assert silent.appends
        assert other.appends
    assert cluster.values("one") == [b"v"]


async def test_an_answer_that_comes_after_the_deadline_harms_nothing(cluster: Cluster) -> None:
    (broker,) = cluster.brokers
    late = asyncio.Event()
    fates(cluster, Fate(hold=late))
    async with tidelog.connect(broker.address) as log, log.producer(delivery_timeout_ms=200, linger_ms=0) as producer:
        with pytest.raises(OutcomeUnknown):
            await soon(producer.send("one", b"late"))
        late.set()
        assert (await soon(producer.send("one", b"next"))).offset == 1
        assert broker.produce_streams == 1
    assert cluster.values("one") == [b"late", b"next"]


async def test_what_was_always_put_off_has_timed_out_and_is_nowhere(cluster: Cluster) -> None:
    cluster.brokers[0].fate = lambda append: throttled()
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(delivery_timeout_ms=300) as producer:
        with pytest.raises(TimedOut, match="not written"):
            await soon(producer.send("one", b"v"))
        cluster.brokers[0].fate = lambda append: OK
        assert (await soon(producer.send("one", b"w"))).offset == 0


async def test_a_brokers_own_fault_is_tried_again_or_unknown_never_failed(cluster: Cluster) -> None:
    fates(cluster, Fate(TidelogError("not expected"), commits=True))
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        with pytest.raises(OutcomeUnknown):
            await soon(producer.send("one", b"v"))
        assert (await soon(producer.send("one", b"w"))).offset == 1


async def test_a_condition_is_kept_and_a_retry_of_it_is_not_a_second_record(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=0) as producer:
        fates(cluster, committed_but_unheard())
        assert (await soon(producer.send("one", b"a", partition=0, expected_next_offset=0))).offset == 0
        with pytest.raises(ConditionFailed):
            await soon(producer.send("one", b"b", partition=0, expected_next_offset=0))
        assert (await soon(producer.send("one", b"c", partition=0, expected_next_offset=1))).offset == 1
        with pytest.raises(InvalidRequest, match="name the partition"):
            await producer.send("one", b"d", expected_next_offset=1)
    assert cluster.values("one") == [b"a", b"c"]
    assert cluster.brokers[0].calls.count("InitProducer") == 1


async def test_a_full_buffer_says_so_and_ready_waits_for_room(cluster: Cluster) -> None:
    answers = asyncio.Event()
    cluster.brokers[0].fate = lambda append: Fate(hold=answers)
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(buffer_bytes=1000) as producer:
        await producer._partitions_known(producer._topic("one"))
        for _ in range(8):
            producer.send_nowait("one", b"x" * 100)
        with pytest.raises(Throttled, match=r"await producer\.ready"):
            producer.send_nowait("one", b"x" * 100)
        waiting = asyncio.ensure_future(producer.send("one", b"y"))
        many = asyncio.ensure_future(producer.send_many("one", [b"z" * 100] * 30))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        answers.set()
        await soon(waiting)
        await soon(many)
    assert len(cluster.values("one")) == 39


async def test_unknown_topics_and_partitions_are_named(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        with pytest.raises(UnknownTopic, match="nowhere"):
            await soon(producer.send("nowhere", b"v"))
        with pytest.raises(UnknownPartition):
            await soon(producer.send("four", b"v", partition=4))
        with pytest.raises(UnknownPartition):
            await soon(producer.send("four", b"v", partition=-1))


async def test_a_topic_that_brokers_make_on_first_use_is_made_before_keys_get_their_places(cluster: Cluster) -> None:
    cluster.creates_topics = True
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        acks = await soon(producer.send_many("new", [b"v"] * 40, keys=[b"%d" % number for number in range(40)]))
    assert {ack.partition for ack in acks} == {0, 1, 2, 3}


@pytest.mark.parametrize("key", [b"1", None])  # Kafka puts it into partition 1 of 2
async def test_partitions_that_are_added_or_gone_later_are_noticed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, key: bytes | None
) -> None:
    monkeypatch.setattr("tidelog.client.producer._METADATA_MAX_AGE_S", 0.02)
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=0) as producer:
        assert (await soon(producer.send("one", b"v", key=key))).partition == 0
        cluster.topics["one"] = 2
        async with asyncio.timeout(30):
            while (await producer.send("one", b"v", key=key)).partition == 0:
                await asyncio.sleep(0.005)
        cluster.topics["one"] = 1  # deleted and made anew
        async with asyncio.timeout(30):
            while not await written(producer.send("one", b"v", key=key)):
                await asyncio.sleep(0.005)


async def written(work: Awaitable[Ack]) -> bool:
    try:
        await work
    except UnknownPartition:
        return False
    return True


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"value": "text"}, r"text\.encode"),
        ({"value": b"v", "key": 5}, "key of type int"),
        ({"value": b"v", "headers": [("name",)]}, "pairs of a name"),
        ({"value": b"v", "headers": [("\ud800", b"x")]}, "pairs of a name"),
        ({"value": b"v", "timestamp_ms": -1}, "Unix milliseconds"),
        ({"value": b"v", "timestamp_ms": 1.5}, "no whole number"),
        ({"value": b"v", "timestamp_ms": "now"}, "no whole number"),
        ({"value": b"v", "partition": 0.5}, "cannot be sent"),
        ({"value": b"v", "partition": "0"}, "cannot be sent"),
        ({"value": b"v", "partition": 0, "expected_next_offset": -1}, "whole number from 0"),
        ({"value": b"v", "partition": 0, "expected_next_offset": 1 << 70}, "whole number from 0"),
        ({"value": b"v", "partition": 0, "expected_next_offset": "end"}, "whole number from 0"),
        ({"value": b"v", "topic": ""}, "without a name"),
        ({"value": b"v", "topic": 5}, "give a str"),
        ({"value": b"v", "topic": "\ud800"}, "give a str"),
    ],
)
async def test_what_cannot_be_a_record_is_refused_at_once_and_harms_no_other(cluster: Cluster, wrong: dict[str, object], says: str) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        before = producer.send_nowait("one", b"before")
        with pytest.raises(InvalidRequest, match=says):
            producer.send_nowait(**{"topic": "one", **wrong})  # type: ignore[arg-type]
        assert (await soon(before)).offset == 0
        assert (await soon(producer.send("one", b"after"))).offset == 1


async def test_what_is_too_large_or_does_not_fit_together_is_refused_at_once(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        with pytest.raises(RecordTooLarge, match="max_record_bytes"):
            producer.send_nowait("one", b"x" * (2 << 20))
        with pytest.raises(InvalidRequest, match="one for each value"):
            await producer.send_many("one", [b"a", b"b"], keys=[b"k"])


async def test_a_producer_whose_work_has_ended_leaves_nobody_waiting(cluster: Cluster) -> None:
    """gRPC raises CancelledError for a call that is cancelled under it: to a task that is as if it were cancelled itself."""
    never = asyncio.Event()
    fates(cluster, Fate(hold=never))
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(linger_ms=0) as producer:
        future = producer.send_nowait("one", b"v", partition=0)
        while not cluster.brokers[0].appends:
            await asyncio.sleep(0.005)
        for task in list(producer._tasks):
            task.cancel()
        with pytest.raises(OutcomeUnknown, match="has failed and takes nothing more"):
            await soon(future)
        with pytest.raises(InvalidRequest, match="not open"):
            producer.send_nowait("one", b"w")
        never.set()


@pytest.mark.parametrize("partition", [-1, 1, 1 << 40])
async def test_a_partition_that_cannot_be_is_unknown_also_before_any_are_known(cluster: Cluster, partition: int) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        with pytest.raises(UnknownPartition):
            await soon(producer.send("one", b"v", partition=partition))
        assert (await soon(producer.send("one", b"v"))).offset == 0


async def test_whole_numbers_of_other_kinds_are_timestamps(cluster: Cluster) -> None:
    class Other:
        def __index__(self) -> int:
            return 77

    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
        times: list[Any] = [Other(), 78]
        await soon(producer.send_many("one", [b"a", b"b"], timestamps=times))
    assert [record.timestamp_ms for record in cluster.records("one", 0)] == [77, 78]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"linger_ms": -1}, "linger_ms"),
        ({"linger_ms": float("nan")}, "linger_ms"),
        ({"compression": "brotli"}, "choose one of none, gzip"),
        ({"max_in_flight": 6}, "choose 1 to 5"),
        ({"batch_bytes": 0}, "batch_bytes"),
        ({"buffer_bytes": -1}, "buffer_bytes"),
        ({"delivery_timeout_ms": 0}, "delivery_timeout_ms"),
    ],
)
async def test_a_producer_that_cannot_be_is_refused(cluster: Cluster, settings: dict[str, Any], says: str) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log:
        with pytest.raises(InvalidRequest, match=says):
            log.producer(**settings)


async def test_nobody_there_is_said_so_when_the_calls_time_is_over() -> None:
    with pytest.raises(NotReady, match=r"no broker could be reached at 127\.0\.0\.1:1 within 0.5 s: nothing listens there"):
        async with tidelog.connect("127.0.0.1:1", call_timeout_ms=500):
            pass
    with pytest.raises(InvalidRequest, match="call_timeout_ms=0"):
        tidelog.connect("127.0.0.1:1", call_timeout_ms=0)


async def test_a_broker_of_ones_zone_is_preferred_and_another_takes_over() -> None:
    async with running_cluster("a", "b") as cluster:
        cluster.topics["one"] = 1
        async with tidelog.connect(cluster.brokers[0].address, zone="b", token="secret") as log, log.producer(linger_ms=0) as producer:
            await soon(producer.send("one", b"v"))
            assert [len(broker.appends) for broker in cluster.brokers] == [0, 1]
            await cluster.brokers[1].stop()
            await soon(producer.send("one", b"w"))
        assert cluster.values("one") == [b"v", b"w"]
        assert cluster.brokers[0].tokens == {"Bearer secret"}


async def test_a_broker_that_restarts_is_found_again(cluster: Cluster) -> None:
    broker = cluster.brokers[0]
    async with tidelog.connect(broker.address) as log, log.producer(linger_ms=0) as producer:
        await soon(producer.send("one", b"a"))
        await broker.stop()
        future = producer.send_nowait("one", b"b")
        await broker.start(port=int(broker.address.rsplit(":", 1)[1]))
        assert (await soon(future)).offset == 1


async def test_connections_cut_in_the_midst_of_a_message_lose_and_double_nothing(cluster: Cluster) -> None:
    chance = random.Random(7)
    async with CuttingProxy(cluster.brokers[0].address) as proxy:
        cluster.brokers[0].advertises = proxy.address
        values = [b"%05d" % number + b"x" * 500 for number in range(3000)]
        async with tidelog.connect(proxy.address) as log, log.producer(linger_ms=0, batch_bytes=2000, buffer_bytes=100_000) as producer:
            proxy.cuts.extend([chance.randrange(2000, 60_000) for _ in range(8)])
            acks = await soon(producer.send_many("one", values[:1]))
            for broker_connection in list(proxy._tasks):
                broker_connection.cancel()
            acks = await soon(producer.send_many("one", values[1:]))
        assert proxy.connections > 5
    assert cluster.values("one") == values
    assert [ack.offset for ack in acks] == list(range(1, 3000))


async def test_a_random_history_on_three_brokers_loses_doubles_and_reorders_nothing() -> None:
    async with running_cluster("", "", "") as cluster:
        cluster.topics["four"] = 4
        chance = random.Random(3)
        kinds: list[Callable[[], Fate]] = [
            committed_but_unheard,
            lost_before,
            throttled,
            not_ready,
            draining,
            lambda: unknown(committed=chance.random() < 0.5),
        ]

        def fate(append: log_pb2.ProduceAppend) -> Fate:
            return chance.choice(kinds)() if chance.random() < 0.05 else OK

        for broker in cluster.brokers:
            broker.fate = fate
        values = [b"%d" % number for number in range(4000)]
        servers = ",".join(broker.address for broker in cluster.brokers)
        async with tidelog.connect(servers) as log, log.producer(linger_ms=1, batch_bytes=500, buffer_bytes=20_000) as producer:
            futures = []
            for number, value in enumerate(values):
                while True:
                    try:
                        futures.append(producer.send_nowait("four", value, partition=number % 4))
                        break
                    except Throttled:
                        await soon(producer.ready())
            acks = [await soon(future) for future in futures]
        for partition in range(4):
            assert cluster.values("four", partition) == values[partition::4]
        assert all(cluster.values("four", ack.partition)[ack.offset] == value for ack, value in list(zip(acks, values, strict=True))[::97])


async def test_without_idempotence_a_lost_answer_is_unknown_at_once(cluster: Cluster) -> None:
    fates(cluster, refused(NotReady("x")), OK, committed_but_unheard())
    async with tidelog.connect(cluster.brokers[0].address) as log, log.producer(idempotent=False) as producer:
        assert (await soon(producer.send("one", b"a"))).offset == 0
        with pytest.raises(OutcomeUnknown):
            await soon(producer.send("one", b"b"))
        assert (await soon(producer.send("one", b"c"))).offset == 2
    assert cluster.values("one") == [b"a", b"b", b"c"]
    assert "InitProducer" not in cluster.brokers[0].calls
