"""The store that fails on purpose: what its callers hear, and what has happened, or happens later (I5)."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from tidelog.errors import StoreOutcomeUnknown, StoreUnavailable
from tidelog.objects.faults import FaultRates, FaultyStore
from tidelog.objects.memory import MemoryStore

from tests.virtual_time import VirtualClock, run

WHO: ContextVar[str] = ContextVar("who", default="nobody")
KEY = "there"
Call = Callable[[FaultyStore], Awaitable[object]]


async def listed(store: FaultyStore) -> list[str]:
    return [found.key async for found in store.list()]


READS: dict[str, Call] = {"get": lambda s: s.get_range(KEY, 0, 9), "head": lambda s: s.head(KEY), "list": listed}
CHANGES: dict[str, Call] = {"put": lambda s: s.put_new("new", [b"new"]), "delete": lambda s: s.delete_many([KEY])}
ALL = READS | CHANGES


class Told(MemoryStore):
    """Remembers on whose behalf it was asked."""

    def __init__(self) -> None:
        super().__init__(clock=VirtualClock())
        self.askers: list[str] = []

    async def put_new(self, key: str, parts: Any) -> None:
        self.askers.append(WHO.get())
        await super().put_new(key, parts)


def simulated(main: Callable[[FaultyStore, Told], Coroutine[Any, Any, None]], *, rates: FaultRates, seed: int = 1) -> FaultyStore:
    """Run `main` on virtual time with a store that holds one object."""

    async def begun() -> FaultyStore:
        inner = Told()
        await inner.put_new(KEY, [b"something"])
        inner.askers.clear()
        store = FaultyStore(inner, clock=VirtualClock(), chance=random.Random(seed), rates=rates)
        await main(store, inner)
        await store.close()
        return store

    return run(begun)


async def stored(store: MemoryStore) -> list[str]:
    return [found.key async for found in store.list()]


@pytest.mark.parametrize("verb", ALL)
def test_what_failed_before_has_not_happened_and_never_will(verb: str) -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        errors = Counter[type[BaseException]]()
        for _ in range(100):
            with pytest.raises((StoreUnavailable, StoreOutcomeUnknown)) as told:
                await ALL[verb](store)
            errors[told.type] += 1
        await store.drain()
        assert await stored(inner) == [KEY]
        # Nobody can tell a request that got lost from an answer that got lost.
        assert set(errors) == ({StoreUnavailable, StoreOutcomeUnknown} if verb in CHANGES else {StoreUnavailable})

    assert simulated(main, rates=FaultRates(failed_before=1)).injected["failed_before"] == 100


@pytest.mark.parametrize("verb", ALL)
def test_what_failed_after_has_happened_but_is_not_told(verb: str) -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        with pytest.raises(StoreOutcomeUnknown if verb in CHANGES else StoreUnavailable):
            await ALL[verb](store)
        assert await stored(inner) == {"put": ["new", KEY], "delete": []}.get(verb, [KEY])

    assert simulated(main, rates=FaultRates(failed_after=1)).injected["failed_after"] == 1


@pytest.mark.parametrize("verb", ALL)
def test_what_is_late_happens_after_its_caller_gave_up(verb: str) -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        with pytest.raises(StoreOutcomeUnknown if verb in CHANGES else StoreUnavailable):
            await ALL[verb](store)
        assert await stored(inner) == [KEY]
        await store.drain()
        assert await stored(inner) == {"put": ["new", KEY], "delete": []}.get(verb, [KEY])

    assert simulated(main, rates=FaultRates(late=1)).injected["late"] == 1


@pytest.mark.parametrize("verb", ALL)
def test_without_faults_every_verb_is_done(verb: str) -> None:
    async def main(store: FaultyStore, _inner: Told) -> None:
        await ALL[verb](store)

    assert simulated(main, rates=FaultRates()).injected.total() == 0


def test_a_late_write_keeps_the_bytes_that_it_was_given() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        part = bytearray(b"first")
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("new", [part])
        part[:] = b"other"
        await store.drain()
        assert await inner.get_range("new", 0, 9) == b"first"

    simulated(main, rates=FaultRates(late=1))


def test_a_late_write_that_is_refused_by_then_is_only_counted() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("new", [b"late"])
        await inner.put_new("new", [b"sooner"])

    assert simulated(main, rates=FaultRates(late=1)).injected["late and failed"] == 1


def test_what_is_late_belongs_to_the_store_not_to_its_caller() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        WHO.set("a node")  # as a simulator marks what a process does, to drop it when the process is killed
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("new", [b"x"])
        await store.drain()
        assert inner.askers == ["nobody"]

    simulated(main, rates=FaultRates(late=1))


def test_draining_waits_also_for_what_becomes_late_meanwhile() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("one", [b"x"])
        drained = asyncio.ensure_future(store.drain())
        await asyncio.sleep(0)
        store.rates = FaultRates(late=1, late_by_most_seconds=1000)
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("two", [b"x"])
        await drained
        assert await stored(inner) == ["one", KEY, "two"]

    simulated(main, rates=FaultRates(late=1))


def test_in_a_storm_every_verb_is_refused_until_it_is_over() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        began = VirtualClock().monotonic()
        with pytest.raises(StoreUnavailable, match="SlowDown"):
            await store.head(KEY)
        store.rates = FaultRates()
        for call in ALL.values():
            with pytest.raises(StoreUnavailable, match="503"):
                await call(store)
        assert await stored(inner) == [KEY]
        refused = 0
        while True:
            try:
                await store.put_new("new", [b"x"])
                break
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.01)
        assert refused > 1
        assert 0 < VirtualClock().monotonic() - began <= 5.1

    assert simulated(main, rates=FaultRates(storm=1)).injected["storm"] == 1


def test_an_outage_cuts_off_listings_that_have_begun() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        await inner.put_new("two", [b"x"])
        listing = store.list()
        assert (await anext(listing)).key == KEY
        store.down = True
        with pytest.raises(StoreUnavailable, match="down"):
            await anext(listing)

    simulated(main, rates=FaultRates())


def test_a_slow_call_is_done_in_the_end() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        waits = []
        for _ in range(50):
            began = VirtualClock().monotonic()
            assert await store.get_range(KEY, 0, 9) == b"something"
            waits.append(VirtualClock().monotonic() - began)
        assert max(waits) <= 2.01
        assert 0.5 < sum(waits) / 50 < 1.5

    assert simulated(main, rates=FaultRates(slow=1)).injected["slow"] == 50


def test_a_listing_may_break_off_at_any_object_and_is_right_up_to_there() -> None:
    async def main(store: FaultyStore, inner: Told) -> None:
        await inner.delete_many([KEY])
        keys = [f"{number:03}" for number in range(100)]
        for key in keys:
            await inner.put_new(key, [b""])
        lengths = Counter[int]()
        for _ in range(200):
            found = []
            try:
                async for info in store.list():
                    found.append(info.key)  # noqa: PERF401  # what came before the error counts
            except StoreUnavailable:
                assert len(found) < 100
            else:
                assert len(found) == 100
            assert found == keys[: len(found)]
            lengths[len(found)] += 1
        assert len(lengths) > 30
        assert lengths[100] > 10

    simulated(main, rates=FaultRates(cut_off=0.02))


@pytest.mark.parametrize("fault", ["truncated", "altered"])
def test_what_is_read_may_come_damaged(fault: str) -> None:
    async def main(store: FaultyStore, _inner: Told) -> None:
        for _ in range(100):
            content = await store.get_range(KEY, 0, 9)
            assert content != b"something"
            if fault == "truncated":
                assert b"something".startswith(content)
            else:
                changed = [a ^ b for a, b in zip(content, b"something", strict=True)]
                assert sum(each.bit_count() for each in changed) == 1

    assert simulated(main, rates=FaultRates(**{fault: 1.0})).injected[fault] == 100


def test_the_same_seed_injects_the_same_faults_and_each_at_about_its_rate() -> None:
    rates = FaultRates(failed_before=0.1, failed_after=0.1, late=0.1, slow=0.1, truncated=0.1)

    def faults(seed: int) -> tuple[Counter[str], list[object]]:
        history: list[object] = []

        async def main(store: FaultyStore, inner: Told) -> None:
            for number in range(1000):
                try:
                    await (store.put_new(f"k{number}", [b"x"]) if number % 2 else store.get_range(KEY, 0, 9))
                    history.append((number, "done", VirtualClock().monotonic()))
                except (StoreUnavailable, StoreOutcomeUnknown) as error:
                    history.append((number, type(error), VirtualClock().monotonic()))

        return simulated(main, seed=seed, rates=rates).injected, history

    injected, history = faults(3)
    assert (injected, history) == faults(3)
    assert history != faults(4)[1]
    assert all(60 <= injected[name] <= 140 for name in ("failed_before", "failed_after", "late", "slow"))
    assert 15 <= injected["truncated"] <= 60
