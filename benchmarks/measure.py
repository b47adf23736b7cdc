"""One figure of a run, beside the floor that was measured in the same run."""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    value: float
    unit: str
    floor: float | None = None
    floor_name: str = ""
    aim: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.floor if self.floor else None


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that is not counted."""
    work()
    return statistics.median(_timed(work, time.perf_counter) for _ in range(repeats))


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


async def wall_and_cpu(work: Callable[[], Awaitable[object]], repeats: int) -> tuple[float, float]:
    """Median wall and CPU seconds of an awaited call, after one that is not counted."""
    await work()
    rows = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        await work()
        rows.append((time.perf_counter() - wall, time.process_time() - cpu))
    return statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows)


async def cpu_of_each(works: Mapping[str, Callable[[], Awaitable[object]]], repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of each awaited call. They take turns, so that a machine that is busy for a while is so for all."""
    for work in works.values():
        await work()
    rows: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            began = time.process_time()
            await work()
            rows[name].append((time.process_time() - began) * 1000)
    return {name: statistics.median(row) for name, row in rows.items()}


async def alternate(repeats: int, works: Mapping[str, Callable[[], Awaitable[float]]]) -> dict[str, float]:
    """Median of what each of these returns. They take turns, so that a busy machine slows all alike."""
    turns = [{name: await work() for name, work in works.items()} for _ in range(repeats)]
    return {name: statistics.median(turn[name] for turn in turns) for name in works}
