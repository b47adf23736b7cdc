"""`tidelog fsck`: whether metadata store and bucket fit each other, to the last byte."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.quantities import counted, shown_bytes, size_bytes
from tidelog.cli.session import Format, Output, ending, screen, server_packages, show_json

if TYPE_CHECKING:
    from tidelog.broker.findings import Report
    from tidelog.broker.verification import Scope
    from tidelog.config import Settings


class Mode(StrEnum):
    """How much is read."""

    QUICK = "quick"
    FULL = "full"


@server_packages()
def fsck(
    bucket: Annotated[str | None, typer.Option(metavar="URL", help="The bucket; as the setting bucket.", show_default="setting")] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="URL", help="The metadata store; as the setting metadata.", show_default="setting")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of settings, as of tidelog broker.")] = None,
    mode: Annotated[
        Mode, typer.Option(metavar="quick|full", help="quick: rows, objects' sizes and footers; full: every byte as well.")
    ] = Mode.FULL,
    topic: Annotated[
        list[str] | None, typer.Option(metavar="TOPIC", help="Only this topic, without looking for orphans; may be given again.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can lose nothing: note releases that nobody noted.")] = False,
    concurrency: Annotated[int, typer.Option(metavar="COUNT", min=1, max=256, help="Objects that are looked at at once.")] = 8,
    max_rate: Annotated[
        int, typer.Option(metavar="SIZE", parser=size_bytes, help="Read no more a second from the bucket; 0: no limit.")
    ] = 0,
    output: Output = Format.TEXT,
) -> None:
    """Check all references, lengths and checksums.

    Of every partition: that its rows hold each offset once, that each row's object is there and holds what the row says, with every
    checksum right. Of the bucket: objects that nobody refers to. Brokers may run meanwhile: what does not fit is looked at again, from
    fresh rows, before it is told. Nothing is changed, but with --repair.

    Settings come from TIDELOG_ variables and --config, as those of tidelog broker. Exits with 0 where nothing is lost or in danger,
    with 1 where something is, or could not be found out. docs/troubleshooting.md says what to do about each finding.

    --repair adds notes of released segments, by which the cleaner finds them; on SQLite no broker may run then. Nothing else is ever
    repaired: rows and objects that are lost come back from a backup, or by rebuilding.
    """
    from tidelog.broker.verification import Scope
    from tidelog.errors import InvalidSettings
    from tidelog.server.settings import load_settings
    from tidelog.server.stores import bucket_in_memory, metadata_in_memory

    flags = {name: value for name, value in (("bucket", bucket), ("metadata", metadata)) if value is not None}
    try:
        settings = load_settings(flags=flags, config_file=config, environ=os.environ).settings
        if bucket_in_memory(settings) or metadata_in_memory(settings):
            raise InvalidSettings("what is kept in memory dies with its process, and cannot be checked from another; name other stores")
    except InvalidSettings as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    scope = Scope(full=mode is Mode.FULL, topics=tuple(topic) if topic else None, concurrency=concurrency, bytes_per_second=max_rate)
    with ending():
        report = asyncio.run(_report(settings, scope, repairing=repair))
    if output is Format.JSON:
        show_json(_facts(report))
    else:
        _show(report, repairing=repair)
    if not report.sound:
        raise typer.Exit(1)


async def _report(settings: "Settings", scope: "Scope", *, repairing: bool) -> "Report":
    from tidelog.broker.verification import repair, verify_store
    from tidelog.clock import SystemClock
    from tidelog.executors import ThreadExecutor
    from tidelog.metrics import Metrics
    from tidelog.randomness import system_random
    from tidelog.server.stores import open_bucket, open_metadata

    clock, metrics = SystemClock(), Metrics()
    async with AsyncExitStack() as stack:
        bucket = await open_bucket(settings, metrics=metrics, clock=clock, chance=system_random(), reading=True)
        stack.push_async_callback(bucket.close)
        store = await open_metadata(settings, metrics=metrics, clock=clock, reading=not repairing)
        stack.push_async_callback(store.close)
        executor = ThreadExecutor("checksums", threads=2)
        stack.push_async_callback(executor.close)
        with _progress() as told:
            report = await verify_store(store, bucket, scope=scope, clock=clock, executor=executor, told=told)
        if repairing:
            await repair(store, report)
        return report


def _progress() -> "AbstractContextManager[Callable[[str, int, int], None]]":
    """Return what shows on a terminal how far it is; elsewhere nothing is shown."""
    console = screen(stderr=True)
    if not console.is_terminal:
        return nullcontext(lambda _stage, _done, _all: None)
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    @contextmanager
    def shown() -> Any:
        columns = TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("opening", total=None)
            yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total or None)

    return shown()


def _facts(report: "Report") -> dict[str, Any]:
    facts = asdict(report)
    findings = [
        {"code": each.code, "severity": each.severity, "where": each.where, "what": each.what, "sentence": each.sentence}
        for each in report.findings
    ]
    del facts["repairable"]
    return facts | {"found": dict(report.found), "sound": report.sound, "findings": findings}


def _show(report: "Report", *, repairing: bool) -> None:
    for finding in report.findings:
        typer.echo(f"{finding.severity.upper()} {finding.code}: {finding.sentence}")
    if (told := len(report.findings)) < (found := report.found.total()):
        typer.echo(f"… and {found - told:,} more; only the first {told:,} are told")
    if report.findings:
        typer.echo()
    typer.echo(
        f"cluster {report.cluster_id}: {counted(report.partitions, 'partition')}, {counted(report.extents, 'extent')},"
        f" {counted(report.records, 'record')}, {shown_bytes(report.referenced_bytes)} in {counted(report.segments, 'segment')}"
    )
    typer.echo(
        f"{shown_bytes(report.bytes_read)} read, {report.batches_checked:,} batches checked, {report.looked_at_again:,} looks taken again"
    )
    typer.echo(
        f"bucket: {counted(report.objects, 'object')} of {shown_bytes(report.object_bytes)}; {report.released_objects:,}"
        f" ({shown_bytes(report.released_bytes)}) wait for the cleaner, {report.unsettled_objects:,}"
        f" ({shown_bytes(report.unsettled_bytes)}) are not ordered yet, {report.orphans:,} ({shown_bytes(report.orphan_bytes)}) are orphans"
    )
    if repairing:
        typer.echo(f"repaired: {counted(report.repaired, 'note')} added; nothing else that was found can be repaired without a backup")
    kinds = ", ".join(f"{count:,} {code}" for code, count in sorted(report.found.items()))
    verdict = "nothing is lost, and nothing is in danger" if report.sound else "NOT SOUND"
    typer.echo(f"{verdict}{f': {kinds}' if kinds else ''}")
