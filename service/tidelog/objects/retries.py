"""Attempts at one request, until it is answered or patience ends.

Waits have full jitter: drawn from 0 up to a bound that doubles. What is added up across attempts is whether one of them may
have happened, or may happen later (I5); no retry library keeps that, and none draws from a `Random` that is handed in.
Knows nothing of what is asked, or of whom.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tidelog.clock import Clock
from tidelog.errors import StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.randomness import Random

T = TypeVar("T")


class AttemptFailed(Exception):
    """One attempt came to nothing that is known; another may succeed."""

    def __init__(self, problem: str, *, may_happen: bool) -> None:
        super().__init__(problem)
        self.may_happen = may_happen
        """False only where it was certainly not done and never will be."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on."""

    max_attempts: int
    attempt_timeout_ms: int
    deadline_ms: int
    """For all attempts and the waits between them."""
    backoff_base_ms: int
    backoff_most_ms: int


async def retried(attempt: Callable[[], Awaitable[T]], patience: Patience, *, asked: str, changes: bool, clock: Clock, chance: Random) -> T:
    """Return the first answer. `asked` begins the sentence of an error; `changes` says that a lost answer matters.

    Raises StoreUnavailable, StoreOutcomeUnknown, and at once whatever `attempt` raises other than AttemptFailed.
    """
    deadline = clock.monotonic() + patience.deadline_ms / 1000
    may_have_happened = False
    for number in range(1, patience.max_attempts + 1):
        limit = min(patience.attempt_timeout_ms / 1000, deadline - clock.monotonic())
        try:
            async with asyncio.timeout(limit):
                return await attempt()
        except AttemptFailed as failure:
            problem, unknown = str(failure), failure.may_happen
        except TimeoutError:
            problem, unknown = f"no answer within {limit:.3g} s", True
        except StoreUnusable as error:
            if not may_have_happened:
                raise
            raise StoreOutcomeUnknown(f"{error}; but an attempt before may have happened, or may happen later (I5)") from error
        may_have_happened |= changes and unknown
        pause = chance.uniform(0, min(patience.backoff_most_ms, patience.backoff_base_ms * 2 ** (number - 1))) / 1000
        if number == patience.max_attempts or clock.monotonic() + pause >= deadline:
            break
        await asyncio.sleep(pause)
        if clock.monotonic() >= deadline:  # slept longer than asked: an attempt that cannot be sent any more would count as unknown
            break
    told = f"{asked} failed {number} times, at last with {problem}"
    if may_have_happened:
        raise StoreOutcomeUnknown(f"{told}; it may have happened, or may happen later: send the same again")
    raise StoreUnavailable(f"{told}; it was not done: try again later")
