"""The object store in a bucket: which request each verb makes, and what is made of its answer.

botocore's own retries are off: `verdicts` says what an attempt's failure means, `retries` adds it up over attempts,
`hedging` sends slow requests twice.
"""

import itertools
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError
from crc32c import crc32c

from tidelog.clock import Clock
from tidelog.errors import ObjectExists, ObjectNotFound, StoreError, StoreUnusable
from tidelog.executors import Effects
from tidelog.objects.hedging import Hedger
from tidelog.objects.retries import AttemptFailed, retried
from tidelog.objects.s3 import answers
from tidelog.objects.s3.bodies import Content, Upload, send_once
from tidelog.objects.s3.multipart import Multipart, abort, encoded
from tidelog.objects.s3.settings import S3Settings
from tidelog.objects.s3.verdicts import status_of, translated
from tidelog.objects.store import STREAM_PART_BYTES, Bytes, ObjectInfo, check_key, check_range
from tidelog.randomness import Random

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

T = TypeVar("T")

_DELETE_AT_ONCE = 1000
_ABANDONED_MS = 24 * 3600 * 1000
_LOOK_FOR_ABANDONED_S = 3600


class S3Store:
    """Keeps objects in a bucket, below a prefix. Made by `open_s3`."""

    def __init__(self, client: "S3Client", settings: S3Settings, stack: AsyncExitStack, *, clock: Clock, chance: Random) -> None:
        self._client = client
        self._settings = settings
        self._stack = stack
        self._clock = clock
        self._chance = chance
        self._prefix = f"{settings.prefix}/" if settings.prefix else ""
        self._puts, self._gets = (
            Hedger(
                after_samples=settings.hedge_after_samples,
                percentile=settings.hedge_percentile,
                most_share=settings.hedge_most_share,
                clock=clock,
            )
            for _ in range(2)
        )
        self._writes = Effects()
        self._look_for_abandoned_at = clock.monotonic() + _LOOK_FOR_ABANDONED_S
        self.requests: Counter[str] = Counter()
        """How many requests were sent, by operation: put, get, head, list, delete."""
        self.retries = 0
        """How many of them were sent because the one before came to nothing."""

    @property
    def hedges(self) -> int:
        """How many requests were sent a second time because the first was slow."""
        return self._puts.hedges + self._gets.hedges

    @property
    def place(self) -> str:
        """The bucket, prefix and endpoint, for people."""
        return f"s3://{self._settings.bucket}/{self._settings.prefix} at {self._client.meta.endpoint_url}"

    @property
    def client(self) -> "S3Client":
        """The S3 client itself, for what the port cannot ask."""
        return self._client

    def at(self, key: str) -> dict[str, str]:
        """Return the parameters of a request that name an object."""
        return {"Bucket": self._settings.bucket, "Key": self._prefix + key}

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object once, with a checksum that the server verifies. See `ObjectStore.put_new`.

        Copies small parts only, to send them together. A cancelled caller does not stop the write (I5).
        """
        check_key(key)
        content = Content(parts)

        async def attempt() -> None:
            if not await self._puts.run(lambda: self._put(key, content)):
                await self._check_that_it_is_ours(key, content)

        async def write() -> None:
            try:
                await self._retried("PUT", key, attempt, changes=True)
            finally:
                content.let_go()

        await self._writes.run(write())

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        """Write an object in parts, completed only where the key is free; one part is sent while the next one gathers.

        What is given up is aborted; what a process that died left behind, `list` aborts a day later. See `ObjectStore.put_stream`.
        """
        check_key(key)
        attempts: Any = partial(self._attempts, key)
        upload = Multipart(self._client, self._settings.bucket, self._prefix + key, attempts=attempts)
        try:
            async for part in parts:
                await upload.add(part)
            await upload.finish_parts()
        except BaseException:
            await self._writes.run(upload.abort())
            raise
        await self._writes.run(self._complete(key, upload))

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object, its length and, where it is the whole, its checksum checked. See `ObjectStore.get_range`."""
        check_key(key)
        check_range(position, length)
        return await self._retried("GET", key, lambda: self._gets.run(lambda: self._get(key, position, length)))

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. See `ObjectStore.head`."""
        check_key(key)
        return await self._retried("HEAD", key, lambda: self._head(key))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects, a page at a time. See `ObjectStore.list`."""
        await self._abort_abandoned(prefix)
        token: str | None = None
        while True:
            page, token = await self._retried("LIST", prefix, partial(self._page, prefix, start_after, token))
            for found in page:
                yield found
                start_after = found.key
            if token is None:
                return

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects, a thousand a request. See `ObjectStore.delete_many`."""
        for key in keys:
            check_key(key)
        refused: dict[str, str] = {}
        for first in range(0, len(keys), _DELETE_AT_ONCE):
            some = keys[first : first + _DELETE_AT_ONCE]
            asked = some[0] if len(some) == 1 else f"{some[0]} and {len(some) - 1} more"
            refused |= await self._retried("DELETE", asked, partial(self._delete, some), changes=True)
        return refused

    async def close(self) -> None:
        """Wait for writes that have begun (they have their deadline), then close all connections."""
        await self._writes.settled()
        await self._stack.aclose()

    async def _complete(self, key: str, upload: Multipart) -> None:
        async def attempt() -> None:
            with self._request("PUT", key):
                done = await upload.complete()
            if not done:
                await self._check_that_it_is_the_stream(key, upload)

        try:
            await self._retried("PUT", key, attempt, changes=True)
        except BaseException:
            await upload.abort()
            raise

    async def _attempts(self, key: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Send a request that belongs to a stream, and changes nothing that can be seen."""

        async def counted() -> T:
            with self._request("PUT", key):
                return await attempt()

        return await self._retried("PUT", key, counted)

    async def _put(self, key: str, content: Content) -> bool:
        """Send one conditional PUT. Returns False where the key is taken, or holds other bytes by what the server says."""
        body = Upload(content)
        with self._request("PUT", key, sent=lambda: body.sent):
            try:
                answer = await self._client.put_object(
                    Bucket=self._settings.bucket,
                    Key=self._prefix + key,
                    Body=body,  # type: ignore[arg-type]  # the part of a file that is looked for
                    IfNoneMatch="*",
                    ChecksumAlgorithm="CRC32C",
                    ChecksumCRC32C=encoded(content.crc32c),
                )
            except ClientError as error:
                if status_of(error) == 412:
                    return False
                raise
            return answers.confirmed(answer, content.crc32c)

    async def _check_that_it_is_ours(self, key: str, content: Content) -> None:
        """Return if a key that is taken holds these bytes: an earlier attempt's, whose answer was lost (I5)."""
        try:
            found = await self._head(key)
            same = found.size == content.size
            if same and found.crc32c is not None:
                same = found.crc32c == content.crc32c
            elif same and content.size:  # the server keeps no checksum
                same = content.equals(await self._get(key, 0, content.size))
        except (AttemptFailed, StoreError) as error:
            # Whatever hinders the look, a write of ours may be what is there.
            raise AttemptFailed(f"the key is taken, and looking at what it holds failed: {error}", may_happen=True) from error
        if not same:
            raise ObjectExists(f"object {key!r} was to be written, but it holds other bytes already; choose another key")

    async def _check_that_it_is_the_stream(self, key: str, upload: Multipart) -> None:
        """Return if a key that is taken holds what was streamed; it is read, piece by piece, where the server keeps no checksum of it."""
        try:
            found = await self._head(key)
            same = found.size == upload.size
            if same and found.crc32c is not None:
                same = found.crc32c == upload.crc32c
            elif same:
                read = 0
                for position in range(0, upload.size, STREAM_PART_BYTES):
                    read = crc32c(await self._get(key, position, STREAM_PART_BYTES), read)
                same = read == upload.crc32c
        except ObjectNotFound as error:  # it was not taken: the upload is gone
            raise AttemptFailed("the upload is gone, and nothing is there", may_happen=False) from error
        except (AttemptFailed, StoreError) as error:
            raise AttemptFailed(f"the key is taken, and looking at what it holds failed: {error}", may_happen=True) from error
        if not same:
            raise ObjectExists(f"object {key!r} was to be written, but it holds other bytes already; choose another key")

    async def _get(self, key: str, position: int, length: int) -> bytes:
        with self._request("GET", key, reads=True):
            try:
                answer = await self._client.get_object(
                    Bucket=self._settings.bucket,
                    Key=self._prefix + key,
                    Range=f"bytes={position}-{position + length - 1}",
                    ChecksumMode="ENABLED",
                )
            except ClientError as error:
                if status_of(error) == 416:  # beginning at or beyond the end
                    return b""
                raise
            async with answer["Body"] as body:
                promise = answers.promised(answer, position, length, asked=self._asked("GET", key))
                content: bytes = await body.read()
        if len(content) != promise.size or promise.crc32c not in (None, crc32c(content)):
            raise AttemptFailed(
                f"{promise.size} bytes were promised, but {len(content)} came, or other ones than were written", may_happen=False
            )
        return content

    async def _head(self, key: str) -> ObjectInfo:
        with self._request("HEAD", key, reads=True):
            answer = await self._client.head_object(Bucket=self._settings.bucket, Key=self._prefix + key, ChecksumMode="ENABLED")
            return answers.described(key, answer)

    async def _abort_abandoned(self, prefix: str) -> None:
        """Remove the parts that a process left behind which died while it wrote a stream: once an hour at most, for they are paid for."""
        now = self._clock.monotonic()
        if now < self._look_for_abandoned_at:
            return
        self._look_for_abandoned_at = now + _LOOK_FOR_ABANDONED_S
        try:
            with self._request("LIST", prefix):
                found: Any = await self._client.list_multipart_uploads(Bucket=self._settings.bucket, Prefix=self._prefix + prefix)
        except (AttemptFailed, StoreError):  # some servers cannot tell; a rule of the bucket does the same
            return
        for each in found.get("Uploads", ()):
            if self._clock.wall_ms() - each["Initiated"].timestamp() * 1000 > _ABANDONED_MS:
                await abort(self._client, Bucket=self._settings.bucket, Key=each["Key"], UploadId=each["UploadId"])

    async def _page(self, prefix: str, after: str, token: str | None) -> tuple[Sequence[ObjectInfo], str | None]:
        """Return the objects of one page that come after `after`, and what to ask the next page with."""
        begin: Any = {"ContinuationToken": token} if token else {"StartAfter": self._prefix + after} if after else {}
        with self._request("LIST", prefix):
            page = await self._client.list_objects_v2(Bucket=self._settings.bucket, Prefix=self._prefix + prefix, **begin)
            found = answers.listed(page, self._prefix, within=prefix, after=after, asked=self._asked("LIST", prefix))
            return found, answers.next_page(page, token)

    async def _delete(self, keys: Sequence[str]) -> dict[str, str]:
        asked: Any = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        with self._request("DELETE", keys[0]):
            answer = await self._client.delete_objects(Bucket=self._settings.bucket, Delete=asked)
            return answers.refused(answer, self._prefix)

    async def _retried(self, operation: str, key: str, attempt: Callable[[], Awaitable[T]], *, changes: bool = False) -> T:
        number = itertools.count()

        def counted() -> Awaitable[T]:
            self.retries += next(number) > 0
            return attempt()

        asked = self._asked(operation, key)
        return await retried(counted, self._settings.patience, asked=asked, changes=changes, clock=self._clock, chance=self._chance)

    def _request(
        self, operation: str, key: str, *, reads: bool = False, sent: Callable[[], bool] = lambda: False
    ) -> AbstractContextManager[None]:
        """Count a request that is about to be sent, and translate its failure."""
        self.requests[operation.lower()] += 1
        return translated(self._asked(operation, key), reads=reads, sent=sent)

    def _asked(self, operation: str, key: str) -> str:
        return f"{operation} of {key!r} in {self.place}"


