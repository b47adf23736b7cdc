"""Three real broker processes on one PostgreSQL and one bucket, and what can be done to them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

LEASE_MS = 1500


class BrokerProcess:
    """One broker under one id and one address, whichever process plays it."""

    def __init__(self, folder: Path, name: str, port: int, *, bucket: str, metadata: str) -> None:
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        self.most_rss = 0
        self._flags = {
            "broker-id": name,
            "bucket": bucket,
            "metadata": metadata,
            "listen": self.address,
            "metrics-listen": "",
            "lease-ms": LEASE_MS,
            "catalog-poll-ms": 100,
            "max-latency-ms": 20,
            "drain-propagation-ms": 50,
            "log-format": "json",
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start a process; it is ready some time later."""
        command = [sys.executable, "-m", "tidelog", "broker", *(f"--{name}={value}" for name, value in self._flags.items())]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*command, stderr=log, stdout=log)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """End the process at once, wherever it is."""
        if self.alive:
            self.send(signal.SIGKILL)
            assert self.process is not None
            await self.process.wait()

    async def drain(self) -> int:
        """Tell the process to leave, and wait until it has; return its exit code."""
        assert self.process is not None
        self.send(signal.SIGTERM)
        return await self.process.wait()

    def measure(self) -> None:
        """Remember the largest memory seen."""
        if self.alive:
            assert self.process is not None
            try:
                self.most_rss = max(self.most_rss, psutil.Process(self.process.pid).memory_info().rss)
            except psutil.NoSuchProcess:
                return


@asynccontextmanager
async def broker_processes(folder: Path, ports: list[int], *, bucket: str, metadata: str) -> AsyncIterator[list[BrokerProcess]]:
    """Run a broker on each port; none is left behind."""
    brokers = [BrokerProcess(folder, f"b{number}", port, bucket=bucket, metadata=metadata) for number, port in enumerate(ports)]
    try:
        for broker in brokers:
            await broker.start()
        yield brokers
    finally:
        for broker in brokers:
            if broker.alive:
                broker.send(signal.SIGCONT)
            await broker.kill()


def tail(broker: BrokerProcess, lines: int = 15) -> str:
    """Return the last lines that a broker's processes printed."""
    text = broker.log.read_text(errors="replace") if broker.log.exists() else ""
    return f"--- {broker.name}{os.linesep}" + os.linesep.join(text.splitlines()[-lines:])
