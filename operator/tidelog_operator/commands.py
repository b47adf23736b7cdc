"""The commands of `tidelog-operator`."""

import re
import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml

from tidelog_operator.schema import definitions

app = typer.Typer(help="The Kubernetes operator of Tidelog.", no_args_is_help=True, add_completion=False)
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class LogFormatName(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


class LogLevelName(StrEnum):
    """What is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@app.callback()
def operator() -> None:
    """The Kubernetes operator of Tidelog."""


@app.command()
def run(
    namespaces: Annotated[
        str, typer.Option(envvar="TIDELOG_OPERATOR_NAMESPACES", help="Namespaces to look after, separated by commas; empty: all.")
    ] = "",
    kubeconfig: Annotated[
        str, typer.Option(envvar="KUBECONFIG", metavar="FILE", help="How to reach the API server; empty: this pod's service account.")
    ] = "",
    lease_namespace: Annotated[
        str,
        typer.Option(
            envvar="TIDELOG_OPERATOR_LEASE_NAMESPACE", help="Where the Lease is by which one of several leads; empty: this pod's."
        ),
    ] = "",
    lease_name: Annotated[str, typer.Option(envvar="TIDELOG_OPERATOR_LEASE_NAME", help="Its name.")] = "tidelog-operator",
    lease_seconds: Annotated[
        float,
        typer.Option(
            envvar="TIDELOG_OPERATOR_LEASE_SECONDS", min=1, max=600, help="How long it lasts: after a crash nobody leads that long."
        ),
    ] = 15,
    identity: Annotated[
        str, typer.Option(envvar="TIDELOG_OPERATOR_IDENTITY", help="Name of this one, unlike those of all others; empty: the host's.")
    ] = "",
    resync_seconds: Annotated[
        float,
        typer.Option(
            envvar="TIDELOG_OPERATOR_RESYNC_SECONDS", min=1, max=3600, help="Everything is looked at anew after this, whatever was told."
        ),
    ] = 30,
    listen: Annotated[
        str, typer.Option(envvar="TIDELOG_OPERATOR_LISTEN", metavar="HOST:PORT", help="Where /metrics, /livez and /readyz answer.")
    ] = "0.0.0.0:8080",  # in a pod, for probes and Prometheus
    log_format: Annotated[
        LogFormatName, typer.Option(envvar="TIDELOG_OPERATOR_LOG_FORMAT", help="Text for people, or lines of JSON.")
    ] = LogFormatName.JSON,
    log_level: Annotated[LogLevelName, typer.Option(envvar="TIDELOG_OPERATOR_LOG_LEVEL", help="What is logged.")] = LogLevelName.INFO,
) -> None:
    """Run the operator until SIGTERM or Ctrl-C. Several may run: one leads, the others wait for their turn."""
    from tidelog_operator.process import OperatorSettings
    from tidelog_operator.process import run as run_operator

    within = lease_namespace or (_OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.exists() else "")
    if not within:
        _refuse("where the Lease is to be is not known outside a pod; name a namespace with --lease-namespace")
    named = tuple(each.strip() for each in namespaces.split(",") if each.strip())
    for each in (*named, within):
        if not _NAME.fullmatch(each):
            _refuse(f"{each!r} was given as a namespace, but is not the name of one; separate names with commas")
    if not re.fullmatch(r".+:\d{1,5}", listen):
        _refuse(f"--listen was {listen!r}; write HOST:PORT")
    settings = OperatorSettings(
        namespaces=named,
        kubeconfig=kubeconfig,
        lease_namespace=within,
        lease_name=lease_name,
        identity=identity or socket.gethostname(),
        lease_s=lease_seconds,
        resync_s=resync_seconds,
        listen=listen,
        log_format=log_format.value,
        log_level=log_level.value,
    )
    raise typer.Exit(run_operator(settings))


def _refuse(sentence: str) -> NoReturn:
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(2)


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
