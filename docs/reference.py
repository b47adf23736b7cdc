"""Writes the pages of `docs/` that are made from the code: `make docs`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from tidelog.cli.app import app
from tidelog.cli.session import CONNECTION_OPTIONS
from tidelog.config import Settings
from tidelog.metrics import MetricDescription, Metrics
from tidelog.server.settings import default_of, groups, range_of
from tidelog_operator.metrics import OperatorMetrics

FOLDER = Path(__file__).parent


def pages() -> dict[str, str]:
    """Return the pages by their files' names."""
    made = {"settings.md": _settings(), "metrics.md": _metrics(), "cli.md": _cli()}
    return {name: "\n".join(lines) + "\n" for name, lines in made.items()}


def _settings() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "Made from the code by `make docs`."
    yield ""
    yield "A broker takes each setting `name` from the environment (`TIDELOG_NAME`), from a YAML file (`--config FILE`, `name: value`)"
    yield "or from a flag (`--name VALUE`), in rising priority. Unknown names are refused. `tidelog broker --print-config` shows what holds"
    yield "and where it came from. Values are plain numbers, in the unit that the name ends with."
    for heading, names in groups():
        yield ""
        yield f"## {heading}"
        yield ""
        yield "| setting | default | may be | |"
        yield "|---|---|---|---|"
        for name in names:
            yield f"| `{name}` | `{default_of(name)}` | {range_of(name)} | {Settings.model_fields[name].description} |"


def _metrics() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "Made from the code by `make docs`."
    yield ""
    yield "Answered at `/metrics` (`metrics_listen`) in Prometheus' format, with the process's own as `tidelog_process_*`. All series exist"
    yield "from the start, but for metadata verbs, gRPC methods' times and topics, which appear with their first use. No label takes values"
    yield "from outside but `topic`, which takes `metrics_most_topics` of them; the others together have none."
    yield ""
    yield "| metric | type | labels | |"
    yield "|---|---|---|---|"
    for metric in Metrics().described:
        yield f"| `{metric.name}` | {metric.kind} | {_labels(metric)} | {metric.sentence} |"
    yield ""
    yield "## Of the Kubernetes operator"
    yield ""
    yield "Answered by `tidelog-operator run` (`--listen`). Those of clusters come and go with the clusters."
    yield ""
    yield "| metric | type | labels | |"
    yield "|---|---|---|---|"
    for metric in OperatorMetrics().described:
        yield f"| `{metric.name}` | {metric.kind} | {_labels(metric)} | {metric.sentence} |"


def _cli() -> Iterator[str]:
    yield "# Command line"
    yield ""
    yield "Made from the code by `make docs`; `tidelog COMMAND --help` says the same."
    yield ""
    yield "Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. Errors go to standard error and end with their reason, as"
    yield "`[UNKNOWN_TOPIC]`: [troubleshooting](troubleshooting.md) has a line for each. In pipes there is no colour, no bar and no"
    yield "rule; `NO_COLOR` is honoured. `tidelog --install-completion` has the shell complete commands, options and the names of topics."
    root = typer.main.get_command(app)
    commands = list(_commands(root, "tidelog"))
    yield ""
    yield "## Every client command takes"
    yield ""
    yield from _parameters([p for p in dict(commands)["tidelog consume"].params if p.name in CONNECTION_OPTIONS])
    for name, command in commands:
        own = [parameter for parameter in command.params if parameter.name not in CONNECTION_OPTIONS]
        arguments = "".join(f" {p.metavar}{'...' if p.nargs == -1 else ''}" for p in own if p.param_type_name == "argument")
        yield ""
        yield f"## `{name}{arguments}`"
        yield ""
        yield " ".join(line for line in (command.help or "").split("\n\n")).replace("\n", " ")
        if own:
            yield ""
            yield from _parameters(own)
        if name == "tidelog broker":
            yield ""
            yield "Its settings are [here](settings.md)."


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield commands that do something, with their names, as they are listed."""
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield name, command
    for child, found in children.items():
        yield from _commands(found, f"{name} {child}")


def _parameters(parameters: Iterable[Any]) -> Iterator[str]:
    yield "| | default | |"
    yield "|---|---|---|"
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            shown, default = f"`{parameter.metavar}`", ""
        else:
            value = "" if parameter.is_flag else " " + parameter.metavar.replace("|", r"\|")
            shown = ", ".join(f"`{option}{value}`" for option in (*parameter.opts, *parameter.secondary_opts))
            told = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
            default = "" if told in (None, False) else f"`{getattr(told, 'value', told)}`"
        variable = f" (`{parameter.envvar}`)" if parameter.envvar else ""
        yield f"| {shown} | {default} | {parameter.help}{variable} |"


def _labels(metric: MetricDescription) -> str:
    return "; ".join(f"`{name}`{_listed(values)}" for name, values in metric.labels.items())


def _listed(values: Iterable[str]) -> str:
    listed = ", ".join(values)
    return f": {listed}" if listed else ""


if __name__ == "__main__":
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
