"""LocalStack's S3 without containers, from a virtual environment of its own (`make test-localstack` makes it)."""

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from localstack.processes import LOCALSTACK_PYTHON, localstack_settings


@pytest.fixture(scope="session")
def localstack_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server that is ready. All it writes goes to a temporary directory; it reaches for no network."""
    if not LOCALSTACK_PYTHON.exists():
        pytest.fail(f"there is no {LOCALSTACK_PYTHON}; run: make test-localstack")
    directory = tmp_path_factory.mktemp("localstack")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = directory / "output"
    with output.open("wb") as told:
        server = subprocess.Popen(
            [LOCALSTACK_PYTHON, "-m", "localstack.runtime.main"],
            cwd=directory,
            env=localstack_settings(f"127.0.0.1:{port}", directory),
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
