"""When to try again, when to send twice, and what is said in the end."""

import asyncio
import random
from collections import Counter

import pytest
from tidelog.errors import StoreOutcomeUnknown, StoreUnavailable
from tidelog.objects.hedging import Hedger
from tidelog.objects.retries import AttemptFailed, Patience, retried

from tests.virtual_time import VirtualClock, run

PATIENCE = Patience(max_attempts=5, attempt_timeout_ms=1_000, deadline_ms=10_000, backoff_base_ms=1, backoff_most_ms=2)


def now() -> float:
    return asyncio.get_running_loop().time()


class HandClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return 0


class Draws(random.Random):
    """Remembers the bounds of the waits, and draws none."""

    def __init__(self) -> None:
        super().__init__(1)
        self.bounds: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append((a, b))
        return 0.0


async def test_waits_are_drawn_from_zero_to_a_bound_that_doubles_to_its_most() -> None:
    async def never() -> None:
        raise AttemptFailed("busy", may_happen=False)

    draws = Draws()
    with pytest.raises(StoreUnavailable, match="PUT failed 5 times, at last with busy; it was not done"):
        await retried(never, PATIENCE, asked="PUT", changes=True, clock=HandClock(), chance=draws)
    assert draws.bounds[:4] == [(0, 1), (0, 2), (0, 2), (0, 2)]


async def test_the_deadline_ends_the_attempts_before_their_number_does() -> None:
    clock = HandClock()

    async def slow() -> None:
        clock.now += 6
        raise AttemptFailed("busy", may_happen=False)

    with pytest.raises(StoreUnavailable, match="failed 2 times"):
        await retried(slow, PATIENCE, asked="GET", changes=False, clock=clock, chance=Draws())


@pytest.mark.parametrize("changes", [True, False])
async def test_a_wait_that_lasts_beyond_the_deadline_is_not_followed_by_an_attempt_without_time(changes: bool) -> None:
    """A machine may sleep meanwhile. An attempt that cannot be sent any more must not count as one that may have happened."""
    clock = HandClock()
    attempts = 0

    async def refuse() -> None:
        nonlocal attempts
        attempts += 1
        asyncio.get_running_loop().call_later(0, setattr, clock, "now", 100.0)
        raise AttemptFailed("busy", may_happen=False)

    patience = Patience(max_attempts=5, attempt_timeout_ms=1_000, deadline_ms=10_000, backoff_base_ms=20, backoff_most_ms=20)
    with pytest.raises(StoreUnavailable, match="PUT failed 1 times, at last with busy"):
        await retried(refuse, patience, asked="PUT", changes=changes, clock=clock, chance=random.Random(1))
    assert attempts == 1


@pytest.mark.parametrize("unknown_at", range(5))
async def test_one_unknown_attempt_makes_the_whole_write_unknown(unknown_at: int) -> None:
    attempts = iter(range(5))

    async def fail() -> None:
        raise AttemptFailed("busy", may_happen=next(attempts) == unknown_at)

    with pytest.raises(StoreOutcomeUnknown):
        await retried(fail, PATIENCE, asked="PUT", changes=True, clock=HandClock(), chance=Draws())


async def test_no_more_than_the_given_share_of_requests_is_sent_twice() -> None:
    hedger = Hedger(after_samples=1, percentile=0.99, most_share=0.1, clock=HandClock())  # no time passes: all are slow

    async def request() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    for _ in range(200):
        await hedger.run(request)
    assert 15 <= hedger.hedges <= 21


async def test_nothing_is_sent_twice_where_hedging_is_off() -> None:
    hedger = Hedger(after_samples=0, percentile=0.99, most_share=1.0, clock=HandClock())

    async def request() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    for _ in range(20):
        await hedger.run(request)
    assert hedger.hedges == 0


