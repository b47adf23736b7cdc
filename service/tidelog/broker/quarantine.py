"""What failed again and again: tried ever more slowly, told of, and never in the way of anything else (I10)."""

from dataclasses import dataclass

from tidelog.clock import Clock
from tidelog.telemetry import get_logger

_log = get_logger(__name__)
_AFTER = 3
"""Failures after which an item counts as poisoned."""
_MOST = 10_000
"""Items remembered; beyond that the oldest is forgotten, and tried anew."""
_MOST_DOUBLINGS = 20


@dataclass(slots=True)
class _Failure:
    times: int
    again_at: float


class Quarantine:
    """Items by name, of one kind of work."""

    def __init__(self, work: str, *, first_ms: int, retry_ms: int, clock: Clock) -> None:
        """Try an item again after `first_ms`, then after twice as long each time, up to `retry_ms`."""
        self._work = work
        self._first_s = first_ms / 1000
        self._retry_s = retry_ms / 1000
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def __len__(self) -> int:
        """Return how many items are poisoned."""
        return sum(failure.times >= _AFTER for failure in self._failures.values())

    def holds(self, item: str) -> bool:
        """Say whether the item is not to be tried yet."""
        failure = self._failures.get(item)
        return failure is not None and self._clock.monotonic() < failure.again_at

    def failed(self, item: str, problem: str) -> None:
        """Note that the item failed; it is told of once, when it counts as poisoned."""
        failure = self._failures.pop(item, None) or _Failure(0, 0.0)
        failure.times += 1
        failure.again_at = self._clock.monotonic() + min(self._retry_s, self._first_s * 2 ** min(failure.times - 1, _MOST_DOUBLINGS))
        self._failures[item] = failure
        if failure.times == _AFTER:
            _log.warning("quarantined", work=self._work, item=item, problem=problem, tried_again_every_ms=round(self._retry_s * 1000))
        if len(self._failures) > _MOST:
            del self._failures[next(iter(self._failures))]

    def done(self, item: str) -> None:
        """Note that the item went well."""
        if self._failures:
            self._failures.pop(item, None)
