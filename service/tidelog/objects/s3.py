"""An object store in an S3-compatible bucket. The one file that knows S3.

botocore's own retries are off: here every attempt's outcome is known to be *not done* or *unknown* (I5), slow ones are
hedged past the measured p99, and waiting has full jitter.
"""

import asyncio
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as ConnectionFailed
from crc32c import crc32c

from tidelog.clock import Clock
from tidelog.errors import ObjectExists, ObjectNotFound, StoreError, StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.objects.store import Bytes, ObjectInfo, check_key
from tidelog.randomness import Random, new_uuid

T = TypeVar("T")

_DELETE_AT_ONCE = 1000
_SAMPLES = 200


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a bucket is, and how patient to be with it. Credentials come from the usual AWS chain."""

    bucket: str
    prefix: str = ""
    """Put before every key, with a slash between."""
    endpoint_url: str | None = None
    """None: AWS."""
    region: str = "us-east-1"
    addressing_style: str = "auto"
    """`path`, `virtual` or `auto`."""
    connect_timeout_ms: int = 2_000
    attempt_timeout_ms: int = 30_000
    """Limit on one request, its body included."""
    max_attempts: int = 5
    backoff_base_ms: int = 50
    """Waits are drawn from 0 up to this, doubled with each attempt."""
    backoff_most_ms: int = 5_000
    max_connections: int = 64
    hedge_after_samples: int = 20
    """Requests of a kind that must have been measured before slow ones are hedged; 0 switches hedging off."""
    hedge_most_share: float = 0.05
    """Largest share of requests that may be sent a second time."""


class S3Store:
    """Keeps objects in a bucket, below a prefix. Made by `open_s3`."""

    def __init__(self, client: Any, settings: S3Settings, stack: AsyncExitStack, *, clock: Clock, chance: Random) -> None:
        self._client = client
        self._settings = settings
        self._stack = stack
        self._clock = clock
        self._chance = chance
        self._prefix = f"{settings.prefix}/" if settings.prefix else ""
        self._latencies: dict[str, deque[float]] = {}
        self._requests = 0
        self.hedges = 0
        """How many requests were sent a second time because the first was slow."""
        self._writes: set[asyncio.Task[None]] = set()

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object once, with a checksum that the server verifies. See `ObjectStore.put_new`.

        Joins the parts: one copy. A cancelled caller does not stop the write (I5).
        """
        task = asyncio.ensure_future(self._put(check_key(key), b"".join(parts)))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        await asyncio.shield(task)

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object, its length checked. See `ObjectStore.get_range`."""
        check_key(key)

        async def get() -> bytes:
            try:
                answer = await self._client.get_object(
                    Bucket=self._settings.bucket,
                    Key=self._prefix + key,
                    Range=f"bytes={position}-{position + length - 1}",
                    ChecksumMode="ENABLED",
                )
            except ClientError as error:
                if _status(error) == 416:  # beginning at or beyond the end
                    return b""
                raise
            async with answer["Body"] as body:
                content: bytes = await body.read()
            total = int(answer["ContentRange"].rpartition("/")[2]) if "ContentRange" in answer else position + answer["ContentLength"]
            wanted = max(0, min(length, total - position))
            promised = (
                answer.get("ChecksumCRC32C") if (position, wanted) == (0, total) and answer.get("ChecksumType") != "COMPOSITE" else None
            )
            if len(content) != wanted or (promised is not None and promised != _checksum(content)):
                raise _DamagedError(f"{wanted} bytes were promised, but {len(content)} came, or other ones than were written")
            return content

        return await self._attempt("GET", key, get)

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. See `ObjectStore.head`."""
        check_key(key)

        async def head() -> ObjectInfo:
            answer = await self._client.head_object(Bucket=self._settings.bucket, Key=self._prefix + key, ChecksumMode="ENABLED")
            return ObjectInfo(key, answer["ContentLength"], int(answer["LastModified"].timestamp() * 1000), _decoded(answer))

        return await self._attempt("HEAD", key, head)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects, a page at a time. See `ObjectStore.list`."""
        while True:
            page = await self._page(prefix, start_after)
            for found in page.get("Contents", ()):
                start_after = found["Key"][len(self._prefix) :]
                yield ObjectInfo(start_after, found["Size"], int(found["LastModified"].timestamp() * 1000))
            if not page.get("IsTruncated"):
                return

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects, a thousand a request. See `ObjectStore.delete_many`."""
        refused: dict[str, str] = {}
        for first in range(0, len(keys), _DELETE_AT_ONCE):
            some = [{"Key": self._prefix + check_key(key)} for key in keys[first : first + _DELETE_AT_ONCE]]

            async def delete(some: list[dict[str, str]] = some) -> Any:
                return await self._client.delete_objects(Bucket=self._settings.bucket, Delete={"Objects": some, "Quiet": True})

            answer = await self._attempt("DELETE", f"{len(some)} objects", delete, changes=True)
            for error in answer.get("Errors", ()):
                refused[error["Key"][len(self._prefix) :]] = f"{error.get('Code')}: {error.get('Message')}"
        return refused

    async def close(self) -> None:
        """Wait for writes that have begun, then close all connections."""
        if self._writes:
            await asyncio.wait(self._writes)
        await self._stack.aclose()

    async def _put(self, key: str, content: bytes) -> None:
        async def put() -> bool:
            try:
                await self._client.put_object(
                    Bucket=self._settings.bucket,
                    Key=self._prefix + key,
                    Body=content,
                    IfNoneMatch="*",
                    ChecksumCRC32C=_checksum(content),
                )
            except ClientError as error:
                if _status(error) != 412:
                    raise
                return False
            return True

        if await self._attempt("PUT", key, put, changes=True):
            return
        # The key is taken: by an earlier attempt of ours whose answer was lost, or by other bytes (I5).
        found = await self.head(key)
        same = found.size == len(content)
        if same and found.crc32c is not None:
            same = found.crc32c == crc32c(content)
        elif same and content:
            same = await self.get_range(key, 0, len(content)) == content
        if not same:
            raise ObjectExists(f"object {key!r} was to be written, but it holds other bytes already; choose another key")

    async def _page(self, prefix: str, start_after: str) -> Any:
        async def page() -> Any:
            return await self._client.list_objects_v2(
                Bucket=self._settings.bucket,
                Prefix=self._prefix + prefix,
                **({"StartAfter": self._prefix + start_after} if start_after else {}),
            )

        return await self._attempt("LIST", prefix, page)

    async def _attempt(self, operation: str, key: str, request: Callable[[], Awaitable[T]], *, changes: bool = False) -> T:
        """Send a request until it is answered, or the attempts are spent."""
        unknown = False
        failure = ""
        for attempt in range(self._settings.max_attempts):
            if attempt:
                most = min(self._settings.backoff_most_ms, self._settings.backoff_base_ms * 2**attempt)
                await asyncio.sleep(self._chance.uniform(0, most) / 1000)
            try:
                return await self._hedged(operation, request)
            except (BotoCoreError, ClientError, _DamagedError, OSError, TimeoutError) as error:
                final = self._final(error, operation, key)
                if final is not None:
                    raise final from error
                unknown = unknown or not _not_done(error)
                failure = f"{type(error).__name__}: {error}"
        asked = f"{operation} of {key!r} in {self._place()} failed {self._settings.max_attempts} times, at last with {failure}"
        if changes and unknown:
            raise StoreOutcomeUnknown(f"{asked}; it may have happened, or may happen later: send the same again")
        raise StoreUnavailable(f"{asked}; it was not done: try again later")

    async def _hedged(self, operation: str, request: Callable[[], Awaitable[T]]) -> T:
        """Send a request; when it takes longer than 99 of 100 before it, send it once more, and take the first success."""
        self._requests += 1
        first = asyncio.ensure_future(self._timed(operation, request))
        tasks = {first}
        try:
            limit = self._p99(operation)
            if limit is not None:
                await asyncio.wait(tasks, timeout=limit)
                if not first.done() and self.hedges < 1 + self._requests * self._settings.hedge_most_share:
                    self.hedges += 1
                    tasks.add(asyncio.ensure_future(self._timed(operation, request)))
            waiting = set(tasks)
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                succeeded = [task for task in done if task.exception() is None]
                if succeeded or not waiting:
                    return (succeeded or list(done))[0].result()
        finally:
            # The other one asked for the same: once one has succeeded its outcome does not matter.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _timed(self, operation: str, request: Callable[[], Awaitable[T]]) -> T:
        began = self._clock.monotonic()
        async with asyncio.timeout(self._settings.attempt_timeout_ms / 1000):
            answer = await request()
        self._latencies.setdefault(operation, deque(maxlen=_SAMPLES)).append(self._clock.monotonic() - began)
        return answer

    def _p99(self, operation: str) -> float | None:
        samples = self._latencies.get(operation, ())
        if not self._settings.hedge_after_samples or len(samples) < self._settings.hedge_after_samples or operation not in ("PUT", "GET"):
            return None
        return sorted(samples)[int(len(samples) * 0.99)]

    def _final(self, error: Exception, operation: str, key: str) -> StoreError | None:
        """Return what to raise where another attempt would not help; None where it may."""
        asked = f"{operation} of {key!r} in {self._place()}"
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return StoreUnusable(
                f"{asked} needs credentials, but there are none ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
            )
        if not isinstance(error, ClientError):
            return (
                None
                if isinstance(error, HTTPClientError | ConnectionFailed | _DamagedError | OSError | TimeoutError)
                else StoreUnusable(f"{asked} cannot be sent: {error}")
            )
        status, code = _status(error), error.response.get("Error", {}).get("Code", "")
        if code == "NoSuchBucket":
            return StoreUnusable(f"{asked} was refused: there is no such bucket; make it, or name another")
        if status == 404:
            return ObjectNotFound(f"object {key!r} was asked for, but there is none of that key in {self._place()}")
        if status in (401, 403):
            return StoreUnusable(f"{asked} was denied ({code}); check the credentials and their rights on the bucket")
        if status in (301, 307):
            return StoreUnusable(f"{asked} was redirected ({code}): the bucket is in another region; set the region")
        if (
            status >= 500
            or status in (408, 409, 429)
            or code in ("BadDigest", "RequestTimeout", "InvalidDigest", "IncompleteBody", "SlowDown")
        ):
            return None
        return StoreUnusable(f"{asked} was refused: {code} {error.response.get('Error', {}).get('Message', '')} (HTTP {status})")

    def _place(self) -> str:
        return f"s3://{self._settings.bucket}/{self._settings.prefix} at {self._settings.endpoint_url or 'AWS ' + self._settings.region}"


