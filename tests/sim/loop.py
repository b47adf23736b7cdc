"""A seeded event loop on virtual time: one thread, no sockets, no clock of the machine.

A context variable carries the incarnation of a process. Pausing it parks its callbacks; killing it moves them to a
graveyard that is kept until the end, so that no `finally` block runs that a real kill -9 would not have run.
"""

import asyncio
import gc
import heapq
import random
import zlib
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from typing import Any, TypeVarTuple, Unpack, cast

Ts = TypeVarTuple("Ts")

STEP_S = 2e-6
"""What a callback costs: so that loops of `sleep(0)` make progress."""


class State(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class Node:
    """One incarnation of a process."""

    def __init__(self, name: str, label: str) -> None:
        self.name = name
        self.label = label
        self.number = zlib.crc32(label.encode())
        """Of the label; in a trace it is quicker, and the same in every process."""
        self.state = State.RUNNING
        self.parked: list[Owned] = []
        self.skew_s = 0.0
        self.rate = 1.0


NODE: ContextVar[Node | None] = ContextVar("node", default=None)


def context_of(node: Node) -> Context:
    context = Context()
    context.run(NODE.set, node)
    return context


class NumberedTask(asyncio.Task[Any]):
    """A task that sets keep by its number, not by its place in memory: so that a run does not depend on that."""

    number: int

    def __hash__(self) -> int:
        return self.number


class Owned:
    """A callback that knows whose it is: what a simulator needs of a handle, made and run hundred thousands of times."""

    __slots__ = ("args", "callback", "context", "gone", "node", "when_s")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, when_s: float) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = copy_context() if context is None else context
        self.node = self.context.get(NODE)
        self.when_s = when_s
        self.gone = False

    def cancel(self) -> None:
        self.gone, self.callback, self.args = True, None, ()

    def cancelled(self) -> bool:
        return self.gone

    def when(self) -> float:
        return self.when_s


class NothingToDo(RuntimeError):
    """No callback is ready and no timer is set: the run would wait for ever."""


class SimLoop(asyncio.BaseEventLoop):
    """Runs whatever is ready in a seeded order, and jumps in time when nothing is."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.trace = 0
        self.graveyard: list[Owned] = []
        self.halted = False
        self._soon: list[Owned] = []
        self._timers: list[tuple[float, int, Owned]] = []
        self._order = 0
        self._tasks = 0
        self.set_task_factory(self._numbered)

    def _numbered(
        self, _: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **more: Any
    ) -> NumberedTask:
        task = NumberedTask.__new__(NumberedTask)
        self._tasks += 1
        task.number = self._tasks
        task.__init__(work, loop=self, **more)  # type: ignore[misc]
        return task

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        handle = Owned(callback, args, context, self.now)
        self._soon.append(handle)
        return cast("asyncio.Handle", handle)

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = Owned(callback, args, context, when)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, handle))
        return cast("asyncio.TimerHandle", handle)

    def resume(self, node: Node) -> None:
        if node.state is not State.PAUSED:
            return
        node.state = State.RUNNING
        self._soon.extend(node.parked)
        node.parked = []

    def halt(self) -> None:
        """End the run here and now: what it was to show, it has shown."""
        self.halted = True
        self.stop()

    def outside(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Do something that belongs to no process: it happens whoever is dead by then."""
        self.call_later(delay, callback, *args, context=Context())

    def _run_once(self) -> None:
        timers, soon = self._timers, self._soon
        for _ in range(1000):
            if self._stopping:  # type: ignore[attr-defined]
                return
            while timers and (timers[0][2].gone or timers[0][0] <= self.now):
                handle = heapq.heappop(timers)[2]
                if not handle.gone:
                    soon.append(handle)
            if not soon:
                if not timers:
                    raise NothingToDo("no callback is ready and no timer is set")
                self.now = max(self.now, timers[0][0])
                continue
            self._step()

    def _step(self) -> None:
        # FIFO as asyncio keeps it: code may rely on the order of callbacks of one process, so only the process is drawn.
        soon, index = self._soon, 0
        if len(soon) > 1:
            node = soon[int(self.chance.random() * len(soon))].node
            while soon[index].node is not node:
                index += 1
        handle = soon.pop(index)
        if handle.gone:
            return
        node = handle.node
        if node is not None and node.state is not State.RUNNING:
            (node.parked if node.state is State.PAUSED else self.graveyard).append(handle)
            return
        self.events += 1
        self.now += STEP_S
        self.trace = hash((self.trace, self.now, 0 if node is None else node.number))
        assert handle.callback is not None
        try:
            handle.context.run(handle.callback, *handle.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  as any event loop does
            self.call_exception_handler({"message": f"Exception in callback {handle.callback!r}", "exception": error})

    # What BaseEventLoop asks of a loop with sockets.
    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def _write_to_self(self) -> None: ...

    def _process_events(self, events: object) -> None: ...


def run(seed: int, main: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> SimLoop:
    """Run a simulation to its end, or until it is halted.

    No garbage is collected meanwhile: that would end what killed processes left behind, when it likes.
    """
    loop = SimLoop(seed)
    asyncio.set_event_loop(loop)
    gc.disable()
    try:
        ending = loop.create_task(main(loop))
        ending.add_done_callback(lambda _: loop.stop())
        loop.run_forever()
        if not loop.halted:
            ending.result()
        return loop
    finally:
        gc.enable()
        asyncio.set_event_loop(None)
