"""`tidelog certify`: whether an object store keeps what Tidelog rests on."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.quantities import shown_bytes
from tidelog.cli.session import Format, Output, ending, screen, server_packages, show_json, show_table

if TYPE_CHECKING:
    from tidelog.config import Settings
    from tidelog.objects.certification import Certificate
    from tidelog.objects.requirements import Effort
    from tidelog.objects.store import ObjectStore

_WORDS = {"passed": "passed", "weak": "weak", "failed": "FAILED", "unclear": "UNCLEAR"}


@server_packages()
def certify(
    url: Annotated[str, typer.Argument(metavar="BUCKET-URL", help="s3://BUCKET/PREFIX or file:///DIRECTORY, as in the setting bucket.")],
    endpoint_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where S3 answers; as the setting s3_endpoint_url.", show_default="AWS")
    ] = None,
    region: Annotated[str | None, typer.Option(metavar="REGION", help="Region of the bucket; as the setting s3_region.")] = None,
    addressing_style: Annotated[
        str | None, typer.Option(metavar="auto|path|virtual", help="How the bucket is named; as the setting s3_addressing_style.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of settings, as of tidelog broker.")] = None,
    writers: Annotated[int, typer.Option(metavar="COUNT", min=2, max=1000, help="Who write one key at the same time.")] = 32,
    rounds: Annotated[int, typer.Option(metavar="COUNT", min=1, max=10_000, help="How often each thing is tried.")] = 25,
    samples: Annotated[
        int, typer.Option(metavar="COUNT", min=0, max=100_000, help="Requests timed of each kind and size; 0: none are.")
    ] = 30,
    output: Output = Format.TEXT,
) -> None:
    """Prove that a store keeps what Tidelog needs.

    Writes, reads, lists and deletes objects below a prefix of its own, certify/…, over several connections, and tells of each
    requirement what it is for, whether it is kept, and what was seen. Everything is deleted again, also after Ctrl-C.

    Exits with 0 where all that is required is kept ("weak": something advised is not), with 1 where something is not, or could not
    be found out. Settings come from TIDELOG_ variables and --config, too.
    """
    from tidelog.errors import InvalidSettings
    from tidelog.objects.requirements import Effort
    from tidelog.server.settings import load_settings

    asked = {"s3_endpoint_url": endpoint_url, "s3_region": region, "s3_addressing_style": addressing_style}
    flags = {"bucket": url} | {name: value for name, value in asked.items() if value is not None}
    names = {
        "bucket": "BUCKET-URL",
        "s3_endpoint_url": "--endpoint-url",
        "s3_region": "--region",
        "s3_addressing_style": "--addressing-style",
    }
    try:
        settings = load_settings(
            flags=flags, config_file=config, environ=os.environ, flags_are="argument", called=lambda name: names.get(name, name)
        ).settings
        open_store = _opener(settings)
        effort = Effort(writers=writers, rounds=rounds, samples=samples)
        with ending():
            try:
                certificate = asyncio.run(_certificate(open_store, effort))
            finally:
                _remove_folders(settings.bucket)
    except InvalidSettings as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    if output is Format.JSON:
        show_json(_facts(url, certificate))
    else:
        _show(url, certificate)
    if not certificate.passed:
        raise typer.Exit(1)


async def _certificate(open_store: "Callable[[], Awaitable[ObjectStore]]", effort: "Effort") -> "Certificate":
    from contextlib import AsyncExitStack

    from tidelog.clock import SystemClock
    from tidelog.objects.certification import certify as certified
    from tidelog.objects.s3 import S3Store, trials
    from tidelog.randomness import system_random

    async with AsyncExitStack() as stack:
        tried = await open_store()
        stack.push_async_callback(tried.close)
        with _progress() as told:
            return await certified(
                open_store,
                effort=effort,
                clock=SystemClock(),
                chance=system_random(),
                more=trials(tried) if isinstance(tried, S3Store) else (),
                told=told,
            )


def _opener(settings: "Settings") -> "Callable[[], Awaitable[ObjectStore]]":
    """Return what opens the store anew. Requests to S3 are not hedged: each is looked at and timed by itself."""
    from tidelog.clock import SystemClock
    from tidelog.errors import InvalidSettings
    from tidelog.metrics import Metrics
    from tidelog.objects.s3 import open_s3
    from tidelog.randomness import system_random
    from tidelog.server.stores import directory_of, open_bucket, s3_settings
    from tidelog.telemetry import without_secrets

    if settings.bucket.startswith("s3:"):
        s3 = replace(s3_settings(settings), hedge_after_samples=0)
        return lambda: open_s3(s3, clock=SystemClock(), chance=system_random())
    if directory_of(settings.bucket) is None:
        raise InvalidSettings(f"BUCKET-URL is {without_secrets(settings.bucket)!r}; write s3://BUCKET/PREFIX or file:///DIRECTORY")
    return lambda: open_bucket(settings, metrics=Metrics(), clock=SystemClock(), chance=system_random())


def _remove_folders(bucket: str) -> None:
    """Remove the folders that the trial made in a directory: the store itself keeps them for the next key."""
    from tidelog.server.stores import directory_of

    root = directory_of(bucket)
    if root is not None:
        for folder, _, _ in os.walk(root / "certify", topdown=False):
            with suppress(OSError):  # another trial is going on there
                Path(folder).rmdir()


def _progress() -> "AbstractContextManager[Callable[[str, int, int], None]]":
    """Return what shows on a terminal how far it is; elsewhere nothing is shown."""
    console = screen(stderr=True)
    if not console.is_terminal:
        return nullcontext(lambda _name, _done, _all: None)
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    @contextmanager
    def shown() -> Any:
        columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("opening")
            yield lambda name, done, total: progress.update(task, description=name, completed=done, total=total)

    return shown()


def _facts(url: str, certificate: "Certificate") -> dict[str, Any]:
    from tidelog.telemetry import without_secrets

    findings = [
        {
            "name": found.requirement.name,
            "requirement": found.requirement.sentence,
            "why": found.requirement.why,
            "required": not found.requirement.advised,
            "outcome": found.outcome,
            "seen": found.seen,
        }
        for found in certificate.findings
    ]
    timings = [asdict(timing) for timing in certificate.timings]
    return {
        "bucket": without_secrets(url),
        "passed": certificate.passed,
        "findings": findings,
        "timings": timings,
        "left_behind": certificate.left_behind or None,
    }


def _show(url: str, certificate: "Certificate") -> None:
    from tidelog.telemetry import without_secrets

    console = screen()
    if console.is_terminal:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="dim", pad_edge=False)
        for heading in ("requirement", "why Tidelog needs it", "", "seen"):
            table.add_column(heading, overflow="fold")
        for found in certificate.findings:
            style = {"passed": "green", "weak": "yellow"}.get(found.outcome, "bold red")
            row = (found.requirement.sentence, found.requirement.why, Text(_WORDS[found.outcome], style), found.seen)
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
            table.add_section()
        console.print(table)
    else:
        for found in certificate.findings:
            console.print(f"{_WORDS[found.outcome]:8}{found.requirement.name}: {found.requirement.sentence}", markup=False)
            console.print(f"        why: {found.requirement.why}", markup=False)
            console.print(f"        seen: {found.seen}", markup=False)
    if certificate.timings:
        console.print()
        columns = {
            "request": "left",
            "bytes": "right",
            "p50 ms": "right",
            "p99 ms": "right",
            "requests timed": "right",
            "MiB/s, 16 at once": "right",
        }
        show_table(
            columns,
            [
                (
                    t.operation.upper(),
                    shown_bytes(t.bytes),
                    f"{t.p50_ms:.1f}",
                    f"{t.p99_ms:.1f}",
                    t.samples,
                    f"{t.concurrent_mib_per_s:.1f}",
                )
                for t in certificate.timings
            ],
        )
    console.print()
    if certificate.left_behind:
        console.print(f"Left behind: {certificate.left_behind}", markup=False)
    weak = [found.requirement.name for found in certificate.findings if found.outcome == "weak"]
    bad = [found.requirement.name for found in certificate.findings if found.outcome in ("failed", "unclear")]
    if certificate.passed:
        but = f", but look at what is weak: {', '.join(weak)}" if weak else ""
        console.print(f"{without_secrets(url)} keeps what Tidelog needs{but}.", markup=False, soft_wrap=True)
    else:
        verdict = f"does not, or not surely, keep what Tidelog needs: {', '.join(bad)}" if bad else "was not left as it was found"
        console.print(f"{without_secrets(url)} {verdict}. Do not keep records there.", markup=False, soft_wrap=True)
