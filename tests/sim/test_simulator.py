"""A few seeds in every test run; `make sim-many SEEDS=…` runs as many as there is time for."""

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.sim.scenario import simulate
from tests.sim.sometimes import SOMETIMES, never, reached
from tests.sim.timeline import Timeline, Violation


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(1, 13))
def test_no_anomaly_under_faults(seed: int) -> None:
    outcome = simulate(seed)
    assert not outcome.violations, outcome.violations[:5]
    assert outcome.world.counts["send ok"] > 10, "the run did something"


def test_one_seed_gives_one_run_whatever_the_hash_seed() -> None:
    script = "from tests.sim.scenario import simulate; o = simulate(5); print(o.loop.trace, o.loop.events, len(o.world.history.sends))"
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


def test_one_seed_gives_one_run_wherever_its_objects_lie() -> None:
    assert len({simulate(1, seconds=10, to_first=True).loop.trace for _ in range(5)}) == 1


def test_a_violation_comes_with_what_led_to_it() -> None:
    timeline = Timeline()
    timeline.tell(1.0, "leads", "b0.0", "made broker epoch {} leader in epoch {}", 1, 7, partition=0)
    timeline.tell(9.5, "client", "", "values {}: {}", [3], "ok", partition=1)
    timeline.tell(9.6, "fault", "b1.0", "pause, for {:.1f} s", 2.04)
    timeline.tell(9.7, "client", "", "values {}: {}", [4], "ok", partition=0)
    timeline.tell(12.0, "client", "", "values {}: {}", [5], "ok", partition=0)
    story = "\n".join(timeline.around(Violation(10.0, "lost write", "value 4", partition=0)))
    assert "pause, for 2.0 s" in story
    assert "values [4]: ok" in story
    assert "VIOLATION  lost write: value 4" in story
    assert "partition 0: b0.0 made broker epoch 1 leader in epoch 7" in story
    assert "[3]" not in story, "another partition's"
    assert "[5]" not in story, "after it"


def test_a_set_of_runs_says_what_it_never_reached() -> None:
    assert never(Counter(SOMETIMES)) == []
    assert never(Counter(SOMETIMES[1:])) == [SOMETIMES[0]]


def test_runs_reach_brokers_branches_and_say_so() -> None:
    counts = reached(simulate(1).world)
    for place in ("send ok", "commit: committed", "tidelog_appends_total accepted", "read: look_ups", "take_over: taken"):
        assert counts[place], place
