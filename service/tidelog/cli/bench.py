"""`tidelog bench`: the load generator, its live display and its summary."""

import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli import load as loads
from tidelog.cli.load import Load, Meter
from tidelog.cli.quantities import GET_DOLLARS, PUT_DOLLARS, counted, shown_bytes, size_bytes
from tidelog.cli.scrape import Metrics, Series, gained, metrics_address, requests, scrape, value
from tidelog.cli.session import Format, Output, client_command, reach, run, screen, show_json

if TYPE_CHECKING:
    from tidelog.client.client import Log

app = typer.Typer(help="Generate load, and measure what comes of it.", no_args_is_help=True)

_REFRESHES_PER_S = 4
_SHOWN_LATENCIES = 10_000

Topic = Annotated[
    str | None,
    typer.Option(metavar="TOPIC", help="An existing topic; else one is made for the run and deleted after it.", show_default=False),
]
Partitions = Annotated[int, typer.Option(metavar="COUNT", min=1, help="Partitions of the topic that is made.")]
Seconds = Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How long load is generated.")]
RecordBytes = Annotated[int, typer.Option("--record-bytes", metavar="SIZE", parser=size_bytes, help="Size of each value.")]
Batch = Annotated[int, typer.Option(metavar="COUNT", min=1, max=100_000, help="Records of one call.")]
Compression = Annotated[str, typer.Option(metavar="CODEC", help="none, gzip, snappy, lz4 or zstd.")]
Senders = Annotated[int, typer.Option(metavar="COUNT", min=1, max=256, help="How many at once, each with its own connection.")]
Rate = Annotated[float, typer.Option(metavar="RATE", min=0, help="Records per second, of all senders; 0: flat out.")]
Deadline = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="After this an append's outcome is reported, whatever it is.")
]
Readers = Annotated[int, typer.Option(metavar="COUNT", min=1, max=256, help="How many read at once; partitions are shared among them.")]

Work = Callable[[Callable[[], "Log"], Load, Meter], Awaitable[None]]


@app.command()
@client_command
def produce(
    topic: Topic = None,
    partitions: Partitions = 12,
    seconds: Seconds = 10,
    rate: Rate = 0,
    senders: Senders = 2,
    record_bytes: RecordBytes = 100,
    batch: Batch = 1000,
    compression: Compression = "none",
    deadline: Deadline = 120,
    metrics: Metrics = None,
    output: Output = Format.TEXT,
) -> None:
    """Append, at a rate or flat out.

    At a rate, latencies count from when a call was due, late or not. Flat out they count from when there was room to send.
    """
    load = Load("", partitions, seconds, record_bytes, batch, compression, senders, rate, deadline_s=deadline)
    _bench("produce", loads.produce, topic, load, metrics, output)


@app.command()
@client_command
def mixed(
    topic: Topic = None,
    partitions: Partitions = 12,
    seconds: Seconds = 10,
    rate: Rate = 0,
    senders: Senders = 1,
    readers: Readers = 1,
    record_bytes: RecordBytes = 100,
    batch: Batch = 1000,
    compression: Compression = "none",
    deadline: Deadline = 120,
    metrics: Metrics = None,
    output: Output = Format.TEXT,
) -> None:
    """Append while readers follow, until they have it all.

    Latencies are those of appends, as `bench produce` counts them.
    """
    load = Load("", partitions, seconds, record_bytes, batch, compression, senders, rate, readers, deadline)
    _bench("mixed", loads.mixed, topic, load, metrics, output)


@app.command()
@client_command
def latency(
    topic: Topic = None,
    partitions: Partitions = 1,
    seconds: Seconds = 10,
    rate: Annotated[float, typer.Option(metavar="RATE", min=0.1, help="Records per second, of all senders.")] = 100,
    senders: Senders = 1,
    record_bytes: RecordBytes = 100,
    compression: Compression = "none",
    deadline: Deadline = 120,
    metrics: Metrics = None,
    output: Output = Format.TEXT,
) -> None:
    """Append at a rate, and time acknowledgement and delivery.

    Single records are appended and read back. Latencies count from when a record was due, late or not.
    """
    load = Load("", partitions, seconds, record_bytes, 1, compression, senders, rate, deadline_s=deadline)
    _bench("latency", loads.latency, topic, load, metrics, output)


@app.command()
@client_command
def consume(
    topic: Topic = None,
    partitions: Partitions = 12,
    records: Annotated[int, typer.Option(metavar="COUNT", min=1, help="How many the topic that is made is filled with.")] = 1_000_000,
    readers: Readers = 1,
    record_bytes: RecordBytes = 100,
    compression: Compression = "none",
    metrics: Metrics = None,
    output: Output = Format.TEXT,
) -> None:
    """Read all that a topic holds, as fast as it comes."""
    load = Load("", partitions, 0, record_bytes, 1000, compression, 0, 0, readers)
    _bench("consume", loads.consume, topic, load, metrics, output, records=records)


