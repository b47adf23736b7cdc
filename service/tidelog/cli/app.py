"""The root of the command line: the nouns, and nothing that takes time to load."""

import typer

from tidelog.cli import segment

app = typer.Typer(name="tidelog", help="A commit log on object storage.", no_args_is_help=True, add_completion=True, rich_markup_mode=None)
app.add_typer(segment.app, name="segment")
