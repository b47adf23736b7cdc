"""`tidelog segment`: what is in an object."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import typer

from tidelog.cli.session import Format, Output, fail, server_packages

if TYPE_CHECKING:
    from tidelog.segments.inspection import Inspection

app = typer.Typer(help="Look into segment objects.", no_args_is_help=True)


@app.callback()
def _segment() -> None:
    """Look into segment objects."""


@app.command()
def dump(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE-or-URL",
            help="A file, a file:// URL, or s3://BUCKET/KEY, with ?endpoint=…&region=…&path_style=true where need be.",
        ),
    ],
    output: Output = Format.TEXT,
) -> None:
    """Check a segment, and show what is in it.

    Every byte is checked; its header, chunks and batches are shown. Of a damaged one: what can be read, and all that is wrong.
    Exits with 1 where it is damaged.
    """
    from tidelog.errors import TidelogError
    from tidelog.segments.inspection import inspect

    try:
        data = _content(source)
    except (TidelogError, OSError) as error:
        fail(f"{source}: {error}")
    found = inspect(data)
    facts = {"version": int.from_bytes(data[4:6], "little"), "bytes": len(data), **_facts(found)}
    typer.echo(json.dumps(facts, indent=1) if output is Format.JSON else "\n".join(_lines(facts)))
    for defect in found.defects:
        typer.echo(f"{source}: {defect}", err=True)
    if not found.complete:
        typer.echo(f"{source}: and more; only the first {len(found.defects)} defects are told", err=True)
    if found.defects:
        raise typer.Exit(1)


def _facts(found: "Inspection") -> dict[str, Any]:
    footer = found.footer
    facts: dict[str, Any] = {"whole": not found.defects}
    facts["defects"] = [{"position": defect.position, "problem": defect.problem} for defect in found.defects]
    facts["all_defects_told"] = found.complete
    batches = [[asdict(header) for header in headers] for headers in found.batches]
    if footer is None:
        return facts | {"kind": None, "batches": [header for headers in batches for header in headers]}
    chunks = [
        {**asdict(chunk), "topic_id": chunk.topic_id.hex(), "batches": headers}
        for chunk, headers in zip(footer.chunks, batches, strict=False)  # fewer where the defects were too many
    ]
    merged = asdict(footer.merged) if footer.merged else None
    return facts | {"kind": footer.kind.name.lower(), **asdict(footer.origin), "merged": merged, "chunks": chunks}


def _content(source: str) -> bytes:
    if source.startswith("s3://"):
        with server_packages():
            return _from_s3(source)
    from tidelog.segments.format import MAX_SEGMENT_BYTES

    path = Path(unquote(source.removeprefix("file://"))) if source.startswith("file://") else Path(source)
    _check_size(path.stat().st_size)
    with path.open("rb") as file:
        data = file.read(MAX_SEGMENT_BYTES + 1)  # a pipe or a device has no size of its own
    _check_size(len(data))
    return data


def _check_size(size: int) -> None:
    """Refuse what cannot be a segment."""
    from tidelog.errors import CorruptSegment
    from tidelog.segments.format import MAX_SEGMENT_BYTES

    if size > MAX_SEGMENT_BYTES:
        raise CorruptSegment(f"the object has more than {MAX_SEGMENT_BYTES} bytes, which no segment has", position=0)


def _from_s3(url: str) -> bytes:
    import asyncio
    from dataclasses import replace

    from tidelog.clock import SystemClock
    from tidelog.config import Settings
    from tidelog.objects.s3 import open_s3
    from tidelog.randomness import system_random
    from tidelog.server.stores import s3_settings

    settings = s3_settings(Settings(bucket=url))
    key, settings = settings.prefix, replace(settings, prefix="")

    async def read() -> bytes:
        store = await open_s3(settings, clock=SystemClock(), chance=system_random())
        try:
            size = (await store.head(key)).size
            _check_size(size)
            return await store.get_range(key, 0, max(1, size))
        finally:
            await store.close()

    return asyncio.run(read())


def _lines(facts: dict[str, Any]) -> list[str]:
    if facts["kind"] is None:
        lines = [f"{facts['bytes']} bytes whose footer cannot be read; {len(facts['batches'])} batches before it are whole"]
        return lines + [_batch(batch) for batch in facts["batches"]]
    verdict = "every checksum is right" if facts["whole"] else "damaged"
    lines = [f"{facts['kind']} segment, version {facts['version']}, {facts['bytes']} bytes: {verdict}"]
    lines.append(
        f"cluster {facts['cluster_id']}, broker {facts['broker_id']} in epoch {facts['broker_epoch']}, sequence {facts['sequence']},"
        f" made at {facts['created_at_ms']} ms"
    )
    if facts["merged"]:
        m = facts["merged"]
        lines.append(
            f"offsets {m['base_offset']} to {m['next_offset']}, leader epochs {m['first_leader_epoch']} to {m['last_leader_epoch']},"
            f" {len(m['index'])} index entries"
        )
    for chunk in facts["chunks"]:
        end = chunk["position"] + chunk["length"]
        lines.append(
            f"chunk {chunk['topic_id']}-{chunk['partition']}: bytes {chunk['position']} to {end}, {chunk['batch_count']} batches,"
            f" {chunk['record_count']} records, newest {chunk['max_timestamp_ms']} ms, CRC-32C {chunk['crc32c']:#010x}"
        )
        lines += [_batch(batch) for batch in chunk["batches"]]
    return lines


def _batch(batch: dict[str, Any]) -> str:
    return (
        f"  batch at {batch['position']}: {batch['size']} bytes, {batch['record_count']} records, offset"
        f" {batch['base_offset']}, producer {batch['producer_id']}, sequence {batch['base_sequence']}"
    )
