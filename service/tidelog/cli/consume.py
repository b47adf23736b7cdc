"""`tidelog consume`: records out, as text for people, JSON lines for programs, or the very bytes."""

import json
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.quantities import where
from tidelog.cli.session import client_command, run, topic_names

if TYPE_CHECKING:
    from tidelog.client.client import Log
    from tidelog.client.consumer import ConsumedBatch, ConsumedRecord


class RecordFormat(StrEnum):
    """How records are printed."""

    TEXT = "text"
    JSON = "json"
    RAW = "raw"


@client_command
def consume(
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC", help="What to read: one topic, or several.", autocompletion=topic_names)],
    start: Annotated[
        Any,
        typer.Option(
            "--from",
            metavar="WHERE",
            parser=where,
            help="earliest, latest, an offset, a time as in 2030-01-31T12:00:00Z, or how long ago as in 15m.",
        ),
    ] = "earliest",
    partition: Annotated[
        list[int] | None, typer.Option(metavar="NUMBER", min=0, help="These partitions alone; may be repeated.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is appended, until Ctrl-C.")] = False,
    max_records: Annotated[int | None, typer.Option(metavar="COUNT", min=0, help="End after so many.", show_default=False)] = None,
    output: Annotated[
        RecordFormat,
        typer.Option(
            "--format", metavar="text|json|raw", help="text: place, key and value; json: one object a line; raw: each value and a newline."
        ),
    ] = RecordFormat.TEXT,
) -> None:
    """Print committed records.

    Up to the end as it is now, or with --follow for ever. One partition's records come in order. raw gives back, from one
    partition, the bytes of a file that `produce` read. In JSON a key or value that is not UTF-8 is {"base64": ...}.
    Ctrl-C ends with 130.
    """

    async def work(log: "Log") -> None:
        write = _writer(output)
        async with log.consume(topics, partitions=partition or None, start=start, follow=follow, max_records=max_records) as consumption:
            async for batch in consumption.batches():
                write(batch)

    run(work)


def _writer(output: RecordFormat) -> Any:
    out = sys.stdout.buffer
    if output is RecordFormat.RAW:

        def encoded(batch: "ConsumedBatch") -> bytes:
            return _raw(batch)
    else:
        line = _json_line if output is RecordFormat.JSON else _text_line
        styled = output is RecordFormat.TEXT and sys.stdout.isatty() and not os.environ.get("NO_COLOR")

        def encoded(batch: "ConsumedBatch") -> bytes:
            return "".join(line(record, styled) for record in batch.records()).encode()

    def write(batch: "ConsumedBatch") -> None:
        out.write(encoded(batch))
        out.flush()

    return write


def _raw(batch: "ConsumedBatch") -> bytes:
    from tidelog.cli.produce import UNTERMINATED

    if len(batch) == 1:  # a last line without a newline is alone in its batch
        (record,) = batch.records()
        return (record.value or b"") + (b"" if UNTERMINATED in record.headers else b"\n")
    values = batch.values
    return b"\n".join(value or b"" for value in values) + b"\n" if values else b""


def _text_line(record: "ConsumedRecord", styled: bool) -> str:
    place = f"{record.topic}/{record.partition}:{record.offset}"
    if styled:
        place = f"\x1b[2m{place}\x1b[0m"
    key = "" if record.key is None else f"{_printable(record.key)}\t"
    return f"{place}\t{key}{'(deleted)' if record.value is None else _printable(record.value)}\n"


def _printable(data: bytes) -> str:
    """Return text that does nothing to a terminal: what is not printable is escaped."""
    text = data.decode(errors="backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def _json_line(record: "ConsumedRecord", _styled: bool) -> str:
    facts = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": _json_value(record.key),
        "value": _json_value(record.value),
        "headers": [[name, _json_value(value)] for name, value in record.headers],
    }
    return json.dumps(facts, ensure_ascii=False) + "\n"


def _json_value(data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        from base64 import b64encode

        return {"base64": b64encode(data).decode()}
