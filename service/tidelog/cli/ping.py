"""`tidelog ping`: a record through the log and back, and how long each part took."""

import asyncio
import os
import time
from contextlib import aclosing, suppress
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.scrape import Metrics, mean_ms, metrics_address, scrape
from tidelog.cli.session import Format, Output, client_command, reach, run, show_json

if TYPE_CHECKING:
    from tidelog.client.client import Log

_STAGES = {"wait": "in the open segment", "upload": "upload", "order": "commit"}
_RETENTION_MS = 3_600_000


@client_command
def ping(
    topic: Annotated[
        str, typer.Option(metavar="TOPIC", help="Through which topic; made, with one partition, where it is missing.")
    ] = "ping",
    count: Annotated[int, typer.Option("--count", "-n", metavar="COUNT", min=1, help="How many records.")] = 5,
    interval_ms: Annotated[int, typer.Option("--interval-ms", metavar="MS", min=0, help="How long between them.")] = 200,
    metrics: Metrics = None,
    output: Output = Format.TEXT,
) -> None:
    """Time a record's way through the log and back.

    With the broker's own stages, where its metrics can be reached.

    append: until it was acknowledged, thus durable and committed. delivery: until a consumer that waited for it had it.
    """

    async def work(log: "Log") -> None:
        facts = await _ping(log, topic, count, interval_ms / 1000, metrics or metrics_address(reach().server), output)
        if output is Format.JSON:
            show_json(facts)

    run(work)


async def _ping(log: "Log", topic: str, count: int, interval_s: float, metrics: str | None, output: Format) -> dict[str, Any]:
    from tidelog.errors import TopicExists

    began = time.perf_counter()
    await log.admin.list_topics()
    call_ms = (time.perf_counter() - began) * 1000
    with suppress(TopicExists):
        await log.admin.create_topic(topic, partitions=1, retention_ms=_RETENTION_MS)
    start = (await log.admin.list_offsets(topic, partitions=[0]))[0]
    rounds: list[dict[str, float]] = []
    async with log.producer(linger_ms=0) as producer:
        consumption = log.consume(topic, partitions=[0], start=start)
        async with aclosing(aiter(consumption)) as records:  # type: ignore[type-var]
            for number in range(count + 1):
                token = os.urandom(8).hex().encode()
                began = time.perf_counter()
                delivery = asyncio.ensure_future(_arrival(records, token))
                await producer.send(topic, token, partition=0)
                acknowledged = time.perf_counter()
                delivered = await delivery
                found = {
                    "append_ms": (acknowledged - began) * 1000,
                    "delivery_ms": (delivered - began) * 1000,
                    "round_trip_ms": (max(acknowledged, delivered) - began) * 1000,
                }
                if number == 0:  # it finds leaders and opens streams
                    first_ms = found["round_trip_ms"]
                    before = await scrape(metrics)
                    continue
                rounds.append(found)
                if output is Format.TEXT:
                    typer.echo(
                        f"{topic}/0 round {number}: {found['round_trip_ms']:.1f} ms"
                        f" (append {found['append_ms']:.1f}, delivery {found['delivery_ms']:.1f})"
                    )
                await asyncio.sleep(interval_s)
    after = await scrape(metrics)
    stages = {stage: mean for stage in _STAGES if (mean := mean_ms(before, after, "tidelog_append_seconds", stage=stage)) is not None}
    times = [found["round_trip_ms"] for found in rounds]
    facts: dict[str, Any] = {"topic": topic, "call_ms": call_ms, "first_ms": first_ms, "rounds": rounds, "broker_stages_ms": stages}
    facts["round_trip_ms"] = {"min": min(times), "median": median(times), "max": max(times)}
    if output is Format.TEXT:
        typer.echo(
            f"round trip: min {min(times):.1f}, median {median(times):.1f}, max {max(times):.1f} ms; the first, to warm up, {first_ms:.1f}"
        )
        typer.echo(f"a call that only asks (GetMetadata): {call_ms:.1f} ms")
        if stages:
            typer.echo("inside the broker, mean: " + ", ".join(f"{_STAGES[stage]} {mean:.1f} ms" for stage, mean in stages.items()))
    return facts


async def _arrival(records: Any, token: bytes) -> float:
    async for record in records:
        if record.value == token:
            return time.perf_counter()
    raise AssertionError("a consumption without an end has ended")
