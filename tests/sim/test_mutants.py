"""The bugs that are found soonest are planted in every test run; `make mutants` plants them all."""

import pytest

from tests.sim.mutants import MUTANTS, QUICK_SEEDS, hunt
from tests.sim.scenario import simulate


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.within <= QUICK_SEEDS])
def test_a_planted_bug_is_found(name: str) -> None:
    assert hunt(name).seed, "the simulator has a hole: close it"


def test_a_planted_bug_is_gone_after_the_hunt() -> None:
    name = next(iter(MUTANTS))
    assert hunt(name).seed
    assert not simulate(1, to_first=True).violations
