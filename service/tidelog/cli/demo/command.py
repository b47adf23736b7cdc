"""`tidelog demo`: the acts in their order."""

import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.quantities import GET_DOLLARS, PUT_DOLLARS, shown_bytes
from tidelog.cli.session import ending, fail, server_packages

if TYPE_CHECKING:
    from tidelog.cli.demo.acts import Load
    from tidelog.cli.demo.service import Service
    from tidelog.cli.demo.stage import Stage
    from tidelog.cli.demo.text import Text

TEXT_TOPIC = "text"
LOAD_TOPIC = "load"
_LOAD_SHARE = 0.2
"""Records under load, as a share of the text's lines."""
_KILLS_AT = (0.25, 0.6)


@server_packages()
def demo(
    lines: Annotated[
        int, typer.Option(metavar="COUNT", min=1_000, help="How much text goes in, at least; fewer where the machine has fewer.")
    ] = 250_000,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the data in this folder, which must be empty; else nothing is left behind.")
    ] = None,
) -> None:
    """See the whole service at work, in under a minute.

    A text of this machine goes in and comes out the same; the service is killed under load and nothing is lost; its
    database is deleted and made anew from the bucket; then: what that cost, and what was written where. Everything that is said
    was measured or read back. Nothing is left running.
    """
    import asyncio

    import tidelog.server.settings  # noqa: F401 - what the service needs is here, or it is said now

    with ending(), _folder(data_dir) as folder:
        asyncio.run(_until_told(_play(folder, lines, kept=data_dir is not None)))


async def _until_told(play: Coroutine[Any, Any, None]) -> None:
    """Play until the end, or until a signal: as Ctrl-C does, SIGTERM and a closed terminal end it with all that it has started."""
    import asyncio
    import signal

    playing = asyncio.ensure_future(play)
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, playing.cancel)
    await playing


@contextmanager
def _folder(asked: Path | None) -> Iterator[Path]:
    if asked is None:
        with tempfile.TemporaryDirectory(prefix="tidelog-demo-") as made:
            yield Path(made)
        return
    try:
        asked.mkdir(parents=True, exist_ok=True)
        empty = not any(asked.iterdir())
    except OSError as error:
        fail(f"the folder {str(asked)!r} was to hold the data, but it cannot be used: {error.strerror}; name another")
    if not empty:
        fail(f"the folder {str(asked)!r} was to hold the data, but it is not empty; name another")
    yield asked.absolute()


