"""The port of object stores: six verbs, enough for a log and few enough to implement rightly.

Implementations (`s3`, `local`, `memory`) keep one contract, tested by one suite
(`tests/contract/test_object_store.py`). They know nothing of segments.
Keys are `/`-separated ASCII, at most 1,024 bytes, without empty, `.` or `..` parts.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tidelog.errors import InvalidRequest

Bytes = bytes | bytearray | memoryview
STREAM_PART_BYTES = 8 * 1024 * 1024
"""What a stream is sent in, where the store takes parts: at least 5 MiB for S3, of which there may be 10,000."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it."""

    key: str
    size: int
    """Bytes."""
    modified_ms: int
    """Unix time of the store's clock when the object was written."""
    crc32c: int | None = None
    """CRC-32C of the whole object; from `head` only, and only where the store keeps it."""


class ObjectStore(Protocol):
    """A bucket, or the part of one below a prefix."""

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write the concatenation of `parts` under `key`, once and for ever; durable on return (I2, I3).

        Returns if the object holds exactly these bytes, also where an earlier attempt with an unknown outcome had
        written them (I5): so a retry with the same key and bytes is always right. `parts` must not change until the
        call has returned or raised.

        Raises ObjectExists (other bytes are there), StoreUnavailable (not written and never will be), StoreOutcomeUnknown, StoreUnusable.
        A cancelled caller learns nothing: the write goes on, and `parts` are still read.
        """
        ...

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        """Write what `parts` yields under `key`, as `put_new` does, without ever holding all of it: about `STREAM_PART_BYTES`, twice.

        `parts` is gone through once, so whoever hears of an unknown outcome makes the same bytes again, for the same key (I5).
        What `parts` raises passes, and nothing is written then. A part may change as soon as the next one is asked for.

        Raises as `put_new` does. A cancelled caller learns nothing: most likely nothing is written.
        """
        ...

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return bytes `[position, position + length)`, cut at the object's end.

        What came is checked against what the store promised (its length; its checksum where it covers the range): a
        truncated or damaged body is read again, and then StoreUnavailable. `length` ≥ 1; beginning at or beyond the
        object's end gives `b""`.

        Raises InvalidRequest, ObjectNotFound, StoreUnavailable, StoreUnusable.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Return the object's size, age and checksum. Raises ObjectNotFound, StoreUnavailable, StoreUnusable."""
        ...

    def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over the objects whose keys start with `prefix` and sort after `start_after`, ascending by the key's bytes.

        Sees every object whose `put_new` had returned before the call; pages are fetched as they are asked for.

        Raises StoreUnavailable, StoreUnusable.
        """
        ...

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete the objects; one that is not there counts as deleted.

        Returns the keys that the store refused to delete, each with the store's words.

        Raises StoreUnavailable, StoreOutcomeUnknown, StoreUnusable for the whole; deleting again is always right.
        """
        ...

    async def close(self) -> None:
        """Give back connections, threads and locks."""
        ...


def check_key(key: str) -> str:
    """Return `key`. Raises InvalidRequest where it is no key that every store can hold."""
    parts = key.split("/")
    if (
        not key.isascii()
        or not key.isprintable()
        or len(key) > 1024
        or any(part in ("", ".", "..") or part.startswith(".tmp-") or len(part) > 255 for part in parts)
    ):
        raise InvalidRequest(
            f"object key {key!r} cannot be used; keys are printable ASCII of at most 1,024 bytes; their parts"
            " between slashes have at most 255, are not empty, '.' or '..', and do not begin with '.tmp-'"
        )
    return key


def check_range(position: int, length: int) -> None:
    """Raise InvalidRequest where that is no range of bytes: stores would differ in what they make of it."""
    if position < 0 or length < 1:
        raise InvalidRequest(f"{length} bytes from position {position} were asked for; ask for at least 1, from position 0 or later")
