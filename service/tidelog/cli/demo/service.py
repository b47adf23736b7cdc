"""`tidelog dev` as a process of its own, which the demo starts, kills and starts again."""

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tidelog.errors import NotReady

_GREETING = re.compile(r"Tidelog listens on (\S+:(\d+)); metrics and health: http://(\S+:(\d+))/metrics")
_START_S = 60.0
_END_S = 30.0


class Service:
    """One service on one folder and one address, whichever process plays it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.metrics = ""
        self.start_s = 0.0
        """How long the last start took, until appends were taken."""
        self._log = folder / "service.log"
        self._ports = ("0", "0")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process_id(self) -> int:
        """The process that plays it now."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start a process, on the address of the last one. Raises NotReady with what it printed."""
        began = time.perf_counter()
        port, metrics_port = self._ports
        command = [sys.executable, "-m", "tidelog", "dev", "--data-dir", str(self.folder), "--port", port, "--metrics-port", metrics_port]
        with self._log.open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches the demo alone, which then ends it.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_S):
                greeting = await self._process.stdout.readline()
        except TimeoutError:
            greeting = b""
        found = _GREETING.match(greeting.decode())
        if found is None:
            told = self._log.read_text(errors="replace").splitlines()[-5:]
            raise NotReady("\n".join([f"the demo's service was started, but did not begin within {_START_S:g} s; it said:", *told]))
        self.address, self._ports, self.metrics = found[1], (found[2], found[4]), found[3]
        self.start_s = time.perf_counter() - began

    async def rebuild(self) -> dict[str, Any]:
        """Make the metadata store anew with `tidelog rebuild`; return its report. Raises NotReady with what it printed."""
        places = [
            "--bucket",
            f"file://{quote(str(self.folder / 'objects'))}",
            "--metadata",
            f"sqlite:///{quote(str(self.folder / 'metadata.db'))}",
        ]
        command = [sys.executable, "-m", "tidelog", "rebuild", *places, "--format", "json"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        try:
            told, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise NotReady(f"the demo's metadata store was to be rebuilt, but that failed: {(errors or told).decode(errors='replace')}")
        report: dict[str, Any] = json.loads(told)
        return report

    async def kill(self) -> int:
        """End the process at once, wherever it is; return its number."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        return self._process.pid

    def end(self) -> None:
        """End a process that is still there at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Let the process drain and end; a late one is killed."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Service]:
    """A service on a folder; no process is left behind."""
    service = Service(folder)
    try:
        await service.start()
        yield service
    finally:
        try:
            await service.stop()
        finally:
            service.end()
