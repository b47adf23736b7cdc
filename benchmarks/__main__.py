"""`python -m benchmarks [NAME …]`: run the sets, print a table, write JSON to benchmarks/results or where `--json` says."""

import argparse
import importlib
import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

SETS = (
    "records",
    "segments",
    "stores",
    "metadata",
    "client",
    "transport",
    "reading",
    "consume",
    "merging",
    "service",
    "failover",
    "cleaning",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=SETS, help=f"of {', '.join(SETS)}")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each figure; the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures; default: a new file in benchmarks/results")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SETS):
        parser.error(f"no set is called {', '.join(sorted(unknown))}; choose of {', '.join(SETS)}")
    table = Table(title="Tidelog benchmarks: medians of one run")
    for column in ("set", "figure", "value", "unit", "floor", "ratio", "aim"):
        table.add_column(column, justify="right" if column in ("value", "floor", "ratio") else "left")
    rows = []
    for name in arguments.names:
        for measure in importlib.import_module(f"benchmarks.{name}").run(arguments.repeats):
            floor = "" if measure.floor is None else f"{measure.floor:.4g} ({measure.floor_name})"
            ratio = "" if measure.ratio is None else f"{measure.ratio:.2f}"
            table.add_row(name, measure.name, f"{measure.value:.4g}", measure.unit, floor, ratio, measure.aim)
            rows.append({"set": name, **asdict(measure), "ratio": measure.ratio})
    Console(width=170).print(table)
    now = datetime.now(UTC)
    facts = {
        "date": now.isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
    }
    file = arguments.json or Path(__file__).parent / "results" / f"{now:%Y%m%dT%H%M%SZ}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"facts": facts, "measures": rows}, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


def _cpu_model() -> str:
    """The model's name as Linux tells it; elsewhere, what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
