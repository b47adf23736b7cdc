"""Fixtures for tests that need a log: loaded by pytest by itself where Tidelog is installed."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def tidelog_service() -> Iterator[str]:
    """The address, HOST:PORT, of a service inside this process, everything in memory; one for the whole session."""
    from tidelog.embedding import embedded

    with embedded() as address:
        yield address
