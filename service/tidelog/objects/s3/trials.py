"""What a bucket must keep that the port of object stores cannot ask: tried on the S3 interface itself, for `certification`."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from botocore.exceptions import ClientError
from crc32c import crc32c

from tidelog.errors import ObjectNotFound, StoreError, StoreUnavailable
from tidelog.objects.requirements import Bench, Check, NotKept, Requirement
from tidelog.objects.retries import AttemptFailed
from tidelog.objects.s3.store import S3Store
from tidelog.objects.s3.verdicts import status_of, translated

_PART_BYTES = 5 * 1024 * 1024
"""The least that S3 takes for a part that is not the last."""
_WRITERS = 4
_CHECKSUM = Requirement(
    "wrong checksum",
    "a PUT whose bytes do not match the CRC-32C that came with them is refused",
    "else bytes that are damaged on their way are stored, acknowledged, and noticed only when they are read or scrubbed",
    advised=True,
)
_PARTS = Requirement(
    "parts",
    "an object that is written in parts holds them in order, and a later completion with If-None-Match: * is refused",
    "merged segments are written so, and a key names one segment for ever: also for a completion that comes late (I3, I5)",
)
_PARTS_AT_ONCE = Requirement(
    "parts at once",
    "of many completions of one key with If-None-Match: * at the same time, exactly one succeeds",
    "a second defence: keys hold their writer's epoch and sequence, so one broker alone completes each, and always with the same bytes",
    advised=True,
)


def trials(store: S3Store) -> Sequence[Check]:
    """Return what is to be tried on `store`, which must look at the same bucket and prefix as the other checks."""
    return (
        (_CHECKSUM, partial(_wrong_checksum, store)),
        (_PARTS, partial(_in_parts, store)),
        (_PARTS_AT_ONCE, partial(_completed_at_once, store)),
    )


async def _wrong_checksum(store: S3Store, bench: Bench) -> str:
    key = f"{bench.prefix}wrong-checksum"
    content = bench.bytes(4096)
    wrong = b64encode((crc32c(content) ^ 1).to_bytes(4, "big")).decode()
    try:
        await _asked(store, "put_object", key, Body=content, ChecksumAlgorithm="CRC32C", ChecksumCRC32C=wrong)
    except ClientError as error:
        status = status_of(error)
        if not 400 <= status < 500:
            raise StoreUnavailable(f"a PUT with a wrong checksum was answered with HTTP {status}; try again") from error
        with suppress(ObjectNotFound):
            await store.head(key)
            raise NotKept(f"it was refused with HTTP {status}, but its bytes are stored") from error
        return f"refused with {error.response.get('Error', {}).get('Code')} (HTTP {status}), and nothing is stored"
    raise NotKept("it was accepted: the store does not compare the checksum with the bytes")


async def _in_parts(store: S3Store, bench: Bench) -> str:
    key = f"{bench.prefix}in-parts"
    contents = [[bench.bytes(_PART_BYTES), bench.bytes(1000 + place)] for place in range(2)]
    whole = b"".join(contents[0])
    async with _uploads(store, key) as begin:
        if not await _completed(store, key, *await begin(contents[0])):
            raise NotKept("completing an upload with If-None-Match: * was refused, though its key was free")
        if (size := (await store.head(key)).size) != len(whole):
            raise NotKept(f"{len(whole)} bytes were written in parts, but HEAD says {size}")
        if await store.get_range(key, _PART_BYTES - 500, 1000) != whole[_PART_BYTES - 500 : _PART_BYTES + 500]:
            raise NotKept("1,000 bytes across the border of two parts are not those that were written")
        again = await _completed(store, key, *await begin(contents[1]))
        if again or await store.get_range(key, 0, len(whole)) != whole:
            raise NotKept("a later completion with If-None-Match: * replaced the object")
    return f"{len(whole):,} bytes in two parts, as they were written; a later completion was refused, the bytes as they were"


async def _completed_at_once(store: S3Store, bench: Bench) -> str:
    key = f"{bench.prefix}completed-at-once"
    contents = [[bench.bytes(_PART_BYTES), bench.bytes(1000 + place)] for place in range(_WRITERS)]
    async with _uploads(store, key) as begin:
        begun = [await begin(content) for content in contents]
        completed = await asyncio.gather(*(_completed(store, key, upload, parts) for upload, parts in begun))
        winners = [b"".join(content) for content, won in zip(contents, completed, strict=True) if won]
        if len(winners) != 1:
            raise NotKept(f"of {_WRITERS} completions of one key at the same time, {len(winners)} succeeded")
        if await store.get_range(key, 0, len(winners[0]) + 1) != winners[0]:
            raise NotKept("the object does not hold the bytes of the one completion that succeeded")
    return f"{_WRITERS} uploads of two parts were completed at once: one winner"


Parts = list[dict[str, object]]


@asynccontextmanager
async def _uploads(store: S3Store, key: str) -> AsyncIterator[Callable[[Sequence[bytes]], Awaitable[tuple[str, Parts]]]]:
    """Give what begins uploads in parts; none is left when the context ends."""
    uploads: list[str] = []
    try:
        yield partial(_begun, store, key, uploads=uploads)
    finally:
        for upload in uploads:
            with suppress(StoreError, ClientError):  # those completed are no uploads any more
                await _asked(store, "abort_multipart_upload", key, UploadId=upload)


async def _begun(store: S3Store, key: str, content: Sequence[bytes], *, uploads: list[str]) -> tuple[str, Parts]:
    """Send an object's parts, and note the upload in `uploads`; return it, and what its completion names."""
    try:
        upload: str = (await _asked(store, "create_multipart_upload", key))["UploadId"]
        uploads.append(upload)
        parts: Parts = []
        for number, part in enumerate(content, 1):
            answer = await _asked(store, "upload_part", key, UploadId=upload, PartNumber=number, Body=part)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    except ClientError as error:
        raise NotKept(f"writing in parts was answered with: {error}") from error
    return upload, parts


async def _completed(store: S3Store, key: str, upload: str, parts: Parts) -> bool:
    """Complete an upload; say whether it won. Raises NotKept where the store does not know the condition."""
    try:
        await _asked(store, "complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
    except ClientError as error:
        if status_of(error) in (409, 412):  # 409: another was under way, and this one was not done
            return False
        raise NotKept(f"completing an upload with If-None-Match: * was answered with: {error}") from error
    return True


async def _asked(store: S3Store, operation: str, key: str, **more: object) -> Any:
    """Make one request of the S3 client. An error answer passes as it is; no answer is StoreUnavailable."""
    answered: ClientError
    try:
        with translated(operation):
            try:
                return await getattr(store.client, operation)(**store.at(key), **more)
            except ClientError as error:
                answered = error
    except AttemptFailed as failure:
        raise StoreUnavailable(f"{operation} of {key!r} in {store.place} failed: {failure}; try again") from failure
    raise answered
