"""A service inside one's own process, for other people's tests."""

import asyncio
from pathlib import Path

import pytest
import tidelog
from tidelog.errors import InvalidSettings


async def values(address: str, topic: str) -> list[bytes | None]:
    async with tidelog.connect(address) as log:
        return [record.value async for record in log.consume(topic, start="earliest", follow=False)]


async def append(address: str, topic: str, *some: bytes) -> None:
    async with tidelog.connect(address) as log, log.producer() as producer:
        for value in some:
            await producer.send(topic, value)


async def test_the_fixture_serves_a_log_from_memory(tidelog_service: str) -> None:
    await append(tidelog_service, "first", b"a", b"b")
    assert await values(tidelog_service, "first") == [b"a", b"b"]


def test_a_directory_keeps_what_was_appended(tmp_path: Path) -> None:
    with tidelog.embedded(data_dir=tmp_path) as address:
        asyncio.run(append(address, "kept", b"a"))
    with tidelog.embedded(data_dir=tmp_path) as address:
        asyncio.run(append(address, "kept", b"b"))
        assert asyncio.run(values(address, "kept")) == [b"a", b"b"]


def test_a_setting_that_cannot_be_used_is_named() -> None:
    with pytest.raises((InvalidSettings, ValueError), match="lease_ms"), tidelog.embedded(lease_ms=1):
        pass
