"""Certifying an object store: a sound one passes, and each way of not being one is found and named."""

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
from tidelog.clock import SystemClock
from tidelog.errors import ObjectExists, ObjectNotFound, StoreUnavailable
from tidelog.objects.certification import Certificate, certify
from tidelog.objects.memory import MemoryStore
from tidelog.objects.requirements import Effort, NotKept, Requirement
from tidelog.objects.store import Bytes, ObjectInfo

CLOCK = SystemClock()
QUICK = Effort(writers=8, rounds=4, samples=0)


class Broken(MemoryStore):
    """A store that is sound until a test breaks something; more than one connection may share what it keeps."""

    def __init__(self) -> None:
        super().__init__(clock=CLOCK)

    def overwrite(self, key: str, parts: Sequence[Bytes]) -> None:
        content = b"".join(parts)
        self._objects[key] = content, ObjectInfo(key, len(content), CLOCK.wall_ms())

    def keys(self) -> list[str]:
        return sorted(self._objects)


async def certified(store: MemoryStore, effort: Effort = QUICK) -> Certificate:
    async def opened() -> MemoryStore:
        return store

    return await certify(opened, effort=effort, clock=CLOCK, chance=random.Random(1))


async def test_a_sound_store_passes_and_is_left_as_it_was() -> None:
    store = Broken()
    await store.put_new("certify/of-another/x", [b"stays"])
    found = await certified(store, replace(QUICK, samples=5))
    assert found.passed
    assert {finding.outcome for finding in found.findings} == {"passed"}
    assert [(timing.operation, timing.bytes) for timing in found.timings] == [
        (operation, size) for size in (4096, 262144, 8388608) for operation in ("put", "get")
    ]
    assert all(0 <= timing.p50_ms <= timing.p99_ms and timing.concurrent_mib_per_s > 0 for timing in found.timings)
    assert store.keys() == ["certify/of-another/x"]


class NoCondition(Broken):
    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        self.overwrite(key, parts)


class LooksThenWrites(Broken):
    """Refuses what is there already, but not what comes at the same time."""

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        taken = key in self._objects and self._objects[key][0] != b"".join(parts)
        await asyncio.sleep(0)
        if taken:
            raise ObjectExists("taken")
        self.overwrite(key, parts)


class RefusesButWrites(Broken):
    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        try:
            await super().put_new(key, parts)
        except ObjectExists:
            self.overwrite(key, parts)
            raise


class CompletesAnyway(Broken):
    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        self._objects.pop(key, None)
        await super().put_stream(key, parts)


class ShowsParts(Broken):
    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        content = b""
        async for part in parts:
            content += part
            self._objects.pop(key, None)
            await self.put_new(key, [content])


class RefusesItsOwn(Broken):
    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        if key in self._objects:
            raise ObjectExists("taken")
        await super().put_new(key, parts)


class RemembersMissing(Broken):
    """A cache in front of the store answers "not found" once more."""

    def __init__(self) -> None:
        super().__init__()
        self._missing: set[str] = set()

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        if key in self._missing:
            self._missing.discard(key)
            raise ObjectNotFound("not found")
        try:
            return await super().get_range(key, position, length)
        except ObjectNotFound:
            self._missing.add(key)
            raise


class IgnoresRanges(Broken):
    async def get_range(self, key: str, position: int, length: int) -> bytes:
        return self._stored(key)[0]


class WrapsBeyondTheEnd(Broken):
    async def get_range(self, key: str, position: int, length: int) -> bytes:
        content = self._stored(key)[0]
        return content[position : position + length] if position < len(content) else content[-length:]


