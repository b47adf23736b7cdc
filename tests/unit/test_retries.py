"""When to try again, when to send twice, and what is said in the end."""

import asyncio
import random

import pytest
from tidelog.errors import StoreOutcomeUnknown, StoreUnavailable
from tidelog.objects.hedging import Hedger
from tidelog.objects.retries import AttemptFailed, Patience, retried

PATIENCE = Patience(max_attempts=5, attempt_timeout_ms=1_000, deadline_ms=10_000, backoff_base_ms=1, backoff_most_ms=2)


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
