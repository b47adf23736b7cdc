"""`tidelog demo`: every claim that it prints is checked against what it has left, and it leaves nothing where it is not asked to."""

import asyncio
import hashlib
import re
import signal
import socket
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import pytest
import tidelog
from tidelog.cli.demo.acts import PRODUCERS, Load, judge
from tidelog.cli.demo.service import Service as DemoService
from tidelog.cli.demo.text import PART_LINES, gather
from tidelog.cli.quantities import shown_bytes
from tidelog.client.consumer import ConsumedRecord
from tidelog.segments.format import decode

from tests.command_line import Service, dev, done, on_terminal, refused, run, started

LINES = 200_000


def number(text: str) -> int:
    return int(text.replace(",", ""))


def everything(folder: Path, topic: str) -> tuple[bytes, list[ConsumedRecord]]:
    """A topic's id and all its records, through another service on the same data."""

    async def read(address: str) -> tuple[bytes, list[ConsumedRecord]]:
        async with tidelog.connect(address) as log:
            described = await log.admin.describe_topic(topic)
            return described.topic_id, [record async for record in log.consume(topic, follow=False)]

    with tidelog.embedded(data_dir=folder) as address:
        return asyncio.run(read(address))


@pytest.mark.timeout(400)
def test_every_claim_that_the_demo_prints_holds(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    began = time.monotonic()
    played = run("demo", "--lines", str(LINES), "--data-dir", str(folder))
    took_s = time.monotonic() - began
    out = played.stdout.decode()
    assert (played.returncode, played.stderr) == (0, b"")
    assert "\x1b" not in out
    said = iter(line.strip() for line in out.splitlines() if line.strip())

    def says(pattern: str) -> re.Match[str]:
        line = next(said)
        found = re.fullmatch(pattern, line)
        assert found, (line, pattern)
        return found

    # What is there before the service is started again.
    objects = [path for path in (folder / "objects").rglob("*") if path.is_file()]
    segments = {path: decode(path.read_bytes()) for path in objects if path.suffix == ".seg"}
    object_bytes = sum(path.stat().st_size for path in objects)
    metadata_bytes = sum(path.stat().st_size for path in folder.glob("metadata.db*"))
    text = gather(LINES)
    text_id, read = everything(folder, "text")
    _, load = everything(folder, "load")

    says("Tidelog")
    says("a commit log that lives in a bucket; what you see is measured now, on this machine")

    says("1  A log in a folder")
    process, port, start_s = says(
        r"The whole service is one process, (\d+), on 127\.0\.0\.1:(\d+); it took (\d+\.\d) s to start\."
    ).groups()
    assert 0 < float(start_s) < took_s
    assert not psutil.pid_exists(int(process))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port))).close()
    says(rf"Its bucket is a folder and its metadata a SQLite file, both in {re.escape(str(folder))}\.")

    says("2  A text goes in, and the same text comes out")
    places = re.escape(" and ".join(text.places))
    files, lines, size = says(rf"The text: ([\d,]+) files of this machine's {places}, ([\d,]+) lines, (.*)\.").groups()
    assert (number(files), number(lines), size) == (text.files, text.lines, shown_bytes(text.size))
    assert text.lines >= LINES
    rate, producers, seconds = says(r"in +([\d,]+) lines/s  (\d) producers, each file's name as key, ([\d.]+) s").groups()
    assert int(producers) == PRODUCERS
    assert number(rate) == pytest.approx(text.lines / float(seconds), rel=0.06 / float(seconds) + 0.01)
    rate, partitions, seconds = says(r"out +([\d,]+) lines/s  from (\d) partitions, ([\d.]+) s").groups()
    assert int(partitions) == len({record.partition for record in read}) > 1
    assert number(rate) == pytest.approx(text.lines / float(seconds), rel=0.06 / float(seconds) + 0.01)
    by_key: dict[bytes | None, list[bytes | None]] = defaultdict(list)
    for record in read:
        by_key[record.key].append(record.value)
    (went_in,) = says("SHA-256, in +([0-9a-f]{64})").groups()
    (came_out,) = says("SHA-256, out +([0-9a-f]{64})").groups()
    assert went_in == sha256([line for piece in text.pieces for line in piece.lines])
    assert came_out == sha256([value for piece in text.pieces for value in by_key[piece.key]]) == went_in
    (keys,) = says(r"✓ equal, and equal for each of ([\d,]+) keys: what a partition holds stays in order").groups()
    assert number(keys) == len(text.pieces) == len(by_key)
    assert {piece.key: sha256(piece.lines) for piece in text.pieces} == {key: sha256(values) for key, values in by_key.items()}
    puts, gets, per_put, dollars = says(
        r"requests +([\d,]+) PUTs, ([\d,]+) GETs  ([\d,]+) lines a PUT; on S3 they would cost \$([\d.]+)"
    ).groups()
    of_the_text = sum(any(chunk.topic_id == text_id for chunk in footer.chunks) for footer in segments.values())
    assert of_the_text <= number(puts) <= of_the_text + 15, "and a marker or two of the cluster, and checkpoints"
    assert number(per_put) == round(text.lines / number(puts))
    assert float(dollars) == pytest.approx(number(puts) * 0.005 / 1000 + number(gets) * 0.0004 / 1000, abs=0.00001)

    says("3  kill -9, twice, under load")
    before = 0
    for _ in range(2):
        killed, acknowledged, in_flight, successor, pause_s = says(
            r"kill -9 (\d+) with ([\d,]+) records acknowledged and ([\d,]+) on their way;"
            r" process (\d+) acknowledged the next after ([\d.]+) s"
        ).groups()
        assert killed == process
        assert before < number(acknowledged) < len(load)
        assert number(in_flight) > 0
        assert 0 < float(pause_s) < took_s
        process, before = successor, number(acknowledged)
        assert not psutil.pid_exists(int(process))
    acknowledged, back, *rest = says(
        r"✓ ([\d,]+) records acknowledged, ([\d,]+) read back: (\d+) lost, (\d+) repeated, (\d+) out of order"
    ).groups()
    assert number(acknowledged) == number(back) == len(load)
    assert rest == ["0", "0", "0"]
    each = Counter(record.value.partition(b",")[0] for record in load if record.value)
    assert each == {b"producer %d" % producer: len(load) // PRODUCERS for producer in range(PRODUCERS)}
    for producer in range(PRODUCERS):
        own = [record.value for record in load if record.value and record.value.startswith(b"producer %d," % producer)]
        assert own == [b"producer %d, record %d" % (producer, index) for index in range(len(load) // PRODUCERS)], "all, once, in order"

    says("4  The database is deleted")
    (left,) = says(r"The service was stopped, and metadata\.db is gone: what is left is ([\d,]+) objects in the bucket\.").groups()
    rebuilt_s, topics, records, successor = says(
        r"tidelog rebuild made a new one of these in ([\d.]+) s: (\d) topics, ([\d,]+) records at their offsets, nothing in doubt;"
        r" process (\d+) serves them"
    ).groups()
    assert 0 < float(rebuilt_s) < took_s
    assert int(topics) == 2
    assert number(records) == len(read) + len(load), "all there are, and it is from that store that they were read above"
    assert not psutil.pid_exists(int(successor))
    assert 0 < number(left) <= len(objects) + 20, "since then there are a marker and a checkpoint or two more, and old ones fewer"
    keys, back, lost = says(r"✓ ([\d,]+) keys of the text equal, ([\d,]+) records of the load read back: (\d+) lost").groups()
    assert (number(keys), number(back), int(lost)) == (len(text.pieces), len(load), 0)

    says("5  What was written where")
    size, count, sent = says(r"objects/ +(.*?)  ([\d,]+) objects, each by one PUT, for (.*) of values \(zstd\)").groups()
    assert (size, number(count)) == (shown_bytes(object_bytes), len(objects))
    assert sent == shown_bytes(text.size + sum(len(record.value or b"") for record in load))
    (size,) = says(r"metadata\.db +(.*?)  which offsets are where in which object: the order, not the bytes").groups()
    assert size == shown_bytes(metadata_bytes)
    count, records = says(r"✓ every checksum in ([\d,]+) segments with ([\d,]+) records is right").groups()
    assert number(count) == len(segments)
    assert number(records) == sum(chunk.record_count for footer in segments.values() for chunk in footer.chunks)
    if number(records) > len(read) + len(load):
        uncommitted = says(
            r"([\d,]+) of them were uploaded, but not committed, at a kill: nobody reads those; their producers sent them again"
        )
        assert number(uncommitted[1]) == number(records) - len(read) - len(load)
    (example,) = says(r"One of the segments: (.*)").groups()
    assert "every checksum is right" in done("segment", "dump", str(folder / example))

    says("6  What to try next")
    commands = [re.sub(r"^\$ (.*?)  +.*$", r"\1", line) for line in said if line.startswith("$ ")]
    assert commands == [
        f"tidelog dev --data-dir {folder}", "tidelog consume text --max-records 5", "tidelog consume greetings --follow", "tidelog ping",
        "tidelog bench produce",
    ]  # fmt: skip
    (total_s,) = re.findall(r"That took (\d+) s\. Nothing is left running\.\n$", out)
    assert int(total_s) <= took_s + 1
    assert [found for found in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(found.info["cmdline"] or ())] == []
    with dev(folder) as (_, server, _):
        assert len(done("consume", "text", "--max-records", "5", server=server).splitlines()) == 5


def sha256(lines: object) -> str:
    assert isinstance(lines, list | tuple)
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def test_on_a_terminal_it_has_bars_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code, shown = on_terminal("demo", "--lines", "5000", variables={"TMPDIR": str(tmp_path)})
    assert code == 0, shown
    assert "━" in shown
    assert "✓" in shown
    assert shown.rstrip().endswith("Nothing is left running, and nothing is left on the disk.")
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_it_early_has_nothing_left_to_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    with started("demo", "--lines", "5000", TMPDIR=str(tmp_path)) as playing:
        assert playing.stdout
        while "The whole service is one process" not in playing.stdout.readline():
            assert playing.poll() is None
        playing.send_signal(number)
        _, told = playing.communicate(timeout=60)
    assert (playing.returncode, told) == (130, "")
    assert_nothing_left(tmp_path)


def assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if f"{folder}/tidelog-demo-" in command] == []


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert "it is not empty; name another" in refused("demo", "--data-dir", str(tmp_path))
    assert "it cannot be used" in refused("demo", "--data-dir", str(tmp_path / "mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# ---- what would have to be said if it did not hold


async def test_what_is_lost_repeated_or_out_of_order_is_counted(dev_service: Service, topic: str, tmp_path: Path) -> None:
    service = DemoService(tmp_path)
    service.address = dev_service.server
    async with tidelog.connect(service.address) as log, log.producer() as producer:
        for index in (0, 2, 1, 3, 3):
            await producer.send(topic, b"producer 0, record %d" % index, partition=0)
    load = Load(5)
    load.acknowledged = {b"producer 0, record 0": (0, 0), b"producer 0, record 1": (0, 1), b"producer 0, record 9": (0, 9)}
    verdict = await judge(service, topic, load)
    assert (verdict.read, verdict.lost, verdict.repeated, verdict.out_of_order) == (5, 2, 1, 2)


def test_text_comes_from_the_largest_place_and_where_it_has_too_little_from_the_next(tmp_path: Path) -> None:
    for name, content in (("long", b"x\n" * (PART_LINES + 1)), ("unterminated", b"a\n\nb"), ("empty", b""), ("small", b"y\n")):
        (tmp_path / name).write_bytes(content)
    places = {"small": [tmp_path / "small"], "large": [tmp_path / name for name in ("gone", "long", "empty", "unterminated")]}
    text = gather(PART_LINES + 5, places)
    assert (text.places, text.files, text.lines) == (["large", "small"], 3, PART_LINES + 5)
    assert [(piece.key.rpartition(b"/")[2], len(piece.lines)) for piece in text.pieces] == [
        (b"long#0", PART_LINES), (b"long#1", 1), (b"unterminated", 3), (b"small", 1),
    ]  # fmt: skip
    assert text.size == 2 * (PART_LINES + 1) + 5 + 2
    assert gather(1, places).files == 1
    assert gather(1 << 30, places).lines == PART_LINES + 5, "all that there is, where there is less"
