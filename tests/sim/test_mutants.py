"""Of each kind of bug one is planted in every test run, the one that is found soonest; `make mutants` plants them all."""

import pytest

from tests.sim.mutants import MUTANTS, hunt, killers, quick
from tests.sim.scenario import simulate


@pytest.mark.parametrize("name", quick())
def test_a_planted_bug_is_found(name: str) -> None:
    seed, _ = killers()[name]
    assert hunt(name, seed).seed, "the simulator has a hole: close it"


def test_a_planted_bug_is_gone_after_the_hunt() -> None:
    name = quick()[0]
    seed, _ = killers()[name]
    assert hunt(name, seed).seed
    assert not simulate(seed, seconds=10, mood=MUTANTS[name].mood).violations
