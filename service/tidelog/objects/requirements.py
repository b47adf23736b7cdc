"""What an object store must keep for a log to rest on it, and how each requirement is tried.

Speaks to a store through the port alone, over two sets of connections, because what one connection wrote another must see at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from crc32c import crc32c

from tidelog.clock import Clock
from tidelog.errors import ObjectExists, ObjectNotFound, StoreOutcomeUnknown, StoreUnavailable
from tidelog.objects.store import STREAM_PART_BYTES, ObjectInfo, ObjectStore
from tidelog.randomness import Random

_KIB = 1024
_MIB = 1024 * 1024
_LISTED = 1_005
"""More than the thousand keys of one page."""
_AT_ONCE = 16
_LARGE_BYTES = 8 * _MIB
"""As much as intake writes at once: a store may treat large bodies in another way."""
_MOST_SKEW_MS = 300_000
_MOST_TOLD = 3


class NotKept(Exception):
    """The store did something else than it must; the text says what was seen."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a store must keep, and why."""

    name: str
    sentence: str
    why: str
    advised: bool = False
    """A store without it can be used; what that costs is said in `why`."""


Check = tuple[Requirement, Callable[["Bench"], Awaitable[str]]]
"""A requirement, and what tries it: returns what was seen, raises NotKept."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to try."""

    writers: int = 32
    """Of one key at the same time."""
    rounds: int = 25
    samples: int = 30
    """Timed requests of each kind and size; large ones fewer. 0: nothing is timed."""


