"""LocalStack's S3 without containers, from a virtual environment of its own (`make test-localstack` makes it)."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[1] / ".venv-localstack" / "bin" / "python"


@pytest.fixture(scope="session")
def localstack_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server that is ready. All it writes goes to a temporary directory; it reaches for no network."""
    if not PYTHON.exists():
        pytest.fail(f"there is no {PYTHON}; run: make test-localstack")
    directory = tmp_path_factory.mktemp("localstack")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "SERVICES": "s3",
        "EAGER_SERVICE_LOADING": "1",  # else the first request pays for it, and may time out
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DNS_ADDRESS": "0",
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "XDG_CACHE_HOME": str(directory / "cache"),
    }
    output = directory / "output"
    with output.open("wb") as told:
        server = subprocess.Popen(
            [PYTHON, "-m", "localstack.runtime.main"],
            cwd=directory,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, **settings},
            stdout=told,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while b"Ready." not in output.read_bytes():
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"LocalStack did not start:\n{output.read_text()}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)
