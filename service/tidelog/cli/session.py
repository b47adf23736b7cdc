"""What every client command shares: how the cluster is reached, how a command ends, and where its output goes.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. A reader that has had enough (`| head`) ends a command quietly, with 0.
"""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tidelog.client.client import Log

DEFAULT_SERVER = "localhost:9595"
USAGE = 2
INTERRUPTED = 130
_PATIENCE_S = 2.0
_COMPLETION_S = 2.0


class Format(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("--format", metavar="text|json", help="Text for people, JSON for programs.")]


@dataclass(frozen=True, slots=True)
class Reach:
    """How a command reaches the cluster."""

    server: str
    token: str | None
    ca: str | None
    cert: str | None
    key: str | None
    tls: bool
    timeout_s: float

    def connect(self) -> "Log":
        """Return the cluster, to be used as `async with`. Raises typer.BadParameter for what cannot be used."""
        from tidelog.client.client import connect
        from tidelog.errors import InvalidRequest

        try:
            tls = True if self.tls else None
            timeout_ms = self.timeout_s * 1000
            return connect(self.server, tls=tls, ca=self.ca, cert=self.cert, key=self.key, token=self.token, call_timeout_ms=timeout_ms)
        except InvalidRequest as error:
            raise typer.BadParameter(str(error)) from error


CONNECTION_OPTIONS = {
    "server": Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", envvar="TIDELOG_SERVER", help="Any broker, or a balancer before them; several separated by commas."
        ),
    ],
    "token": Annotated[
        str | None, typer.Option(metavar="TOKEN", envvar="TIDELOG_TOKEN", help="The bearer token that goes with every call.")
    ],
    "ca": Annotated[
        str | None,
        typer.Option(metavar="FILE", envvar="TIDELOG_CA", help="PEM of the authorities that brokers are checked against; means TLS."),
    ],
    "cert": Annotated[str | None, typer.Option(metavar="FILE", help="PEM of this client's certificate, for mutual TLS.")],
    "key": Annotated[str | None, typer.Option(metavar="FILE", help="PEM of its key.")],
    "tls": Annotated[bool, typer.Option("--tls", help="TLS with the system's authorities.")],
    "timeout_s": Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to go on looking for a broker that answers.")
    ],
}
_DEFAULTS = {"server": DEFAULT_SERVER, "tls": False, "timeout_s": 10.0}
_reach: ContextVar[Reach] = ContextVar("reach")


def client_command(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which cluster, and how it is reached; `run` connects by them."""

    @wraps(command)
    def reaching(**given: Any) -> None:
        _reach.set(Reach(**{name: given.pop(name) for name in CONNECTION_OPTIONS}))
        command(**given)

    own = signature(command)
    more = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=kind) for name, kind in CONNECTION_OPTIONS.items()
    ]
    vars(reaching)["__signature__"] = own.replace(parameters=[*own.parameters.values(), *more])
    reaching.__annotations__ = {**command.__annotations__, **CONNECTION_OPTIONS}
    return reaching


def reach() -> Reach:
    """Return how the command that runs now reaches its cluster."""
    return _reach.get()


def run(work: Callable[["Log"], Awaitable[None]]) -> None:
    """Run a command's work on its cluster, and end the process as the module says."""
    import asyncio

    async def connected() -> None:
        async with AsyncExitStack() as stack:
            waiting = asyncio.get_running_loop().call_later(_PATIENCE_S, _say_that_it_waits, reach())
            try:
                log = await stack.enter_async_context(reach().connect())
            finally:
                waiting.cancel()
            await work(log)

    with ending():
        asyncio.run(connected())
        sys.stdout.flush()


@contextmanager
def ending() -> Iterator[None]:
    """End the process as the module says, whatever a command ends with."""
    import asyncio

    from tidelog.errors import InvalidSettings, TidelogError

    try:
        yield
    except BaseException as raised:
        error = raised
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
            raise typer.Exit(INTERRUPTED) from None
        if isinstance(error, BrokenPipeError):
            _leave_pipe()
        if isinstance(error, InvalidSettings):
            fail(str(error), code=USAGE)
        if isinstance(error, TidelogError):
            fail(f"{error} [{error.reason}]")
        if isinstance(error, OSError):
            fail(str(error))
        raise


def _say_that_it_waits(reached: Reach) -> None:
    if sys.stderr.isatty():
        typer.echo(
            f"No broker answers at {reached.server} yet; trying for {reached.timeout_s:g} s. To start one here: tidelog dev", err=True
        )


def fail(sentence: str, *, code: int = 1) -> NoReturn:
    """End with a sentence on standard error, and a code."""
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(code)


@contextmanager
def server_packages() -> Iterator[None]:
    """End with what is to be installed where the service's packages are missing: `pip install tidelog` is the client alone."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"this needs the service's packages, and {error.name} is not installed; install them: pip install 'tidelog[server]'")


def _leave_pipe() -> NoReturn:
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


def topic_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete a topic's name, in the shell, by asking the cluster; nothing where it does not answer soon."""
    import asyncio

    from tidelog.errors import TidelogError

    async def names() -> list[str]:
        given = {name: ctx.params.get(name) or _DEFAULTS.get(name) for name in CONNECTION_OPTIONS}
        async with Reach(**{**given, "timeout_s": _COMPLETION_S}).connect() as log:  # type: ignore[arg-type]
            return await log.admin.list_topics()

    try:
        return [name for name in asyncio.run(names()) if name.startswith(incomplete)]
    except (TidelogError, OSError, typer.BadParameter):
        return []


def show_json(facts: Any) -> None:
    """Print facts for programs."""
    typer.echo(json.dumps(facts, indent=1, default=str))


def show_table(columns: Mapping[str, str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headings; `columns` maps each heading to "left" or "right"."""
    console = screen()
    console.print(table(columns, rows, ruled=console.is_terminal))


def table(columns: Mapping[str, str], rows: Sequence[Sequence[object]], *, ruled: bool) -> Any:
    """Return a table to be printed; `ruled` draws a line under its headings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD if ruled else None, show_edge=False, header_style="dim", pad_edge=False)
    for heading, side in columns.items():
        made.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(f"{cell:,}" if type(cell) is int else str(cell)) for cell in row))
    return made
