"""Chance as a port, so that one seed gives one history.

`random.Random` keeps the protocol: production hands in `system_random()`, tests and the simulator
`random.Random(seed)`.
"""

import random
from typing import Protocol


class Random(Protocol):
    """The few draws that Tidelog makes."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """Return a float between `a` and `b`."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of `k` random bits."""
        ...


def system_random() -> Random:
    """Return the operating system's randomness."""
    return random.SystemRandom()


def new_uuid(chance: Random) -> str:
    """Return 32 lower-case hex digits drawn from `chance`: a name that will not be drawn twice."""
    return f"{chance.getrandbits(128):032x}"
