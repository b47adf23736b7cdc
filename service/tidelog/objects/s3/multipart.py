"""One object that is sent in parts, by S3's multipart upload: what is gathered, what is on its way, and its checksum.

Nothing can be seen of it before it is completed, and then only where the key was free (I3). How often a request is tried is the
store's business.
"""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from botocore.exceptions import ClientError
from crc32c import crc32c

from tidelog.objects.retries import AttemptFailed
from tidelog.objects.s3 import answers
from tidelog.objects.s3.bodies import Content, Upload
from tidelog.objects.s3.verdicts import status_of
from tidelog.objects.store import STREAM_PART_BYTES, Bytes
from tidelog.telemetry import get_logger

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_log = get_logger(__name__)
T = TypeVar("T")


class Attempts(Protocol):
    """Sends a request until it is answered."""

    async def __call__(self, attempt: Callable[[], Awaitable[T]], /) -> T:
        """Return the first answer."""
        ...


class Multipart:
    """An upload in parts. Begun by the first part; ends with `complete` or `abort`."""

    def __init__(self, client: "S3Client", bucket: str, key: str, *, attempts: Attempts) -> None:
        self._client = client
        self._where: Any = {"Bucket": bucket, "Key": key}
        self._attempts = attempts
        self._upload_id: str | None = None
        self._parts: list[Any] = []
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._sending: asyncio.Task[None] | None = None
        self.size = 0
        self.crc32c = 0

    async def add(self, part: Bytes) -> None:
        """Take some bytes; waits while the part before is being sent."""
        content = bytes(part)  # the caller may change it from now on
        self.size += len(content)
        self.crc32c = crc32c(content, self.crc32c)
        self._gathered.append(content)
        self._gathered_bytes += len(content)
        if self._gathered_bytes >= STREAM_PART_BYTES:
            await self._send()

    async def finish_parts(self) -> None:
        """Have every byte sent."""
        if self._gathered or not self._parts:
            await self._send()
        await self._sent()

    async def complete(self) -> bool:
        """Let the object be seen, in one attempt. Returns False where its key is taken, or where an earlier attempt may have done it."""
        try:
            answer = await self._client.complete_multipart_upload(
                **self._named(),
                MultipartUpload={"Parts": self._parts},
                IfNoneMatch="*",
                ChecksumCRC32C=encoded(self.crc32c),
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=self.size,
            )
        except ClientError as error:
            if status_of(error) == 412 or _no_such_upload(error):
                return False
            raise
        return answers.confirmed(answer, self.crc32c)

    async def abort(self) -> None:
        """Have what was sent removed, if the server will: one attempt; `list` finds what is left of it a day later."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        if self._upload_id is not None:
            await abort(self._client, **self._named())

    def _named(self) -> Any:
        return {**self._where, "UploadId": self._upload_id}

    async def _send(self) -> None:
        await self._sent()
        content = Content(self._gathered)
        self._gathered, self._gathered_bytes = [], 0
        self._sending = asyncio.ensure_future(self._put_part(len(self._parts) + 1, content))

    async def _sent(self) -> None:
        if self._sending is not None:
            await self._sending
            self._sending = None

    async def _put_part(self, number: int, content: Content) -> None:
        try:
            if self._upload_id is None:
                self._upload_id = await self._attempts(self._begin)
            etag = await self._attempts(lambda: self._put(number, content))
            self._parts.append({"PartNumber": number, "ETag": etag, "ChecksumCRC32C": encoded(content.crc32c)})
        finally:
            content.let_go()

    async def _begin(self) -> str:
        answer: Any = await self._client.create_multipart_upload(**self._where, ChecksumAlgorithm="CRC32C", ChecksumType="FULL_OBJECT")
        return str(answers.field(answer, "UploadId"))

    async def _put(self, number: int, content: Content) -> str:
        try:
            answer: Any = await self._client.upload_part(
                **self._named(),
                PartNumber=number,
                Body=Upload(content),  # type: ignore[arg-type]  # the part of a file that is looked for
                ChecksumAlgorithm="CRC32C",
                ChecksumCRC32C=encoded(content.crc32c),
            )
        except ClientError as error:
            if _no_such_upload(error):
                raise AttemptFailed("the upload that it is a part of is gone", may_happen=False) from error
            raise
        return str(answers.field(answer, "ETag"))


async def abort(client: "S3Client", **upload: str) -> None:
    """Ask once that an upload be forgotten; what the server says changes nothing."""
    named: Any = upload
    try:
        await client.abort_multipart_upload(**named)
    except Exception as error:  # noqa: BLE001  it stays, and is found again a day later
        _log.debug(
            "upload_not_aborted", key=upload["Key"], problem=str(error), advice="it is removed a day later, while the bucket is listed"
        )


def encoded(checksum: int) -> str:
    """Return a CRC-32C as S3 writes it."""
    return b64encode(checksum.to_bytes(4, "big")).decode()


def _no_such_upload(error: ClientError) -> bool:
    return bool(error.response.get("Error", {}).get("Code") == "NoSuchUpload")
