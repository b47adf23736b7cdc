"""What `examples/` shows, run as its readers run it."""

import asyncio
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tidelog

from tests.command_line import done, environment

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@contextmanager
def example(name: str, *arguments: str, server: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(server)) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()


def lines_of(server: str, topic: str, count: int) -> list[str]:
    """Wait until a topic has so many records, and return their values."""
    found = done("consume", topic, "--follow", "--max-records", str(count), "--format", "raw", server=server)
    assert done("consume", topic, "--format", "raw", server=server) == found, "and no more"
    return found.splitlines()


def test_a_file_is_tailed_each_line_once_also_across_kills(server: str, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("one\ntwo\nhal")
    with example("tail_file.py", str(path), topic, server=server) as tailing:
        assert said(tailing) == f"{topic} ends at offset 0; {path} goes on at byte 0\n"
        assert lines_of(server, topic, 2) == ["one", "two"]
        with path.open("a") as file:
            file.write("f\nthree\n")
        assert lines_of(server, topic, 4) == ["one", "two", "half", "three"]
        tailing.kill()
    with path.open("a") as file:
        file.write("while nobody looked\n")
    with example("tail_file.py", str(path), topic, server=server) as tailing:
        assert said(tailing) == f"{topic} ends at offset 4; {path} goes on at byte 19\n"
        assert lines_of(server, topic, 5)[4:] == ["while nobody looked"]
        tailing.send_signal(signal.SIGINT)
        _, told = tailing.communicate(timeout=60)
        assert (tailing.returncode, told) == (130, "")


def test_two_that_tail_one_file_cannot_both_append(server: str, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.touch()
    with (
        example("tail_file.py", str(path), topic, server=server) as first,
        example("tail_file.py", str(path), topic, server=server) as second,
    ):
        said(first)
        said(second)
        path.write_text("".join(f"line {number}\n" for number in range(20)))
        assert lines_of(server, topic, 20) == [f"line {number}" for number in range(20)]


def test_a_worker_that_is_killed_counts_each_record_once(server: str, topic: str, tmp_path: Path) -> None:
    done("topics", "create", topic, "--partitions", "2", server=server)
    counts = str(tmp_path / "counts.db")

    async def append(first: int, last: int) -> None:
        async with tidelog.connect(server) as log, log.producer(linger_ms=0) as producer:
            for number in range(first, last):  # one by one, so that there are many batches to be killed between
                await producer.send(topic, b"word again", partition=number % 2)

    def words() -> dict[str, int]:
        with closing(sqlite3.connect(counts)) as found:
            return dict(found.execute("SELECT word, count FROM words"))

    asyncio.run(append(0, 200))
    with example("worker.py", topic, counts, server=server) as working:
        assert {said(working), said(working)} == {f"{topic}/{partition}: going on at earliest\n" for partition in range(2)}
        while not words():
            assert working.poll() is None
        working.kill()
    asyncio.run(append(200, 300))
    with example("worker.py", topic, counts, server=server) as working:
        went_on = said(working) + said(working)
        assert "earliest" not in went_on or went_on.count("earliest") == 1
        while words()["word"] < 300:
            assert working.poll() is None
        working.send_signal(signal.SIGINT)
        _, told = working.communicate(timeout=60)
        assert (working.returncode, told) == (130, "")
    assert words() == {"word": 300, "again": 300}


def test_the_past_is_replayed_between_two_moments_in_the_order_of_time(server: str, topic: str) -> None:
    done("topics", "create", topic, "--partitions", "2", server=server)
    noon = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)

    async def append() -> None:
        async with tidelog.connect(server) as log, log.producer() as producer:
            for minute, partition in ((0, 0), (10, 1), (20, 0), (30, 1)):
                moment = int((noon + timedelta(minutes=minute)).timestamp() * 1000)
                await producer.send(topic, b"minute %d" % minute, partition=partition, timestamp_ms=moment)

    asyncio.run(append())
    arguments = [topic, (noon + timedelta(minutes=10)).isoformat(), (noon + timedelta(minutes=30)).isoformat()]
    replayed = subprocess.run(
        [sys.executable, str(EXAMPLES / "replay.py"), *arguments], capture_output=True, text=True, env=environment(server)
    )
    assert replayed.returncode == 0, replayed.stderr
    told = [line.split(" ", 1) for line in replayed.stdout.splitlines()]
    assert [(datetime.fromisoformat(moment) - noon, value) for moment, value in told] == [
        (timedelta(minutes=10), "minute 10"),
        (timedelta(minutes=20), "minute 20"),
    ]


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on this machine; it installs what the Node.js client needs")
def test_a_client_in_another_language_is_made_from_the_contract_alone(server: str, topic: str, tmp_path: Path) -> None:
    for name in ("package.json", "client.mjs"):
        shutil.copy(EXAMPLES / "node" / name, tmp_path)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], cwd=tmp_path, check=True, capture_output=True, timeout=240
    )

    def node(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["node", "client.mjs", str(ROOT / "service"), server, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    told = node(topic, "hello", "wörld")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == f"appended to {topic}/0: offsets 0 to 1\n0 node: hello\n1 node: wörld\n"
    found = [json.loads(line) for line in done("consume", topic, "--format", "json", server=server).splitlines()]
    assert [(record["key"], record["value"]) for record in found] == [("node", "hello"), ("node", "wörld")]
    refused = node("bad name", "hello")
    assert refused.returncode == 1
    assert "a name has 1 to 249 of the characters" in refused.stderr


def test_every_example_is_listed_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    tested = Path(__file__).read_text()
    for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*/*.mjs")):
        assert f"({path.relative_to(EXAMPLES)})" in listed
        assert f'"{path.name}"' in tested
