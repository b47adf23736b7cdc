"""Writes `docs/settings.md` and `docs/metrics.md` from the code: `make docs`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tidelog.config import Settings
from tidelog.metrics import MetricDescription, Metrics
from tidelog.server.settings import default_of, groups, range_of

FOLDER = Path(__file__).parent


def pages() -> dict[str, str]:
    """Return the pages by their files' names."""
    return {"settings.md": "\n".join(_settings()) + "\n", "metrics.md": "\n".join(_metrics()) + "\n"}


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
    yield "from the start, but for metadata verbs, which appear with their first use."
    yield ""
    yield "| metric | type | labels | |"
    yield "|---|---|---|---|"
    for metric in Metrics().described:
        yield f"| `{metric.name}` | {metric.kind} | {_labels(metric)} | {metric.sentence} |"


def _labels(metric: MetricDescription) -> str:
    return "; ".join(f"`{name}`{_listed(values)}" for name, values in metric.labels.items())


def _listed(values: Iterable[str]) -> str:
    listed = ", ".join(values)
    return f": {listed}" if listed else ""


if __name__ == "__main__":
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
