"""`tidelog produce` and `tidelog consume` against a real service: lines in, the same lines out."""

import asyncio
import base64
import fcntl
import json
import random
import re
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tidelog
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidelog.records.batch import COMPRESSIONS, scan

from tests.command_line import COMMAND, Service, dev, done, environment, invoke, on_terminal, refused, run, started

_numbers = count(1)


@pytest.fixture
def three(server: str, topic: str) -> str:
    done("topics", "create", topic, "--partitions", "3", server=server)
    return topic


def records(server: str, *arguments: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in done("consume", *arguments, "--format", "json", server=server).splitlines()]


def produced(server: str, folder: Path, topic: str, content: bytes, *more: str) -> dict[str, Any]:
    (folder / "in").write_bytes(content)
    told: dict[str, Any] = json.loads(done("produce", topic, "--file", str(folder / "in"), "--format", "json", *more, server=server))
    return told


# ---- the same bytes


lines = st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"", b"\r", b"a\tb", "é".encode(), b"\xff\x00"])), max_size=8)


@given(content=lines.map(b"\n".join))
@example(content=b"")
@example(content=b"\n")
@example(content=b"no newline at the end")
@example(content=b"\n\n")
@example(content=b"a\r\nb\r\n")
@settings(max_examples=30, deadline=None)
def test_a_file_comes_back_byte_for_byte(dev_service: Service, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    server, name = dev_service.server, f"file-{next(_numbers)}"
    told = produced(server, tmp_path_factory.mktemp("file"), name, content)
    assert told["bytes"] == len(content)
    assert told["records"] == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    if content:  # else nothing has made the topic
        assert invoke("consume", name, "--format", "raw", server=server).stdout_bytes == content


def test_a_large_file_comes_back_through_pipes(server: str, topic: str) -> None:
    chance = random.Random(1)
    content = b"\n".join(chance.randbytes(chance.randrange(60)).replace(b"\n", b"") for _ in range(60_000)) + b"\nthe end"
    told = run("produce", topic, server=server, given=content)
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout.startswith(b"60,001 records (1.7 MiB) committed to %s:\n" % topic.encode())
    back = run("consume", topic, "--format", "raw", server=server)
    assert (back.returncode, back.stderr, back.stdout == content) == (0, b"", True)


@pytest.mark.parametrize("codec", sorted(COMPRESSIONS))
def test_lines_travel_in_the_codec_that_is_asked_for(server: str, topic: str, tmp_path: Path, codec: str) -> None:
    content = b"".join(b"a line much like the others, number %d\n" % n for n in range(5_000))
    produced(server, tmp_path, topic, content, "--compression", codec)
    assert done("consume", topic, "--format", "raw", server=server).encode() == content

    async def codecs() -> set[str]:
        async with tidelog.connect(server) as log:
            batches = log.consume(topic, follow=False).batches()
            return {header.compression async for batch in batches for header in scan(batch.data)}

    assert asyncio.run(codecs()) == {codec}


def test_a_file_is_read_while_it_is_still_being_written(server: str, topic: str) -> None:
    with started("produce", topic, server=server) as producing:
        assert producing.stdin
        producing.stdin.write("first\n")
        producing.stdin.flush()
        while not invoke("consume", topic, server=server).stdout:  # it commits what has come, and waits for more
            assert producing.poll() is None
        out, _ = producing.communicate("second\n", timeout=60)
    assert "2 records (13 B) committed" in out
    assert done("consume", topic, "--format", "raw", server=server) == "first\nsecond\n"


# ---- what is said of offsets


def test_the_offsets_that_are_told_are_where_the_records_are(server: str, three: str, tmp_path: Path) -> None:
    content = b"".join(b"line %d of some length to fill batches with, so that several partitions are used\n" % n for n in range(20_000))
    told = produced(server, tmp_path, three, content)
    found = records(server, three)
    expected = {
        (int(p), o) for p, runs in told["offsets"].items() for run_ in runs for o in range(run_["base_offset"], run_["next_offset"])
    }
    assert {(record["partition"], record["offset"]) for record in found} == expected
    assert sorted(str(record["value"]) for record in found) == sorted(content.decode().splitlines())
    shown = done("produce", three, "--file", str(tmp_path / "in"), "--partition", "1", server=server)
    base = 1 + max((o for p, o in expected if p == 1), default=-1)
    assert shown == f"20,000 records (1.6 MiB) committed to {three}:\n  partition 1: offsets {base} to {base + 19_999}\n"


def test_keys_are_split_off_and_choose_the_partition(server: str, three: str, tmp_path: Path) -> None:
    content = "".join(f"k{n % 10}::v{n}::x\n" for n in range(100)) + "no key\n::empty key\n"
    produced(server, tmp_path, three, content.encode(), "--key-separator", "::")
    found = records(server, three)
    assert Counter(record["key"] for record in found) == {f"k{n}": 10 for n in range(10)} | {None: 1, "": 1}
    places = {(record["key"], record["partition"]) for record in found if record["key"]}
    assert len(places) == 10, "each key in one partition"
    assert len({partition for _, partition in places}) > 1
    for key in (f"k{n}" for n in range(10)):
        assert [record["value"] for record in found if record["key"] == key] == [f"v{n}::x" for n in range(100) if f"k{n % 10}" == key]
    assert {record["value"] for record in found if not record["key"]} == {"no key", "empty key"}


def test_headers_go_with_every_record(server: str, topic: str, tmp_path: Path) -> None:
    produced(server, tmp_path, topic, b"a\nb", "--header", "source=test", "--header", "empty=", "--header", "x=1=2")
    own = [["source", "test"], ["empty", ""], ["x", "1=2"]]
    assert [record["headers"] for record in records(server, topic)] == [own, [*own, ["tidelog-line-end", "none"]]]
    assert done("consume", topic, "--format", "raw", server=server) == "a\nb"


# ---- what is read


def test_reading_begins_and_ends_where_it_is_told(server: str, topic: str, tmp_path: Path) -> None:
    values = [f"v{n}" for n in range(10)]
    produced(server, tmp_path, topic, "\n".join(values).encode() + b"\n")
    later = datetime.now(UTC) + timedelta(milliseconds=2)
    while datetime.now(UTC) <= later:
        time.sleep(0.001)
    produced(server, tmp_path, topic, b"late\n")

    def read(*where: str) -> list[str]:
        return done("consume", topic, "--format", "raw", *where, server=server).splitlines()

    assert read() == read("--from", "earliest") == read("--from", "0") == read("--from", "1h") == [*values, "late"]
    assert read("--from", "7") == [*values[7:], "late"]
    assert read("--from", "11") == read("--from", "latest") == read("--max-records", "0") == []
    assert read("--from", "3", "--max-records", "2") == values[3:5]
    assert read("--from", later.isoformat()) == ["late"]
    assert read("--from", later.astimezone().replace(tzinfo=None).isoformat()) == ["late"], "a time without a zone is local"
    assert read("--from", "2100-01-01") == []


def test_partitions_and_topics_are_chosen(server: str, three: str, tmp_path: Path) -> None:
    other = f"{three}-other"
    for partition in range(3):
        produced(server, tmp_path, three, b"%d\n" % partition, "--partition", str(partition))
    produced(server, tmp_path, other, b"other\n")

    def read(*arguments: str) -> list[str]:
        return sorted(done("consume", *arguments, "--format", "raw", server=server).splitlines())

    assert read(three) == ["0", "1", "2"]
    assert read(three, "--partition", "2", "--partition", "0") == ["0", "2"]
    assert read(three, other) == ["0", "1", "2", "other"]


def test_following_goes_on_with_what_is_appended_until_enough(server: str, topic: str, tmp_path: Path) -> None:
    produced(server, tmp_path, topic, b"before\n")
    with started("consume", topic, "--follow", "--max-records", "3", server=server) as following:
        assert following.stdout
        assert following.stdout.readline() == f"{topic}/0:0\tbefore\n"
        produced(server, tmp_path, topic, b"after\n")
        assert following.stdout.readline() == f"{topic}/0:1\tafter\n"
        assert following.poll() is None
        produced(server, tmp_path, topic, b"last\nnever shown\n")
        assert following.stdout.readline() == f"{topic}/0:2\tlast\n"
        assert following.wait(60) == 0
        assert following.stdout.read() == ""


def test_text_and_json_show_all_that_a_record_is_and_do_nothing_to_a_terminal(server: str, topic: str) -> None:
    async def append() -> None:
        async with tidelog.connect(server) as log, log.producer() as producer:
            await producer.send(topic, b"\x1b[31mred\x07\ttab", key="kéy".encode(), timestamp_ms=1000)
            await producer.send(topic, b"\xff\xfe", key=b"\x80", headers=[("h", b"\xff"), ("none", None)], timestamp_ms=2000)
            await producer.send(topic, None, key=b"gone", timestamp_ms=3000)

    asyncio.run(append())
    shown = invoke("consume", topic, server=server).stdout_bytes.decode()
    assert shown == (f"{topic}/0:0\tkéy\t\\x1b[31mred\\x07\ttab\n{topic}/0:1\t\\x80\t\\xff\\xfe\n{topic}/0:2\tgone\t(deleted)\n")
    encoded = {"base64": base64.b64encode(b"\xff").decode()}
    assert [{name: record[name] for name in ("timestamp_ms", "key", "value", "headers")} for record in records(server, topic)] == [
        {"timestamp_ms": 1000, "key": "kéy", "value": "\x1b[31mred\x07\ttab", "headers": []},
        {"timestamp_ms": 2000, "key": {"base64": "gA=="}, "value": {"base64": "//4="}, "headers": [["h", encoded], ["none", None]]},
        {"timestamp_ms": 3000, "key": "gone", "value": None, "headers": []},
    ]


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--from", "yesterday"), "'yesterday' is no position; write earliest, latest, an offset, a time as in 2030-01-31T12:00:00Z"),
        (("--from", "-1"), "'-1' is no position"),
        (("--max-records", "-1"), "--max-records"),
        (("--format", "xml"), "'xml' is not one of 'text', 'json', 'raw'"),
        (("--server", "localhost:99999"), "write HOST:PORT with a port from 1 to 65535"),
        (("--cert", "x.pem"), "only one of cert and key was given"),
        (("--ca", "/no/such/file"), "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_as_usage(arguments: tuple[str, ...], sentence: str) -> None:
    told = refused("consume", "t", *arguments, server="127.0.0.1:1", code=2)
    assert sentence in " ".join(told.replace("│", " ").split())


def test_produce_refuses_what_cannot_be_meant(server: str, topic: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a\n")
    for arguments, sentence in (
        (("--file", str(tmp_path / "none")), "does not exist"),
        (("--file", str(tmp_path)), "is a directory"),
        (("--header", "no-value"), "the header 'no-value' was given; write NAME=VALUE"),
        (("--header", "=v"), "write NAME=VALUE"),
        (("--key-separator", ""), "an empty --key-separator was given"),
        (("--compression", "rar"), "compression 'rar' was asked for; choose one of none, gzip"),
    ):
        assert sentence in refused("produce", topic, *arguments, server=server, code=2)
    assert "there is no such topic" in refused("consume", topic, server=server), "nothing was appended"


def test_what_is_not_there_is_named(server: str, three: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a\n")
    assert "topic 'nowhere' was asked for, but there is no such topic" in refused("consume", "nowhere", server=server)
    assert f"partition 3 of {three} was to be read, but it has 3" in refused("consume", three, "--partition", "3", server=server)
    assert f"partition 3 of topic '{three}' was asked for, but its partitions are 0 to 2; choose one" in refused(
        "produce", three, "--partition", "3", "--file", str(tmp_path / "in"), server=server
    )
    assert "was to be read from offset 5, but it ends before 0; begin at 0 or lower" in refused(
        "consume", three, "--from", "5", server=server
    )
    assert "offset 5" in refused("consume", three, "--from", "5", "--follow", server=server)
    assert "topic 'bad name' was to be created" in refused("produce", "bad name", "--file", str(tmp_path / "in"), server=server)


def test_a_line_that_is_too_large_is_refused_and_what_came_before_is_told(server: str, topic: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"small\n" + b"x" * (2 << 20) + b"\n")
    result = invoke("produce", topic, "--file", str(tmp_path / "in"), server=server)
    assert result.exit_code == 1
    assert "was to be sent, but max_record_bytes is" in result.stderr
    shown = invoke("consume", topic, "--format", "raw", server=server).stdout
    assert result.stdout == f"{shown.count('small')} record{'s' * (not shown)} ({6 * shown.count('small')} B) committed to {topic}" + (
        ":\n  partition 0: offset 0\n" if shown else ".\n"
    )


def test_topics_are_not_made_where_the_service_does_not_make_them(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a\n")
    with tidelog.embedded(auto_create_topics=False) as server:
        assert "there is no such topic; create it" in refused("produce", "t", "--file", str(tmp_path / "in"), server=server)


def test_nobody_there_is_told_on_a_terminal_at_once_and_ends_with_1() -> None:
    sentence = (
        "Error: no broker could be reached at 127.0.0.1:1 within 0.3 s: nothing listens there; start one, or mend the address [NOT_READY]"
    )
    assert refused("topics", "list", "--timeout", "0.3", server="127.0.0.1:1").strip() == sentence
    code, shown = on_terminal("topics", "list", "--timeout", "2.5", server="127.0.0.1:1")
    assert code == 1
    assert [line.strip() for line in shown.splitlines()] == [
        "No broker answers at 127.0.0.1:1 yet; trying for 2.5 s. To start one here: tidelog dev",
        sentence.replace("0.3", "2.5"),
    ]


# ---- pipes, terminals and signals


@pytest.fixture(scope="module")
def long_topic(dev_service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = "long"
    produced(dev_service.server, tmp_path_factory.mktemp("long"), name, b"".join(b"line %d\n" % n for n in range(200_000)))
    return name


@pytest.mark.parametrize("how", [("text",), ("json",), ("raw",), ("raw", "--follow")])
def test_a_reader_that_has_had_enough_ends_it_quietly(server: str, long_topic: str, how: tuple[str, ...]) -> None:
    command = [*COMMAND, "consume", long_topic, "--format", *how]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment(server)) as reading:
        assert reading.stdout
        assert reading.stderr
        assert b"line 0" in reading.stdout.readline()
        reading.stdout.close()
        assert reading.wait(60) == 0
        assert reading.stderr.read() == b""


def test_in_pipes_there_is_no_colour_and_no_bar_and_on_a_terminal_there_is(server: str, topic: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"".join(b"line %d\n" % n for n in range(200_000)))
    piped = run("produce", topic, "--file", str(tmp_path / "in"), server=server)
    assert piped.stderr == b""
    assert b"\x1b" not in piped.stdout
    code, shown = on_terminal("produce", topic, "--file", str(tmp_path / "in"), server=server)
    assert code == 0
    assert re.search(r"committed \x1b\[[0-9;]+m━", shown)
    assert "200,000 records (2.2 MiB) committed" in shown
    read = ("consume", topic, "--max-records", "1")
    assert run(*read, server=server).stdout == b"%s/0:0\tline 0\n" % topic.encode()
    assert on_terminal(*read, server=server)[1].endswith(f"\x1b[2m{topic}/0:0\x1b[0m\tline 0\r\n")
    assert on_terminal(*read, server=server, variables={"NO_COLOR": "1"})[1].endswith(f"{topic}/0:0\tline 0\r\n")


@pytest.fixture
def following(server: str, long_topic: str) -> Iterator["subprocess.Popen[str]"]:
    with started("consume", long_topic, "--follow", "--format", "raw", "--from", "199999", server=server) as process:
        assert process.stdout
        assert process.stdout.readline() == "line 199999\n"
        yield process


def test_ctrl_c_ends_following_without_a_word(following: "subprocess.Popen[str]") -> None:
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=60) == ("", "")
    assert following.returncode == 130


def test_ctrl_c_while_lines_are_waited_for_says_what_was_committed(server: str, topic: str) -> None:
    with started("produce", topic, server=server) as producing:
        assert producing.stdin
        producing.stdin.write("one\ntwo\n")
        producing.stdin.flush()
        while invoke("consume", topic, "--format", "raw", server=server).stdout != "one\ntwo\n":
            assert producing.poll() is None
        producing.send_signal(signal.SIGINT)
        out, told = producing.communicate(timeout=60)
    assert (producing.returncode, told) == (130, "")
    acknowledged = f"2 records (8 B) committed to {topic}:\n  partition 0: offsets 0 to 1\n"
    on_the_way = f"0 records (0 B) committed to {topic}.\n2 records more on the way: read to find out whether they were committed\n"
    assert out in (acknowledged, on_the_way), "they were read, but their acknowledgement may not have come yet"


def test_ctrl_c_before_an_answer_says_what_may_be_committed(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as (service, server, _), started("produce", "t", server=server) as producing:
        type_line(producing, "one\n")
        type_line(producing, "two\n")  # it is read once the first one has been acknowledged
        while invoke("consume", "t", "--format", "raw", server=server).stdout != "one\ntwo\n":
            assert producing.poll() is None
        service.send_signal(signal.SIGSTOP)  # it takes what comes, and answers nothing
        type_line(producing, "three\nfour\n")
        producing.send_signal(signal.SIGINT)
        out, told = producing.communicate(timeout=60)
        assert (producing.returncode, told) == (130, "")
        assert re.search(r"^[12] records? \(.*\) committed to t:\n", out)
        assert re.search(r"\n[23] records more on the way: read to find out whether they were committed\n$", out)


def type_line(process: "subprocess.Popen[str]", text: str) -> None:
    """Write to a command, and wait until it has read that."""
    assert process.stdin
    process.stdin.write(text)
    process.stdin.flush()
    while int.from_bytes(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder):
        assert process.poll() is None


@pytest.mark.parametrize("module", ["typer", "tidelog.cli.topics", "grpc"])
def test_ctrl_c_while_modules_load_ends_without_a_traceback(module: str) -> None:
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "from tidelog.__main__ import main\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['tidelog', 'consume', 't', '--server', '127.0.0.1:1']\n"
        "main()"
    )
    ended = subprocess.run([COMMAND[0], "-c", program], capture_output=True, env=environment(), timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")
