"""`tidelog fsck` beside a running service, and after it: as people and as programs see it."""

import json
from pathlib import Path

from tests.command_line import dev, done, invoke, on_terminal, refused, run


def places(data: Path) -> tuple[str, ...]:
    return "--bucket", f"file://{data}/objects", "--metadata", f"sqlite://{data}/metadata.db"


def test_a_running_service_is_checked_damage_is_told_and_a_repair_waits_for_its_end(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with dev(data) as (_, server, _):
        assert run("produce", "greetings", server=server, given=b"hello\nworld\n").returncode == 0
        shown = done("fsck", *places(data))
        assert "1 partition, 1 extent, 2 records" in shown
        assert shown.endswith("nothing is lost, and nothing is in danger\n")
        assert "has it open; stop that one first" in refused("fsck", *places(data), "--repair")
        facts = json.loads(done("fsck", *places(data), "--mode", "quick", "--topic", "greetings", "--format", "json"))
        assert (facts["sound"], facts["full"], facts["records"], facts["findings"]) == (True, False, 2, [])
        assert "no such topic" in refused("fsck", *places(data), "--topic", "nothing")

        [segment] = (data / "objects").rglob("*.seg")
        content = bytearray(segment.read_bytes())
        content[60] ^= 1
        segment.write_bytes(content)
        result = invoke("fsck", *places(data))
        assert result.exit_code == 1
        assert result.stdout.startswith("DAMAGE damaged-bytes: topic greetings partition 0, offsets 0 to 2: bytes 8 to ")
        assert "NOT SOUND: 2 damaged-bytes" in result.stdout
        told = json.loads(invoke("fsck", *places(data), "--format", "json").stdout)
        assert told["found"] == {"damaged-bytes": 2}
        assert {finding["severity"] for finding in told["findings"]} == {"damage"}
    segment.unlink()
    result = invoke("fsck", *places(data), "--repair")
    assert result.exit_code == 1
    assert "DAMAGE missing-object: intake/" in result.stdout
    assert "repaired: 0 notes added" in result.stdout


def test_a_terminal_sees_how_far_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with dev(data) as (_, server, _):
        assert run("produce", "greetings", server=server, given=b"hello\n").returncode == 0
    code, shown = on_terminal("fsck", *places(data))
    assert code == 0
    assert "opening" in shown
    assert "nothing is lost, and nothing is in danger" in shown


def test_what_cannot_be_checked_is_told(tmp_path: Path) -> None:
    assert "bucket is not set" in refused("fsck", code=2)
    assert "what is kept in memory dies with its process" in refused("fsck", "--bucket", "memory://", "--metadata", "sqlite://", code=2)
    assert "no such directory" in refused("fsck", *places(tmp_path / "nothing"))
    (tmp_path / "objects").mkdir()
    assert "cannot be opened" in refused("fsck", *places(tmp_path))
    assert not (tmp_path / "metadata.db").exists()
    assert "TIDELOG_BUKET" in str(invoke_with("TIDELOG_BUKET"))


def invoke_with(variable: str) -> str:
    from tidelog.cli.app import app
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["fsck"], env={variable: "x"})
    assert result.exit_code == 2
    return result.output
