"""Fixtures of the operator's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tidelog.objects.s3 import S3Settings

from tests.operator.rig import Rig, rig
from tests.postgres_server import PostgresServer


@pytest.fixture
async def it(tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings) -> AsyncIterator[Rig]:
    """A Kubernetes in which a TidelogCluster may be made; its stores and Secrets are there."""
    assert s3_settings.endpoint_url
    async with (
        postgres_server.database() as url,
        rig(tmp_path, metadata=url, bucket=s3_settings.bucket, endpoint=s3_settings.endpoint_url) as found,
    ):
        yield found
