"""Three real broker processes on one PostgreSQL and one bucket, and what can be done to them."""

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

LEASE_MS = 1500


class Spawner:
    """Starts processes quickly; see `tests.chaos.spawner`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked: deque[asyncio.Future[int]] = deque()
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._hearing = asyncio.create_task(self._hear())

    async def spawn(self, flags: dict[str, Any], log: Path) -> tuple[int, "asyncio.Future[int]"]:
        """Start a broker; return its process id, and the future of its exit code."""
        assert self._process.stdin is not None
        began = asyncio.get_running_loop().create_future()
        self._asked.append(began)
        self._process.stdin.write(json.dumps([flags, str(log)]).encode() + b"\n")
        pid = await began
        return pid, self._ended[pid]

    async def _hear(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, pid, *code = line.split()
            if word == b"began":
                self._ended[int(pid)] = asyncio.get_running_loop().create_future()
                self._asked.popleft().set_result(int(pid))
            else:
                self._ended.pop(int(pid)).set_result(int(code[0]))

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._hearing


@asynccontextmanager
async def spawner(module: str = "tests.chaos.spawner") -> AsyncIterator[Spawner]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    found = Spawner(process)
    try:
        yield found
    finally:
        await found.close()


class BrokerProcess:
    """One broker under one id and one address, whichever process plays it."""

    def __init__(self, spawner: Spawner, folder: Path, name: str, port: int, flags: dict[str, Any]) -> None:
        self.name = name
        self.address = flags.get("advertise") or f"127.0.0.1:{port}"
        """Where others reach it."""
        self.log = folder / f"{name}.log"
        self.most_rss = 0
        self._spawner = spawner
        self._pid = 0
        self._ended: asyncio.Future[int] | None = None
        self._flags = {
            "broker_id": name,
            "listen": f"127.0.0.1:{port}",
            "metrics_listen": "",
            "lease_ms": LEASE_MS,
            "catalog_poll_ms": 100,
            "max_latency_ms": 20,
            "drain_propagation_ms": 50,
            "log_format": "json",
            **flags,
        }

    def change(self, **flags: Any) -> None:
        """Have the next process run with other settings."""
        self._flags |= flags

    async def start(self) -> None:
        """Start a process; it is ready some time later."""
        self._pid, self._ended = await self._spawner.spawn(self._flags, self.log)

    @property
    def alive(self) -> bool:
        return self._ended is not None and not self._ended.done()

    def send(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    async def ended(self) -> int:
        """Wait for the process's end; return its exit code."""
        assert self._ended is not None
        return await self._ended

    async def kill(self) -> None:
        """End the process at once, wherever it is."""
        if self.alive:
            self.send(signal.SIGKILL)
            await self.ended()

    async def drain(self) -> int:
        """Tell the process to leave, and wait until it has; return its exit code."""
        self.send(signal.SIGTERM)
        return await self.ended()

    def holds(self, socket: str) -> bool:
        """Return whether the process has this socket, named as in /proc, open."""
        try:
            with os.scandir(f"/proc/{self._pid}/fd") as files:
                return any(os.readlink(each.path) == socket for each in files)
        except (FileNotFoundError, ProcessLookupError):  # the process, or one of its files, ended meanwhile
            return False

    def measure(self) -> None:
        """Remember the largest memory seen."""
        if self.alive:
            try:
                self.most_rss = max(self.most_rss, psutil.Process(self._pid).memory_info().rss)
            except psutil.NoSuchProcess:
                return


@asynccontextmanager
async def broker_processes(
    folder: Path, ports: list[int], *, advertise: Sequence[str] = (), **flags: Any
) -> AsyncIterator[list[BrokerProcess]]:
    """Run a broker on each port, known to others by the addresses in `advertise`; none is left behind."""
    async with spawner() as spawns:
        known = advertise or [f"127.0.0.1:{port}" for port in ports]
        brokers = [
            BrokerProcess(spawns, folder, f"b{number}", port, flags | {"advertise": address})
            for number, (port, address) in enumerate(zip(ports, known, strict=True))
        ]
        try:
            for broker in brokers:
                await broker.start()
            yield brokers
        finally:
            for broker in brokers:
                if broker.alive:
                    broker.send(signal.SIGCONT)
                await broker.kill()


def owner(brokers: Sequence[BrokerProcess], port: int) -> str | None:
    """Return which broker has a TCP connection from this local port; None where none has."""
    local = f":{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split(maxsplit=10)
        if fields[1].endswith(local):
            return next((broker.name for broker in brokers if broker.holds(f"socket:[{fields[9]}]")), None)
    return None


def tail(broker: BrokerProcess, lines: int = 15) -> str:
    """Return the last lines that a broker's processes printed."""
    text = broker.log.read_text(errors="replace") if broker.log.exists() else ""
    return f"--- {broker.name}{os.linesep}" + os.linesep.join(text.splitlines()[-lines:])