async def test_the_first_success_is_taken_and_the_other_request_ended() -> None:
    hedger = Hedger(after_samples=1, percentile=0.99, most_share=1.0, clock=HandClock())
    await hedger.run(lambda: asyncio.sleep(0))
    ended = asyncio.Event()
    sent = 0

    async def request() -> int:
        nonlocal sent
        sent += 1
        if sent == 1:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        return sent

    assert await hedger.run(request) == 2
    assert ended.is_set()


def test_waits_fill_the_whole_span_from_zero_to_their_bound() -> None:
    """Full jitter: writers that failed together do not come back together."""
    patience = Patience(max_attempts=2, attempt_timeout_ms=1000, deadline_ms=10_000, backoff_base_ms=1000, backoff_most_ms=1000)

    async def main() -> list[float]:
        came: list[float] = []
        chance = random.Random(7)

        async def refuse() -> None:
            came.append(now())
            raise AttemptFailed("SlowDown", may_happen=False)

        async def write() -> None:
            with pytest.raises(StoreUnavailable):
                await retried(refuse, patience, asked="PUT", changes=True, clock=VirtualClock(), chance=chance)

        await asyncio.gather(*(write() for _ in range(1000)))
        return came

    again = run(main)[1000:]
    tenths = Counter(int(moment * 10) for moment in again)
    assert set(tenths) <= set(range(11))
    assert all(60 <= tenths[tenth] <= 140 for tenth in range(10))


def test_a_storm_of_503_is_outlasted_without_a_herd() -> None:
    """A hundred writers meet a store that refuses everything for two seconds: all are done, with few requests, well spread."""
    patience = Patience(max_attempts=20, attempt_timeout_ms=1000, deadline_ms=60_000, backoff_base_ms=50, backoff_most_ms=2000)

    async def main() -> list[float]:
        came: list[float] = []
        chance = random.Random(7)

        async def attempt() -> bool:
            await asyncio.sleep(0.01)
            came.append(now())
            if now() < 2.0:
                raise AttemptFailed("SlowDown", may_happen=False)
            return True

        asked = {"asked": "PUT", "changes": True, "clock": VirtualClock(), "chance": chance}
        assert all(await asyncio.gather(*(retried(attempt, patience, **asked) for _ in range(100))))  # type: ignore[arg-type]  # unpacked
        return came

    came = run(main)
    assert len(came) < 100 * 12
    after_the_first = Counter(int(moment / 0.1) for moment in came if moment > 0.5)
    assert max(after_the_first.values()) < 60
    assert came[-1] < 2 + 4


def test_a_store_that_becomes_slow_as_a_whole_is_not_asked_twice_for_everything() -> None:
    async def main() -> tuple[int, int]:
        hedger = Hedger(after_samples=20, percentile=0.99, most_share=0.05, clock=VirtualClock())
        chance = random.Random(7)
        sent = 0

        async def request(slowest: float) -> None:
            nonlocal sent
            sent += 1
            await asyncio.sleep(chance.uniform(slowest / 2, slowest))

        for _ in range(50):
            await hedger.run(lambda: request(0.02))
        before = sent
        for _ in range(10):
            await asyncio.gather(*(hedger.run(lambda: request(3.0)) for _ in range(100)))
        return sent - before, hedger.hedges

    sent, hedges = run(main)
    assert 1000 <= sent <= 1000 * 1.05 + 5
    assert 20 <= hedges <= 1050 * 0.05 + 5


async def test_when_both_of_two_requests_are_refused_the_worse_outcome_is_told() -> None:
    hedger = Hedger(after_samples=1, percentile=0.99, most_share=1.0, clock=HandClock())
    await hedger.run(lambda: asyncio.sleep(0))
    second = asyncio.Event()
    outcomes = iter([True, False])

    async def request() -> None:
        may_happen = next(outcomes)
        if may_happen:
            await second.wait()
        second.set()
        raise AttemptFailed("no answer", may_happen=may_happen)

    with pytest.raises(AttemptFailed) as told:
        await hedger.run(request)
    assert told.value.may_happen
