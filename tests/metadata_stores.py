"""The metadata stores that the contract suite runs on."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tidelog.clock import SystemClock
from tidelog.executors import InlineExecutor, ThreadExecutor
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore

from tests.postgres_server import PostgresServer


@pytest.fixture(params=["sqlite", "sqlite-in-memory", "postgres"])
async def metadata_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    async with AsyncExitStack() as stack:
        store: MetadataStore
        if request.param == "sqlite":
            store = await open_sqlite(tmp_path / "meta.db", clock=SystemClock(), executor=ThreadExecutor("sqlite", threads=1))
        elif request.param == "sqlite-in-memory":
            store = await open_sqlite(IN_MEMORY, clock=SystemClock(), executor=InlineExecutor())
        else:
            server: PostgresServer = request.getfixturevalue("postgres_server")
            url = await stack.enter_async_context(server.database())
            store = await open_postgres(PostgresSettings(url))
        stack.push_async_callback(store.close)
        yield store
