"""A database that was restored from a backup under a newer bucket: real brokers notice, touch nothing, and end (I11)."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import tidelog

from tests.chaos.cluster import BrokerProcess, broker_processes, tail
from tests.chaos.scenario import free_ports, wait_until_served
from tests.postgres_server import PostgresServer

TOPIC = "kept"
Verb = Callable[[], Awaitable[object]]


async def append(brokers: list[BrokerProcess], *values: bytes) -> None:
    for broker in brokers:
        async with tidelog.connect(broker.address) as log, log.producer() as producer:
            for value in values:
                await producer.send(TOPIC, value + broker.name.encode(), partition=0)


async def everything(broker: BrokerProcess) -> list[bytes | None]:
    async with tidelog.connect(broker.address) as log:
        return [value async for batch in log.consume(TOPIC, start="earliest", follow=False).batches() for value in batch.values]


async def start_all(brokers: list[BrokerProcess]) -> None:
    for broker in brokers:
        await broker.start()


async def kill_all(brokers: list[BrokerProcess]) -> None:
    for broker in brokers:
        await broker.kill()


async def end_by_themselves(brokers: list[BrokerProcess]) -> None:
    for broker in brokers:
        assert await broker.ended() == 1, tail(broker)
        assert "TIME_TRAVEL" in tail(broker), tail(broker)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


async def lived_through(
    brokers: list[BrokerProcess], bucket: Path, *, back_up: Verb, restore: Verb, undo: Verb, while_they_run: bool
) -> None:
    """Append, back up, append more, restore the backup: nothing is done to the bucket until the newer database is there again."""
    await wait_until_served(brokers)
    async with tidelog.connect(brokers[0].address) as log:
        await log.admin.create_topic(TOPIC, partitions=1)
    await append(brokers, b"before ")
    await kill_all(brokers)
    await back_up()
    await start_all(brokers)
    await wait_until_served(brokers)
    await append(brokers, b"after ", b"later ")
    if not while_they_run:
        await kill_all(brokers)
    there = files(bucket)
    await restore()
    if not while_they_run:
        await start_all(brokers)
    await end_by_themselves(brokers)
    assert files(bucket) == there, "nothing was written, and nothing cleaned"
    await undo()
    await start_all(brokers)
    await wait_until_served(brokers)
    wanted = [f"before {broker.name}".encode() for broker in brokers]
    wanted += [f"{word} {broker.name}".encode() for broker in brokers for word in ("after", "later")]
    assert await everything(brokers[-1]) == wanted


@pytest.mark.parametrize("while_they_run", [False, True], ids=["while they were down", "under running brokers"])
async def test_brokers_end_on_an_older_postgres_and_go_on_with_the_newer_one(
    tmp_path: Path, postgres_server: PostgresServer, while_they_run: bool
) -> None:
    execute = postgres_server.execute

    async def back_up() -> None:
        await execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}")

    async def restore() -> None:
        await execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        await execute(f"ALTER DATABASE {name} RENAME TO {name}_newer")
        await execute(f"ALTER DATABASE {name}_backup RENAME TO {name}")

    async def undo() -> None:
        await execute(f"DROP DATABASE {name} WITH (FORCE)")
        await execute(f"ALTER DATABASE {name}_newer RENAME TO {name}")
        await execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    bucket = tmp_path / "objects"
    async with (
        postgres_server.database() as url,
        broker_processes(tmp_path, free_ports(3), bucket=f"file://{bucket}", metadata=url, checkpoint_interval_ms=0) as brokers,
    ):
        name = url.partition("?")[0].rpartition("/")[2]
        await lived_through(brokers, bucket, back_up=back_up, restore=restore, undo=undo, while_they_run=while_they_run)


async def test_a_broker_ends_on_an_older_sqlite_and_goes_on_with_the_newer_one(tmp_path: Path) -> None:
    bucket, live, backup, newer = (tmp_path / name for name in ("objects", "live", "backup", "newer"))
    live.mkdir()

    async def back_up() -> None:
        shutil.copytree(live, backup)

    async def restore() -> None:
        live.rename(newer)
        backup.rename(live)

    async def undo() -> None:
        shutil.rmtree(live)
        newer.rename(live)

    places = {"bucket": f"file://{bucket}", "metadata": f"sqlite://{live / 'metadata.db'}"}
    async with broker_processes(tmp_path, free_ports(1), **places, checkpoint_interval_ms=0) as brokers:
        await lived_through(brokers, bucket, back_up=back_up, restore=restore, undo=undo, while_they_run=False)
