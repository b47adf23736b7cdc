"""`tidelog top`: brokers, topics and rates as they are now."""

import asyncio
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.cluster import BROKER_COLUMNS, broker_row
from tidelog.cli.quantities import shown_bytes
from tidelog.cli.scrape import Metrics, Series, gained, mean_ms, metrics_address, requests, scrape, value
from tidelog.cli.session import Format, Output, client_command, reach, run, screen, show_json, table

if TYPE_CHECKING:
    from tidelog.client.admin import ClusterDescription, TopicDescription
    from tidelog.client.client import Log

_TOPIC_COLUMNS = {"topic": "left", "partitions": "right", "records": "right", "records/s": "right"}
_MOST_TOPICS = 20


@client_command
def top(
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How long between two looks.")] = 2.0,
    metrics: Metrics = None,
    output: Output = Format.TEXT,
) -> None:
    """Watch brokers, topics and rates until Ctrl-C.

    Without a terminal, or as JSON: one snapshot, over one interval.
    """

    async def work(log: "Log") -> None:
        address = metrics or metrics_address(reach().server)
        before = await _look(log, address)
        console = screen()
        live = console.is_terminal and output is Format.TEXT
        from rich.live import Live

        with Live(console=console, screen=True, auto_refresh=False) if live else nullcontext() as view:
            while True:
                await asyncio.sleep(interval)
                now = await _look(log, address)
                if view is None:
                    if output is Format.JSON:
                        show_json(_facts(before, now))
                    else:
                        console.print(_view(before, now, rows=None, ruled=console.is_terminal))
                    return
                view.update(_view(before, now, rows=max(1, console.height - 14), ruled=True), refresh=True)
                before = now

    run(work)


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    cluster: "ClusterDescription"
    topics: "list[TopicDescription]"
    series: Series | None


async def _look(log: "Log", address: str | None) -> _Look:
    cluster, topics, series = await asyncio.gather(log.admin.describe_cluster(), log.admin.describe_topics(), scrape(address))
    return _Look(time.perf_counter(), cluster, topics, series)


def _topics(before: _Look, now: _Look) -> list[dict[str, Any]]:
    """Return what topics hold and how fast they grow, the fastest first."""
    ends = {(topic.topic_id, part.partition): part.next_offset for topic in before.topics for part in topic.partitions}
    rows = []
    for topic in now.topics:
        appended = sum(part.next_offset - ends.get((topic.topic_id, part.partition), 0) for part in topic.partitions)
        rows.append(
            {
                "topic": topic.name,
                "partitions": len(topic.partitions),
                "records": sum(part.next_offset - part.log_start_offset for part in topic.partitions),
                "records_per_s": round(appended / (now.at - before.at), 1),
            }
        )
    return sorted(rows, key=lambda row: (-row["records_per_s"], row["topic"]))


def _server(before: _Look, now: _Look) -> dict[str, Any] | None:
    if before.series is None or now.series is None:
        return None
    seconds, old, new = now.at - before.at, before.series, now.series
    return {
        "cpu_share": round(gained(old, new, "tidelog_process_cpu_seconds_total") / seconds, 3),
        "rss_bytes": int(value(new, "tidelog_process_resident_memory_bytes")),
        "appended_bytes_per_s": round(gained(old, new, "tidelog_append_bytes_total", result="accepted") / seconds),
        "read_bytes_per_s": round(sum(gained(old, new, "tidelog_consume_bytes_total", source=s) for s in ("memory", "bucket")) / seconds),
        "append_mean_ms": mean_ms(old, new, "tidelog_append_seconds", stage="total"),
        "puts_per_s": round(requests(old, new, "put") / seconds, 2),
        "gets_per_s": round(requests(old, new, "get") / seconds, 2),
    }


def _facts(before: _Look, now: _Look) -> dict[str, Any]:
    return {"cluster": asdict(now.cluster), "topics": _topics(before, now), "broker": _server(before, now)}


def _view(before: _Look, now: _Look, *, rows: int | None, ruled: bool) -> Any:
    from rich.console import Group
    from rich.text import Text

    topics = _topics(before, now)
    rows = rows or _MOST_TOPICS
    shown = [(t["topic"], t["partitions"], t["records"], f"{t['records_per_s']:,.1f}") for t in topics[:rows]]
    server = _server(before, now)
    if server is None:
        line = "no metrics to be reached; say where with --metrics HOST:PORT"
    else:
        mean = "no appends" if server["append_mean_ms"] is None else f"append mean {server['append_mean_ms']:.1f} ms"
        line = (
            f"this broker: CPU {server['cpu_share']:.0%}, RSS {shown_bytes(server['rss_bytes'])}, in"
            f" {shown_bytes(server['appended_bytes_per_s'])}/s, out {shown_bytes(server['read_bytes_per_s'])}/s, {mean},"
            f" {server['puts_per_s']:.1f} PUT/s, {server['gets_per_s']:.1f} GET/s"
        )
    parts: list[Any] = [
        Text(f"Tidelog {now.cluster.cluster_id[:8]}: {sum(t['records_per_s'] for t in topics):,.0f} records/s appended", style="bold"),
        Text(line),
        Text(),
        table(BROKER_COLUMNS, [broker_row(broker) for broker in now.cluster.brokers], ruled=ruled),
        Text(),
        table(_TOPIC_COLUMNS, shown, ruled=ruled),
    ]
    if len(topics) > rows:
        parts.append(Text(f"… and {len(topics) - rows:,} more topics"))
    return Group(*parts)
