"""Object stores against the bare client, or the bare file: CPU of this process per 8 MiB."""

import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import trustme
from crc32c import crc32c
from tidelog.clock import SystemClock
from tidelog.executors import ThreadExecutor
from tidelog.objects.local import open_directory
from tidelog.objects.s3 import S3Settings, open_s3
from tidelog.objects.store import ObjectStore

from benchmarks.measure import Measure, wall_and_cpu

SIZE = 8 * 1024 * 1024


def run(repeats: int) -> list[Measure]:
    return asyncio.run(_run(repeats))


async def _run(repeats: int) -> list[Measure]:
    return [*await _directory(repeats), *await _s3(repeats)]


async def _cpu(store: ObjectStore, content: bytes, repeats: int) -> tuple[float, float]:
    number = 0

    async def put() -> None:
        nonlocal number
        number += 1
        await store.put_new(f"put/{number}", [content])

    await store.put_new("read", [content])
    return (await wall_and_cpu(put, repeats))[1] * 1000, (await wall_and_cpu(lambda: store.get_range("read", 0, SIZE), repeats))[1] * 1000


async def _directory(repeats: int) -> list[Measure]:
    content = os.urandom(SIZE)
    with tempfile.TemporaryDirectory() as folder:
        store = open_directory(Path(folder), clock=SystemClock(), chance=random.Random(1), executor=ThreadExecutor("objects", threads=1))
        put, get = await _cpu(store, content, repeats)
        number = 0

        async def bare() -> None:
            nonlocal number
            number += 1
            with open(Path(folder) / f"bare-{number}", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        async def read() -> None:
            (Path(folder) / "bare-1").read_bytes()

        bare_put, bare_get = (await wall_and_cpu(bare, repeats))[1] * 1000, (await wall_and_cpu(read, repeats))[1] * 1000
        await store.close()
    return [
        Measure("PUT into a directory", put, "ms CPU / 8 MiB", bare_put, "bare write and fsync"),
        Measure("GET from a directory", get, "ms CPU / 8 MiB", bare_get, "bare read"),
    ]


async def _s3(repeats: int) -> list[Measure]:
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    with tempfile.TemporaryDirectory() as folder:
        authority, certificate = Path(folder) / "authority.pem", Path(folder) / "server.pem"
        ca = trustme.CA()
        ca.cert_pem.write_to_path(authority)
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        os.environ["AWS_CA_BUNDLE"] = str(authority)
        plain = await _s3_server(repeats, "http")
        secure = await _s3_server(repeats, "https", "-c", str(certificate), "-k", str(certificate))
    return [
        Measure("PUT to S3 (plain HTTP, signed)", plain[0], "ms CPU / 8 MiB", plain[2], "bare aiobotocore", "≤ 15"),
        Measure("GET from S3 (plain HTTP)", plain[1], "ms CPU / 8 MiB", plain[3], "bare aiobotocore"),
        Measure("PUT to S3 (TLS, body not signed)", secure[0], "ms CPU / 8 MiB", secure[2], "bare aiobotocore"),
        Measure("GET from S3 (TLS)", secure[1], "ms CPU / 8 MiB", secure[3], "bare aiobotocore"),
    ]


async def _s3_server(repeats: int, scheme: str, *options: str) -> tuple[float, float, float, float]:
    """CPU of our PUT and GET, and of the bare client's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port), *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        settings = S3Settings(bucket="bench", endpoint_url=f"{scheme}://127.0.0.1:{port}", hedge_after_samples=0)
        store = await open_s3(settings, clock=SystemClock(), chance=random.Random(1))
        client: Any = store._client
        await client.create_bucket(Bucket="bench")
        content = os.urandom(SIZE)
        put, get = await _cpu(store, content, repeats)
        number = 0

        async def bare_put() -> None:
            nonlocal number
            number += 1
            checksum = b64encode(crc32c(content).to_bytes(4, "big")).decode()
            await client.put_object(Bucket="bench", Key=f"bare/{number}", Body=content, ChecksumCRC32C=checksum)

        async def bare_get() -> None:
            answer = await client.get_object(Bucket="bench", Key="bare/1")
            async with answer["Body"] as body:
                await body.read()

        floors = (await wall_and_cpu(bare_put, repeats))[1] * 1000, (await wall_and_cpu(bare_get, repeats))[1] * 1000
        await store.close()
    finally:
        server.terminate()
        server.wait(30)
    return put, get, *floors