@dataclass(slots=True)
class Bench:
    """What checks work with."""

    stores: Sequence[ObjectStore]
    """The same bucket, through connections of their own."""
    prefix: str
    effort: Effort
    clock: Clock
    chance: Random
    listed: dict[str, int] = field(default_factory=dict)
    """Keys that `_many` wrote, and their sizes."""

    def bytes(self, size: int) -> bytes:
        """Return bytes that nobody has written before."""
        seed = self.chance.getrandbits(8 * min(size, 64)).to_bytes(min(size, 64), "big")
        return (seed * (size // len(seed) + 1))[:size]


# ---- the checks


async def _one_winner(bench: Bench) -> str:
    writers, rounds = bench.effort.writers, bench.effort.rounds
    refused = unknown = 0
    for number in range(rounds):
        key = f"{bench.prefix}contended/{number}"
        size = (64, 4 * _KIB, 256 * _KIB)[number % 3]
        contents = [bench.bytes(size) for _ in range(writers)]
        outcomes = await asyncio.gather(
            *(_outcome(bench.stores[place % 2].put_new(key, [content])) for place, content in enumerate(contents))
        )
        winners = [content for content, outcome in zip(contents, outcomes, strict=True) if outcome == "won"]
        perhaps = [content for content, outcome in zip(contents, outcomes, strict=True) if outcome == "unknown"]
        refused += outcomes.count("refused")
        unknown += len(perhaps)
        if len(winners) > 1:
            raise NotKept(f"round {number + 1}: {len(winners)} of {writers} writers of one key were told that theirs is stored")
        if not winners and not perhaps:
            raise NotKept(f"round {number + 1}: all {writers} writers of one key were refused, so nobody wrote it")
        for store in bench.stores:
            stored = await store.get_range(key, 0, size + 1)
            if stored not in (winners or perhaps):
                whose = "of a writer that was refused" if stored in contents else "that nobody wrote"
                raise NotKept(f"round {number + 1}: the key holds {len(stored)} bytes {whose}, not the winner's")
    without_answer = f", {unknown} without an answer" if unknown else ""
    return f"{rounds} rounds of {writers} writers: one winner each, {refused:,} refused{without_answer}"


async def _outcome(write: Awaitable[None]) -> Literal["won", "refused", "unknown", "not done"]:
    try:
        await write
    except ObjectExists:
        return "refused"
    except StoreOutcomeUnknown:
        return "unknown"
    except StoreUnavailable:
        return "not done"
    return "won"


async def _refused_and_untouched(bench: Bench) -> str:
    one, other = bench.stores
    for number in range(bench.effort.rounds):
        key = f"{bench.prefix}taken/{number}"
        size = _LARGE_BYTES if number == 0 else 4 * _KIB
        content = bench.bytes(size)
        await one.put_new(key, [content])
        for wrong in (bench.bytes(size), bench.bytes(100)):
            try:
                await other.put_new(key, [wrong])
            except ObjectExists:
                pass
            else:
                raise NotKept(f"a second PUT with If-None-Match: * of {len(wrong)} other bytes was accepted")
            for store in bench.stores:
                if await store.get_range(key, 0, 2 * size) != content:
                    raise NotKept(f"after a refused PUT of {len(wrong)} other bytes the key does not hold the first ones any more")
        try:
            await other.put_new(key, [content])
        except ObjectExists:
            raise NotKept("a second PUT of the very bytes that are stored could not be told from another's") from None
    return (
        f"{2 * bench.effort.rounds} refused, the first bytes read over both sets of connections; the same bytes again: known as one's own"
    )


async def _read_after_write(bench: Bench) -> str:
    for number in range(bench.effort.rounds):
        one, other = bench.stores if number % 2 else bench.stores[::-1]
        key = f"{bench.prefix}read/{number}"
        content = bench.bytes(10 * _KIB)
        await _missing(other, key, "before it was written")  # a store that remembers "not found" shows it now
        await one.put_new(key, [content])
        try:
            came = await other.get_range(key, 0, len(content))
            size = (await other.head(key)).size
        except ObjectNotFound:
            raise NotKept(f"round {number + 1}: an object that was acknowledged was not found over another connection") from None
        if came != content or size != len(content):
            raise NotKept(f"round {number + 1}: {len(came)} bytes came, a HEAD said {size}, but {len(content)} were written, or other ones")
    return f"{bench.effort.rounds} objects, asked for before and at once after they were written, over other connections"


async def _streams(bench: Bench) -> str:
    one, other = bench.stores
    key = f"{bench.prefix}streamed"
    parts = [bench.bytes(STREAM_PART_BYTES), bench.bytes(1000)]
    whole = b"".join(parts)

    async def sent(contents: Sequence[bytes]) -> AsyncIterator[bytes]:
        for content in contents:
            await _missing(other, key, "that is being sent")
            yield content

    await one.put_stream(key, sent(parts))
    for position in (0, STREAM_PART_BYTES - 500):
        if await other.get_range(key, position, 2000) != whole[position : position + 2000]:
            raise NotKept("an object that was sent in parts holds other bytes than were sent")
    if (size := (await other.head(key)).size) != len(whole):
        raise NotKept(f"an object of {len(whole)} bytes that was sent in parts has {size}")
    for when in ("before it", "during it"):
        taken = f"{bench.prefix}streamed-to-what-was-taken-{when.partition(' ')[0]}"

        async def late(key: str = taken) -> AsyncIterator[bytes]:
            yield parts[0]
            await one.put_new(key, [b"first"])
            yield parts[1]

        if when == "before it":
            await one.put_new(taken, [b"first"])
        try:
            await other.put_stream(taken, _given(parts) if when == "before it" else late())
        except ObjectExists:
            pass
        else:
            raise NotKept(f"an upload in parts was completed with If-None-Match: * though its key was taken {when}")
        if await one.get_range(taken, 0, 10) != b"first":
            raise NotKept("after a refused upload in parts the key does not hold the first bytes any more")
    try:
        await other.put_stream(key, _given(parts))
    except ObjectExists:
        raise NotKept("the very bytes that are stored, sent in parts again, could not be told from another's") from None
    return f"{len(whole):,} bytes in 2 parts: seen when whole, refused where the key was taken, the same again known as one's own"


async def _given(contents: Sequence[bytes]) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def _missing(store: ObjectStore, key: str, when: str) -> None:
    try:
        await store.head(key)
        raise NotKept(f"HEAD found an object {when}")
    except ObjectNotFound:
        pass
    try:
        await store.get_range(key, 0, 1)
        raise NotKept(f"GET found an object {when}")
    except ObjectNotFound:
        pass


async def _ranges(bench: Bench) -> str:
    size = 100_000
    key = f"{bench.prefix}ranges"
    content = bytes(bench.chance.getrandbits(8) for _ in range(size))
    await bench.stores[0].put_new(key, [content])
    asked = {
        "the first byte": (0, 1),
        "the middle": (size // 2, 1000),
        "the end": (size - 1000, 1000),
        "the last byte": (size - 1, 1),
        "the whole": (0, size),
        "across the end": (size - 10, 100),
        "more than there is": (0, 2 * size),
        "beginning at the end": (size, 10),
        "beginning beyond the end": (size + 500, 1),
    }
    for what, (position, length) in asked.items():
        came = await bench.stores[1].get_range(key, position, length)
        wanted = content[position : position + length]
        if came != wanted:
            raise NotKept(f"{what}, {length} bytes from {position} of {size}: {len(came)} bytes came that are not the {len(wanted)} wanted")
    return f"{len(asked)} ranges of an object of {size:,} bytes"


async def _heads(bench: Bench) -> str:
    kept = 0
    sizes = (1, 4 * _KIB, _MIB)
    for size in sizes:
        key = f"{bench.prefix}head/{size}"
        content = bench.bytes(size)
        await bench.stores[0].put_new(key, [content])
        found = await bench.stores[1].head(key)
        if found.size != size:
            raise NotKept(f"HEAD of an object of {size} bytes says {found.size}")
        if found.crc32c not in (None, crc32c(content)):
            raise NotKept(f"HEAD of an object of {size} bytes gives a CRC-32C of other bytes")
        kept += found.crc32c is not None
    checksums = "its CRC-32C is kept" if kept == len(sizes) else "no CRC-32C is kept, so a lost answer costs reading the object"
    return f"sizes of 1 byte to 1 MiB; {checksums}"


async def _times(bench: Bench) -> str:
    key = f"{bench.prefix}time"
    began = bench.clock.wall_ms()
    await bench.stores[0].put_new(key, [b"time"])
    ended = bench.clock.wall_ms()
    listed = await _listed(bench.stores[1], key)
    if [found.key for found in listed] != [key]:
        raise NotKept("an object written now is not listed, so its time cannot be told")
    told = (await bench.stores[1].head(key)).modified_ms, listed[0].modified_ms
    skew = max(max(began - at, at - ended, 0) for at in told)
    if skew > _MOST_SKEW_MS:
        raise NotKept(f"an object written now is said to be {skew / 1000:,.0f} s away from this machine's clock")
    return f"within {max(1, -(-skew // 1000))} s of this machine's clock, by HEAD and LIST"


async def _listed(store: ObjectStore, prefix: str, start_after: str = "") -> list[ObjectInfo]:
    return [found async for found in store.list(prefix, start_after=start_after)]


async def _order(bench: Bench) -> str:
    """Keys whose order depends on how a store compares: by bytes, `-` < `/` < `0` < `B` < `_` < `b` < `~`."""
    below = f"{bench.prefix}order/"
    keys = sorted(below + name for name in ("a-b", "a/b", "a/c/d", "a0", "aB", "a_b", "ab", "a~", "b"))
    await _write(bench, dict.fromkeys(keys, 1))
    await _write(bench, {f"{bench.prefix}order-": 1, f"{bench.prefix}order0": 1})
    asked = [(below, ""), (f"{below}a", ""), (f"{below}a/", ""), (f"{below}nothing", "")]
    asked += [(below, key) for key in keys] + [(below, f"{below}a/~"), (below, f"{below}~")]
    for prefix, after in asked:
        came = [found.key for found in await _listed(bench.stores[1], prefix, after)]
        wanted = [key for key in keys if key.startswith(prefix) and key > after]
        if came != wanted:
            raise NotKept(f"LIST of {prefix!r} after {after!r} gave {_some(came)}, but {_some(wanted)} are there in this order")
    return f"{len(asked)} listings by prefix and by where to begin, over names that sort differently by letters and by bytes"


async def _many(bench: Bench) -> str:
    below = f"{bench.prefix}many/"
    sizes = {f"{below}{number:05}": 1 + number % 7 for number in range(_LISTED)}
    await _write(bench, sizes)
    bench.listed = sizes
    found = await _listed(bench.stores[1], below)
    if [(each.key, each.size) for each in found] != sorted(sizes.items()):
        names = {each.key for each in found}
        raise NotKept(
            f"of {_LISTED:,} objects, {len(found):,} were listed ({len(names):,} different), {len(sizes.keys() - names):,} were missing,"
            " or sizes or order were wrong"
        )
    middle = sorted(sizes)[_LISTED // 2]
    after = [each.key for each in await _listed(bench.stores[0], below, middle)]
    if after != [key for key in sorted(sizes) if key > middle]:
        raise NotKept(f"of the {_LISTED // 2:,} objects after the middle one, {len(after):,} were listed, or in another order")
    return f"{_LISTED:,} objects, each once, in order, with its size; and those after the middle one"


async def _list_after_write(bench: Bench) -> str:
    below = f"{bench.prefix}fresh/"
    keys: list[str] = []
    for number in range(bench.effort.rounds):
        one, other = bench.stores if number % 2 else bench.stores[::-1]
        keys.append(f"{below}{number:05}")
        await one.put_new(keys[-1], [b"fresh"])
        came = [found.key for found in await _listed(other, below)]
        if came != keys:
            raise NotKept(f"after {len(keys)} objects were written, {len(came)} were listed; {_some(set(keys) - set(came))} did not show")
    return f"{bench.effort.rounds} objects, each listed over another connection at once"


async def _after_delete(bench: Bench) -> str:
    below = f"{bench.prefix}gone/"
    keys = [f"{below}{number:05}" for number in range(bench.effort.rounds)]
    await _write(bench, dict.fromkeys(keys, 1))
    for number, key in enumerate(keys):
        one, other = bench.stores if number % 2 else bench.stores[::-1]
        if refused := await one.delete_many([key]):
            raise NotKept(f"a DELETE was refused: {refused[key]}")
        came = [found.key for found in await _listed(other, below)]
        if came != keys[number + 1 :]:
            raise NotKept(f"after {number + 1} of {len(keys)} objects were deleted, {len(came)} were listed")
        await _missing(other, key, "that was deleted")
    return f"{len(keys)} objects, each gone from LIST, HEAD and GET over another connection at once"


async def _batch_delete(bench: Bench) -> str:
    below = f"{bench.prefix}many/"
    missing = [f"{below}missing-{number}" for number in range(5)]
    keys = [*bench.listed, *missing]
    for again in ("", " again"):
        if refused := await bench.stores[0].delete_many(keys):
            raise NotKept(f"of {len(keys):,} keys that were deleted{again}, {len(refused):,} were refused: {next(iter(refused.values()))}")
        if left := await _listed(bench.stores[1], below):
            raise NotKept(f"of {len(keys):,} keys that were deleted{again}, {len(left):,} are still listed")
    return f"{len(keys):,} keys, {len(missing)} of them of no object; and all of them once more"


async def _write(bench: Bench, sizes: dict[str, int]) -> None:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(place: int, key: str, size: int) -> None:
        async with slots:
            await bench.stores[place % 2].put_new(key, [b"x" * size])

    async with asyncio.TaskGroup() as writes:
        for place, (key, size) in enumerate(sizes.items()):
            writes.create_task(one(place, key, size))


def _some(keys: "set[str] | list[str]") -> str:
    shown = ", ".join(repr(key.rsplit("/", 1)[-1]) for key in list(keys)[:_MOST_TOLD])
    return (shown or "nothing") + (f" and {len(keys) - _MOST_TOLD} more" if len(keys) > _MOST_TOLD else "")


CHECKS: tuple[Check, ...] = (
    (
        Requirement("one winner", "of many PUTs of one key with If-None-Match: *, exactly one succeeds",
                    "a key names one segment for ever (I3): with two winners acknowledged records would be overwritten"),
        _one_winner,
    ),
    (
        Requirement("refused overwrite", "a later PUT is refused with 412, and the stored bytes stay as they are",
                    "a retry after a lost answer must find its own bytes, and must not replace another's (I3, I5)"),
        _refused_and_untouched,
    ),
    (
        Requirement("read after write", "an acknowledged object is read at once, over any connection",
                    "what is committed is read by other brokers within milliseconds (I2)"),
        _read_after_write,
    ),
    (
        Requirement("streams", "an object sent in parts is seen only when it is whole, and only where its key was free",
                    "merged segments are larger than what a broker holds of them (I3)"),
        _streams,
    ),
    (
        Requirement("ranges", "a ranged GET gives these bytes, cut at the end, and none beyond it",
                    "readers fetch pieces of large segments, footers from the end"),
        _ranges,
    ),
    (
        Requirement("HEAD", "HEAD tells the size, and no wrong checksum",
                    "by these a retry after a lost answer knows its own object (I5)"),
        _heads,
    ),
    (
        Requirement("times", "the time of writing is that of now",
                    "what nobody refers to is deleted only when it is old enough; with another clock, early or never", advised=True),
        _times,
    ),
    (
        Requirement("list order", "LIST gives the keys of a prefix by their bytes, after a given one",
                    "an older metadata store is recognised by what sorts after the epochs it knows (I11)"),
        _order,
    ),
    (
        Requirement("list pages", "a LIST of more than 1,000 keys gives each once",
                    "cleaning and checking walk through all objects"),
        _many,
    ),
    (
        Requirement("list after write", "an acknowledged object is listed at once",
                    "a marker that does not show would let an older metadata store lead (I11)"),
        _list_after_write,
    ),
    (
        Requirement("gone after delete", "a deleted object is neither listed nor found",
                    "what is deleted must not be counted, nor be deleted for ever"),
        _after_delete,
    ),
    (
        Requirement("batch delete", "one DELETE of many keys works, missing ones among them",
                    "deleting must be cheaper than writing, and may be repeated after a lost answer"),
        _batch_delete,
    ),
)  # fmt: skip
