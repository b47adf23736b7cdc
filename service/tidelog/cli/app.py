"""The root of the command line: the nouns, and nothing that takes time to load."""

from typing import Annotated

import typer

from tidelog.cli import bench, cluster, segment, topics
from tidelog.cli.broker import BrokerCommand, broker, dev
from tidelog.cli.certify import certify
from tidelog.cli.consume import consume
from tidelog.cli.demo.command import demo
from tidelog.cli.fsck import fsck
from tidelog.cli.ping import ping
from tidelog.cli.produce import produce
from tidelog.cli.rebuild import rebuild
from tidelog.cli.top import top

app = typer.Typer(
    name="tidelog",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="To begin: tidelog dev; and in another terminal: echo hello | tidelog produce greetings, and: tidelog consume greetings",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"tidelog {version('tidelog')}")
        raise typer.Exit


@app.callback()
def _tidelog(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """A commit log on object storage."""


app.command()(demo)
app.command()(dev)
app.command(cls=BrokerCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(broker)
app.add_typer(topics.app, name="topics")
app.command()(produce)
app.command()(consume)
app.add_typer(cluster.app, name="cluster")
app.command()(ping)
app.command()(top)
app.add_typer(bench.app, name="bench")
app.add_typer(segment.app, name="segment")
app.command(cls=BrokerCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(rebuild)
app.command()(certify)
app.command()(fsck)
