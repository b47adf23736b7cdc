"""`python -m tests.sim SEED` replays one run and tells its story; `python -m tests.sim FIRST-LAST` runs many, on all cores."""

import argparse
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool

from tests.sim.scenario import FAULT_SECONDS, Outcome, simulate
from tests.sim.sometimes import SOMETIMES, never, reached

ENOUGH_SEEDS = 100
"""So many runs must have come by every place, or the set counts as failed."""
STORY_S = 10.0


@dataclass(frozen=True)
class Line:
    """What one of many runs came to."""

    seed: int
    cause: str
    """Empty where all was well."""
    counts: Counter[str]
    virtual_s: float
    cpu_s: float
    operations: int


def quietly(seed: int, *, seconds: float) -> Line:
    logging.disable(logging.CRITICAL)
    began = time.process_time()
    try:
        outcome = simulate(seed, seconds=seconds)
    except Exception as error:  # noqa: BLE001  a run that dies is a finding, too
        return Line(seed, f"the run died of {type(error).__name__}: {error}", Counter(), 0.0, 0.0, 0)
    history = outcome.world.history
    cause = ""
    if outcome.violations:
        first = outcome.violations[0]
        others = ", ".join(f"{count} of {name}" for name, count in outcome.found.items())
        where = "" if first.partition is None else f" in partition {first.partition}"
        cause = f"at {first.at:.3f} s{where}: {first.name}: {first.what} (in all {others})"
    operations = len(history.sends) + len(history.polls) + len(history.asked)
    return Line(seed, cause, reached(outcome.world), outcome.loop.now, time.process_time() - began, operations)


def many(seeds: Iterable[int], *, seconds: float, processes: int, minutes: float) -> int:
    """Run many seeds, or as many as there are minutes for; print what failed, what was reached and what never was."""
    seeds = list(seeds)
    began = told = time.monotonic()
    counts: Counter[str] = Counter()
    virtual_s, cpu_s, operations, done, failed = 0.0, 0.0, 0, 0, 0
    with Pool(processes, maxtasksperchild=20) as pool:
        for line in pool.imap_unordered(partial(quietly, seconds=seconds), seeds):
            counts += line.counts
            virtual_s += line.virtual_s
            cpu_s += line.cpu_s
            operations += line.operations
            done += 1
            if line.cause:
                failed += 1
                print(f"seed {line.seed}: {line.cause}", flush=True)
            if time.monotonic() > told + STORY_S:
                told = time.monotonic()
                print(f"… {done} of {len(seeds)} seeds, {failed} failed, {told - began:.0f} s", flush=True)
            if time.monotonic() > began + minutes * 60:
                break
    strikes = sum(count for place, count in counts.items() if place.startswith("fault: "))
    calls = sum(counts[f"{port} {outcome}"] for port in ("metadata", "store") for outcome in ("before", "after", "late"))
    wall_s = time.monotonic() - began
    print(f"{done} seeds, {failed} failed; {virtual_s:.0f} virtual seconds in {wall_s:.0f} s on {processes} cores, {cpu_s:.0f} s of CPU;")
    print(f"{strikes} faults, {calls} failed or late calls, {operations} operations")
    for place in sorted(SOMETIMES):
        print(f"  {counts[place]:>9}  {place}")
    missed = never(counts)
    print("never reached: " + (", ".join(missed) or "nothing"))
    return failed > 0 or (bool(missed) and done >= ENOUGH_SEEDS)


def tell(outcome: Outcome) -> int:
    """Print one run: what was drawn, and what led to the first violation."""
    world = outcome.world
    draw = world.draw
    print(f"seed {outcome.seed}: {draw.brokers} brokers, {draw.partitions} partitions, {draw.mood}: {draw.faults}")
    print(f"  {draw.settings.model_dump(exclude_defaults=True)}")
    if outcome.violations:
        print(*world.timeline.around(outcome.violations[0]), sep="\n")
        print(f"in all: {outcome.found}")
    sends = Counter(send.kind for send in world.history.sends)
    print(f"{outcome.loop.now:.0f} virtual seconds, {outcome.loop.events} events, sends {dict(sends)}, {len(world.history.polls)} polls")
    return bool(outcome.violations)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seeds", help="one seed, or FIRST-LAST")
    parser.add_argument("--seconds", type=float, default=FAULT_SECONDS, help="virtual seconds of faults in each run (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long (default: run all)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: all cores")
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("-")
    if not last:
        return tell(simulate(int(first), seconds=asked.seconds))
    return many(range(int(first), int(last) + 1), seconds=asked.seconds, processes=asked.processes, minutes=asked.minutes)


if __name__ == "__main__":
    sys.exit(main())
