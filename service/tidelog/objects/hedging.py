"""A slow request is sent once more, and the first success taken.

Slow means: slower than a share of the recent ones of its kind. Extra requests are capped as a share of all, so that a store
that is slow as a whole is not asked twice for everything. Only for requests that may be sent twice.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tidelog.clock import Clock
from tidelog.errors import StoreUnusable
from tidelog.objects.retries import AttemptFailed

T = TypeVar("T")

_WINDOW = 500
_BURST = 4.0


class Hedger:
    """Measures the requests of one kind and hedges the slow ones."""

    def __init__(self, *, after_samples: int, percentile: float, most_share: float, clock: Clock) -> None:
        """Hedge once `after_samples` have been measured (0: never); `percentile` and `most_share` lie between 0 and 1."""
        self._after_samples = after_samples
        self._percentile = percentile
        self._most_share = most_share
        self._clock = clock
        self._latencies: deque[float] = deque(maxlen=_WINDOW)
        self._credit = 1.0
        self.hedges = 0
        """How many requests were sent a second time."""

    async def run(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the first answer of one or two requests; where both fail, raise what says most about their outcome."""
        self._credit = min(_BURST, self._credit + self._most_share)
        began = self._clock.monotonic()
        tasks = [asyncio.ensure_future(request())]
        try:
            limit = self._limit()
            if limit is not None:
                done, _ = await asyncio.wait(tasks, timeout=limit)
                if not done and self._credit >= 1:  # looked at only now: others have waited and spent meanwhile
                    self._credit -= 1
                    self.hedges += 1
                    tasks.append(asyncio.ensure_future(request()))
            answer = await _first_answer(tasks)
        finally:
            # I5: with an answer the outcome is known, whatever becomes of the other: it asked for the same. Without one,
            # both have ended, or the caller was cancelled and learns nothing.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._latencies.append(self._clock.monotonic() - began)
        return answer

    def _limit(self) -> float | None:
        """Return the seconds after which a request is slow; None where too few were measured."""
        if not self._after_samples or len(self._latencies) < self._after_samples:
            return None
        return sorted(self._latencies)[int((len(self._latencies) - 1) * self._percentile)]


async def _first_answer(tasks: list[asyncio.Task[T]]) -> T:
    """Return the first answer, or raise the first error that is one; failures wait for the other task."""
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not isinstance(task.exception(), AttemptFailed | StoreUnusable):
                return task.result()
    return max(tasks, key=_weight).result()


def _weight(task: asyncio.Task[T]) -> int:
    """Rank failures: "unknown" must not be hidden by "refused" (I5), nor that by "not done"."""
    error = task.exception()
    if isinstance(error, AttemptFailed):
        return 2 if error.may_happen else 0
    return 1
