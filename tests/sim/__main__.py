"""`python -m tests.sim SEED` replays one run; `python -m tests.sim FIRST-LAST` runs many, on all cores."""

import logging
import os
import sys
import time
from collections import Counter
from multiprocessing import Pool

from tests.sim.scenario import simulate


def one(seed: int) -> tuple[int, dict[str, int], Counter[str], float, float]:
    logging.disable(logging.CRITICAL)
    began = time.perf_counter()
    try:
        found, world, loop = simulate(seed)
    except Exception as error:  # noqa: BLE001  a run that dies is a finding, too
        return seed, {f"{type(error).__name__}: {error}": 1}, Counter(), 0.0, 0.0
    return seed, found, world.counts, loop.now, time.perf_counter() - began


def main() -> int:
    first, _, last = sys.argv[1].partition("-")
    if not last:
        found, world, loop = simulate(int(first))
        for at, name, what in world.violations[:20]:
            print(f"{at:10.3f} {name}: {what}")
        print(found, f"{loop.now:.0f} s virtual, {loop.events} events, {len(world.history.sends)} sends", dict(world.counts), sep="\n")
        return bool(found)
    failed = 0
    counts: Counter[str] = Counter()
    with Pool(os.cpu_count(), maxtasksperchild=20) as pool:
        for seed, found, counted, virtual, wall in pool.imap_unordered(one, range(int(first), int(last) + 1)):
            counts += counted
            if found:
                failed += 1
                print(f"seed {seed}: {found} ({virtual:.0f} s virtual in {wall:.1f} s)", flush=True)
    print(f"{failed} seeds failed", dict(counts.most_common()), sep="\n")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
