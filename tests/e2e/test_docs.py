"""README and docs are true: their commands are run, in the order in which they stand, and print what is written under them.

In console blocks a line that begins with `$ ` is a command (`> ` goes on with it), and what follows is what it prints. Numbers and
the width of gaps may be others, words may not; `…` stands for any lines. A page has one folder and one service: that of its own
`tidelog dev … &`, else an empty one in memory.
"""

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tidelog import errors
from tidelog.errors import TidelogError

from docs.reference import FOLDER, pages
from tests.command_line import dev, environment

ROOT = FOLDER.parent
PAGES = [ROOT / "README.md", *sorted(path for path in FOLDER.glob("*.md") if path.name not in pages()), ROOT / "examples/README.md"]
_FENCE = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")
_NUMBER = re.compile(r"\d[\d,.]*")


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in _FENCE.finditer(page.read_text()) if found[1] in languages]


@dataclass
class Command:
    line: str
    output: list[str] = field(default_factory=list)


def commands(block: str) -> list[Command]:
    found: list[Command] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        elif line.startswith("> ") and not found[-1].output:
            found[-1].line += "\n" + line[2:]
        else:
            found[-1].output.append(line)
    return found


def normal(line: str) -> str:
    return re.sub(r"\s+", " ", _NUMBER.sub("N", line)).strip()


def is_printed(lines: list[str], output: str) -> bool:
    pattern = "".join(r"(?:.*\n)*?" if line == "…" else re.escape(normal(line)) + "\n" for line in lines)
    return re.fullmatch(pattern, "".join(normal(line) + "\n" for line in output.splitlines())) is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=lambda page: page.name)
def test_commands_print_what_is_written_under_them(page: Path, folder: Path) -> None:
    ran = 0
    with ExitStack() as stack:
        server = None
        for _, block in blocks(page, "console"):
            for command in commands(block):
                started = re.fullmatch(r"tidelog dev(?: --data-dir (\w+))? &", command.line)
                if server is None:
                    name = (started and started[1]) or "tidelog-data"
                    _, server, metrics = stack.enter_context(dev(folder / name, *(() if started else ("--memory",))))
                if started:
                    greeting = f"Tidelog listens on {server}; metrics and health: http://{metrics}/metrics"
                    assert normal(command.output[0]) == normal(greeting)
                    continue
                environ = environment(server, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
                done = subprocess.run(
                    ["bash", "-c", f"exec 2>&1; {command.line}"], cwd=folder, env=environ, capture_output=True, text=True, timeout=120
                )
                assert is_printed(command.output, done.stdout), (command.line, done.stdout, command.output)
                ran += 1
    assert ran


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs_in_the_order_in_which_it_stands(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def execute(server: str) -> None:
        names: dict[str, object] = {}
        for _, block in blocks(page, "python"):
            source = block.replace('"localhost:9595"', repr(server))
            code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)
            if inspect.isawaitable(result):
                await result

    with dev(folder / "data", "--memory") as (_, server, _):
        asyncio.run(asyncio.wait_for(execute(server), 100))


def test_make_targets_that_are_named_are_there() -> None:
    named = {target for page in PAGES for target in re.findall(r"(?m)(?:^|`|\$ )make ([a-z-]+)", page.read_text())}
    assert {"demo", "dist", "test"} <= named
    for target in named:
        subprocess.run(["make", "-n", target, "SEED=1", "SEEDS=1-2"], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page.name, target)


def tree(root: type[TidelogError]) -> Iterator[type[TidelogError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_every_reason_has_its_line_in_troubleshooting_and_says_whether_to_try_again() -> None:
    reasons = {found.reason: found.retriable for found in tree(TidelogError) if "reason" in vars(found)}
    rows = re.findall(r"(?m)^\| `([A-Z_]+)` \| (yes|no) \| \S.*\. \|$", (FOLDER / "troubleshooting.md").read_text())
    assert {reason: again == "yes" for reason, again in rows} == reasons
    assert len(rows) == len(reasons)
