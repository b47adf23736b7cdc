"""An object store in an S3-compatible bucket. The one file that knows S3.

botocore's own retries are off: what an attempt's failure says about its outcome (I5) is decided here, in `_verdict`;
`retries` adds it up over attempts, `hedging` sends slow requests twice.
"""

import asyncio
import itertools
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiohttp import ClientConnectorCertificateError, ClientConnectorError
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as ConnectionFailed
from botocore.parsers import ResponseParserError
from crc32c import crc32c

from tidelog.clock import Clock
from tidelog.errors import InvalidSettings, ObjectExists, ObjectNotFound, StoreError, StoreUnusable
from tidelog.objects.bodies import Upload, send_once
from tidelog.objects.hedging import Hedger
from tidelog.objects.retries import AttemptFailed, Patience, retried
from tidelog.objects.store import Bytes, ObjectInfo, check_key
from tidelog.randomness import Random, new_uuid

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

T = TypeVar("T")

_DELETE_AT_ONCE = 1000
_DAMAGED_ON_THE_WAY = ("BadDigest", "InvalidDigest", "IncompleteBody", "RequestTimeout", "XAmzContentChecksumMismatch")
"""The server says of a request that it did not come whole: not done, and worth another attempt."""
_TOO_MANY = ("SlowDown", "TooManyRequests", "RequestLimitExceeded", "Throttling", "ThrottlingException")


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
    read_timeout_ms: int = 15_000
    """Limit on silence of the server within a request."""
    attempt_timeout_ms: int = 30_000
    """Limit on one request, its body included."""
    max_attempts: int = 5
    deadline_ms: int = 60_000
    """Limit on all attempts together and the waits between them."""
    backoff_base_ms: int = 50
    """Waits are drawn from 0 up to this, doubled with each attempt."""
    backoff_most_ms: int = 5_000
    max_connections: int = 64
    hedge_after_samples: int = 20
    """Requests of a kind that must have been measured before slow ones are hedged; 0 switches hedging off."""
    hedge_percentile: float = 0.99
    """A request is slow when it takes longer than this share of the recent ones, from 0 to 1."""
    hedge_most_share: float = 0.05
    """Largest share of requests that may be sent a second time, from 0 to 1."""

    def __post_init__(self) -> None:
        if not self.bucket:
            raise InvalidSettings("S3 needs a bucket, but its name is empty; set the bucket")
        if self.prefix:
            check_key(self.prefix)
        if self.endpoint_url is not None and not self.endpoint_url.startswith(("http://", "https://")):
            raise InvalidSettings(f"S3 endpoint {self.endpoint_url!r} is no URL; write it with http:// or https:// in front")
        if self.addressing_style not in ("path", "virtual", "auto"):
            raise InvalidSettings(f"S3 addressing style {self.addressing_style!r} is unknown; use path, virtual or auto")
        for name in ("connect_timeout_ms", "read_timeout_ms", "attempt_timeout_ms", "max_attempts", "deadline_ms", "max_connections"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"S3 setting {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("hedge_percentile", "hedge_most_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidSettings(f"S3 setting {name} is {getattr(self, name)}; it is a share from 0 to 1")


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
        self._writes: set[asyncio.Task[None]] = set()
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
        return f"s3://{self._settings.bucket}/{self._settings.prefix} at {self._settings.endpoint_url or 'AWS ' + self._settings.region}"

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object once, with a checksum that the server verifies. See `ObjectStore.put_new`.

        Joins the parts: one copy. A cancelled caller does not stop the write (I5).
        """
        check_key(key)
        content = b"".join(parts)
        checksum = crc32c(content)

        async def attempt() -> None:
            if not await self._puts.run(lambda: self._put(key, content, checksum)):
                await self._check_that_it_is_ours(key, content, checksum)

        task = asyncio.ensure_future(self._retried("PUT", key, attempt, changes=True))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        await asyncio.shield(task)

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object, its length and, where it is the whole, its checksum checked. See `ObjectStore.get_range`."""
        check_key(key)
        return await self._retried("GET", key, lambda: self._gets.run(lambda: self._get(key, position, length)))

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. See `ObjectStore.head`."""
        check_key(key)
        return await self._retried("HEAD", key, lambda: self._head(key))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects, a page at a time. See `ObjectStore.list`."""
        while True:
            page = await self._retried("LIST", prefix, lambda after=start_after: self._page(prefix, after))  # type: ignore[misc]  # a default binds the loop's value
            for found in page.get("Contents", ()):
                start_after = found["Key"][len(self._prefix) :]
                yield ObjectInfo(start_after, found["Size"], _milliseconds(found))
            if not page.get("IsTruncated"):
                return

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects, a thousand a request. See `ObjectStore.delete_many`."""
        for key in keys:
            check_key(key)
        refused: dict[str, str] = {}
        for first in range(0, len(keys), _DELETE_AT_ONCE):
            some = keys[first : first + _DELETE_AT_ONCE]
            asked = some[0] if len(some) == 1 else f"{some[0]} and {len(some) - 1} more"
            refused |= await self._retried("DELETE", asked, lambda some=some: self._delete(some), changes=True)  # type: ignore[misc]  # as above
        return refused

    async def close(self) -> None:
        """Wait for writes that have begun (they have their deadline), then close all connections."""
        if self._writes:
            await asyncio.wait(self._writes)
        await self._stack.aclose()

    async def _put(self, key: str, content: bytes, checksum: int) -> bool:
        """Send one conditional PUT. Returns False where the key is taken."""
        body = Upload(content)
        with self._translated("PUT", key, lambda: body.sent):
            try:
                await self._client.put_object(
                    Bucket=self._settings.bucket,
                    Key=self._prefix + key,
                    Body=body,
                    IfNoneMatch="*",
                    ChecksumAlgorithm="CRC32C",
                    ChecksumCRC32C=_encoded(checksum),
                )
            except ClientError as error:
                if _status(error) == 412:
                    return False
                raise
        return True

    async def _check_that_it_is_ours(self, key: str, content: bytes, checksum: int) -> None:
        """Return if a key that is taken holds these bytes: an earlier attempt's, whose answer was lost (I5)."""
        try:
            found = await self._head(key)
            same = found.size == len(content)
            if same and found.crc32c is not None:
                same = found.crc32c == checksum
            elif same and content:  # the server keeps no checksum
                same = await self._get(key, 0, len(content)) == content
        except (AttemptFailed, StoreError) as error:
            # Whatever hinders the look, a write of ours may be what is there.
            raise AttemptFailed(f"the key is taken, and looking at what it holds failed: {error}", may_happen=True) from error
        if not same:
            raise ObjectExists(f"object {key!r} was to be written, but it holds other bytes already; choose another key")

    async def _get(self, key: str, position: int, length: int) -> bytes:
        with self._translated("GET", key):
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
                if "ContentRange" not in answer:
                    raise StoreUnusable(f"GET of {key!r} in {self.place} asked for a range, but all came; use a store that honours ranges")
                total = int(answer["ContentRange"].rpartition("/")[2])
                wanted = max(0, min(length, total - position))
                if answer["ContentLength"] != wanted:
                    raise AttemptFailed(f"{wanted} bytes were asked for, but {answer['ContentLength']} came", may_happen=False)
                content: bytes = await body.read()
        promised = _checksum(answer) if wanted == total else None
        if len(content) != wanted or promised not in (None, crc32c(content)):
            raise AttemptFailed(f"{wanted} bytes were promised, but {len(content)} came, or other ones than were written", may_happen=False)
        return content

    async def _head(self, key: str) -> ObjectInfo:
        with self._translated("HEAD", key):
            answer = await self._client.head_object(Bucket=self._settings.bucket, Key=self._prefix + key, ChecksumMode="ENABLED")
        return ObjectInfo(key, answer["ContentLength"], _milliseconds(answer), _checksum(answer))

    async def _page(self, prefix: str, start_after: str) -> Any:
        after = {"StartAfter": self._prefix + start_after} if start_after else {}
        with self._translated("LIST", prefix):
            return await self._client.list_objects_v2(Bucket=self._settings.bucket, Prefix=self._prefix + prefix, **after)  # type: ignore[arg-type]  # unpacked

    async def _delete(self, keys: Sequence[str]) -> dict[str, str]:
        asked: Any = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        with self._translated("DELETE", keys[0]):
            answer = await self._client.delete_objects(Bucket=self._settings.bucket, Delete=asked)
        return {error["Key"][len(self._prefix) :]: f"{error.get('Code')}: {error.get('Message')}" for error in answer.get("Errors", ())}

    async def _retried(self, operation: str, key: str, attempt: Callable[[], Awaitable[T]], *, changes: bool = False) -> T:
        settings = self._settings
        patience = Patience(
            max_attempts=settings.max_attempts,
            attempt_timeout_ms=settings.attempt_timeout_ms,
            deadline_ms=settings.deadline_ms,
            backoff_base_ms=settings.backoff_base_ms,
            backoff_most_ms=settings.backoff_most_ms,
        )
        asked = f"{operation} of {key!r} in {self.place}"
        number = itertools.count()

        def counted() -> Awaitable[T]:
            self.retries += next(number) > 0
            return attempt()

        return await retried(counted, patience, asked=asked, changes=changes, clock=self._clock, chance=self._chance)

    @contextmanager
    def _translated(self, operation: str, key: str, sent: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Raise what the caller's port knows; `sent` says whether bytes may have left before a connection failed."""
        self.requests[operation.lower()] += 1
        try:
            yield
        except (BotoCoreError, ClientError, ResponseParserError, HttpError, OSError) as error:
            asked = f"{operation} of {key!r} in {self.place}"
            verdict = _answered(error, asked) if isinstance(error, ClientError) else _unanswered(error, asked, sent=sent())
            raise verdict from error


def _answered(error: ClientError, asked: str) -> AttemptFailed | StoreError:
    """Say what an error answer of the server means."""
    status = _status(error)
    code, message = (error.response.get("Error", {}).get(name, "") for name in ("Code", "Message"))
    words = f"{code} {message} (HTTP {status})"
    if code == "NoSuchBucket":
        return StoreUnusable(f"{asked} was refused: there is no such bucket; make it, or name another")
    if status == 404:
        return ObjectNotFound(f"{asked} found nothing: there is no object of that key")
    if code in _DAMAGED_ON_THE_WAY or code in _TOO_MANY or status in (408, 409, 429):
        return AttemptFailed(words, may_happen=False)
    if status in (301, 307) or code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return StoreUnusable(f"{asked} was redirected ({code}: {message}); the bucket is in another region; set the region")
    if code == "RequestTimeTooSkewed":
        return StoreUnusable(f"{asked} was denied ({code}): this machine's clock differs from the store's; set it right")
    if status in (401, 403):
        return StoreUnusable(f"{asked} was denied ({code}); check the credentials and their rights on the bucket")
    if status == 501:
        return StoreUnusable(f"{asked} was refused: {words}; use a store that has conditional writes (If-None-Match: *)")
    if status >= 500:
        return AttemptFailed(words, may_happen=True)
    return StoreUnusable(f"{asked} was refused: {words}")


def _unanswered(error: Exception, asked: str, *, sent: bool) -> AttemptFailed | StoreUnusable:
    """Say what it means that no answer came, or none that can be read."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreUnusable(
            f"{asked} needs credentials, but there are none ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
        )
    below = getattr(error, "kwargs", {}).get("error")  # aiohttp's own error; botocore's calls a reset a failure to connect
    if isinstance(below, ClientConnectorCertificateError):
        return StoreUnusable(f"{asked} cannot be sent: {below}; name its authority in AWS_CA_BUNDLE")
    never_connected = isinstance(below, ClientConnectorError) or isinstance(
        error, ConnectTimeoutError | CredentialRetrievalError | SSLError
    )
    weather = (
        HTTPClientError | ConnectionFailed | CredentialRetrievalError | IncompleteReadError | ResponseParserError | HttpError | OSError
    )
    if isinstance(error, weather | CredentialRetrievalError):
        return AttemptFailed(f"{type(error).__name__}: {error}", may_happen=sent or not never_connected)
    return StoreUnusable(f"{asked} cannot be sent: {error}")


async def open_s3(settings: S3Settings, *, clock: Clock, chance: Random) -> S3Store:
    """Return a store; nothing is sent yet. `probe` tells whether the bucket can be used. Raises StoreUnusable."""
    secure = settings.endpoint_url is None or settings.endpoint_url.startswith("https:")
    config = AioConfig(
        retries={"total_max_attempts": 1},
        connect_timeout=settings.connect_timeout_ms / 1000,
        read_timeout=settings.read_timeout_ms / 1000,
        max_pool_connections=settings.max_connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Over TLS the body is protected already, and our checksum covers it end to end: hashing it again costs CPU for nothing.
        s3={"addressing_style": settings.addressing_style, "payload_signing_enabled": not secure},
    )
    stack = AsyncExitStack()
    try:
        client = await stack.enter_async_context(
            get_session().create_client("s3", region_name=settings.region, endpoint_url=settings.endpoint_url, config=config)
        )
    except (BotoCoreError, ValueError) as error:
        raise StoreUnusable(f"no S3 client can be made of {settings}: {error}; check region, endpoint and profile") from error
    client.meta.events.register("before-send.s3.PutObject", send_once)
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
        found = [await store.get_range(key, 0, 9), await store.get_range(key, 1, 3), await store.get_range(key, 5, 1)]
        if found != [b"first", b"irs", b""]:
            raise StoreUnusable(f"{store.place} gave {found} for ranges of b'first'; use a store that honours ranges") from None
    else:
        raise StoreUnusable(
            f"{store.place} accepted a second PUT with If-None-Match: * to one key. Tidelog would lose acknowledged"
            " records on such a store; use one that honours conditional writes"
        )
    finally:
        refused = await store.delete_many([key])
    if refused:
        raise StoreUnusable(f"{store.place} refused to delete {refused}; grant the right to delete below the prefix")


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _milliseconds(answer: Any) -> int:
    return int(answer["LastModified"].timestamp() * 1000)


def _encoded(checksum: int) -> str:
    return b64encode(checksum.to_bytes(4, "big")).decode()


def _checksum(answer: Any) -> int | None:
    """Return the CRC-32C of the whole object, where the server keeps it; a composite one covers other checksums."""
    encoded = answer.get("ChecksumCRC32C")
    if encoded is None or "-" in encoded or answer.get("ChecksumType") == "COMPOSITE":
        return None
    return int.from_bytes(b64decode(encoded), "big")
