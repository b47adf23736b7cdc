"""`tidelog rebuild` beside a real service: what it says, and what it refuses."""

import json
import signal
import subprocess
from pathlib import Path

from tests.command_line import COMMAND, dev, done, environment, invoke, refused


def append(server: str, topic: str, *values: bytes) -> None:
    subprocess.run([*COMMAND, "produce", topic], input=b"\n".join(values) + b"\n", env=environment(server), capture_output=True, check=True)


def test_a_deleted_database_comes_back(tmp_path: Path) -> None:
    places = ["--bucket", f"file://{tmp_path}/objects", "--metadata", f"sqlite:///{tmp_path}/metadata.db"]
    with dev(tmp_path) as (process, server, _):
        append(server, "greetings", b"a", b"b", b"c")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "holds brokers or topics already" in refused("rebuild", *places)
    for path in tmp_path.glob("metadata.db*"):
        path.unlink()
    said = done("rebuild", *places, "--dry-run")
    assert "Would come back: 1 topic, 1 partition, 3 records at their offsets" in said
    assert "nothing is in doubt" in said
    assert not (tmp_path / "metadata.db").exists()
    report = json.loads(done("rebuild", *places, "--format", "json"))
    assert (report["certain"], report["exact_records"], report["topics"]) == (True, 3, 1)
    with dev(tmp_path) as (process, server, _):
        assert done("consume", "greetings", "--format", "raw", server=server) == "a\nb\nc\n"
        append(server, "greetings", b"d")
        process.kill()
        process.wait(30)
    for path in tmp_path.glob("metadata.db*"):
        path.unlink()
    said = done("rebuild", *places)
    assert "Start the brokers." in said
    if "appended in their probable order" in said:  # no checkpoint has seen the last one
        assert any(line.split()[:3] == ["greetings", "0", "1"] for line in said.splitlines()), said
    with dev(tmp_path) as (_, server, _):
        assert done("consume", "greetings", "--format", "raw", server=server) == "a\nb\nc\nd\n"


def test_a_rebuild_that_does_not_find_everything_says_so_and_ends_with_1(tmp_path: Path) -> None:
    places = ["--bucket", f"file://{tmp_path}/objects", "--metadata", f"sqlite:///{tmp_path}/metadata.db"]
    with dev(tmp_path) as (process, server, _):
        append(server, "greetings", b"a", b"b", b"c")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for path in [*tmp_path.glob("metadata.db*"), *tmp_path.glob("objects/intake/**/*.seg"), *tmp_path.glob("objects/merged/**/*.seg")]:
        path.unlink()
    told = invoke("rebuild", *places, "--dry-run", "--format", "json")
    assert told.exit_code == 1
    report = json.loads(told.stdout)
    assert (report["whole"], report["exact_records"], len(report["log_starts_moved"])) == (False, 0, 1)
    told = invoke("rebuild", *places)
    assert told.exit_code == 1
    assert "The log begins later than the checkpoint says" in told.stdout
    assert "Not everything is back" in told.stdout
    with dev(tmp_path) as (_, server, _):
        assert done("consume", "greetings", "--format", "raw", server=server) == ""


def test_what_a_rebuild_refuses(tmp_path: Path) -> None:
    places = ["--bucket", f"file://{tmp_path}/objects", "--metadata", f"sqlite:///{tmp_path}/metadata.db"]
    for more in ([], ["--dry-run"]):
        assert "there is no such directory" in refused("rebuild", *places, *more)
        assert list(tmp_path.iterdir()) == [], "a mistyped bucket is not made"
    (tmp_path / "objects").mkdir()
    assert "no whole checkpoint" in refused("rebuild", *places)
    assert not list(tmp_path.glob("metadata.db*")), "nor a database that nothing will be in"
    assert "--bukket" in refused("rebuild", "--bukket", "x", code=2)
    assert "bucket is not set" in refused("rebuild", code=2)
    assert "metadata is not set" in refused("rebuild", *places[:2], code=2)
    assert "which names no store" in refused("rebuild", "--bucket", "ftp://x", *places[2:], code=2)
    for metadata in ("sqlite://", "sqlite:///"):
        assert "dies with its process" in refused("rebuild", *places[:2], "--metadata", metadata, code=2)
    assert "dies with its process" in refused("rebuild", "--bucket", "memory://", *places[2:], code=2)
