"""Fixtures that more than one kind of test uses."""

from hypothesis import settings

settings.register_profile("tidelog", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("tidelog")

pytest_plugins = [
    "tests.command_line",
    "tests.postgres_server",
    "tests.metadata_scene",
    "tests.metadata_stores",
    "tests.object_stores",
    "tests.s3_server",
    "tests.served",
]
