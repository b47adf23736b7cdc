"""Connections and streams that do nothing, or whose other side is gone, against a service in a process of its own."""

import asyncio
import os
import re
import resource
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import tidelog
from tidelog.proto.v1 import log_pb2, log_pb2_grpc
from tidelog.records.codec import encode_many

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What opens a connection: the preface, and an empty SETTINGS frame."""
CONNECTIONS = 2500
SHELLS_LIMIT = 1024


class Service:
    def __init__(self, process: "subprocess.Popen[str]", address: str, metrics_address: str) -> None:
        self.process = psutil.Process(process.pid)
        self.address = address
        self.metrics_address = metrics_address

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=30) as page:
            found = re.search(rf"^{re.escape(name)} (.+)$", page.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def service(data_dir: Path, *, before: Callable[[], None] | None = None, **settings: str) -> Iterator[Service]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
    environ |= {f"TIDELOG_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "tidelog", "dev", "--data-dir", str(data_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ, preexec_fn=before) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"listens on (\S+); metrics and health: http://(\S+)/metrics", process.stdout.readline())
            assert found, process.poll()
            yield Service(process, found[1], found[2])
        finally:
            process.kill()


def as_in_a_shell() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SHELLS_LIMIT, hard))


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the test's own ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + 500:
        pytest.skip(f"this system allows {hard} open files, too few for {CONNECTIONS} connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def client_process(code: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a program that says when it is there."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            yield process
        finally:
            process.kill()


async def idle_connection(address: str) -> asyncio.StreamWriter:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(HTTP2_PREFACE)
    assert await reader.readexactly(9), "the server's SETTINGS"
    return writer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def test_thousands_of_idle_connections_cost_little_and_are_in_nobodys_way(tmp_path: Path, many_files: None) -> None:
    """Begun under a shell's usual limit of 1,024 open files."""
    with service(tmp_path, before=as_in_a_shell) as served:
        before = served.process.memory_info().rss
        writers = [await idle_connection(served.address) for _ in range(CONNECTIONS)]
        assert served.process.num_fds() > CONNECTIONS
        async with asyncio.timeout(60), tidelog.connect(served.address) as log, log.producer() as producer:
            await producer.send_many("t", [b"v"] * 1000)
            assert len([record async for record in log.consume("t", follow=False)]) == 1000
        assert served.process.memory_info().rss - before < 128 * 2**20
        for writer in writers:
            writer.close()
        await until(lambda: served.process.num_fds() < 100)


async def test_clients_that_are_gone_without_a_word_leave_nothing_behind(tmp_path: Path) -> None:
    """In mid-stream: appends under way, partitions followed, a Read that waits. The process is killed, so nothing is said goodbye."""
    with service(tmp_path) as served:
        async with tidelog.connect(served.address) as log:
            await log.admin.create_topic("t", partitions=8)
        fds = served.process.num_fds()
        code = f"""
import asyncio, grpc
from tidelog.proto.v1 import log_pb2 as pb, log_pb2_grpc
from tidelog.records.codec import encode_many
async def main():
    log = log_pb2_grpc.LogStub(grpc.aio.insecure_channel({served.address!r}))
    calls = []
    for number in range(20):
        consume = log.Consume()
        adds = [pb.AddPartition(subscription_id=n, partition=pb.TopicPartition(topic="t", partition=n)) for n in range(8)]
        await consume.write(pb.ConsumeRequest(add=adds, credit_bytes=1 << 20))
        produce = log.Produce()
        await produce.write(pb.ProduceRequest(appends=[pb.ProduceAppend(topic="t", batches=encode_many([bytes(1000)] * 100))] * 20))
        await produce.read()
        reading = asyncio.ensure_future(log.Read(pb.ReadRequest(partition=pb.TopicPartition(topic="t", partition=7), max_wait_ms=60000)))
        calls += [consume, produce, reading]
    print("there", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
        with client_process(code) as client:
            counts = {method: f'tidelog_grpc_open_calls{{method="/tidelog.v1.Log/{method}"}}' for method in ("Produce", "Consume", "Read")}
            assert [served.metric(name) for name in counts.values()] == [20, 20, 20]
            assert served.metric("tidelog_consume_subscriptions") == 160
            client.kill()
        for name in (*counts.values(), "tidelog_consume_subscriptions", "tidelog_consume_credit_bytes", "tidelog_intake_bytes"):
            await until(lambda name=name: served.metric(name) == 0)  # type: ignore[misc]
        await until(lambda: served.process.num_fds() <= fds)


async def test_a_client_that_does_not_answer_any_more_is_let_go(tmp_path: Path) -> None:
    """Its machine is gone, or it is stopped: nothing closes its connection but the broker, which asks for a sign of life."""
    with service(tmp_path, keepalive_ms="500", keepalive_timeout_ms="500") as served:
        code = f"""
import asyncio, tidelog
async def main():
    async with tidelog.connect({served.address!r}) as log:
        await log.admin.create_topic("t", partitions=1)
        print("there", flush=True)
        async for record in log.consume("t"):
            pass
asyncio.run(main())
"""
        with client_process(code) as client:
            consume = 'tidelog_grpc_open_calls{method="/tidelog.v1.Log/Consume"}'
            await until(lambda: served.metric(consume) == 1)
            client.send_signal(signal.SIGSTOP)
            await until(lambda: served.metric(consume) == 0)


async def test_a_stopping_service_ends_streams_with_a_reason_and_answers_what_it_took(tmp_path: Path) -> None:
    with service(tmp_path, drain_propagation_ms="0") as served:
        async with grpc.aio.insecure_channel(served.address) as channel:
            log: Any = log_pb2_grpc.LogStub(channel)
            produce, consume = log.Produce(), log.Consume()
            append = log_pb2.ProduceAppend(topic="t", batches=bytes(encode_many([b"v"])))
            await produce.write(log_pb2.ProduceRequest(appends=[append]))
            assert not (await produce.read()).results[0].HasField("error")
            start = log_pb2.AddPartition(partition=log_pb2.TopicPartition(topic="t"))
            await consume.write(log_pb2.ConsumeRequest(add=[start], credit_bytes=1000))
            assert (await consume.read()).HasField("progress")
            await produce.write(log_pb2.ProduceRequest(appends=[append] * 50))
            served.process.send_signal(signal.SIGTERM)
            results: list[str] = []

            async def take_answers() -> None:
                while True:
                    results.extend([result.error.reason for result in (await produce.read()).results])

            async def take_batches() -> None:
                while True:
                    await consume.read()

            with pytest.raises(grpc.aio.AioRpcError) as produce_ended:
                await take_answers()
            with pytest.raises(grpc.aio.AioRpcError) as consume_ended:
                await take_batches()
        assert set(results) <= {"", "DRAINING"}
        assert len(results) == 50
        for ended in (produce_ended, consume_ended):
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "about to leave" in (ended.value.details() or "")
