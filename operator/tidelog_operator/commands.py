"""The commands of `tidelog-operator`."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from tidelog_operator.schema import definitions

app = typer.Typer(help="The Kubernetes operator of Tidelog.", no_args_is_help=True, add_completion=False)


@app.callback()
def operator() -> None:
    """The Kubernetes operator of Tidelog."""


@app.command()
def crds(
    directory: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a file for each here, instead of printing them.")] = None,
) -> None:
    """Print the custom resource definitions, as `kubectl apply -f -` takes them."""
    files = {name: rendered(definition) for name, definition in definitions().items()}
    if directory is None:
        typer.echo("---\n".join(files.values()), nl=False)
        return
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")


def rendered(definition: object) -> str:
    """Return a definition as the YAML that the chart has."""
    return "# Made from operator/tidelog_operator/resource.py by `make crds`.\n" + yaml.safe_dump(definition, sort_keys=False, width=140)
