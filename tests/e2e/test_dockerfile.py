"""The Dockerfile's steps, run outside Docker: its paths become folders of the test, and its commands are run as they are written."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import environment

ROOT = Path(__file__).parents[2]


def steps() -> list[list[tuple[str, str]]]:
    """The instructions of each stage."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()))
    stages: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, rest))
    return stages


def of(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in stage if name == instruction]


def variables(stage: list[tuple[str, str]]) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in of(stage, "ENV") for pair in line.split())


def test_the_image_is_slim_and_pinned_and_not_roots() -> None:
    build, image = steps()
    assert of(build, "FROM") == ["python:3.13-slim AS build"]
    assert of(image, "FROM") == ["python:3.13-slim"]
    assert of(image, "USER") == ["10001"]
    assert of(image, "COPY") == ["--from=build /opt/tidelog /opt/tidelog"], "nothing but the environment is taken over"
    assert variables(build)["UV_CONSTRAINT"] == variables(build)["UV_BUILD_CONSTRAINT"] == "/src/requirements.txt"
    assert of(image, "STOPSIGNAL") == ["SIGTERM"], "which drains"


def test_docker_is_sent_what_is_copied_and_no_more() -> None:
    build, _ = steps()
    copied = {name for line in of(build, "COPY") for name in line.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")


@pytest.mark.timeout(400)
def test_its_steps_make_a_broker_that_serves_and_drains(tmp_path: Path) -> None:
    build, image = steps()
    places = {"/src": tmp_path / "src", "/opt/tidelog": tmp_path / "opt", "/var/lib/tidelog": tmp_path / "home"}
    for place in (places["/src"], places["/var/lib/tidelog"]):
        place.mkdir()

    def placed(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text

    for line in of(build, "COPY"):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, places["/src"] / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, places["/src"])
    environ = environment(**{name: placed(value) for name, value in variables(build).items()})
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    for line in of(build, "RUN"):
        done = subprocess.run(["sh", "-c", placed(line)], cwd=places["/src"], env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    run = environment(**{name: placed(value).replace("$PATH", "/usr/bin:/bin") for name, value in variables(image).items()})
    (entry,), (default,) = (json.loads(of(image, name)[0]) for name in ("ENTRYPOINT", "CMD"))
    program = shutil.which(entry, path=run["PATH"])
    assert program == str(tmp_path / "opt/bin/tidelog")
    operator = shutil.which("tidelog-operator", path=run["PATH"])
    assert operator == str(tmp_path / "opt/bin/tidelog-operator"), "one image for both"
    definitions = subprocess.run([operator, "crds"], env=run, capture_output=True, text=True, timeout=60)
    assert definitions.stdout.count("kind: CustomResourceDefinition") == 2
    settings = {"BUCKET": "memory://", "METADATA": "sqlite://", "LISTEN": "127.0.0.1:0", "METRICS_LISTEN": ""}
    broker_variables = run | {f"TIDELOG_{name}": value for name, value in settings.items()}
    with subprocess.Popen([program, default], cwd=tmp_path / "home", env=broker_variables, stderr=subprocess.PIPE, text=True) as broker:
        try:
            assert broker.stderr
            ready = next(event for event in map(json.loads, broker.stderr) if event["event"] == "broker_ready")
            client = run | {"TIDELOG_SERVER": ready["address"]}
            made = subprocess.run([program, "topics", "create", "t"], env=client, capture_output=True, text=True, timeout=60)
            assert made.stdout.startswith("Created topic t")
            broker.send_signal(getattr(signal, of(image, "STOPSIGNAL")[0]))
            events = [json.loads(line)["event"] for line in broker.stderr]
            assert (broker.wait(60), events[-1]) == (0, "broker_ended")
        finally:
            broker.kill()
