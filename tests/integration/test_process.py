"""The service as a process: how it begins, and how it ends."""

import asyncio
import signal
import socket
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.chaos.scenario import free_ports
from tests.command_line import dev, started
from tests.postgres_server import PostgresServer


def page(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_the_service_tells_its_addresses_is_ready_and_drains_when_told(tmp_path: Path) -> None:
    with dev(tmp_path) as (process, address, metrics_address):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=30).close()
        assert page(metrics_address, "/readyz") == "ready\n"
        metrics = page(metrics_address, "/metrics")
        assert "\ntidelog_broker_epoch 1.0\n" in metrics
        assert "\ntidelog_members 1.0\n" in metrics
        assert "_created{" not in metrics
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [word for word in ("broker_ready", "told_to_end", "broker_draining", "broker_ended") if f'"event": "{word}"' not in told] == []
    assert (tmp_path / "metadata.db").exists()
    assert list((tmp_path / "objects").rglob("*.json"))


def test_a_killed_service_comes_back_under_a_new_epoch(tmp_path: Path) -> None:
    with dev(tmp_path) as (process, _, _):
        process.kill()
        process.wait(60)
    with dev(tmp_path) as (_, _, metrics_address):
        assert "\ntidelog_broker_epoch 2.0\n" in page(metrics_address, "/metrics")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with dev(tmp_path) as (process, _, _):
        process.send_signal(signal.SIGSTOP)  # so that both are there when it looks
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        process.wait(60)
    assert process.returncode == 1


def test_a_broker_begins_as_soon_as_its_database_is_there(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Brokers and what they need are often started together."""
    metrics_address = f"127.0.0.1:{free_ports(1)[0]}"
    with tempfile.TemporaryDirectory(prefix="tidelog-late-") as place:  # short: the socket's path is limited to 107 bytes
        socket_directory = Path(place) / "db"
        flags = ["--bucket", f"file://{tmp_path}", "--metadata", f"postgresql://postgres@/late?host={socket_directory}"]
        flags += ["--listen", "127.0.0.1:0", "--metrics-listen", metrics_address]
        with started("broker", *flags, TIDELOG_LOG_FORMAT="json") as process:
            assert process.stderr is not None
            assert any('"start_waits"' in line for line in process.stderr)
            assert page(metrics_address, "/livez") == "alive\n"  # a restart would mend nothing
            with pytest.raises(urllib.error.HTTPError) as unready:
                page(metrics_address, "/readyz")
            assert unready.value.code == 503
            assert "waits: the database at postgresql" in unready.value.read().decode()
            assert "tidelog_broker_epoch" in page(metrics_address, "/metrics")
            asyncio.run(postgres_server.execute("CREATE DATABASE late"))
            socket_directory.symlink_to(postgres_server.directory)
            assert any('"broker_ready"' in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_a_service_in_memory_leaves_nothing(tmp_path: Path) -> None:
    with dev(tmp_path / "data", "--memory") as (process, _, _):
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 0
    assert not (tmp_path / "data").exists()


def test_a_second_service_on_the_same_data_says_who_has_it(tmp_path: Path) -> None:
    with dev(tmp_path) as (first, _, _), started("dev", "--data-dir", str(tmp_path), "--port", "0") as second:
        _, told = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"process {first.pid} has it open" in told
        assert "Traceback" not in told


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "bucket is not set; set it to s3://bucket/prefix"),
        (["--bucket", "memory://"], "metadata is not set; set it to postgresql://"),
        (["--bucket", "memory://", "--metadata", "sqlite://", "--listen", "0.0.0.0:0"], "beyond loopback"),
    ],
)
def test_settings_that_cannot_be_used_end_with_a_sentence_and_2(flags: list[str], sentence: str) -> None:
    with started("broker", *flags) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert sentence in told
    assert "Traceback" not in told
