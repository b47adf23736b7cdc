"""The Produce stream and Append, over real sockets."""

import asyncio
from typing import Any

import grpc
import pytest
from tidelog.errors import Throttled
from tidelog.proto.v1 import log_pb2

from tests.served import Served, batch, error_info, serving


def request(request_id: int, *values: bytes, topic: str = "t", partition: int = 0, **more: Any) -> log_pb2.ProduceRequest:
    append = log_pb2.ProduceAppend(request_id=request_id, topic=topic, partition=partition, batches=batch(*values), **more)
    return log_pb2.ProduceRequest(appends=[append])


async def test_every_append_is_answered_by_its_request_id_and_the_stream_ends_when_all_are(served: Served) -> None:
    call = served.log.Produce()
    for number in range(100):
        await call.write(request(1000 + number, b"a", b"b"))
    await call.done_writing()
    results = {result.request_id: result async for response in call for result in response.results}
    assert {number: (r.base_offset, r.next_offset) for number, r in results.items()} == {1000 + n: (2 * n, 2 * n + 2) for n in range(100)}
    assert await call.code() is grpc.StatusCode.OK


async def test_half_close_waits_for_answers_that_are_still_to_come(served: Served) -> None:
    served.broker.hold = True
    call = served.log.Produce()
    for number in range(3):
        await call.write(request(number, b"v"))
    await call.done_writing()
    while len(served.broker.held) < 3:
        await asyncio.sleep(0.001)
    served.broker.release()
    assert [result.request_id async for response in call for result in response.results] == [0, 1, 2]


async def test_answers_that_come_together_travel_in_one_message(served: Served) -> None:
    served.broker.hold = True
    call = served.log.Produce()
    for number in range(50):
        await call.write(request(number, b"v"))
    while len(served.broker.held) < 50:
        await asyncio.sleep(0.001)
    served.broker.release()
    assert len((await call.read()).results) == 50
    call.cancel()


@pytest.mark.parametrize(
    ("append", "reason"),
    [
        (log_pb2.ProduceAppend(topic="none", batches=batch(b"v")), "UNKNOWN_TOPIC"),
        (log_pb2.ProduceAppend(topic="t", partition=9, batches=batch(b"v")), "UNKNOWN_PARTITION"),
        (log_pb2.ProduceAppend(topic="t", batches=b"lies"), "CORRUPT_BATCH"),
        (log_pb2.ProduceAppend(topic="t", batches=batch(b"v")[:-1]), "CORRUPT_BATCH"),
        (log_pb2.ProduceAppend(topic="t", batches=batch(b"v"), expected_next_offset=77), "CONDITION_FAILED"),
    ],
)
async def test_what_is_wrong_with_one_append_is_its_answer_and_the_stream_goes_on(
    served: Served, append: log_pb2.ProduceAppend, reason: str
) -> None:
    append.request_id = 1
    call = served.log.Produce()
    await call.write(log_pb2.ProduceRequest(appends=[append]))
    await call.write(request(2, b"v"))
    await call.done_writing()
    results = {result.request_id: result async for response in call for result in response.results}
    assert results[1].error.reason == reason
    assert not results[2].HasField("error")


async def test_an_unforeseen_error_is_internal_and_keeps_its_text_to_itself(served: Served) -> None:
    served.broker.fails = RuntimeError("secret of the house")
    call = served.log.Produce()
    await call.write(request(1, b"v"))
    error = (await call.read()).results[0].error
    assert (error.reason, error.code) == ("INTERNAL", grpc.StatusCode.INTERNAL.value[0])
    assert "secret" not in error.message
    call.cancel()


async def test_an_unknown_topic_is_made_where_topics_are_made_on_first_use_and_order_is_kept(served: Served) -> None:
    served.broker.creates_topics = True
    call = served.log.Produce()
    for number in range(5):
        await call.write(request(number, b"v%d" % number, topic="new"))
    await call.done_writing()
    offsets = {result.request_id: result.base_offset async for response in call for result in response.results}
    assert offsets == {number: number for number in range(5)}