async def _play(folder: Path, lines: int, *, kept: bool) -> None:
    from tidelog.cli.demo.acts import Load
    from tidelog.cli.demo.service import running
    from tidelog.cli.demo.stage import Stage
    from tidelog.cli.demo.text import gather

    began = time.perf_counter()
    stage = Stage()
    stage.title("Tidelog", "a commit log that lives in a bucket; what you see is measured now, on this machine")
    text = gather(lines)
    stage.act("A log in a folder")
    async with running(folder) as service:
        stage.line(
            f"The whole service is one process, {service.process_id}, on {service.address}; it took {service.start_s:.1f} s to start."
        )
        stage.line(f"Its bucket is a folder and its metadata a SQLite file, both in {folder}.")
        await _in_and_out(stage, service, text)
        load = Load(max(200, int(text.lines * _LOAD_SHARE) // 4))
        await _killed(stage, service, load)
        await _database_lost(stage, service, text, load)
    _looked_at(stage, folder, text, load)
    _next(stage, folder if kept else None)
    stage.line(
        f"That took {time.perf_counter() - began:.0f} s. Nothing is left running" + ("." if kept else ", and nothing is left on the disk.")
    )


async def _in_and_out(stage: "Stage", service: "Service", text: "Text") -> None:
    from tidelog.cli.demo import acts
    from tidelog.cli.scrape import requests, scrape

    stage.act("A text goes in, and the same text comes out")
    stage.line(
        f"The text: {text.files:,} files of this machine's {' and '.join(text.places)}, {text.lines:,} lines, {shown_bytes(text.size)}."
    )
    before = await scrape(service.metrics)
    with stage.bar("appending", text.lines) as step:
        seconds = await acts.append_text(service, TEXT_TOPIC, text, step)
    stage.fact("in", f"{text.lines / seconds:,.0f} lines/s", f"{acts.PRODUCERS} producers, each file's name as key, {seconds:.1f} s")
    with stage.bar("reading", text.lines) as step:
        read = await acts.read_text(service, TEXT_TOPIC, step)
    after = await scrape(service.metrics)
    stage.fact("out", f"{text.lines / read.seconds:,.0f} lines/s", f"from {read.partitions} partitions, {read.seconds:.1f} s")
    puts, gets = requests(before, after, "put"), requests(before, after, "get")
    went_in = acts.digest([line for piece in text.pieces for line in piece.lines])
    came_out = acts.digest([line for piece in text.pieces for line in read.lines.get(piece.key, ())])
    stage.fact("SHA-256, in", went_in)
    stage.fact("SHA-256, out", came_out)
    same = sum(acts.digest(piece.lines) == acts.digest(read.lines.get(piece.key, ())) for piece in text.pieces)
    if came_out != went_in or same != len(text.pieces) or len(read.lines) != same:
        fail(f"the text was to come out as it went in, but {same:,} of {len(text.pieces):,} keys did; please report this")
    stage.good(f"equal, and equal for each of {same:,} keys: what a partition holds stays in order")
    dollars = puts * PUT_DOLLARS + gets * GET_DOLLARS
    stage.fact(
        "requests", f"{puts:,} PUTs, {gets:,} GETs", f"{text.lines / max(1, puts):,.0f} lines a PUT; on S3 they would cost ${dollars:.5f}"
    )


async def _killed(stage: "Stage", service: "Service", load: "Load") -> None:
    import asyncio

    from tidelog.cli.demo import acts
    from tidelog.client.client import connect

    stage.act("kill -9, twice, under load")
    async with connect(service.address) as log:
        await log.admin.create_topic(LOAD_TOPIC, partitions=acts.PARTITIONS)
    with stage.bar("appending", load.total) as step:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(service, LOAD_TOPIC, step))
            for share in _KILLS_AT:
                kill = await acts.kill_under_load(service, load, share)
                stage.line(
                    f"kill -9 {kill.process_id} with {kill.acknowledged:,} records acknowledged and {kill.in_flight:,} on their way;"
                    f" process {kill.successor} acknowledged the next after {kill.pause_s:.1f} s"
                )
    with stage.bar("reading", load.total) as step:
        verdict = await acts.judge(service, LOAD_TOPIC, load)
        step(verdict.read)
    facts = f"{verdict.lost:,} lost, {verdict.repeated:,} repeated, {verdict.out_of_order:,} out of order"
    if (verdict.read, verdict.lost, verdict.repeated, verdict.out_of_order) != (load.total, 0, 0, 0):
        fail(f"{len(load.acknowledged):,} records were acknowledged and {verdict.read:,} read back: {facts}; please report this")
    stage.good(f"{len(load.acknowledged):,} records acknowledged, {verdict.read:,} read back: {facts}")


async def _database_lost(stage: "Stage", service: "Service", text: "Text", load: "Load") -> None:
    from tidelog.cli.demo import acts

    stage.act("The database is deleted")
    rebuilt = await acts.lose_database(service)
    stage.line(f"The service was stopped, and metadata.db is gone: what is left is {rebuilt.objects:,} objects in the bucket.")
    stage.line(
        f"tidelog rebuild made a new one of these in {rebuilt.seconds:.1f} s: {rebuilt.topics} topics, {rebuilt.records:,} records at their"
        f" offsets, {'nothing' if rebuilt.certain else 'something'} in doubt; process {service.process_id} serves them"
    )
    with stage.bar("reading", text.lines + load.total) as step:
        read = await acts.read_text(service, TEXT_TOPIC, step)
        verdict = await acts.judge(service, LOAD_TOPIC, load)
        step(verdict.read)
    same = sum(acts.digest(piece.lines) == acts.digest(read.lines.get(piece.key, ())) for piece in text.pieces)
    if (same, verdict.read, verdict.lost) != (len(text.pieces), load.total, 0) or not rebuilt.certain:
        fail(
            f"after the rebuild {same:,} of {len(text.pieces):,} keys of the text were as before, and {verdict.lost:,} of"
            f" {len(load.acknowledged):,} acknowledged records lost; please report this"
        )
    stage.good(f"{same:,} keys of the text equal, {verdict.read:,} records of the load read back: {verdict.lost} lost")


def _looked_at(stage: "Stage", folder: Path, text: "Text", load: "Load") -> None:
    from tidelog.cli.demo import acts

    stage.act("What was written where")
    written = acts.look(folder)
    sent = text.size + sum(map(len, load.acknowledged))
    stage.fact(
        "objects/",
        shown_bytes(written.object_bytes),
        f"{written.objects:,} objects, each by one PUT, for {shown_bytes(sent)} of values ({acts.COMPRESSION})",
    )
    stage.fact("metadata.db", shown_bytes(written.metadata_bytes), "which offsets are where in which object: the order, not the bytes")
    stage.good(f"every checksum in {written.segments:,} segments with {written.segment_records:,} records is right")
    uncommitted = written.segment_records - text.lines - len(load.acknowledged)
    if uncommitted:
        stage.line(
            f"{uncommitted:,} of them were uploaded, but not committed, at a kill: nobody reads those; their producers sent them again"
        )
    stage.line(f"One of the segments: {written.example.relative_to(folder)}")


def _next(stage: "Stage", kept: Path | None) -> None:
    stage.act("What to try next")
    tidelog = "tidelog" if Path(sys.argv[0]).name != "tidelog" else sys.argv[0]
    if kept:
        stage.command(f"{tidelog} dev --data-dir {kept}", "serve what the demo has written")
        stage.command(f"{tidelog} consume {TEXT_TOPIC} --max-records 5", "look at it, from another terminal")
    else:
        stage.command(f"{tidelog} dev", "a service of your own; leave it running")
        stage.command(f"echo hello | {tidelog} produce greetings", "from another terminal")
    stage.command(f"{tidelog} consume greetings --follow", "watch what comes; Ctrl-C ends it")
    stage.command(f"{tidelog} ping", "how long a record takes, stage by stage")
    stage.command(f"{tidelog} bench produce", "how fast your machine is")
    stage.line()
