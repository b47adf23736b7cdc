"""`tidelog cluster cost`: what the bucket charges for this cluster now."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tidelog.cli.quantities import shown_bytes
from tidelog.cli.scrape import Series, metrics_address, scrape, value
from tidelog.cli.session import Format, Output, client_command, fail, run, show_json, show_table
from tidelog.costs import GIB, MONTH_HOURS, MONTH_SECONDS, Prices

if TYPE_CHECKING:
    from tidelog.client.client import Log

OPERATIONS = ("put", "get", "head", "list", "delete")
ZONES = ("same", "other", "unknown")
_OUTCOMES = ("done", "not_found", "exists", "unavailable", "unknown", "unusable")


@dataclass(frozen=True, slots=True)
class Cost:
    """A cluster's bill, from what its brokers did in an interval."""

    seconds: float
    brokers: int
    silent: list[str]
    """Brokers whose metrics could not be had: what they spend is not among this."""
    requests: dict[str, float]
    """By operation, in the interval."""
    dollars_per_hour: dict[str, float]
    """By operation."""
    appended_bytes: float
    """In the interval."""
    stored_bytes: float
    storage_dollars_per_month: float
    client_bytes: dict[str, float]
    """Records from clients and to them in the interval, by zone: of the broker's own (same), another (other), not told (unknown)."""
    transfer_dollars_per_month: float
    """For what crosses zones: paid where the bytes are carried, not to the bucket."""
    request_dollars_per_gib: float | None
    """None where nothing was appended."""
    dollars_per_month: float
    """Were all hours like this interval, and no more kept than now."""
    topic_shares: dict[str, float]
    """Of the bytes taken in since the brokers began; "" stands for those beyond `metrics_most_topics`."""


@client_command
def cost(
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How long to look; rates are those of this time.")] = 10.0,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,...", help="The brokers' metrics; else tried at each broker's port + 1.", show_default=False),
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Show what the bucket charges: requests and storage.

    Beside it what bytes that cross zones cost, as far as clients and brokers say their zones. All brokers' metrics are read twice,
    whichever broker is asked; prices are those of their settings. Compare: docs/cost.md.
    """

    async def work(log: "Log") -> None:
        cluster = await log.admin.describe_cluster()
        addresses = metrics.split(",") if metrics else [metrics_address(broker.address) or "" for broker in cluster.brokers]
        before = await _look(addresses)
        await asyncio.sleep(interval)
        found = bill(before, await _look(addresses), seconds=interval)
        if not found.brokers:
            fail(f"the metrics of {', '.join(addresses)} were to be read, but none answers; name them with --metrics HOST:PORT,...")
        if output is Format.JSON:
            show_json(asdict(found))
        else:
            _show(found)

    run(work)


async def _look(addresses: list[str]) -> dict[str, Series | None]:
    return dict(zip(addresses, await asyncio.gather(*(scrape(address) for address in addresses)), strict=True))


def bill(before: Mapping[str, Series | None], after: Mapping[str, Series | None], *, seconds: float) -> Cost:
    """Return the bill of what brokers counted between two looks at their metrics; one that began anew in between counts from 0."""
    silent = sorted(address for address, series in after.items() if series is None or before.get(address) is None)
    pairs = [(earlier, later) for address, later in after.items() if later is not None and (earlier := before.get(address)) is not None]

    def gained(name: str, **labels: str) -> float:
        total = 0.0
        for earlier, later in pairs:
            then, now = value(earlier, name, **labels), value(later, name, **labels)
            total += now - then if now >= then else now
        return total

    requests = {}
    for operation in OPERATIONS:
        sent = gained("tidelog_store_requests_total", operation=operation)
        requests[operation] = sent or sum(gained("tidelog_store_calls_total", operation=operation, outcome=each) for each in _OUTCOMES)
    dollars = {operation: gained("tidelog_store_dollars_total", operation=operation) / seconds * 3600 for operation in OPERATIONS}
    appended = gained("tidelog_append_bytes_total", result="accepted")
    stored = sum(value(later, "tidelog_stored_bytes") for _, later in pairs)
    price = max((value(later, "tidelog_price_dollars", of="gib_month") for _, later in pairs), default=0.0)
    storage = Prices(storage_dollars_per_gib_month=price).of_month_stored(stored)
    carried = {zone: sum(gained("tidelog_client_bytes_total", direction=way, zone=zone) for way in ("in", "out")) for zone in ZONES}
    transfer_price = max((value(later, "tidelog_price_dollars", of="gb_between_zones") for _, later in pairs), default=0.0)
    crossing = Prices(transfer_dollars_per_gb=transfer_price).of_bytes_between_zones(carried["other"] / seconds * MONTH_SECONDS)
    per_hour = sum(dollars.values())
    by_topic: dict[str, float] = {}
    for _, later in pairs:
        for (name, labels), count in later.items():
            if name == "tidelog_topic_taken_bytes_total":
                topic = dict(labels)["topic"]
                by_topic[topic] = by_topic.get(topic, 0.0) + count
    taken = sum(by_topic.values())
    return Cost(
        seconds=seconds,
        brokers=len(pairs),
        silent=silent,
        requests=requests,
        dollars_per_hour=dollars,
        appended_bytes=appended,
        stored_bytes=stored,
        storage_dollars_per_month=storage,
        client_bytes=carried,
        transfer_dollars_per_month=crossing,
        request_dollars_per_gib=per_hour * seconds / 3600 / (appended / GIB) if appended else None,
        dollars_per_month=per_hour * MONTH_HOURS + storage + crossing,
        topic_shares={topic: count / taken for topic, count in sorted(by_topic.items(), key=lambda each: -each[1]) if taken},
    )


def _told_of_zones(cost: Cost) -> str:
    crossed, unknown = cost.client_bytes["other"] / cost.seconds, cost.client_bytes["unknown"] / cost.seconds
    but = f"; of {shown_bytes(unknown)}/s is not known whether they do, for a client or its broker does not say its zone" if unknown else ""
    return f"between zones: {shown_bytes(crossed)}/s, ${cost.transfer_dollars_per_month:,.2f} a month{but}"


def _show(cost: Cost) -> None:
    typer.echo(f"{cost.brokers} of {cost.brokers + len(cost.silent)} brokers, over {cost.seconds:g} s")
    for address in cost.silent:
        typer.echo(f"{address} does not answer: what that broker spends is not counted here")
    columns = {"request": "left", "per second": "right", "$ an hour": "right", "$ a month": "right"}
    rows = [
        (name, f"{cost.requests[name] / cost.seconds:,.2f}", f"{dollars:.5f}", f"{dollars * MONTH_HOURS:,.2f}")
        for name, dollars in cost.dollars_per_hour.items()
    ]
    show_table(columns, rows)
    per_gib = "nothing was appended" if cost.request_dollars_per_gib is None else f"${cost.request_dollars_per_gib:,.4f} of requests a GiB"
    typer.echo(f"appended: {shown_bytes(cost.appended_bytes / cost.seconds)}/s, {per_gib}")
    typer.echo(f"stored: {shown_bytes(cost.stored_bytes)}, ${cost.storage_dollars_per_month:,.2f} a month")
    typer.echo(_told_of_zones(cost))
    typer.echo(f"in all: ${cost.dollars_per_month:,.2f} a month, were all hours like this")
    if cost.topic_shares:
        shares = [(topic or "(others)", f"{share:.1%}") for topic, share in list(cost.topic_shares.items())[:20]]
        show_table({"topic": "left", "share of bytes": "right"}, shares)
