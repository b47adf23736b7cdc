"""`tidelog broker` and `tidelog dev`: the service itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from tidelog.cli.session import fail, server_packages

if TYPE_CHECKING:
    from tidelog.config import Settings
    from tidelog.server.settings import LoadedSettings


class BrokerCommand(TyperCommand):
    """A command whose help ends with all settings."""

    @server_packages()
    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the base class's signature
        """List the settings in their groups."""
        from tidelog.config import Settings
        from tidelog.server.settings import default_of, flag, groups

        for heading, names in groups():
            with formatter.section(heading):
                formatter.write_dl(
                    [(flag(name), f"{Settings.model_fields[name].description} [default: {default_of(name)}]") for name in names]
                )


@server_packages()
def broker(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of settings: name: value.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings and where each came from, and end.")] = False,
) -> None:
    """Run one broker.

    Until SIGTERM or Ctrl-C, which drain it; a second one ends it at once.

    Every setting below is a flag, --name VALUE; a line `name: value` with underscores in the file of --config; and an
    environment variable TIDELOG_NAME. Flags go before the file, the file before the environment.
    """
    from tidelog.errors import InvalidSettings

    try:
        loaded = _load(_flags(ctx.args), config)
    except InvalidSettings as error:
        _refuse(error)
    if print_config:
        typer.echo(loaded.as_yaml(), nl=False)
    else:
        _run(loaded)


@server_packages()
def dev(
    data_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where records and metadata are kept; made if need be.")] = Path(
        "tidelog-data"
    ),
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="Where clients connect; 0 takes any free one.")] = 9595,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="Metrics and health; 0: any free one.", show_default="--port + 1"),
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Keep everything in memory: gone when it ends.")] = False,
) -> None:
    """Run the whole service in one process.

    For this machine only. Topics are made on first use. Ctrl-C ends it; what was acknowledged is there when it starts again.
    """
    from tidelog.errors import InvalidSettings

    places = {"bucket": "memory://", "metadata": "sqlite://"}
    if not memory:
        root = data_dir.absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"the directory {str(root)!r} was to hold the data, but it cannot be made: {error.strerror}; name another")
        places = {"bucket": _url("file", root / "objects"), "metadata": _url("sqlite", root / "metadata.db")}
    if metrics_port is None:
        metrics_port = port + 1 if 0 < port < 65535 else 0
    addresses = {"listen": f"127.0.0.1:{port}", "metrics_listen": f"127.0.0.1:{metrics_port}"}
    try:
        loaded = _load({**places, **addresses, "auto_create_topics": True}, None)
    except InvalidSettings as error:
        _refuse(error)
    _run(loaded, kept="in memory, and gone when it ends" if memory else f"in {root}")


def load_or_refuse(arguments: Sequence[str], config: Path | None) -> "Settings":
    """Return the settings of a command that takes them as `tidelog broker` does; what cannot be used ends it with 2."""
    from tidelog.errors import InvalidSettings

    try:
        return _load(_flags(arguments), config).settings
    except InvalidSettings as error:
        _refuse(error)


def _load(flags: dict[str, Any], config: Path | None) -> "LoadedSettings":
    import os

    from tidelog.server.settings import load_settings

    return load_settings(flags=flags, config_file=config, environ=os.environ)


def _run(loaded: "LoadedSettings", *, kept: str | None = None) -> NoReturn:
    """Run until the end; `kept` says where the data is to somebody who sees the service start."""
    from tidelog.server.process import run

    def greet(address: str, metrics_address: str | None) -> None:
        typer.echo(f"Tidelog listens on {address}" + (f"; metrics and health: http://{metrics_address}/metrics" if metrics_address else ""))
        typer.echo(f"Try: echo hello | tidelog produce greetings --server {address}")
        typer.echo(f"What is appended is kept {kept}. Ctrl-C ends the service.")

    raise typer.Exit(run(loaded.settings, greet=greet if kept else None))


def _refuse(error: Exception) -> NoReturn:
    typer.echo(f"Error: {error}", err=True)
    raise typer.Exit(2)


def _url(scheme: str, path: Path) -> str:
    from urllib.parse import quote

    return f"{scheme}://{quote(str(path))}"


def _flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--name VALUE` and `--name=VALUE`; a yes-or-no setting may stand alone, or with `--no-` in front."""
    from tidelog.config import Settings
    from tidelog.errors import InvalidSettings

    flags: dict[str, Any] = {}
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        if not argument.startswith("--") or argument == "--":
            raise InvalidSettings(f"{argument!r} stands alone; settings are given as --name VALUE, and tidelog broker --help lists them")
        given, equals, value = argument[2:].partition("=")
        name = given.replace("-", "_")
        if equals:
            flags[name] = value
        elif _is_switch(name):
            flags[name] = True
        elif _is_switch(name.removeprefix("no_")):
            flags[name.removeprefix("no_")] = False
        elif name in Settings.model_fields and not rest:
            raise InvalidSettings(f"flag --{given} needs a value; write --{given} VALUE")
        elif name in Settings.model_fields or (rest and not rest[-1].startswith("--")):
            flags[name] = rest.pop()  # also where the name is unknown: it is refused with whatever else is wrong
        else:
            flags[name] = None
    return flags


def _is_switch(name: str) -> bool:
    from tidelog.config import Settings

    return name in Settings.model_fields and Settings.model_fields[name].annotation is bool
