"""`tidelog.connect`: one cluster, and what can be done with it."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from tidelog.allocation import keep_freed_memory
from tidelog.client.admin import Admin
from tidelog.client.connection import Brokers, read_credentials
from tidelog.client.consumer import Consumption
from tidelog.client.producer import Producer
from tidelog.clock import SystemClock
from tidelog.errors import InvalidRequest
from tidelog.randomness import system_random

DEFAULT_PORT = 9595


def connect(
    servers: str | Sequence[str] = f"localhost:{DEFAULT_PORT}", *, tls: bool | None = None, ca: str | Path | None = None,
    cert: str | Path | None = None, key: str | Path | None = None, token: str | None = None, zone: str | None = None,
    call_timeout_ms: float = 30_000,
) -> "Log":  # fmt: skip
    """Return a cluster to be used as `async with tidelog.connect("host:port") as log`.

    `servers` are one or more addresses, HOST or HOST:PORT, separated by commas: any broker, or a balancer before them, is
    enough. `ca` (or `tls=True`, with the system's authorities) means TLS; `cert` and `key` are PEM files of this client's
    certificate; `token` goes with every call. Brokers of `zone` are preferred, and it is said with every call, so that brokers can
    count what crosses zones. `call_timeout_ms` is how long a call, entering included, goes on looking for a broker that answers.

    Entering raises NotReady when no broker can be reached, Unauthenticated or PermissionDenied when it does not let one in, or
    TLS does not come about.
    """
    credentials = read_credentials(tls=bool(ca or cert) if tls is None else tls, ca=ca, cert=cert, key=key, token=token, zone=zone)
    if call_timeout_ms <= 0:
        raise InvalidRequest(f"call_timeout_ms={call_timeout_ms} was asked for; it must be above 0")
    return Log(
        Brokers(
            addresses(servers), credentials=credentials, zone=zone, call_timeout_s=call_timeout_ms / 1000, clock=SystemClock(),
            chance=system_random(),
        )
    )  # fmt: skip


def addresses(servers: str | Sequence[str]) -> list[str]:
    """Return HOST:PORT of each server named. Raises InvalidRequest."""
    names = [part.strip() for text in ([servers] if isinstance(servers, str) else servers) for part in text.split(",")]
    found = [_address(name) for name in names if name]
    if not found:
        raise InvalidRequest(f"servers={servers!r} names no broker; give one as HOST:PORT, or more separated by commas")
    return list(dict.fromkeys(found))


def _address(name: str) -> str:
    host, colon, port = name.rpartition(":")
    if not colon or name.endswith("]"):
        return f"{name}:{DEFAULT_PORT}"
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidRequest(f"the server {name!r} is an IPv6 address without brackets; write [ADDRESS]:PORT")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidRequest(f"the server {name!r} was given; write HOST:PORT with a port from 1 to 65535")
    return name


class Log:
    """One cluster. Producers and consumptions end with it, if they have not before."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self.admin = Admin(brokers)
        self._consumptions: list[Consumption] = []
        self._producers: list[Producer] = []

    async def __aenter__(self) -> Self:
        keep_freed_memory()
        try:
            await self._brokers.metadata([])
        except BaseException:
            await self._brokers.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for consumption in self._consumptions:
            await consumption.aclose()
        try:
            for producer in self._producers:
                await producer.__aexit__(kind, error, trace)
        finally:
            await self._brokers.close()

    def producer(
        self, *, linger_ms: float = 5, compression: str = "none", idempotent: bool = True, batch_bytes: int = 256 * 1024,
        max_in_flight: int = 5, buffer_bytes: int = 32 * 1024 * 1024, max_record_bytes: int = 1024 * 1024 - 4096,
        delivery_timeout_ms: int = 120_000, request_timeout_ms: int = 30_000, fencing_token: str | None = None,
    ) -> Producer:  # fmt: skip
        """Return a producer to be used as `async with log.producer() as producer`; leaving it sends what is buffered.

        - `linger_ms`: how long a record waits for others to travel with.
        - `compression`: none, gzip, snappy, lz4 or zstd.
        - `idempotent`: retries double and reorder nothing. Without it, what may have been written is not sent again.
        - `batch_bytes`: a batch aims at this size (more where a partition's batches have to wait).
        - `max_in_flight`: unanswered batches per partition, 1 to 5.
        - `buffer_bytes`: records not yet acknowledged; beyond it `send` waits and `send_nowait` raises Throttled.
        - `max_record_bytes`: a larger record is refused at once.
        - `delivery_timeout_ms`: after this a record's outcome is reported, whatever it is.
        - `request_timeout_ms`: how long a broker may take to answer one attempt.
        - `fencing_token`: append only where this is the partition's token (`log.admin.set_fencing_token`), else raise ConditionFailed.
        """
        producer = Producer(
            self._brokers, linger_ms=linger_ms, compression=compression, idempotent=idempotent, batch_bytes=batch_bytes,
            max_in_flight=max_in_flight, buffer_bytes=buffer_bytes, max_record_bytes=max_record_bytes,
            delivery_timeout_ms=delivery_timeout_ms, request_timeout_ms=request_timeout_ms,
            fencing_token=fencing_token,
        )  # fmt: skip
        self._producers = [known for known in self._producers if not known.closed]
        self._producers.append(producer)
        return producer

    def consume(
        self, topics: str | Sequence[str], *, partitions: Sequence[int] | None = None, start: str | int | datetime = "earliest",
        stop: str | int | datetime | None = None, follow: bool = True, max_records: int | None = None, credit_bytes: int = 4 * 1024 * 1024,
    ) -> Consumption:  # fmt: skip
        """Return the records of one topic or several: `async for record in log.consume("clicks")`, or `.batches()`.

        - `partitions`: these alone; else all, and those that are added later, from their beginning.
        - `start`: "earliest", "latest", an offset, or a datetime with a time zone: the first record of that time or later.
        - `stop`: ends before this offset or time; "latest" means the end as it is when reading begins. `follow=False` is the same.
        - `max_records`: ends after so many.
        - `credit_bytes`: how much may be under way from the broker.

        "latest" and times are resolved once, at the beginning. Records of one partition come in order, each once, whatever
        becomes of connections and brokers. Iterating raises UnknownTopic, UnknownPartition, OffsetOutOfRange (with the
        bounds), PermissionDenied, and CorruptBatch.
        """
        consumption = Consumption(
            self._brokers, [topics] if isinstance(topics, str) else list(topics), partitions=partitions, start=start,
            stop="latest" if stop is None and not follow else stop, max_records=max_records, credit_bytes=credit_bytes,
        )  # fmt: skip
        self._consumptions = [known for known in self._consumptions if not known.ended]
        self._consumptions.append(consumption)
        return consumption
