"""What `make dist` builds, used as a user uses it: installed into an environment that has nothing else."""

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from helm_python import Chart

from tests.command_line import GREETING, environment

pytestmark = pytest.mark.xdist_group("dist")  # built once
ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
WHAT_TO_INSTALL = re.compile(
    r"(?m)^Error: this needs the service's packages, and \w+ is not installed; install them: pip install 'tidelog\[server\]'$"
)
OF_THE_SERVER = {
    "aiobotocore",
    "aiohttp",
    "alembic",
    "asyncpg",
    "boto3",
    "prometheus-client",
    "pydantic-settings",
    "sqlalchemy",
    "structlog",
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # The environment that runs the tests is there; it must not be made anew under them.
    made = ["make", "-s", "--old-file=.venv/.installed", "dist", f"DIST={folder}"]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
    return folder


def wheel_of(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


@dataclass(frozen=True, slots=True)
class Clean:
    """An environment of its own."""

    folder: Path

    def run(self, *command: str, given: str = "", server: str | None = None) -> "subprocess.CompletedProcess[str]":
        program, *arguments = command
        environ = environment(server, PATH="/usr/bin:/bin") | {"PYTHONPATH": "", "VIRTUAL_ENV": ""}
        return subprocess.run(
            [self.folder / "bin" / program, *arguments],
            input=given,
            capture_output=True,
            text=True,
            env=environ,
            cwd=self.folder,
            timeout=120,
        )

    def install(self, what: str) -> None:
        """Install a wheel and what it needs, in the versions that are pinned."""
        python, pins = self.folder / "bin/python", ["--constraint", str(ROOT / "requirements.txt")]
        uv = Path(sys.executable).parent / "uv"
        command = (
            [uv, "pip", "install", "--python", python] if uv.exists() else [sys.executable, "-m", "pip", "--python", str(python), "install"]
        )
        done = subprocess.run([*command, "--quiet", *pins, what], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    def packages(self) -> set[str]:
        program = "import importlib.metadata as m; print(*(d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()))"
        return set(self.run("python", "-c", program).stdout.split())


@pytest.fixture
def clean(tmp_path: Path) -> Clean:
    venv.create(tmp_path, symlinks=True)
    return Clean(tmp_path)


def test_the_wheel_holds_the_packages_their_contract_and_their_types_and_nothing_else(dist: Path) -> None:
    names = zipfile.ZipFile(wheel_of(dist)).namelist()
    assert {
        "tidelog/py.typed",
        "tidelog/proto/v1/log.proto",
        "tidelog/proto/v1/admin.proto",
        "tidelog/cli/demo/acts.py",
        "tidelog_operator/py.typed",
    } <= set(names)
    assert [name for name in names if not re.match(r"tidelog/|tidelog_operator/|tidelog-[^/]+\.dist-info/", name)] == []
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []
    migrations = ROOT / "service/tidelog/metadata/migrations/versions"
    assert {f"tidelog/metadata/migrations/versions/{path.name}" for path in migrations.glob("*.py")} <= set(names)


def test_the_chart_is_packed_without_what_only_tests_need(dist: Path) -> None:
    (packed,) = dist.glob("*.tgz")
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert {"tidelog/Chart.yaml", "tidelog/values.schema.json", "tidelog/README.md", "tidelog/crds/tidelogclusters.yaml"} <= set(names)
    assert [name for name in names if "/ci/" in name] == []
    with Chart.load(packed) as chart:
        assert "tidelog/templates/operator.yaml" in chart.render({}, name="tidelog")


def test_the_source_distribution_builds_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")],
        cwd=root,
        check=True,
        capture_output=True,
    )
    assert wheel_of(tmp_path / "again").read_bytes() == wheel_of(dist).read_bytes()


def test_alone_it_is_the_light_client_and_the_command_line(clean: Clean, dist: Path, server: str, topic: str) -> None:
    clean.install(str(wheel_of(dist)))
    assert clean.packages() & OF_THE_SERVER == set()
    assert clean.run("tidelog", "--version").stdout == f"tidelog {version('tidelog')}\n"
    told = clean.run("tidelog", "produce", topic, given="one\ntwo\n", server=server)
    assert told.stdout == f"2 records (8 B) committed to {topic}:\n  partition 0: offsets 0 to 1\n"
    assert clean.run("tidelog", "consume", topic, "--format", "raw", server=server).stdout == "one\ntwo\n"
    program = (
        "import asyncio, sys, tidelog\n"
        "async def main():\n"
        "    async with tidelog.connect(sys.argv[1]) as log:\n"
        "        print([record.value async for record in log.consume(sys.argv[2], follow=False)])\n"
        "asyncio.run(main())"
    )
    assert clean.run("python", "-c", program, server, topic).stdout == "[b'one', b'two']\n"
    assert "every checksum is right" in clean.run("tidelog", "segment", "dump", str(GOLDEN / "segment-v1-intake.seg")).stdout
    for command in (("dev",), ("broker",), ("broker", "--help"), ("demo",), ("segment", "dump", "s3://b/k")):
        refusal = clean.run("tidelog", *command)
        assert (command, refusal.returncode) == (command, 1)
        assert WHAT_TO_INSTALL.search(refusal.stderr), (command, refusal.stderr)
        assert "Traceback" not in refusal.stderr


def test_with_its_extra_it_is_the_whole_service(clean: Clean, dist: Path) -> None:
    clean.install(f"{wheel_of(dist)}[server]")
    assert clean.packages() >= OF_THE_SERVER
    command = [str(clean.folder / "bin/tidelog"), "dev", "--memory", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()) as process:
        try:
            assert process.stdout
            found = GREETING.fullmatch(process.stdout.readline())
            assert found
            assert clean.run("tidelog", "produce", "t", given="a\n", server=found[1]).returncode == 0
            assert clean.run("tidelog", "consume", "t", "--format", "raw", server=found[1]).stdout == "a\n"
        finally:
            process.kill()
    assert clean.run("tidelog", "broker", "--print-config").returncode == 0


def test_with_the_other_extra_it_is_the_operator(clean: Clean, dist: Path) -> None:
    clean.install(str(wheel_of(dist)))
    refusal = clean.run("tidelog-operator", "crds")
    assert (refusal.returncode, refusal.stderr) == (
        1,
        "Error: this needs the operator's packages, and yaml is not installed; install them: pip install 'tidelog[operator]'\n",
    )
    clean.install(f"{wheel_of(dist)}[operator]")
    assert clean.packages() & {"kubernetes", "aiobotocore", "sqlalchemy"} == {"kubernetes"}
    assert "name: tidelogclusters.tidelog.io" in clean.run("tidelog-operator", "crds").stdout
