"""The figures of a large cluster come from runs like this small one."""

import logging
from collections.abc import Iterator

import pytest

from tests.sim.loop import run
from tests.sim.scale import large


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_every_partition_is_led_again_whatever_befalls_brokers() -> None:
    told: list[str] = []
    loop = run(1, lambda loop: large(loop, 3, 1000, told))
    assert [line.count("|") for line in told[:8]] == [9] * 8, "each came to its end"
    assert loop.now < 60, "two leases, and what is polled"
    assert "of 0 appends" not in told[-1]
