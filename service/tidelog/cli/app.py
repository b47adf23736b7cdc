"""The root of the command line: the nouns, and nothing that takes time to load."""

import typer

from tidelog.cli import segment
from tidelog.cli.broker import BrokerCommand, broker, dev

app = typer.Typer(
    name="tidelog",
    help="A commit log on object storage.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
)
app.command(cls=BrokerCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(broker)
app.command()(dev)
app.add_typer(segment.app, name="segment")
