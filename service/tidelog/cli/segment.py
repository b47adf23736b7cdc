"""`tidelog segment`: what is in an object."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Look into segment objects.", no_args_is_help=True)


class Format(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


@app.callback()
def _segment() -> None:
    """Look into segment objects."""


@app.command()
def dump(
    source: Annotated[str, typer.Argument(metavar="FILE-or-URL", help="A file, a file:// URL, or s3://BUCKET/KEY.")],
    output: Annotated[Format, typer.Option("--format", help="Text for people, JSON for programs.")] = Format.TEXT,
) -> None:
    """Check every byte of a segment and show its header, chunks and batches. Exits with 1 where it is damaged."""
    from tidelog.errors import TidelogError
    from tidelog.segments.format import VERSION, decode, decode_chunk

    try:
        data = _content(source)
        footer = decode(data)
        chunks = []
        for chunk in footer.chunks:
            batches = [asdict(header) for header in decode_chunk(data[chunk.position : chunk.end], chunk)]
            chunks.append({**asdict(chunk), "topic_id": chunk.topic_id.hex(), "batches": batches})
    except (TidelogError, OSError) as error:
        typer.echo(f"{source}: {error}", err=True)
        raise typer.Exit(1) from error
    merged = asdict(footer.merged) if footer.merged else None
    facts: dict[str, Any] = {"version": VERSION, "kind": footer.kind.name.lower(), "bytes": len(data), **asdict(footer.origin)}
    facts |= {"merged": merged, "chunks": chunks}
    typer.echo(json.dumps(facts, indent=1) if output is Format.JSON else "\n".join(_lines(facts)))


def _content(source: str) -> bytes:
    if source.startswith("s3://"):
        return _from_s3(source)
    return Path(source.removeprefix("file://")).read_bytes()


def _from_s3(url: str) -> bytes:
    import asyncio
    import os

    from tidelog.clock import SystemClock
    from tidelog.objects.s3 import S3Settings, open_s3
    from tidelog.randomness import system_random

    bucket, _, key = url.removeprefix("s3://").partition("/")

    async def read() -> bytes:
        settings = S3Settings(bucket=bucket, endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
        store = await open_s3(settings, clock=SystemClock(), chance=system_random())
        try:
            return await store.get_range(key, 0, max(1, (await store.head(key)).size))
        finally:
            await store.close()

    return asyncio.run(read())


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['kind']} segment, version {facts['version']}, {facts['bytes']} bytes: every checksum is right"]
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
        lines += [
            f"  batch at {chunk['position'] + batch['position']}: {batch['size']} bytes, {batch['record_count']} records, offset"
            f" {batch['base_offset']}, producer {batch['producer_id']}, sequence {batch['base_sequence']}"
            for batch in chunk["batches"]
        ]
    return lines