class WrongSize(Broken):
    async def head(self, key: str) -> ObjectInfo:
        found = await super().head(key)
        return replace(found, size=found.size // 2 + 1)


class WrongChecksum(Broken):
    async def head(self, key: str) -> ObjectInfo:
        return replace(await super().head(key), crc32c=1)


class WrongClock(Broken):
    async def head(self, key: str) -> ObjectInfo:
        found = await super().head(key)
        return replace(found, modified_ms=found.modified_ms - 3_600_000)


class Listing(Broken):
    """Gives a listing that a subclass has changed."""

    def changed(self, found: list[ObjectInfo], prefix: str, start_after: str) -> list[ObjectInfo]:
        raise NotImplementedError

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        found = [each async for each in super().list(prefix, start_after=start_after)]
        for each in self.changed(found, prefix, start_after) if prefix.count("/") > 2 or "time" in prefix else found:
            yield each


class ListsOnePage(Listing):
    def changed(self, found: list[ObjectInfo], prefix: str, start_after: str) -> list[ObjectInfo]:
        return found[:1000]


class ListsByLetters(Listing):
    def changed(self, found: list[ObjectInfo], prefix: str, start_after: str) -> list[ObjectInfo]:
        return sorted(found, key=lambda each: each.key.lower())


class ListsFromTheBeginning(Listing):
    def changed(self, found: list[ObjectInfo], prefix: str, start_after: str) -> list[ObjectInfo]:
        return [self._objects[key][1] for key in sorted(self._objects) if key.startswith(prefix)]


class ListsLate(Listing):
    """Shows what was there when it was asked the last time."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, list[ObjectInfo]] = {}

    def changed(self, found: list[ObjectInfo], prefix: str, start_after: str) -> list[ObjectInfo]:
        shown, self._shown[prefix] = self._shown.get(prefix, []), found
        return shown


class KeepsTheDeleted(Broken):
    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        return {} if all("/gone/" in key for key in keys) else await super().delete_many(keys)


class RefusesMissing(Broken):
    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        refused = {key: "NoSuchKey" for key in keys if key not in self._objects}
        await super().delete_many(keys)
        return refused


@pytest.mark.parametrize(
    ("broken", "requirement", "seen"),
    [
        (NoCondition, "one winner", "8 of 8 writers of one key were told that theirs is stored"),
        (NoCondition, "refused overwrite", "other bytes was accepted"),
        (LooksThenWrites, "one winner", "8 of 8 writers"),
        (RefusesButWrites, "one winner", "the key holds 64 bytes of a writer that was refused, not the winner's"),
        (RefusesButWrites, "refused overwrite", "does not hold the first ones any more"),
        (CompletesAnyway, "streams", "was completed with If-None-Match: \\* though its key was taken"),
        (ShowsParts, "streams", "HEAD found an object that is being sent"),
        (RefusesItsOwn, "refused overwrite", "could not be told from another's"),
        (RemembersMissing, "read after write", "was not found over another connection"),
        (IgnoresRanges, "ranges", "the first byte, 1 bytes from 0 of 100000: 100000 bytes came"),
        (WrapsBeyondTheEnd, "ranges", "beginning at the end, 10 bytes from 100000 of 100000: 10 bytes came"),
        (WrongSize, "HEAD", "HEAD of an object of 4096 bytes says 2049"),
        (WrongChecksum, "HEAD", "gives a CRC-32C of other bytes"),
        (ListsOnePage, "list pages", r"of 1,005 objects, 1,000 were listed \(1,000 different\), 5 were missing"),
        (ListsByLetters, "list order", "gave 'a-b', 'b', 'd'"),
        (ListsFromTheBeginning, "list order", "are there in this order"),
        (ListsLate, "list after write", "after 1 objects were written, 0 were listed; '00000' did not show"),
        (ListsLate, "gone after delete", "after 1 of 4 objects were deleted, 0 were listed"),
        (KeepsTheDeleted, "gone after delete", "after 1 of 4 objects were deleted, 4 were listed"),
        (RefusesMissing, "batch delete", "of 1,010 keys that were deleted, 5 were refused: NoSuchKey"),
    ],
)
async def test_what_a_store_does_not_keep_is_found_and_told(broken: Callable[[], Broken], requirement: str, seen: str) -> None:
    store = broken()
    found = await certified(store)
    assert not found.passed
    (finding,) = [finding for finding in found.findings if finding.requirement.name == requirement]
    assert finding.outcome == "failed"
    with pytest.raises(AssertionError, match=seen):
        raise AssertionError(finding.seen)


async def test_what_is_merely_advised_is_weak_and_does_not_fail() -> None:
    found = await certified(WrongClock())
    (weak,) = [finding for finding in found.findings if finding.outcome != "passed"]
    assert (weak.requirement.name, weak.outcome) == ("times", "weak")
    assert "3,600 s away" in weak.seen
    assert found.passed


async def test_a_store_that_does_not_answer_is_not_said_to_keep_nothing() -> None:
    class Away(Broken):
        async def head(self, key: str) -> ObjectInfo:
            raise StoreUnavailable("SlowDown; try again later")

    found = await certified(Away())
    outcomes = {finding.requirement.name: finding.outcome for finding in found.findings}
    assert outcomes["HEAD"] == outcomes["read after write"] == "unclear"
    assert outcomes["one winner"] == "passed"
    assert not found.passed


async def test_what_cannot_be_deleted_is_told() -> None:
    class Keeps(Broken):
        async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
            return dict.fromkeys(keys, "AccessDenied")

    found = await certified(Keeps())
    assert "AccessDenied; delete them by other means" in found.left_behind
    assert not found.passed


async def test_a_trial_that_is_broken_off_deletes_what_it_wrote() -> None:
    store = Broken()
    begun = asyncio.Event()

    async def opened() -> MemoryStore:
        return store

    async def for_ever(_bench: object) -> str:
        begun.set()
        await asyncio.Event().wait()
        raise NotKept("never")

    more = [(Requirement("for ever", "", ""), for_ever)]
    trial = asyncio.create_task(certify(opened, effort=QUICK, clock=CLOCK, chance=random.Random(1), more=more))
    await begun.wait()
    assert store.keys()
    trial.cancel()
    await asyncio.wait([trial])
    assert trial.cancelled()
    assert store.keys() == []
