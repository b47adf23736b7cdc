"""What every client command shares: how the cluster is reached, how a command ends, and where its output goes.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. A reader that has had enough (`| head`) ends a command quietly, with 0.
"""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tidelog.client.client import Log

DEFAULT_SERVER = "localhost:9595"
INTERRUPTED = 130


class Format(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("--format", help="Text for people, JSON for programs.")]


@dataclass(frozen=True, slots=True)
class Reach:
    """How a command reaches the cluster."""

    server: str
    token: str | None
    ca: str | None
    cert: str | None
    key: str | None
    tls: bool

    def connect(self) -> "Log":
        """Return the cluster, to be used as `async with`. Raises typer.BadParameter for what cannot be used."""
        from tidelog.client.client import connect
        from tidelog.errors import InvalidRequest

        try:
            tls = True if self.tls else None
            return connect(self.server, tls=tls, ca=self.ca, cert=self.cert, key=self.key, token=self.token)
        except InvalidRequest as error:
            raise typer.BadParameter(str(error)) from error


_CONNECTION = {
    "server": Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", envvar="TIDELOG_SERVER", help="Any broker, or a balancer before them; several separated by commas."
        ),
    ],
    "token": Annotated[str | None, typer.Option(envvar="TIDELOG_TOKEN", help="The bearer token that goes with every call.")],
    "ca": Annotated[
        str | None,
        typer.Option(metavar="FILE", envvar="TIDELOG_CA", help="PEM of the authorities that brokers are checked against; means TLS."),
    ],
    "cert": Annotated[str | None, typer.Option(metavar="FILE", help="PEM of this client's certificate, for mutual TLS.")],
    "key": Annotated[str | None, typer.Option(metavar="FILE", help="PEM of its key.")],
    "tls": Annotated[bool, typer.Option("--tls", help="TLS with the system's authorities.")],
}
_DEFAULTS = {"server": DEFAULT_SERVER, "tls": False}
_reach: ContextVar[Reach] = ContextVar("reach")


def client_command(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which cluster, and how it is reached; `run` connects by them."""

    @wraps(command)
    def reaching(**given: Any) -> None:
        _reach.set(Reach(**{name: given.pop(name) for name in _CONNECTION}))
        command(**given)

    own = signature(command)
    more = [Parameter(name, Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=kind) for name, kind in _CONNECTION.items()]
    vars(reaching)["__signature__"] = own.replace(parameters=[*own.parameters.values(), *more])
    reaching.__annotations__ = {**command.__annotations__, **_CONNECTION}
    return reaching


def reach() -> Reach:
    """Return how the command that runs now reaches its cluster."""
    return _reach.get()


def run(work: Callable[["Log"], Awaitable[None]]) -> None:
    """Run a command's work on its cluster, and end the process as the module says."""
    import asyncio

    from tidelog.errors import TidelogError

    async def connected() -> None:
        async with reach().connect() as log:
            await work(log)

    try:
        asyncio.run(connected())
        sys.stdout.flush()
    except TidelogError as error:
        fail(str(error))
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, BrokenPipeError):
            _leave_pipe()
        if not isinstance(first, TidelogError):
            raise
        fail(str(first))
    except BrokenPipeError:
        _leave_pipe()
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def fail(sentence: str) -> None:
    """End with a sentence on standard error, and 1."""
    typer.echo(sentence, err=True)
    raise typer.Exit(1)


def _leave_pipe() -> None:
    """Have nothing be written any more, also not when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(0)


# ---- output


def screen(*, stderr: bool = False) -> "Console":
    """Return a rich console; without a terminal it writes plain text, as wide as need be."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=10_000, no_color=True)
    return console


def show_json(facts: Any) -> None:
    """Print facts for programs."""
    typer.echo(json.dumps(facts, indent=1, default=str))


def show_table(columns: Mapping[str, str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows under headings; `columns` maps each heading to "left" or "right"."""
    screen().print(table(columns, rows, title=title))


def table(columns: Mapping[str, str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> Any:
    """Return a table to be printed."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False)
    for heading, side in columns.items():
        made.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(f"{cell:,}" if type(cell) is int else str(cell)) for cell in row))
    return made