async def test_appends_that_were_taken_go_on_when_the_client_is_gone(served: Served) -> None:
    served.broker.hold = True
    call = served.log.Produce()
    await call.write(request(1, b"v"))
    while not served.broker.held:
        await asyncio.sleep(0.001)
    call.cancel()
    while served.registry.get_sample_value("tidelog_grpc_open_calls", {"method": "/tidelog.v1.Log/Produce"}):
        await asyncio.sleep(0.001)
    (future, _), *_ = served.broker.held
    assert not future.cancelled()
    served.broker.release()
    assert served.broker.logs["t"][0].next_offset == 1


async def test_a_unary_append_whose_caller_stops_waiting_goes_on(served: Served) -> None:
    """I5: its deadline is the client's, and says nothing of what was done."""
    served.broker.hold = True
    append = log_pb2.AppendRequest(topic="t", partition=0, records=[log_pb2.Record(value=b"v")])
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.log.Append(append, timeout=0.2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    while served.registry.get_sample_value("tidelog_grpc_open_calls", {"method": "/tidelog.v1.Log/Append"}):
        await asyncio.sleep(0.001)
    served.broker.release()
    assert served.broker.logs["t"][0].next_offset == 1


@pytest.mark.parametrize("limit", [{"max_stream_appends": 10}, {"max_stream_append_bytes": 10 * len(batch(bytes(100_000)))}])
async def test_at_its_limit_the_stream_is_not_read(limit: dict[str, Any]) -> None:
    async with serving(**limit) as served:
        served.broker.hold = True
        call = served.log.Produce()

        async def write_all() -> None:
            for number in range(100):
                await call.write(request(number, bytes(100_000)))

        writing = asyncio.create_task(write_all())
        while len(served.broker.held) < 10:
            await asyncio.sleep(0.001)
        _, stuck = await asyncio.wait([writing], timeout=0.5)
        assert stuck, "flow control did not stop the client"
        assert len(served.broker.held) == 10
        served.broker.hold = False
        served.broker.release()
        answered = 0
        while answered < 100:
            answered += len((await call.read()).results)
        await writing
        call.cancel()


async def test_what_a_client_may_send_ahead_of_a_stream_that_is_not_read_is_bounded() -> None:
    """And does not grow by what it has sent before (I10)."""
    async with serving(max_stream_appends=10) as served:
        call = served.log.Produce()
        written = 0

        async def write_for_ever() -> None:
            nonlocal written
            while True:
                await call.write(request(written, bytes(100_000)))
                written += 1

        writing = asyncio.create_task(write_for_ever())
        while written < 500:
            await call.read()
        served.broker.hold = True
        reading = asyncio.create_task(call.read())
        before = -1
        while before < written:
            before = written
            await asyncio.sleep(0.3)
        ahead = written - (served.broker.logs["t"][0].next_offset + len(served.broker.held))
        assert ahead * 100_000 < 2 << 20
        writing.cancel()
        reading.cancel()
        await asyncio.wait([writing, reading])


@pytest.mark.parametrize("topic", ["t", "none"])
async def test_a_client_that_does_not_take_its_answers_is_not_read_any_more(topic: str) -> None:
    """Answers wait in memory, refusals too, so what makes them has to stop (I10)."""
    async with serving(max_stream_appends=1000, options=[("grpc.http2.bdp_probe", 0)]) as served:
        call = served.log.Produce()
        one = log_pb2.ProduceAppend(topic=topic, batches=batch(b"v"))
        message = log_pb2.ProduceRequest(appends=[one] * 1000)

        async def write_for_ever() -> None:
            while True:
                await call.write(message)

        writing = asyncio.create_task(write_for_ever())
        seen, asked = -1, served.broker.asked
        async with asyncio.timeout(20):
            while seen != (seen := served.broker.asked):
                await asyncio.sleep(0.3)
        assert not writing.done(), "flow control stopped the client"
        assert seen - asked < 20_000
        answered = 0
        while answered < 30_000:
            answered += len((await call.read()).results)
        assert served.broker.asked > seen, "it goes on once answers are taken"
        writing.cancel()
        call.cancel()


async def test_one_message_with_more_appends_than_a_stream_may_have_is_taken_piece_by_piece() -> None:
    async with serving(max_stream_appends=10) as served:
        served.broker.hold = True
        call = served.log.Produce()
        appends = [log_pb2.ProduceAppend(request_id=number, topic="t", batches=batch(b"v")) for number in range(100)]
        await call.write(log_pb2.ProduceRequest(appends=appends))
        await call.done_writing()
        answers: list[int] = []
        while len(answers) < 100:
            while not served.broker.held:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            assert len(served.broker.held) <= 10
            served.broker.release()
            answers += [result.request_id for result in (await call.read()).results]
        assert answers == list(range(100))


async def test_messages_that_are_not_protobuf_fail_the_call_after_what_was_taken_is_answered(served: Served) -> None:
    produce: Any = served.channel.stream_stream("/tidelog.v1.Log/Produce", None, log_pb2.ProduceResponse.FromString)
    call = produce()
    await call.write(request(1, b"v").SerializeToString())
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        _ = [response async for response in call]
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(failed.value).reason == "INVALID_REQUEST"
    assert served.broker.logs["t"][0].next_offset == 1


async def test_a_message_beyond_the_limit_is_refused() -> None:
    async with serving(max_message_bytes=65536) as served:
        call = served.log.Produce()
        await call.write(request(1, bytes(70_000)))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_leaving_server_answers_what_it_took_and_ends_the_stream_with_draining() -> None:
    async with serving() as served:
        served.broker.hold = True
        call = served.log.Produce()
        await call.write(request(1, b"v"))
        while not served.broker.held:
            await asyncio.sleep(0.001)
        stopping = asyncio.create_task(served.server.stop())
        await asyncio.sleep(0)
        served.broker.release()
        assert [result.request_id for result in (await call.read()).results] == [1]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        info = error_info(failed.value)
        assert (info.reason, info.metadata["retriable"]) == ("DRAINING", "true")
        await stopping


async def test_plain_records_are_appended_by_key(served: Served) -> None:
    record = log_pb2.Record(key=b"user-1", value=b"v", headers=[log_pb2.Header(key="h", value=b"1")])
    first = await served.log.Append(log_pb2.AppendRequest(topic="t", records=[record]))
    second = await served.log.Append(log_pb2.AppendRequest(topic="t", records=[record, record]))
    assert (second.partition, second.base_offset, second.next_offset) == (first.partition, 1, 3)


async def test_records_without_a_key_go_anywhere_and_those_with_keys_of_two_partitions_nowhere(served: Served) -> None:
    plain = log_pb2.AppendRequest(topic="t", records=[log_pb2.Record(value=b"v")])
    assert {(await served.log.Append(plain)).partition for _ in range(4)} == {0, 1}
    keys = [log_pb2.Record(key=b"%d" % number, value=b"v") for number in range(20)]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.log.Append(log_pb2.AppendRequest(topic="t", records=keys))
    assert error_info(failed.value).reason == "INVALID_REQUEST"
    done = await served.log.Append(log_pb2.AppendRequest(topic="t", records=keys, partition=1))
    assert done.partition == 1


async def test_a_retriable_refusal_says_so(served: Served) -> None:
    served.broker.fails = Throttled("intake_budget_bytes are taken; try again")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.log.Append(log_pb2.AppendRequest(topic="t", partition=0, records=[log_pb2.Record(value=b"v")]))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.value.details() == "intake_budget_bytes are taken; try again"
    info = error_info(failed.value)
    assert (info.reason, info.metadata["retriable"]) == ("THROTTLED", "true")
