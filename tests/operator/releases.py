"""Two releases of Tidelog that follow each other, built as wheels from this tree: the later one has another number and a larger schema."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tidelog.metadata.migrations import newest_version

from tests.operator.kube.kubelet import Start

ROOT = Path(__file__).parents[2]
_STEP = '''"""A step of a later release, which only adds."""

import sqlalchemy as sa
from alembic import op

revision = "{new}"
down_revision = "{old}"


def upgrade() -> None:
    """Add what only the later release knows."""
    op.add_column("brokers", sa.Column("note", sa.Text(), nullable=False, server_default=""))
    op.create_table("notes", sa.Column("note_id", sa.BigInteger(), primary_key=True), sa.Column("note", sa.Text(), nullable=False))
'''


def build(folder: Path, version: str, *, larger_schema: bool = False) -> Path:
    """Build a wheel of this tree under a version, and return a directory that it is installed into, alone."""
    source = folder / f"source-{version}"
    for name in ("service", "operator"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    project = (ROOT / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project))
    if larger_schema:
        old = newest_version()
        new = f"{int(old) + 1:04d}"
        (source / f"service/tidelog/metadata/migrations/versions/{new}_later.py").write_text(_STEP.format(old=old, new=new))
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder / version)], source)
    (wheel,) = (folder / version).glob("*.whl")
    installed = folder / f"installed-{version}"
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], folder)
    return installed


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def image(installed: Path) -> Start:
    """Return what starts a broker of an installed release."""

    async def start(variables: Mapping[str, str], log: Path) -> tuple[int, "asyncio.Future[int]"]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
        with log.open("ab") as told:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tidelog", "broker", env={**environ, **variables, "PYTHONPATH": str(installed)}, cwd=log.parent,
                stdout=told, stderr=told,
            )  # fmt: skip
        return process.pid, asyncio.ensure_future(process.wait())

    return start