async def open_s3(settings: S3Settings, *, clock: Clock, chance: Random) -> S3Store:
    """Return a store; nothing is sent yet. `probe` tells whether the bucket can be used."""
    secure = settings.endpoint_url is None or settings.endpoint_url.startswith("https:")
    config = AioConfig(
        retries={"total_max_attempts": 1},
        connect_timeout=settings.connect_timeout_ms / 1000,
        read_timeout=settings.attempt_timeout_ms / 1000,
        max_pool_connections=settings.max_connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Over TLS the body is protected already, and our checksum covers it end to end: hashing it again costs CPU for nothing.
        s3={"addressing_style": settings.addressing_style, "payload_signing_enabled": not secure},
    )
    stack = AsyncExitStack()
    client = await stack.enter_async_context(
        get_session().create_client("s3", region_name=settings.region, endpoint_url=settings.endpoint_url, config=config)
    )
    return S3Store(client, settings, stack, clock=clock, chance=chance)


async def probe(store: S3Store, *, chance: Random) -> None:
    """Prove that the bucket keeps what Tidelog rests on: above all, that a second conditional PUT is refused.

    Raises StoreUnusable where it does not; brokers must not start then.
    """
    key = f"probe/{new_uuid(chance)}"
    await store.put_new(key, [b"first"])
    try:
        await store.put_new(key, [b"second"])
    except ObjectExists:
        pass
    else:
        raise StoreUnusable(
            f"{store._place()} accepted a second PUT with If-None-Match: * to one key. Tidelog would lose acknowledged"
            " records on such a store; use one that honours conditional writes"
        )
    found = await store.get_range(key, 1, 3)
    if found != b"irs":
        raise StoreUnusable(f"{store._place()} gave {found!r} for a range that holds b'irs'; use a store that honours ranges")
    await store.delete_many([key])


class _DamagedError(Exception):
    """A body that is not what was promised."""


def _not_done(error: Exception) -> bool:
    """Say whether a failed request has certainly not been carried out, and never will be."""
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        return _status(error) < 500 or code in ("SlowDown", "ServiceUnavailable")
    return isinstance(error, EndpointConnectionError | ConnectTimeoutError)


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _checksum(content: bytes) -> str:
    return b64encode(crc32c(content).to_bytes(4, "big")).decode()


def _decoded(answer: Any) -> int | None:
    encoded = answer.get("ChecksumCRC32C")
    if encoded is None or answer.get("ChecksumType") == "COMPOSITE":
        return None
    return int.from_bytes(b64decode(encoded), "big")
