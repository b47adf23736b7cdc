"""The command line as tests use it: in this process, as a process, and on a terminal; and a service started by it."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from tidelog.cli.app import app
from typer.testing import CliRunner, Result

COMMAND = [sys.executable, "-m", "tidelog"]
GREETING = re.compile(r"Tidelog listens on (127\.0\.0\.1:\d+); metrics and health: http://(127\.0\.0\.1:\d+)/metrics\n")
_topics = count(1)


def invoke(*arguments: str, server: str | None = None) -> Result:
    """Run a command in this process."""
    unset: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("TIDELOG_"))
    return CliRunner().invoke(app, arguments, env=unset | {"TIDELOG_SERVER": server})


def done(*arguments: str, server: str | None = None) -> str:
    """Run a command in this process that must not fail; return what it printed."""
    result = invoke(*arguments, server=server)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str, server: str | None = None, code: int = 1) -> str:
    """Run a command in this process that must fail with a sentence; return the sentence."""
    result = invoke(*arguments, server=server)
    assert result.exit_code == code, result.output
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output
    return str(result.stderr)


def environment(server: str | None = None, **more: str) -> dict[str, str]:
    """Return this process's variables without Tidelog's, but with those named."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")} | more
    return environ | ({} if server is None else {"TIDELOG_SERVER": server})


def run(*arguments: str, server: str | None = None, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run a command as a process, its standard input, output and errors as pipes."""
    return subprocess.run([*COMMAND, *arguments], input=given, capture_output=True, env=environment(server), timeout=120)


@contextmanager
def started(*arguments: str, server: str | None = None, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """A command as a process, with pipes; it does not outlive the context."""
    command, environ = [*COMMAND, *arguments], environment(server, **variables)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def on_terminal(
    *arguments: str,
    server: str | None = None,
    variables: Mapping[str, str] | None = None,
    typed: str = "",
    interrupted_after: str | None = None,
) -> tuple[int, str]:
    """Run a command on a terminal; return its exit code and all that it wrote there.

    `typed` is on the keyboard from the start; `interrupted_after` is a text after which Ctrl-C is pressed.
    """
    shown, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 100))
    environ = environment(server, TERM="xterm-256color")
    environ.pop("NO_COLOR", None)
    environ |= variables or {}
    process = subprocess.Popen([*COMMAND, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environ)
    os.close(terminal)
    os.write(shown, typed.encode())
    content = b""
    try:
        while True:
            try:
                content += os.read(shown, 65536)
            except OSError:  # nobody has it open any more
                break
            if interrupted_after is not None and interrupted_after.encode() in content:
                interrupted_after = None
                process.send_signal(signal.SIGINT)
        code = process.wait(60)
    finally:
        process.kill()
        os.close(shown)
    return code, content.decode()


@contextmanager
def dev(data_dir: Path, *more: str) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """A service that takes appends, its address and its metrics address."""
    with started("dev", "--data-dir", str(data_dir), "--port", "0", *more, TIDELOG_LOG_FORMAT="json") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = GREETING.fullmatch(line)
        assert found, (line, process.poll())
        assert process.stdout.readline() == f"Try: echo hello | tidelog produce greetings --server {found[1]}\n"
        kept = "in memory, and gone when it ends" if "--memory" in more else f"in {data_dir}"
        assert process.stdout.readline() == f"What is appended is kept {kept}. Ctrl-C ends the service.\n"
        yield process, found[1], found[2]


@dataclass(frozen=True, slots=True)
class Service:
    """A whole service in a process of its own, everything in memory; topics are made on first use."""

    server: str
    metrics: str


@pytest.fixture(scope="session")
def dev_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests that a worker runs: each takes topics of its own."""
    with dev(tmp_path_factory.mktemp("dev"), "--memory") as (_, server, metrics):
        yield Service(server, metrics)


@pytest.fixture
def server(dev_service: Service) -> str:
    """Where the service listens."""
    return dev_service.server


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic's name that no other test has."""
    return f"t{next(_topics)}-{re.sub('[^a-z_]', '', request.node.name)[:60]}"


def columns_of(table: str) -> list[Sequence[str]]:
    """Return the cells of a table that was printed into a pipe."""
    return [line.split() for line in table.splitlines() if line.strip()]
