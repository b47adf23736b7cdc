"""The house: what a fresh clone promises before any code runs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    "target", ["venv", "demo", "test", "check", "bench", "proto", "dist", "test-localstack", "test-pythons", "chaos", "sim"]
)
def test_each_target_that_is_spoken_of_is_there(target: str) -> None:
    planned = subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (planned.returncode, planned.stderr) == (0, "")
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^{target}\s+\S", listed, re.MULTILINE)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-localstack.txt"])
def test_requirements_are_pinned_and_name_no_place_to_get_them_from(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert len(lines) > 50
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z,-]+\])?==[^ ;/]+( ; .+)?", line), line


def test_every_dependency_of_every_extra_is_among_the_pins() -> None:
    pinned = {line.partition("==")[0].partition("[")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    wanted = PROJECT["dependencies"] + [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    names = {re.match(r"[A-Za-z0-9-]+", each).group().lower() for each in wanted}  # type: ignore[union-attr]  # all begin with a name
    assert names <= pinned


def test_this_python_is_one_of_those_that_are_promised() -> None:
    promised = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)}
    assert promised == {"3.11", "3.12", "3.13", "3.14"}
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in promised
    assert PROJECT["requires-python"] == ">=3.11"


def test_continuous_integration_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1].startswith("exec make test")
