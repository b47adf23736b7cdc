"""Blocking work as a port: files, SQLite and heavy decoding leave the event loop through here.

A simulator hands in `InlineExecutor`, which runs the work at once and on virtual time.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Executor(Protocol):
    """Runs blocking functions."""

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns. A cancelled caller does not stop work that has begun."""
        ...

    async def close(self) -> None:
        """Wait for work that has begun; nothing may be run afterwards."""
        ...


class ThreadExecutor:
    """A pool of threads of its own; with `threads=1`, work runs in the order of the calls."""

    def __init__(self, name: str, *, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns, computed in one of the threads."""
        return await asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))

    async def close(self) -> None:
        """Wait for work that has begun, without blocking the event loop."""
        await asyncio.to_thread(self._pool.shutdown)


class Effects:
    """Work whose effect cannot be taken back: it goes on when its caller is cancelled (I5)."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns. A cancelled caller does not stop it, and does not hear how it ends."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        finally:
            del task  # else an error would hold this frame, the frame the task, and the task the error

    async def settled(self) -> None:
        """Wait for all that has begun."""
        if self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # heard, even where the caller was cancelled: asyncio shall not complain


class InlineExecutor:
    """Runs the function in the caller: for simulators and for tests of one thread."""

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns, computed here and now."""
        return function(*args, **kwargs)

    async def close(self) -> None:
        """Do nothing: no work outlives its call."""
