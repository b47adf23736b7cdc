"""`tidelog broker` and `tidelog dev`, as far as a process's arguments go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tidelog.cli.app import app
from tidelog.config import GROUPS, Settings
from tidelog.server.settings import flag
from typer.testing import CliRunner

HEAVY = ("grpc", "sqlalchemy", "aiobotocore", "aiohttp", "aiokafka", "google.protobuf", "pydantic", "structlog", "prometheus_client")


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TIDELOG_")]:
        monkeypatch.delenv(name)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['tidelog', '--help']\nfrom tidelog.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_help_lists_every_setting_in_its_group() -> None:
    shown = CliRunner().invoke(app, ["broker", "--help"])
    assert shown.exit_code == 0
    words = shown.output.split()
    assert [name for name in Settings.model_fields if flag(name) not in words] == []
    assert [heading for heading in GROUPS if f"\n{heading}:\n" not in shown.output] == []


def test_print_config_shows_what_holds_and_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tidelog.yaml"
    file.write_text("zone: a\nlease_ms: 5000\n")
    monkeypatch.setenv("TIDELOG_LEASE_MS", "4000")
    monkeypatch.setenv("TIDELOG_MAX_UPLOADS", "3")
    flags = ["--zone", "b", "--insecure", "--no-reflection", "--broker-id=-x-", "--peer-token=hunter2"]
    shown = CliRunner().invoke(app, ["broker", "--config", str(file), *flags, "--print-config"])
    assert shown.exit_code == 0
    for line in (
        'zone: "b"  # flag --zone',
        f"lease_ms: 5000  # {file}",
        "max_uploads: 3  # environment variable TIDELOG_MAX_UPLOADS",
        "insecure: true  # flag --insecure",
        "reflection: false  # flag --reflection",
        'broker_id: "-x-"  # flag --broker-id',
        "cache_bytes: 67108864  # default",
    ):
        assert line in shown.output.splitlines()
    assert "hunter2" not in shown.output
    assert set(yaml.safe_load(shown.output)) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--segment-byte", "3"], "flag --segment-byte is no setting of Tidelog; did you mean --segment-bytes?"),
        (["--segment-byte=3", "--zones"], "flag --zones is no setting of Tidelog; did you mean --zone?"),
        (["--segment-bytes"], "flag --segment-bytes needs a value"),
        (["--segment-bytes", "many"], "it must be a whole number from 4096 to 268435456"),
        (["bucket"], "'bucket' stands alone"),
        (["--config", "/no/such/file"], "No such file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["broker", *arguments])
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_a_misspelt_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDELOG_SEGMENT_BYTE", "1")
    for command in (["broker"], ["dev", "--data-dir", str(tmp_path)]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert "did you mean TIDELOG_SEGMENT_BYTES?" in done.output


def test_a_place_that_cannot_hold_the_data_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["dev", "--data-dir", str(tmp_path / "file" / "data")])
    assert done.exit_code == 1
    assert "name another" in done.output
