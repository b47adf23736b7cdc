"""`tidelog produce`: lines in, offsets out.

A line is a record, without its newline. Lines go in chunks, many in flight; all that are unacknowledged stay below the
producer's buffer, because beyond it a later chunk could pass an earlier one. A last line without a newline carries a header
that says so, which lets `consume --format raw` give back the same bytes.
"""

import asyncio
import os
import stat
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.quantities import counted, shown_bytes
from tidelog.cli.session import Format, Output, client_command, run, screen, show_json, topic_names

if TYPE_CHECKING:
    from tidelog.client.client import Log
    from tidelog.client.producer import Producer

UNTERMINATED = ("tidelog-line-end", b"none")
"""The header of a last line without a newline."""

_READ_BYTES = 1 << 20
_MAX_LINE_BYTES = 64 << 20
_IN_FLIGHT_BYTES = 16 << 20
_OVERHEAD_BYTES = 16
_SHOWN_RANGES = 12


@client_command
def produce(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Where the records go.", autocompletion=topic_names)],
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, readable=True, help="Read this instead of standard input.")
    ] = None,
    key_separator: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What comes before it in a line is the record's key.", show_default=False)
    ] = None,
    partition: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=0, help="This partition alone; else by key, or any.", show_default=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header of every record; may be repeated.", show_default=False)
    ] = None,
    compression: Annotated[str, typer.Option(metavar="CODEC", help="none, gzip, snappy, lz4 or zstd.")] = "none",
    output: Output = Format.TEXT,
) -> None:
    """Append lines, and say which offsets they got.

    Each line of standard input or of a file is a record, without its newline. What was acknowledged is committed and
    durable. Ctrl-C ends with 130, after saying what was acknowledged.
    """
    headers = [_header(text) for text in header or ()]
    separator = None if key_separator is None else key_separator.encode()
    if separator == b"":
        raise typer.BadParameter("an empty --key-separator was given; give the text that stands between key and value")

    async def work(log: "Log") -> None:
        import tidelog.records.batch as batch

        if compression not in batch.COMPRESSIONS:
            raise typer.BadParameter(f"compression {compression!r} was asked for; choose one of {', '.join(batch.COMPRESSIONS)}")
        descriptor = 0 if file is None else os.open(file, os.O_RDONLY)
        loading = Loading(topic, separator, partition, headers)
        try:
            async with log.producer(compression=compression) as producer:
                with _progress(descriptor, loading):
                    await loading.run(producer, descriptor)
        finally:
            if file is not None:
                os.close(descriptor)
            loading.show(output)

    run(work)


