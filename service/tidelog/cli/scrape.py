"""What a broker says of itself at /metrics, as far as the command line shows it."""

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated

import typer

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by a series' name and labels."""

Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="HOST:PORT", help="The broker's metrics; else tried at --server's port + 1.", show_default=False),
]

_LINE = re.compile(r"(?m)^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT_S = 2.0


def metrics_address(server: str) -> str | None:
    """Return where a broker at this address has its metrics, unless told otherwise."""
    host, _, port = server.split(",")[0].strip().rpartition(":")
    return f"{host}:{int(port) + 1}" if host and port.isdecimal() else f"{server}:9596" if ":" not in server else None


async def scrape(address: str | None) -> Series | None:
    """Return what is told there; None where nothing can be reached: it is an extra, never a reason to fail."""
    if address is None:
        return None

    def read() -> str:
        from urllib.request import urlopen

        with urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
        return text

    try:
        text = await asyncio.to_thread(read)
    except (OSError, ValueError):
        return None
    return {(name, frozenset(_LABEL.findall(labels))): float(value) for name, labels, value in _LINE.findall(text)}


def value(series: Series, name: str, **labels: str) -> float:
    """Return a series' value, 0 where there is none."""
    return series.get((name, frozenset(labels.items())), 0.0)


def gained(before: Series | None, after: Series | None, name: str, **labels: str) -> float:
    """Return what a counter gained."""
    return 0.0 if before is None or after is None else value(after, name, **labels) - value(before, name, **labels)


def mean_ms(before: Series | None, after: Series | None, name: str, **labels: str) -> float | None:
    """Return the mean of what a histogram of seconds took in between, in milliseconds."""
    count = gained(before, after, f"{name}_count", **labels)
    return gained(before, after, f"{name}_sum", **labels) / count * 1000 if count > 0 else None


def requests(before: Series | None, after: Series | None, operation: str) -> int:
    """Return how many requests of the object store there were; where it does not count those, how many calls."""
    sent = gained(before, after, "tidelog_store_requests_total", operation=operation)
    outcomes = ("done", "not_found", "exists", "unavailable", "unknown", "unusable")
    return int(sent or sum(gained(before, after, "tidelog_store_calls_total", operation=operation, outcome=o) for o in outcomes))