async def open_s3(settings: S3Settings, *, clock: Clock, chance: Random) -> S3Store:
    """Return a store; nothing is sent yet. `probe` tells whether the bucket can be used. Raises StoreUnusable."""
    config = AioConfig(
        retries={"total_max_attempts": 1},
        connect_timeout=settings.connect_timeout_ms / 1000,
        read_timeout=settings.read_timeout_ms / 1000,
        max_pool_connections=settings.max_connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": settings.addressing_style},
    )
    stack = AsyncExitStack()
    try:
        client = await stack.enter_async_context(
            get_session().create_client("s3", region_name=settings.region, endpoint_url=settings.endpoint_url, config=config)
        )
    except (BotoCoreError, ValueError) as error:
        raise StoreUnusable(f"no S3 client can be made of {settings}: {error}; check region, endpoint and profile") from error
    # Over TLS the body is protected already, and our checksum covers it end to end: hashing it again costs CPU for nothing.
    # Said only now, because the endpoint may come from the environment.
    unprotected = not client.meta.endpoint_url.startswith("https:")
    signed = {"auto": unprotected, "always": True, "never": False}[settings.sign_bodies]
    client.meta.config.s3["payload_signing_enabled"] = signed  # type: ignore[attr-defined]  # one of botocore's options
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-send.s3.{operation}", send_once)
    return S3Store(client, settings, stack, clock=clock, chance=chance)
