"""Every verb may be tried again when nobody knows whether it was committed (I5)."""

import pytest
from tidelog.errors import TidelogError
from tidelog.metadata.postgres import PostgresStore

from tests.integration.test_interleavings import digest
from tests.metadata_scene import VERBS, Snapshots
from tests.stepper import Answer, Verb

BEGINS_A_NEW_EPOCH = {"take over", "take over the coordinator", "the other takes over what nobody leads", "set fencing token"}
"""A leader that is not sure of its epoch begins another: the former one is then fenced, whoever had it."""
GIVES_MORE = {"allocate producer ids"}
"""Numbers that nobody heard of stay unused."""


@pytest.mark.parametrize("name", VERBS)
async def test_a_verb_that_is_tried_again_changes_nothing_more(scene: tuple[PostgresStore, Snapshots], name: str) -> None:
    store, snapshots = scene
    await snapshots.restore()
    first = await answer(store, VERBS[name])
    once = digest([], await snapshots.state())
    second = await answer(store, VERBS[name])
    twice = digest([], await snapshots.state())
    assert (once == twice) == (name not in BEGINS_A_NEW_EPOCH | GIVES_MORE)
    assert (first.error is None) == (second.error is None), (first, second)


async def answer(store: PostgresStore, verb: Verb) -> Answer:
    try:
        return Answer(await store.run(verb))
    except TidelogError as error:
        return Answer(error=error)
