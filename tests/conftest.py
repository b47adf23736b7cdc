"""Fixtures that more than one kind of test uses."""

pytest_plugins = [
    "tests.command_line",
    "tests.postgres_server",
    "tests.metadata_scene",
    "tests.metadata_stores",
    "tests.object_stores",
    "tests.s3_server",
    "tests.served",
]
