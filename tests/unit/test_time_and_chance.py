"""Time, chance and threads are handed in: nothing that a simulator drives may reach for them by itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import tidelog

DRIVEN = ("broker", "metadata", "objects", "records", "segments")
MODULES = frozenset(
    ("time", "random", "uuid", "secrets", "threading", "concurrent", "multiprocessing", "subprocess", "socket", "select", "sched")
)
NAMES = frozenset(
    ("asyncio.to_thread", "os.urandom", "os.getrandom", "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "Thread")
)
METHODS = frozenset(("run_in_executor", "set_default_executor"))


def reached_for(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, what) for each use of a clock, of chance or of threads that is not handed in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and (node.attr in METHODS or ast.unparse(node).endswith(tuple(NAMES))):
            yield node.lineno, ast.unparse(node)
            continue
        else:
            continue
        yield from ((node.lineno, f"import {name}") for name in names if name.partition(".")[0] in MODULES)


@pytest.mark.parametrize("package", DRIVEN)
def test_nothing_below_the_ports_reaches_for_time_chance_or_threads(package: str) -> None:
    root = Path(tidelog.__file__).parent / package
    files = sorted(root.rglob("*.py"))
    assert files
    found = [f"{file.relative_to(root)}:{line}: {what}" for file in files for line, what in reached_for(file.read_text())]
    assert not found, "take a Clock, a Random or an Executor in the constructor"


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from random import choice",
        "import concurrent.futures",
        "def f():\n    import uuid",
        "import asyncio\nasync def f(g):\n    await asyncio.to_thread(g)",
        "from datetime import datetime\nnow = datetime.now(tz=None)",
        "import os\nkey = os.urandom(16)",
        "async def f(loop, g):\n    await loop.run_in_executor(None, g)",
    ],
)
def test_what_is_not_handed_in_is_noticed(source: str) -> None:
    assert list(reached_for(source))


def test_what_is_handed_in_is_fine() -> None:
    assert not list(reached_for("import asyncio\nfrom tidelog.clock import Clock\nnow = clock.monotonic()\nawait_ = asyncio.sleep"))
