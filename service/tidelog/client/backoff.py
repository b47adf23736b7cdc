"""How long to wait before something is tried again."""

from tidelog.randomness import Random

_FIRST_S = 0.05
_LONGEST_S = 2.0


def pause_s(failures: int, chance: Random) -> float:
    """Return how long to wait after so many failures in a row: full jitter, below a bound that doubles."""
    return chance.uniform(0, min(_LONGEST_S, _FIRST_S * 2 ** min(failures, 16)))
