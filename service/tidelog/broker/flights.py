"""Work that several wait for: one that leaves takes nothing from the others, and all hear why when it is given up."""

import asyncio
from typing import TypeVar

from tidelog.errors import Draining

T = TypeVar("T")


async def shared(flight: "asyncio.Future[T]") -> T:
    """Return what the work comes to. Raises Draining where it was given up, which happens when the broker leaves.

    That is no cancellation of whoever waits: taken for one, it would end their task without a word.
    """
    try:
        return await asyncio.shield(flight)
    except asyncio.CancelledError:
        waiting = asyncio.current_task()
        if flight.cancelled() and not (waiting is not None and waiting.cancelling()):
            raise Draining("this broker is about to leave, and has given up what it was asked; ask another") from None
        raise
