"""The object stores that the contract suite runs on."""

import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tidelog.clock import SystemClock
from tidelog.executors import ThreadExecutor
from tidelog.metrics import Metrics
from tidelog.objects.faults import FaultRates, FaultyStore
from tidelog.objects.latency import Latencies, Latency, SlowStore
from tidelog.objects.local import open_directory
from tidelog.objects.memory import MemoryStore
from tidelog.objects.metered import MeteredObjectStore
from tidelog.objects.s3 import S3Settings, open_s3
from tidelog.objects.store import ObjectStore

ANY = Latency(0.1, 0.2)
QUICK = Latencies(put=ANY, get=ANY, head=ANY, list_page=ANY, delete=ANY)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """A real S3 server process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120  # a first start compiles all of moto, on a machine that may be busy
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def new_bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Settings:
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket = f"bucket-{random.SystemRandom().getrandbits(48):x}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return S3Settings(bucket=bucket, prefix="pre/fix", endpoint_url=endpoint)


@pytest.fixture
def s3_settings(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Settings:
    """A new bucket on the server."""
    return new_bucket(moto_endpoint, monkeypatch)


@pytest.fixture
def localstack_settings(localstack_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Settings:
    """A new bucket on LocalStack, whose host name in a bucket's address would not resolve here."""
    return replace(new_bucket(localstack_endpoint, monkeypatch), addressing_style="path")


@pytest.fixture(params=["memory", "directory", "faulty", "slow", "metered", "s3", pytest.param("localstack", marks=pytest.mark.localstack)])
async def object_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        store: ObjectStore
        if request.param == "memory":
            store = MemoryStore(clock=clock)
        elif request.param == "directory":
            store = open_directory(
                tmp_path / "objects", clock=clock, chance=random.Random(1), executor=ThreadExecutor("objects", threads=4)
            )
        elif request.param == "faulty":
            store = FaultyStore(MemoryStore(clock=clock), clock=clock, chance=random.Random(1), rates=FaultRates())
        elif request.param == "slow":
            store = SlowStore(MemoryStore(clock=clock), chance=random.Random(1), latencies=QUICK)
        elif request.param == "metered":
            store = MeteredObjectStore(MemoryStore(clock=clock), metrics=Metrics(), clock=clock)
        else:
            store = await open_s3(request.getfixturevalue(f"{request.param}_settings"), clock=clock, chance=random.Random(1))
        stack.push_async_callback(store.close)
        yield store
