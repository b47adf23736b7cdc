"""Whether an object store keeps what a log rests on, found out by trying, and how fast it is: what was seen, requirement by requirement.

All objects lie below a prefix of their own, and are deleted in the end, however it ends. What the port cannot ask (`s3.trials`) is
handed in.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tidelog.clock import Clock
from tidelog.errors import StoreError, StoreOutcomeUnknown, StoreUnavailable
from tidelog.objects.requirements import CHECKS, Bench, Check, Effort, NotKept, Requirement
from tidelog.objects.store import ObjectStore
from tidelog.randomness import Random, new_uuid

Outcome = Literal["passed", "weak", "failed", "unclear"]
"""`weak`: what is merely advised is not kept; `unclear`: the store did not answer, which says nothing about what it keeps."""

_KIB = 1024
_MIB = 1024 * 1024
_AT_ONCE = 16
_CLEANING_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What trying one requirement showed."""

    requirement: Requirement
    outcome: Outcome
    seen: str


@dataclass(frozen=True, slots=True)
class Timing:
    """How long requests of one kind and size took, one after the other."""

    operation: Literal["put", "get"]
    bytes: int
    samples: int
    p50_ms: float
    p99_ms: float
    concurrent_mib_per_s: float
    """With `_AT_ONCE` requests at the same time."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """All that was found."""

    findings: tuple[Finding, ...]
    timings: tuple[Timing, ...]
    left_behind: str
    """Why objects of the trial are still there, and where; empty where none are."""

    @property
    def passed(self) -> bool:
        """Whether Tidelog may be used with this store."""
        return not self.left_behind and all(finding.outcome in ("passed", "weak") for finding in self.findings)


async def certify(
    open_store: Callable[[], Awaitable[ObjectStore]],
    *,
    effort: Effort,
    clock: Clock,
    chance: Random,
    more: Sequence[Check] = (),
    told: Callable[[str, int, int], None] = lambda _name, _done, _all: None,
) -> Certificate:
    """Try everything. `told` hears what is tried now, how many are done, and of how many.

    Raises StoreUnusable and StoreUnavailable where not even one object can be written: there is nothing to find out then.
    """
    prefix = f"certify/{new_uuid(chance)}/"
    try:
        async with _opened(open_store) as first, _opened(open_store) as second:
            bench = Bench((first, second), prefix, effort, clock, chance)
            await first.put_new(f"{prefix}reached", [b"reached"])
            checks = [*CHECKS, *more]
            findings: list[Finding] = []
            for requirement, check in checks:
                told(requirement.name, len(findings), len(checks) + 1)
                findings.append(await _tried(requirement, check, bench))
            told("timings", len(findings), len(checks) + 1)
            timings = await _timed(bench) if effort.samples else ()
    except BaseException:
        # Writes that were under way have ended by now, for closing a store waits for them: so nothing comes after this.
        async with _opened(open_store) as fresh:
            await _cleaned(fresh, prefix)
        raise
    async with _opened(open_store) as fresh:
        return Certificate(tuple(findings), timings, await _cleaned(fresh, prefix))


@contextlib.asynccontextmanager
async def _opened(open_store: Callable[[], Awaitable[ObjectStore]]) -> AsyncIterator[ObjectStore]:
    store = await open_store()
    try:
        yield store
    finally:
        await store.close()


async def _tried(requirement: Requirement, check: Callable[[Bench], Awaitable[str]], bench: Bench) -> Finding:
    try:
        return Finding(requirement, "passed", await check(bench))
    except NotKept as found:
        return Finding(requirement, "weak" if requirement.advised else "failed", str(found))
    except (StoreUnavailable, StoreOutcomeUnknown) as error:
        return Finding(requirement, "unclear", f"the store did not answer: {error}")
    except StoreError as error:
        return Finding(requirement, "weak" if requirement.advised else "failed", str(error))


async def _cleaned(store: ObjectStore, prefix: str) -> str:
    """Delete whatever is below the prefix; return why something is left, or nothing."""
    problem = ""
    for _ in range(_CLEANING_ROUNDS):  # a store that lists late, or not all, shows the rest a moment later
        try:
            left = [found.key async for found in store.list(prefix)]
            if not left:
                return ""
            refused = await store.delete_many(left)
            problem = f"{len(left)} objects below {prefix!r} are still listed" + "".join(
                f"; {words}" for words in list(refused.values())[:1]
            )
        except StoreError as error:
            problem = f"what lies below {prefix!r} could not be deleted: {error}"
    return f"{problem}; delete them by other means"


# ---- figures


async def _timed(bench: Bench) -> tuple[Timing, ...]:
    found = []
    for size, samples in ((4 * _KIB, bench.effort.samples), (256 * _KIB, bench.effort.samples), (8 * _MIB, bench.effort.samples // 5)):
        count = max(3, samples)
        keys = [f"{bench.prefix}timed/{size}/{number}" for number in range(count)]
        contents = [bench.bytes(size)]
        store = bench.stores[0]

        def put(key: str, store: ObjectStore = store, contents: Sequence[bytes] = contents) -> Awaitable[object]:
            return store.put_new(key, contents)

        def get(key: str, store: ObjectStore = store, size: int = size) -> Awaitable[object]:
            return store.get_range(key, 0, size)

        found.append(await _one_timing(bench, "put", size, put, keys, [f"{key}-at-once" for key in keys]))
        found.append(await _one_timing(bench, "get", size, get, keys, keys))
    return tuple(found)


async def _one_timing(
    bench: Bench, operation: Literal["put", "get"], size: int, call: Callable[[str], Awaitable[object]], keys: list[str], at_once: list[str]
) -> Timing:
    times = []
    for key in keys:
        began = bench.clock.monotonic()
        await call(key)
        times.append((bench.clock.monotonic() - began) * 1000)
    times.sort()
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(key: str) -> None:
        async with slots:
            await call(key)

    began = bench.clock.monotonic()
    async with asyncio.TaskGroup() as calls:
        for key in at_once:
            calls.create_task(one(key))
    seconds = max(bench.clock.monotonic() - began, 1e-6)
    rate = len(at_once) * size / _MIB / seconds
    return Timing(operation, size, len(times), times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)], rate)
