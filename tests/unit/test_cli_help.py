"""What the command line says of itself, without a service: help, version, completion; and what it loads for that."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from tidelog.cli.app import app
from tidelog.cli.quantities import duration_ms, shown_bytes, shown_limit, shown_ms, size_bytes, where
from typer.testing import CliRunner

from tests.command_line import COMMAND, environment

HEAVY = (
    "aiobotocore", "aiohttp", "aiokafka", "alembic", "asyncpg", "boto3", "botocore", "cramjam", "google.protobuf", "grpc",
    "prometheus_client", "pydantic", "rich.console", "rich.progress", "sqlalchemy", "structlog", "tidelog.client", "tidelog.server", "yaml",
)  # fmt: skip


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def test_there_is_every_command_that_users_are_promised() -> None:
    leaves = {" ".join(path) for path, command in ALL.items() if not hasattr(command, "commands")}
    assert leaves >= {
        "dev", "broker", "topics create", "topics list", "topics describe", "topics alter", "topics delete", "produce", "consume",
        "cluster describe", "cluster drain", "ping", "top", "segment dump", "bench produce", "bench consume", "bench latency", "certify",
        "rebuild", "cluster cost", "cluster clean", "fsck",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(ALL), ids=" ".join)
def test_every_command_and_every_option_says_what_it_is_for(path: tuple[str, ...]) -> None:
    command = ALL[path]
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: {' '.join(('tidelog', *path))} ")
    first = (command.help or "").splitlines()[0]
    assert first.endswith(".")
    assert len(first) < 60, "it is shown whole in the list of commands"
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


@pytest.mark.parametrize(
    "path", [(), ("produce",), ("consume",), ("topics",), ("bench", "latency"), ("segment", "dump"), ("dev",)], ids=" ".join
)
def test_help_loads_nothing_that_takes_time(path: tuple[str, ...]) -> None:
    program = (
        f"import sys, json; sys.argv = ['tidelog', *{path!r}, '--help']\n"
        "from tidelog.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment())
    loaded = json.loads(shown.stdout.splitlines()[-1])
    heavy = HEAVY if path == () else tuple(set(HEAVY) - {"pydantic"})  # with it typer reads options
    assert [name for name in loaded if name.startswith(heavy)] == []


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert CliRunner().invoke(app, ["--version"]).output == f"tidelog {version('tidelog')}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"), [(["frobnicate"], "No such command 'frobnicate'"), (["ping", "--no"], "No such option: --no")]
)
def test_what_there_is_not_is_refused_as_usage(arguments: list[str], sentence: str) -> None:
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 2
    assert sentence in told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    undetected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # else it is the shell that has started the tests
    script = subprocess.run([*COMMAND, "--show-completion", shell], capture_output=True, text=True, env=environment(**undetected)).stdout
    assert f"=complete_{shell}" in script


@pytest.mark.parametrize(("words", "expected"), [("tidelog to", ["top", "topics"]), ("tidelog consume --ma", ["--max-records"])])
def test_bash_is_told_what_may_come_next(words: str, expected: list[str]) -> None:
    variables = {"_TIDELOG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    asked = subprocess.run(
        [COMMAND[0], "-c", "import sys; sys.argv = ['tidelog']; from tidelog.__main__ import main; main()"],
        capture_output=True, text=True, env=environment(**variables),
    )  # fmt: skip
    assert sorted(asked.stdout.split()) == expected


# ---- quantities


@given(st.integers(-1, 1 << 40))
def test_a_duration_is_read_as_it_is_shown(milliseconds: int) -> None:
    assert duration_ms(shown_ms(milliseconds)) == milliseconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("17", 17),
        ("17b", 17),
        ("1k", 1024),
        ("1KiB", 1024),
        ("3 MB", 3 << 20),
        ("2g", 2 << 30),
        ("1TiB", 1 << 40),
        ("unlimited", -1),
    ],
)
def test_sizes_are_read_with_their_units(text: str, count: int) -> None:
    assert size_bytes(text) == count


@pytest.mark.parametrize(("parse", "text"), [
    (duration_ms, "7"), (duration_ms, ""), (duration_ms, "d"), (duration_ms, "7x"), (duration_ms, "-1d"),
    (size_bytes, ""), (size_bytes, "1.5k"), (size_bytes, "-2"), (size_bytes, "1x"), (where, ""), (where, "1.5"), (where, "2030-13-01"),
    (where, "99999999999d"),
])  # fmt: skip
def test_what_is_no_quantity_is_refused(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(typer.BadParameter):
        parse(text)


def test_bytes_and_limits_are_shown_short() -> None:
    assert [shown_bytes(n) for n in (0, 1023, 1024, 1536, 150 << 10, 5 << 30, 1 << 50)] == [
        "0 B", "1,023 B", "1.0 KiB", "1.5 KiB", "150 KiB", "5.0 GiB", "1,024 TiB",
    ]  # fmt: skip
    assert [shown_limit(n) for n in (None, -1, 1024)] == ["default", "unlimited", "1.0 KiB"]


def test_every_finding_of_fsck_is_explained_in_the_docs() -> None:
    from tidelog.broker.findings import FAULTS

    docs = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for code, fault in FAULTS.items():
        assert f"| `{code}` | {fault.severity} | {fault.means} | {fault.remedy} |" in docs
