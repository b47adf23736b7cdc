"""What a server's answers say, each part looked at before it is believed.

Servers and gateways leave things out, answer for another range, or list the same page again; none of it may pass for data,
or for the end of a listing. An answer that may be right next time is an `AttemptFailed`, one that shows what the server is
like a `StoreUnusable`.
"""

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidelog.errors import StoreUnusable
from tidelog.objects.retries import AttemptFailed
from tidelog.objects.store import ObjectInfo

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Promise:
    """What will come of a ranged GET."""

    size: int
    """Bytes."""
    crc32c: int | None
    """Of these bytes, where the server says one that covers just them."""


def confirmed(answer: Mapping[str, Any], crc32c: int) -> bool:
    """Say whether the answer of success to a PUT is about the bytes that were sent. Other success than a store's says nothing (I2)."""
    field(answer, "ETag")
    return checksum(answer) in (None, crc32c)


def promised(answer: Mapping[str, Any], position: int, length: int, *, asked: str) -> Promise:
    """Return what the answer to a GET of `length` bytes from `position` promises."""
    told = answer.get("ContentRange")
    if told is None:
        raise StoreUnusable(f"{asked} asked for a range, but all came; use a store that honours ranges")
    match = _CONTENT_RANGE.fullmatch(told)
    if not match:
        raise _unreadable(f"the range that came is {told!r}")
    first, last, total = map(int, match.groups())
    end = min(position + length, total)
    if (first, last + 1) != (position, end) or end <= position:
        raise AttemptFailed(f"bytes {position} to {position + length} were asked for, but {told!r} came", may_happen=False)
    size = end - position
    if field(answer, "ContentLength") != size:
        raise AttemptFailed(f"{told!r} was promised, but {answer['ContentLength']} bytes came", may_happen=False)
    return Promise(size, checksum(answer) if size == total else None)


def described(key: str, answer: Mapping[str, Any]) -> ObjectInfo:
    """Return what the answer to a HEAD says of the object."""
    return ObjectInfo(key, field(answer, "ContentLength"), _milliseconds(answer), checksum(answer))


def listed(page: Mapping[str, Any], prefix: str, *, within: str, after: str, asked: str) -> list[ObjectInfo]:
    """Return a page's objects, whose keys begin with `prefix` + `within`, and ascend from `after` (both without `prefix`)."""
    found = []
    for entry in page.get("Contents", ()):
        whole = field(entry, "Key")
        key = whole[len(prefix) :]
        if whole == prefix:
            continue  # the mark of a folder, as consoles make it: no key of ours
        if not whole.startswith(prefix + within) or key <= after:
            raise StoreUnusable(
                f"{asked} gave {key!r} after {after!r}; use a store that lists the keys of a prefix, in ascending order, and once each"
            )
        found.append(ObjectInfo(key, field(entry, "Size"), _milliseconds(entry)))
        after = key
    return found


def next_page(page: Mapping[str, Any], before: str | None) -> str | None:
    """Return what to ask the next page with; None after the last. `before` is what this page was asked with.

    An answer that does not say whether more follows is no listing, and must not pass for an empty one (I11).
    """
    if not field(page, "IsTruncated"):
        return None
    token: str = field(page, "NextContinuationToken")
    if token == before:
        raise _unreadable("the page that follows is the page that came")
    return token


def refused(answer: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Return the keys that a DELETE did not delete, each with the server's words."""
    return {
        field(error, "Key")[len(prefix) :]: f"{error.get('Code')}: {error.get('Message')}"
        for error in answer.get("Errors", ())
        if error.get("Code") != "NoSuchKey"  # some servers call that an error
    }


def checksum(answer: Mapping[str, Any]) -> int | None:
    """Return the CRC-32C of the whole object, where the server keeps it; a composite one covers other checksums."""
    encoded = answer.get("ChecksumCRC32C")
    if encoded is None or "-" in encoded or answer.get("ChecksumType") == "COMPOSITE":
        return None
    try:
        digest = b64decode(encoded, validate=True)
    except NotBase64 as error:
        raise _unreadable(f"its checksum is {encoded!r}") from error
    if len(digest) != 4:
        raise _unreadable(f"its checksum is {encoded!r}")
    return int.from_bytes(digest, "big")


def _milliseconds(answer: Mapping[str, Any]) -> int:
    return int(field(answer, "LastModified").timestamp() * 1000)


def field(answer: Mapping[str, Any], name: str) -> Any:
    """Return what every such answer says."""
    try:
        return answer[name]
    except KeyError:
        raise _unreadable(f"it has no {name}") from None


def _unreadable(problem: str) -> AttemptFailed:
    return AttemptFailed(f"the answer cannot be read: {problem}", may_happen=True)
