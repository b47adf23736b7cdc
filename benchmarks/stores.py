"""Object stores against the bare client, bare HTTP and the bare file: CPU of this process per 8 MiB."""

import asyncio
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import trustme
from aiohttp import ClientSession, TCPConnector
from crc32c import crc32c
from tidelog.clock import SystemClock
from tidelog.executors import ThreadExecutor
from tidelog.objects.local import open_directory
from tidelog.objects.s3 import S3Settings, open_s3
from yarl import URL

from benchmarks.measure import Measure, cpu_of_each

SIZE = 8 * 1024 * 1024
UNIT = "ms CPU / 8 MiB"


def run(repeats: int) -> list[Measure]:
    return asyncio.run(_run(repeats))


async def _run(repeats: int) -> list[Measure]:
    with tempfile.TemporaryDirectory() as folder:
        return [*await _directory(Path(folder), repeats), *await _s3(Path(folder), repeats)]


async def _directory(folder: Path, repeats: int) -> list[Measure]:
    content = os.urandom(SIZE)
    store = open_directory(folder / "objects", clock=SystemClock(), chance=random.Random(1), executor=ThreadExecutor("objects", threads=1))
    numbers = count()
    await store.put_new("read", [content])

    async def write() -> None:
        with (folder / f"bare-{next(numbers)}").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    async def read() -> None:
        (folder / "objects" / "read").read_bytes()

    cpu = await cpu_of_each(
        {
            "put": lambda: store.put_new(f"put/{next(numbers)}", [content]),
            "bare put": write,
            "get": lambda: store.get_range("read", 0, SIZE),
            "bare get": read,
        },
        repeats,
    )
    await store.close()
    return [
        Measure("PUT into a directory", cpu["put"], UNIT, cpu["bare put"], "bare write and fsync"),
        Measure("GET from a directory", cpu["get"], UNIT, cpu["bare get"], "bare read"),
    ]


async def _s3(folder: Path, repeats: int) -> list[Measure]:
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    authority, certificate = folder / "authority.pem", folder / "server.pem"
    ca = trustme.CA()
    ca.cert_pem.write_to_path(authority)
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    os.environ["AWS_CA_BUNDLE"] = str(authority)
    trusting = ssl.create_default_context(cafile=str(authority))
    with _server() as address:
        plain = await _bucket(f"http://{address}", trusting, repeats)
    with _server("-c", str(certificate), "-k", str(certificate)) as address:
        secure = await _bucket(f"https://{address}", trusting, repeats)
    return [
        Measure("PUT to S3 (plain HTTP, signed)", plain["put"], UNIT, plain["bare put"], "bare aiobotocore", "≤ 15"),
        Measure("PUT to S3 (plain HTTP, body not signed)", plain["unsigned put"], UNIT, plain["http put"], "aiohttp alone", "≤ 15"),
        Measure("PUT to S3 (TLS, body not signed)", secure["put"], UNIT, secure["http put"], "aiohttp alone", "≤ 15"),
        Measure("SHA-256 of the body, as signing needs it", plain["sha256"], UNIT),
        Measure("GET from S3 (plain HTTP)", plain["get"], UNIT, plain["http get"], "aiohttp alone"),
        Measure("GET from S3 (TLS)", secure["get"], UNIT, secure["http get"], "aiohttp alone"),
        Measure("GET by bare aiobotocore (plain HTTP)", plain["bare get"], UNIT, plain["http get"], "aiohttp alone"),
    ]


async def _bucket(endpoint: str, trusting: ssl.SSLContext, repeats: int) -> dict[str, float]:
    """CPU of our PUT and GET, of the bare client's, and of HTTP with neither signature nor checksum."""
    content = os.urandom(SIZE)
    checksum = b64encode(crc32c(content).to_bytes(4, "big")).decode()
    numbers = count()
    async with AsyncExitStack() as stack:
        stores = []
        for choice in ("auto", "never"):
            settings = S3Settings(bucket="bench", endpoint_url=endpoint, hedge_after_samples=0, sign_bodies=choice)
            stores.append(await open_s3(settings, clock=SystemClock(), chance=random.Random(1)))
            stack.push_async_callback(stores[-1].close)
        store, unsigned = stores
        client: Any = store._client
        await client.create_bucket(Bucket="bench")
        await store.put_new("read", [content])
        http = await stack.enter_async_context(ClientSession(connector=TCPConnector(ssl=trusting)))

        signed = URL(await client.generate_presigned_url("get_object", {"Bucket": "bench", "Key": "read"}), encoded=True)

        async def asked(method: str, url: URL, body: bytes | None = None) -> None:
            async with http.request(method, url, data=body) as answer:
                answer.raise_for_status()
                await answer.read()

        async def bare_get() -> None:
            answer = await client.get_object(Bucket="bench", Key="read")
            async with answer["Body"] as body:
                await body.read()

        async def hash_it() -> None:
            sha256(content)

        works: dict[str, Callable[[], Awaitable[object]]] = {
            "put": lambda: store.put_new(f"{next(numbers)}", [content]),
            "unsigned put": lambda: unsigned.put_new(f"{next(numbers)}", [content]),
            "bare put": lambda: client.put_object(Bucket="bench", Key=f"{next(numbers)}", Body=content, ChecksumCRC32C=checksum),
            "http put": lambda: asked("PUT", URL(f"{endpoint}/bench/{next(numbers)}"), content),
            "sha256": hash_it,
            "get": lambda: store.get_range("read", 0, SIZE),
            "bare get": bare_get,
            "http get": lambda: asked("GET", signed),
        }
        return await cpu_of_each(works, repeats)


@contextmanager
def _server(*options: str) -> Iterator[str]:
    """A real S3 server process; its HOST:PORT."""
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
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
