"""A few seeds in every test run; `python -m tests.sim FIRST-LAST` runs as many as there is time for."""

import logging
import os
import subprocess
import sys

import pytest

from tests.sim.scenario import simulate


@pytest.mark.parametrize("seed", range(1, 13))
def test_no_anomaly_under_faults(seed: int) -> None:
    logging.disable(logging.CRITICAL)
    try:
        found, world, _ = simulate(seed)
    finally:
        logging.disable(logging.NOTSET)
    assert not found, (found, world.violations[:5])
    assert world.counts["send ok"] > 50, "the run did something"


def test_one_seed_gives_one_run_whatever_the_hash_seed() -> None:
    script = "from tests.sim.scenario import simulate; f, w, l = simulate(5); print(l.trace, l.events, len(w.history.sends))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "7")
    }
    assert len(runs) == 1
