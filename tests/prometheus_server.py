"""A real Prometheus for tests: Debian's, installed or unpacked by `make prometheus`."""

import asyncio
import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

UNPACKED = Path(__file__).parents[1] / ".prometheus" / "usr" / "bin"


def program(name: str) -> str:
    """The path of prometheus or promtool; a test that needs one that is not there says so."""
    found = shutil.which(name) or shutil.which(UNPACKED / name)
    if found is None:
        pytest.skip(f"no {name} on this machine, and Debian's package could not be fetched (make prometheus)")
    return found


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query gives now, each with its labels and its value."""
        return list(self._get("query", {"query": query})["result"])

    def targets(self) -> list[dict[str, Any]]:
        return list(self._get("targets", {"state": "active"})["activeTargets"])

    def _get(self, what: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)["data"]
        return found


@contextmanager
def prometheus(folder: Path, scraped: Sequence[Mapping[str, Any]], rules: Sequence[Path] = ()) -> Iterator[Prometheus]:
    """Run one that scrapes these every half second."""
    command = program("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config = {"global": every, "scrape_configs": list(scraped), "rule_files": [str(path) for path in rules]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (folder / "output").open("wb") as told, subprocess.Popen([command, *options], cwd=folder, stdout=told, stderr=told) as process:
        try:
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()


async def until(holds: Any, told: Any, within_s: float = 60) -> None:
    """Wait until `holds()`; if it never does, fail with what `told()` says."""
    try:
        async with asyncio.timeout(within_s):
            while not await asyncio.to_thread(holds):
                await asyncio.sleep(0.2)
    except TimeoutError:
        pytest.fail(str(told()))
