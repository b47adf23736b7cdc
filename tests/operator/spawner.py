"""As `tests.chaos.spawner`, for operators, too: flags with `namespaces` are an operator's."""

from typing import Any

import kubernetes.aio.client  # noqa: F401  # once, and not in every child
from tidelog_operator import process

from tests.chaos import spawner


def play(flags: dict[str, Any], log: str) -> None:
    if "namespaces" not in flags:
        spawner.play(flags, log)
    else:
        settings = process.OperatorSettings(**{**flags, "namespaces": tuple(flags["namespaces"])})
        spawner.play_as(lambda: process.run(settings), log)


if __name__ == "__main__":
    spawner.main(play)
