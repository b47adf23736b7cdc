"""`tidelog topics`: what there is, and what it keeps."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidelog.cli.quantities import counted, duration_ms, shown_limit, shown_ms, size_bytes
from tidelog.cli.session import Format, Output, client_command, run, screen, show_json, show_table, topic_names

if TYPE_CHECKING:
    from tidelog.client.admin import TopicDescription
    from tidelog.client.client import Log

app = typer.Typer(help="Create, list, describe, alter and delete topics.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.", autocompletion=topic_names)]
Retention = Annotated[
    int | None,
    typer.Option(metavar="DURATION", parser=duration_ms, help="How long records are kept: 7d, 12h, forever.", show_default=False),
]
RetentionBytes = Annotated[
    int | None,
    typer.Option(metavar="SIZE", parser=size_bytes, help="How much each partition keeps: 10GiB, unlimited.", show_default=False),
]
Compact = Annotated[
    bool | None, typer.Option("--compact/--no-compact", help="Keep only the latest record of each key.", show_default=False)
]


@app.command()
@client_command
def create(
    name: Annotated[str, typer.Argument(metavar="TOPIC", help="Its name.")],
    partitions: Annotated[int, typer.Option(metavar="COUNT", min=0, help="How many partitions; 0: the cluster's default.")] = 0,
    retention: Retention = None,
    retention_bytes: RetentionBytes = None,
    compact: Compact = None,
    output: Output = Format.TEXT,
) -> None:
    """Create a topic."""

    async def work(log: "Log") -> None:
        made = await log.admin.create_topic(
            name, partitions=partitions, retention_ms=retention, retention_bytes=retention_bytes, compact=compact
        )
        _show_done("Created", made, output)

    run(work)


@app.command("list")
@client_command
def list_(output: Output = Format.TEXT) -> None:
    """List all topics that you may see."""

    async def work(log: "Log") -> None:
        topics = sorted(await log.admin.describe_topics(), key=lambda topic: topic.name)
        if output is Format.JSON:
            show_json([_facts(topic) for topic in topics])
        elif not topics:
            typer.echo("No topics yet. Create one: tidelog topics create NAME --partitions 12")
        else:
            columns = {"topic": "left", "partitions": "right", "records": "right", "retention": "right", "compact": "left"}
            show_table(
                columns,
                [
                    (t.name, len(t.partitions), _records(t), shown_ms(t.config.retention_ms), "yes" if t.config.compact else "no")
                    for t in topics
                ],
            )

    run(work)


@app.command()
@client_command
def describe(name: Name, output: Output = Format.TEXT) -> None:
    """Show a topic's partitions: leaders and offsets."""

    async def work(log: "Log") -> None:
        topic = await log.admin.describe_topic(name)
        if output is Format.JSON:
            show_json(_facts(topic))
            return
        screen().print(f"{_summary(topic)}; id {topic.topic_id.hex()}", markup=False)
        columns = {"partition": "right", "leader": "left", "epoch": "right", "from offset": "right", "to": "right", "records": "right"}
        show_table(
            columns,
            [
                (p.partition, p.leader or "none now", p.leader_epoch, p.log_start_offset, p.next_offset, p.next_offset - p.log_start_offset)
                for p in topic.partitions
            ],
        )

    run(work)


@app.command()
@client_command
def alter(
    name: Name,
    partitions: Annotated[
        int | None, typer.Option(metavar="COUNT", min=1, help="Raise the number of partitions to this.", show_default=False)
    ] = None,
    retention: Retention = None,
    retention_bytes: RetentionBytes = None,
    compact: Compact = None,
    output: Output = Format.TEXT,
) -> None:
    """Change what a topic keeps, or add partitions.

    What is not named stays.
    """
    configured = (retention, retention_bytes, compact) != (None, None, None)
    if not configured and partitions is None:
        raise typer.BadParameter("nothing was to be changed; give --partitions, --retention, --retention-bytes or --compact")

    async def work(log: "Log") -> None:
        if configured:
            topic = await log.admin.alter_topic(name, retention_ms=retention, retention_bytes=retention_bytes, compact=compact)
        if partitions is not None:
            topic = await log.admin.create_partitions(name, partitions=partitions)
        _show_done("Changed", topic, output)

    run(work)


@app.command()
@client_command
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Delete a topic and all its records.

    Asks first on a terminal.
    """
    import sys

    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete topic {name!r} and all its records?", abort=True, err=True)

    async def work(log: "Log") -> None:
        await log.admin.delete_topic(name)
        if output is Format.JSON:
            show_json({"deleted": name})
        else:
            typer.echo(f"Deleted topic {name}.")

    run(work)


def _records(topic: "TopicDescription") -> int:
    return sum(partition.next_offset - partition.log_start_offset for partition in topic.partitions)


def _summary(topic: "TopicDescription") -> str:
    config = topic.config
    kept = f"retention {shown_ms(config.retention_ms)}, {shown_limit(config.retention_bytes)} per partition"
    return f"topic {topic.name}: {counted(len(topic.partitions), 'partition')}, {kept}{', compacted' if config.compact else ''}"


def _facts(topic: "TopicDescription") -> dict[str, Any]:
    return {**asdict(topic), "topic_id": topic.topic_id.hex()}


def _show_done(verb: str, topic: "TopicDescription", output: Format) -> None:
    if output is Format.JSON:
        show_json(_facts(topic))
    else:
        typer.echo(f"{verb} {_summary(topic)}.")