def _bench(kind: str, generate: Work, topic: str | None, asked: Load, metrics: str | None, output: Format, *, records: int = 0) -> None:
    reached = reach()
    address = metrics or metrics_address(reached.server)

    async def work(log: "Log") -> None:
        load, made = await _prepared(log, asked, topic, kind)
        try:
            if made and records:
                await loads.fill(log, load, records)
            await _measured(kind, lambda meter: generate(reached.connect, load, meter), load, address, output)
        finally:
            if made:
                await log.admin.delete_topic(load.topic)

    run(work)


async def _prepared(log: "Log", asked: Load, topic: str | None, kind: str) -> tuple[Load, bool]:
    """Return the load on a topic that is there, and whether it was made for this."""
    if topic is not None:
        found = await log.admin.describe_topic(topic)
        return Load(**{**asdict(asked), "topic": topic, "partitions": len(found.partitions)}), False
    name = f"bench-{kind}-{time.time_ns() // 1_000_000:x}"
    await log.admin.create_topic(name, partitions=asked.partitions)
    return Load(**{**asdict(asked), "topic": name}), True


async def _measured(kind: str, generate: Callable[[Meter], Awaitable[None]], load: Load, address: str | None, output: Format) -> None:
    meter = Meter()
    before, cpu = await scrape(address), time.process_time()
    try:
        with _display(kind, load, meter):
            await generate(meter)
    finally:  # also what Ctrl-C has cut short is worth to be seen
        meter.ended = meter.ended or time.perf_counter()
        cpu_s = time.process_time() - cpu
        facts = _facts(kind, load, meter, cpu_s, before, await scrape(address))
        if output is Format.JSON:
            show_json(facts)
        else:
            typer.echo("\n".join(_lines(facts)))


def _facts(kind: str, load: Load, meter: Meter, cpu_s: float, before: Series | None, after: Series | None) -> dict[str, Any]:
    server = None
    if before is not None and after is not None:
        puts, gets = requests(before, after, "put"), requests(before, after, "get")
        server = {
            "cpu_s": round(gained(before, after, "tidelog_process_cpu_seconds_total"), 3),
            "rss_bytes": int(value(after, "tidelog_process_resident_memory_bytes")),
            "puts": puts,
            "gets": gets,
            "s3_dollars": puts * PUT_DOLLARS + gets * GET_DOLLARS,
        }
    return {
        "bench": kind,
        "load": asdict(load),
        "seconds": round(meter.seconds, 3),
        "records": meter.records,
        "records_per_s": round(meter.records / meter.seconds, 1),
        "mib_per_s": round(meter.size / meter.seconds / (1 << 20), 3),
        "delivered": meter.delivered,
        "latency_ms": meter.percentiles_ms(),
        "client": {"cpu_s": round(cpu_s, 3), "rss_bytes": _rss_bytes()},
        "server": server,
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    load, client, server = facts["load"], facts["client"], facts["server"]
    lines = [
        (
            f"{counted(facts['records'], 'record')} of {load['record_bytes']} bytes in {facts['seconds']:.2f} s:"
            f" {facts['records_per_s']:,.0f} records/s, {facts['mib_per_s']:,.1f} MiB/s"
        )
    ]
    if facts["delivered"] is not None:
        lines.append(f"delivered meanwhile: {counted(facts['delivered'], 'record')}")
    for kind, found in facts["latency_ms"].items():
        lines.append(f"{kind}: " + ", ".join(f"{name} {milliseconds:,.1f} ms" for name, milliseconds in found.items()))
    lines.append(f"client: CPU {client['cpu_s']:.2f} s, at most {shown_bytes(client['rss_bytes'])} RSS")
    if server is not None:
        lines.append(
            f"server: CPU {server['cpu_s']:.2f} s, {shown_bytes(server['rss_bytes'])} RSS;"
            f" {counted(server['puts'], 'PUT')}, {counted(server['gets'], 'GET')}: on S3 ${server['s3_dollars']:.5f}"
        )
    return lines


def _rss_bytes() -> int:
    """Return the most memory that this process has had."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _display(kind: str, load: Load, meter: Meter) -> Any:
    """Return a context that shows on a terminal how it goes."""
    console = screen(stderr=True)
    if not console.is_terminal:
        return nullcontext()
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    def shown() -> Any:
        seconds = max(meter.seconds, 0.001)
        lines = [
            f"{seconds:6.1f} s of {load.seconds:g}" if load.seconds else f"{seconds:6.1f} s",
            f"{meter.records / seconds:,.0f} records/s   {meter.size / seconds / (1 << 20):,.1f} MiB/s",
            *(
                f"{name}: " + "   ".join(f"{share} {milliseconds:,.1f} ms" for share, milliseconds in found.items())
                for name, found in meter.percentiles_ms(latest=_SHOWN_LATENCIES).items()
            ),
        ]
        return Panel(Text("\n".join(lines)), title=f"bench {kind} on {load.topic}", title_align="left")

    return Live(get_renderable=shown, console=console, transient=True, refresh_per_second=_REFRESHES_PER_S)