@dataclass
class Loading:
    """One run: what is in flight, and what was acknowledged."""

    topic: str
    separator: bytes | None
    partition: int | None
    headers: list[tuple[str, bytes]]
    records: int = 0
    size: int = 0
    """Bytes of the lines that were acknowledged."""
    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By partition: (base offset, next offset) of what was acknowledged."""
    in_flight: "deque[tuple[asyncio.Task[None], int]]" = field(default_factory=deque)
    in_flight_bytes: int = 0
    started: int = 0
    unanswered: int = 0
    """Records that were on their way when it was interrupted: they may be committed."""

    async def run(self, producer: "Producer", descriptor: int) -> None:
        """Send all lines, and wait for their acknowledgements. Raises what the producer raises, for the first that failed."""
        first = True
        try:
            async for lines, whole in _lines(descriptor):
                if not whole:
                    await self._wait_for(0)
                await self._start(producer, lines, whole)
                if first:
                    await self._wait_for(0)  # from now on the topic is known, and chunks go in the order in which they are started
                    first = False
            await self._wait_for(0)
        except asyncio.CancelledError:
            self.unanswered = self.started - self.records
            raise
        finally:
            for task, _ in self.in_flight:
                task.cancel()
            await asyncio.gather(*(task for task, _ in self.in_flight), return_exceptions=True)

    async def _start(self, producer: "Producer", lines: list[bytes], whole: bool) -> None:
        size = sum(map(len, lines)) + _OVERHEAD_BYTES * len(lines)
        await self._wait_for(max(0, _IN_FLIGHT_BYTES - size))
        self.in_flight.append((asyncio.ensure_future(self._send(producer, lines, whole)), size))
        self.in_flight_bytes += size
        self.started += len(lines)
        await asyncio.sleep(0)  # it takes its place in the producer now

    async def _wait_for(self, most_bytes: int) -> None:
        """Wait until no more than so many bytes are in flight."""
        while self.in_flight and (self.in_flight_bytes > most_bytes or self.in_flight[0][0].done()):
            task, size = self.in_flight[0]
            await task
            self.in_flight.popleft()
            self.in_flight_bytes -= size

    async def _send(self, producer: "Producer", lines: list[bytes], whole: bool) -> None:
        keys, values = self._columns(lines)
        if self.headers or not whole:
            headers = [*self.headers, *([] if whole else [UNTERMINATED])]
            futures = [
                asyncio.ensure_future(producer.send(self.topic, value, key=key, headers=headers, partition=self.partition))
                for value, key in zip(values, keys or [None] * len(values), strict=True)
            ]
            for ack in await asyncio.gather(*futures):
                self._note(ack.partition, ack.offset, ack.offset + 1)
        else:
            acks = await producer.send_many(self.topic, values, keys=keys, partition=self.partition)
            for found in acks.ranges:
                self._note(found.partition, found.base_offset, found.next_offset)
        self.records += len(lines)
        self.size += sum(map(len, lines)) + len(lines) - (not whole)

    def _columns(self, lines: list[bytes]) -> "tuple[list[bytes | None] | None, list[bytes | None]]":
        if self.separator is None:
            return None, list(lines)
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        for line in lines:
            key, found, value = line.partition(self.separator)
            keys.append(key if found else None)
            values.append(value if found else line)
        return keys, values

    def _note(self, partition: int, base_offset: int, next_offset: int) -> None:
        self.ranges.setdefault(partition, []).append((base_offset, next_offset))

    def _runs(self) -> dict[int, list[tuple[int, int]]]:
        """Return by partition the ranges of offsets, those that stand together as one."""
        runs: dict[int, list[tuple[int, int]]] = {}
        for partition in sorted(self.ranges):
            found = runs[partition] = []
            for base, end in sorted(self.ranges[partition]):
                if found and found[-1][1] == base:
                    base = found.pop()[0]
                found.append((base, end))
        return runs

    def show(self, output: Format) -> None:
        """Say what was acknowledged."""
        runs = self._runs()
        if output is Format.JSON:
            offsets = {partition: [{"base_offset": base, "next_offset": end} for base, end in found] for partition, found in runs.items()}
            facts = {"topic": self.topic, "records": self.records, "bytes": self.size, "unanswered": self.unanswered, "offsets": offsets}
            show_json(facts)
            return
        typer.echo(f"{counted(self.records, 'record')} ({shown_bytes(self.size)}) committed to {self.topic}{':' if runs else '.'}")
        for partition, found in list(runs.items())[:_SHOWN_RANGES]:
            first, last = found[0][0], found[-1][1] - 1
            between = f" in {len(found)} runs, others' records between" if len(found) > 1 else ""
            typer.echo(f"  partition {partition}: " + (f"offset {first}" if first == last else f"offsets {first} to {last}{between}"))
        if len(runs) > _SHOWN_RANGES:
            typer.echo(f"  … and {counted(len(runs) - _SHOWN_RANGES, 'partition')} more; --format json lists all")
        if self.unanswered:
            typer.echo(f"{counted(self.unanswered, 'record')} more on the way: read to find out whether they were committed")


def _header(text: str) -> tuple[str, bytes]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"the header {text!r} was given; write NAME=VALUE")
    return name, value.encode()


async def _lines(descriptor: int) -> AsyncIterator[tuple[list[bytes], bool]]:
    """Yield lists of lines as they come, without their newlines, and whether they had one: the last may not."""
    from tidelog.errors import RecordTooLarge

    parts: list[bytes] = []
    held = 0
    async for data in _data(descriptor):
        end = data.rfind(b"\n")
        if end < 0:
            parts.append(data)
            held += len(data)
            if held > _MAX_LINE_BYTES:
                raise RecordTooLarge(f"a line of more than {_MAX_LINE_BYTES} bytes came; a line is a record, and none may be that large")
            continue
        yield b"".join([*parts, data[:end]]).split(b"\n"), True
        parts = [data[end + 1 :]] if end + 1 < len(data) else []
        held = len(data) - end - 1
    if parts:
        yield [b"".join(parts)], False


async def _data(descriptor: int) -> AsyncIterator[bytes]:
    """Yield bytes as they come. A pipe or terminal is waited for by the event loop, so that Ctrl-C ends it."""
    loop = asyncio.get_running_loop()
    waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    while True:
        if waits:
            ready = asyncio.Event()
            try:
                loop.add_reader(descriptor, ready.set)
            except PermissionError:  # not to be waited for, as /dev/null
                waits = False
            else:
                try:
                    await ready.wait()
                finally:
                    loop.remove_reader(descriptor)
        data = os.read(descriptor, _READ_BYTES)
        if not data:
            return
        yield data


def _progress(descriptor: int, loading: Loading) -> Any:
    """Return a context in which a terminal shows how far it is; elsewhere nothing is shown."""
    console = screen(stderr=True)
    if not console.is_terminal or (descriptor == 0 and sys.stdin.isatty()):
        return nullcontext()
    from rich.live import Live
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    status = os.fstat(descriptor)
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    task = progress.add_task("committed", total=total)

    def shown() -> Any:
        progress.update(task, completed=loading.size)
        return progress.get_renderable()

    return Live(get_renderable=shown, console=console, transient=True)
