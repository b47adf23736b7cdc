"""Time as a port, so that a simulator can run hours in seconds.

Waiting is the event loop's business (`asyncio.sleep`, `asyncio.timeout`): a simulator brings its own loop.
No module below the server may read a clock of its own.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """What a process may know of time."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; counts time during which the machine or the process was suspended."""
        ...

    def wall_ms(self) -> int:
        """Return Unix time in milliseconds. For people and for timestamps, never to decide who may write."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return CLOCK_BOOTTIME where the system has it: unlike CLOCK_MONOTONIC it goes on while the machine sleeps."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    def wall_ms(self) -> int:
        """Return Unix time in milliseconds."""
        return time.time_ns() // 1_000_000
