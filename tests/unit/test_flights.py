"""Work that several wait for, when it is given up, and when one of them leaves."""

import asyncio
import gc
from typing import Any

import pytest
from tidelog.broker.cache import ReadStats
from tidelog.broker.catalog import Catalog
from tidelog.broker.flights import shared
from tidelog.broker.lookups import Lookups
from tidelog.errors import Draining, MetadataUnavailable
from tidelog.metadata.store import MetadataStore


async def begun(*tasks: "asyncio.Task[Any]") -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_what_is_given_up_is_told_to_all_who_wait_and_cancels_none_of_them() -> None:
    flight = asyncio.get_running_loop().create_future()
    waiting = [asyncio.create_task(shared(flight)) for _ in range(2)]
    await begun(*waiting)
    flight.cancel()
    for task in waiting:
        with pytest.raises(Draining, match="ask another"):
            await task
        assert not task.cancelled(), "a group of tasks would take it for one that was called off, and go on without its answer"


async def test_one_that_is_cancelled_takes_nothing_from_the_others() -> None:
    flight = asyncio.get_running_loop().create_future()
    one, other = (asyncio.create_task(shared(flight)) for _ in range(2))
    await begun(one, other)
    one.cancel()
    await begun(other)
    assert one.cancelled()
    flight.set_result(7)
    assert await other == 7


async def test_whoever_asks_while_the_broker_closes_hears_that_it_leaves() -> None:
    class Silent:
        async def run(self, *_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

    store: Any = Silent()
    metadata: MetadataStore = store
    lookups = Lookups(metadata, max_extents_each=1, stats=ReadStats())
    asked = [asyncio.create_task(lookups.extents(1, 0))]
    await begun(*asked)
    asked += [asyncio.create_task(lookups.extents(partition_id, 0)) for partition_id in (1, 2)]
    await begun(*asked)
    await lookups.close()
    for task in asked:
        with pytest.raises(Draining):
            await task


async def test_a_poll_that_fails_after_all_who_asked_have_left_is_no_error_of_the_process() -> None:
    answer = asyncio.Event()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    class Away:
        async def run(self, *_: Any, **__: Any) -> Any:
            await answer.wait()
            raise MetadataUnavailable("away")

    store: Any = Away()
    catalog = Catalog(store)
    asking = asyncio.create_task(catalog.refresh())
    await begun(asking)
    asking.cancel()
    await asyncio.wait([asking])
    answer.set()
    poll = catalog._refreshing
    assert poll is not None
    await asyncio.wait([poll])
    del catalog, asking, poll
    gc.collect()
    assert complaints == []
