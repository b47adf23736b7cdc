"""`tidelog rebuild`: a new metadata store from the bucket alone."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidelog.cli.broker import load_or_refuse
from tidelog.cli.quantities import counted, shown_bytes
from tidelog.cli.session import Format, Output, ending, server_packages, show_json, show_table

if TYPE_CHECKING:
    from tidelog.broker.rebuild_report import OffsetRange, Report

_NAMED = 20
"""Keys in a report for people."""


class Newer(StrEnum):
    """What becomes of records that may have been committed after the checkpoint."""

    APPEND = "append"
    ASIDE = "aside"


@server_packages()
def rebuild(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of settings: name: value.")] = None,
    newer: Annotated[
        Newer,
        typer.Option(
            metavar="append|aside", help="Records newer than the checkpoint: append them in their probable order, or leave them aside."
        ),
    ] = Newer.APPEND,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would come back, and what is not known.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Make a new metadata store from the bucket alone.

    For when the database is lost. Settings are those of `tidelog broker`: --bucket names what is left, --metadata an empty
    database or a new file. Stop all brokers first. Everything up to the newest checkpoint comes back exactly, and so does what
    was merged since; what is newer is reported, and appended or left aside. Whatever cannot be known is listed.

    Exits with 0 where all that was found has its place, newer records included; with 1 where something is lost, damaged, or
    left aside though nobody asked for it: the new store is there all the same.
    """
    import asyncio

    from tidelog.server.rebuilding import rebuild_stores

    settings = load_or_refuse(ctx.args, config)
    with ending():
        report = asyncio.run(rebuild_stores(settings, newer=newer.value, dry_run=dry_run))
        if output is Format.JSON:
            show_json(asdict(report) | {"certain": report.certain, "exact": report.exact, "whole": report.whole})
        else:
            _show(report)
    if not report.whole:
        raise typer.Exit(1)


def _show(report: "Report") -> None:
    from datetime import UTC, datetime

    taken = datetime.fromtimestamp(report.checkpoint_taken_at_ms / 1000, UTC)
    typer.echo(f"Cluster {report.cluster_id}, from {report.checkpoint}, taken at {taken:%Y-%m-%dT%H:%M:%SZ}")
    typer.echo(
        f"{'Would come back' if report.dry_run else 'Back'}: {counted(report.topics, 'topic')}, {counted(report.partitions, 'partition')},"
        f" {counted(report.exact_records, 'record')} at their offsets, {counted(report.producers, 'idempotent producer')},"
        f" {counted(report.group_offsets, 'offset')} of groups"
    )
    if report.unknown_order:
        where = "appended in their probable order" if report.newer == "append" else "left aside"
        typer.echo(f"Newer than the checkpoint, {where}; whether all were acknowledged is not known:")
        show_table(
            {"topic": "left", "partition": "right", "records": "right", "bytes": "right", "from offset": "right", "duplicates": "right"},
            [
                (each.topic, each.partition, each.records, shown_bytes(each.bytes), "-" if each.base_offset is None else each.base_offset,
                 each.duplicates)
                for each in report.unknown_order
            ],
        )  # fmt: skip
    if report.producers_forgotten:
        typer.echo(
            f"{counted(report.producers_forgotten, 'idempotent producer')} appended since: refused as UNKNOWN_PRODUCER, they begin anew"
        )
    _ranges("The log begins later than the checkpoint says:", report.log_starts_moved)
    _ranges("Not readable, an object is missing (delete records up to there to go on):", report.missing)
    _ranges("Left aside, what lies before is not known:", report.unplaced)
    for topic_id, records in report.unknown_topics.items():
        typer.echo(f"Left aside, {counted(records, 'record')} of topic id {topic_id}, which no checkpoint names: made after it, or deleted")
    for damaged in report.damaged:
        typer.echo(f"Damaged: {damaged}")
    if report.aside:
        done = "would be copied" if report.dry_run else "were copied"
        typer.echo(
            f"{counted(len(report.aside), 'segment')} with records left aside {done} below aside/, where no broker looks or deletes;"
            " `tidelog segment dump` shows what is in them:"
        )
        for key in report.aside[:_NAMED]:
            typer.echo(f"  aside/{key}")
        if len(report.aside) > _NAMED:
            typer.echo(f"  and {len(report.aside) - _NAMED} more; --format json names them all")
    if report.certain:
        typer.echo("The checkpoint was taken when the last broker had drained: nothing is in doubt.")
    else:
        typer.echo(
            f"What segments do not tell is as of the checkpoint, {taken:%Y-%m-%dT%H:%M:%SZ}: changes of topics, tokens and groups' offsets"
            " and deletes of records after that are undone."
        )
        if report.exact:
            typer.echo("No record in the bucket is newer.")
    if not report.whole:
        typer.echo("Not everything is back: look after what is named above, before or after brokers start.")
    if not report.dry_run:
        typer.echo(f"Broker epochs go on from {report.next_broker_epoch:,}. Start the brokers.")


def _ranges(heading: str, ranges: "list[OffsetRange]") -> None:
    if ranges:
        typer.echo(heading)
        columns = {"topic": "left", "partition": "right", "from offset": "right", "to": "right", "": "left"}
        show_table(columns, [(each.topic, each.partition, each.base_offset, each.next_offset, each.problem) for each in ranges])
