"""A service inside one's own process, for other people's tests."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import tidelog
from tidelog.broker.broker import Broker
from tidelog.errors import InvalidSettings, MetadataUnusable, TimeTravel


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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lease_ms": 1}, r"lease_ms is 1 \(argument lease_ms\), but it must be a whole number from 500"),
        ({"lese_ms": 1000}, "argument lese_ms is no setting of Tidelog; did you mean lease_ms"),
        ({"max_append_bytes": 1024}, "a batch must fit into an append"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSettings, match=says), tidelog.embedded(**settings):
        pass


def test_what_keeps_it_from_starting_is_raised(tmp_path: Path) -> None:
    with tidelog.embedded(data_dir=tmp_path), pytest.raises(MetadataUnusable, match="has it open"), tidelog.embedded(data_dir=tmp_path):
        pass


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50% of a #name? with ö"
    with tidelog.embedded(data_dir=folder) as address:
        asyncio.run(append(address, "kept", b"a"))
    assert list((folder / "objects").rglob("*.seg"))


def test_a_service_that_fails_while_it_is_used_says_so_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a test would only see that nobody answers any more."""
    fail = threading.Event()
    run = Broker.run

    async def run_until_it_fails(broker: Broker, **addresses: str) -> None:
        running = asyncio.ensure_future(run(broker, **addresses))
        while not fail.is_set():
            await asyncio.wait([running], timeout=0.01)
        running.cancel()
        raise TimeTravel("the database is older than the bucket")

    monkeypatch.setattr(Broker, "run", run_until_it_fails)

    def use_it() -> None:
        with tidelog.embedded() as address:
            asyncio.run(append(address, "t", b"a"))
            fail.set()
            for thread in threading.enumerate():
                if thread.name == "tidelog-embedded" and thread not in before:
                    thread.join(30)

    before = threading.enumerate()
    with pytest.raises(TimeTravel):
        use_it()
