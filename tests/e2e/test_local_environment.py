"""localstack/: three brokers on LocalStack's S3 and PostgreSQL, started by one command without Docker; and what Docker would be told."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tidelog
import yaml
from tidelog.config import Settings

from localstack.bucket import BUCKET, RULES, client, make_bucket
from tests.helm.test_monitoring import queries

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "localstack"
DASHBOARDS = ("overview", "broker", "topics", "storage")
"""Those of the chart that are about brokers."""
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
UP = [str(FOLDER / "up"), "--port", "0", "--s3-port", "0", "--prometheus-port", "0", "--data-dir"]

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("local environment")]  # one environment, one worker


@dataclass
class Environment:
    """A running local environment."""

    directory: Path
    process: "subprocess.Popen[bytes]"

    @property
    def places(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "places.json").read_text())
        return found

    def address(self, number: int) -> str:
        address: str = self.places["brokers"][f"broker-{number}"]["address"]
        return address

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(90):
            while not holds():
                assert self.process.poll() is None, "the environment ended"
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    directory = Path(tempfile.mkdtemp(prefix="tidelog-up-"))  # short: PostgreSQL's socket lies in it
    with subprocess.Popen([*UP, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            found = Environment(directory, process)
            asyncio.run(found.until(lambda: (directory / "places.json").exists()))
            yield found
        finally:
            process.kill()
    shutil.rmtree(directory, ignore_errors=True)


async def test_what_one_broker_takes_another_gives_back(environment: Environment) -> None:
    values: list[bytes | None] = [b"%d" % number for number in range(3000)]
    async with tidelog.connect(environment.address(1)) as log, log.producer() as producer:
        await producer.send_many("numbers", values)
    async with tidelog.connect(environment.address(3)) as log:
        got = [record.value async for record in log.consume("numbers", start="earliest", max_records=len(values))]
    assert sorted(got, key=lambda value: int(value or b"")) == values


async def test_prometheus_answers_every_panel_of_the_dashboards(environment: Environment) -> None:
    prometheus = environment.places["prometheus"]
    if prometheus is None:
        pytest.skip("Debian's Prometheus could not be fetched")
    empty: dict[str, str] = {}

    def all_answer() -> bool:
        empty.clear()
        empty.update((title, query) for title, query in all_queries() if not ask(prometheus, query))
        return not empty

    try:
        await environment.until(all_answer)
    except TimeoutError:
        pytest.fail(f"no data for {empty}")


async def test_a_killed_broker_is_a_pause_and_comes_back(environment: Environment) -> None:
    killed = environment.places["brokers"]["broker-2"]["pid"]
    os.kill(killed, signal.SIGKILL)
    async with tidelog.connect(environment.address(1)) as log, log.producer() as producer:
        acks = [await producer.send("after", b"%d" % number, partition=number % 3) for number in range(30)]
    assert [ack.offset for ack in acks if ack.partition == 0] == list(range(10))
    await environment.until(lambda: environment.places["brokers"]["broker-2"]["pid"] != killed)
    async with tidelog.connect(environment.address(2)) as log:
        got = [record.value async for record in log.consume("after", start="earliest", max_records=30)]
    assert len(got) == 30


def test_starting_it_twice_says_that_it_is_up(environment: Environment) -> None:
    second = subprocess.run([*UP, str(environment.directory)], capture_output=True, text=True, check=True)
    assert f"up already; {environment.directory / 'places.json'}" in second.stdout


def test_the_bucket_has_its_rules_and_may_be_made_again(environment: Environment) -> None:
    s3: Any = client(endpoint_url=environment.places["s3"], aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
    make_bucket(s3)
    rules = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [rule["ID"] for rule in rules] == [rule["ID"] for rule in RULES]
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] > 0, "making it again kept its objects"


def test_ctrl_c_ends_everything_in_order(environment: Environment) -> None:
    """The last test of this file: it ends the environment."""
    pids = [place["pid"] for place in environment.places["brokers"].values()]
    environment.process.send_signal(signal.SIGINT)
    output, _ = environment.process.communicate(timeout=90)
    assert environment.process.returncode == 0, output
    assert output.endswith(b"stopped\n")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not (environment.directory / "places.json").exists()
    for number in (1, 2, 3):
        assert b"broker_ended" in (environment.directory / f"broker-{number}" / "output").read_bytes(), "drained, not killed"


# ---- what does not run here


def all_queries() -> Iterator[tuple[str, str]]:
    for board in DASHBOARDS:
        for title, query in queries(board, **{"$__rate_interval": "30s"}):
            yield f"{board}: {title}", query


def ask(prometheus: str, query: str) -> list[object]:
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
        found: list[object] = json.load(answer)["data"]["result"]
    return found


def test_grafana_is_given_the_dashboards_of_the_chart() -> None:
    (mounted,) = [volume.split(":") for volume in COMPOSE["services"]["grafana"]["volumes"] if "dashboards:" in volume.split("/")[-1]]
    assert {path.stem for path in (FOLDER / mounted[0]).glob("*.json")} >= set(DASHBOARDS)
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{mounted[1]}/overview.json"
    provider = yaml.safe_load((FOLDER / "grafana" / "provisioning" / "dashboards" / "tidelog.yaml").read_text())["providers"][0]
    assert provider["options"]["path"] == mounted[1]


def test_compose_sets_only_settings_that_exist() -> None:
    named = {name for service in COMPOSE["services"].values() for name in service.get("environment", {}) if name.startswith("TIDELOG_")}
    assert {name.removeprefix("TIDELOG_").lower() for name in named} <= set(Settings.model_fields)
    assert "TIDELOG_BUCKET" in named


def test_compose_pins_its_images_and_mounts_what_is_there() -> None:
    services = COMPOSE["services"]
    assert all(re.search(r":v?\d+(\.\d+)*(-alpine)?$|:local$", service["image"]) for service in services.values())
    version = re.search(r"^localstack-core==(\S+)", (ROOT / "requirements-localstack.txt").read_text(), re.M)
    assert version
    assert services["s3"]["image"] == f"localstack/localstack:{version[1]}", "the same version in both environments"
    mounts = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    assert mounts
    assert all((FOLDER / mount).exists() for mount in mounts)
