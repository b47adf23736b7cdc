"""Runs transactions on a real PostgreSQL statement by statement, in every order that can make a difference.

Each verb runs through the real store, on a connection of its own, and stops before every statement and before COMMIT or
ROLLBACK until it is given a permit. A statement that waits for another transaction's lock is found by asking the server
who blocks whom; then the others go on. Orders are searched depth first. Of those that differ only in the order of steps
which touch no table in common, one is run ("sleep sets": P. Godefroid, Partial-Order Methods for the Verification of
Concurrent Systems, 1996).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.util import await_only
from tidelog.metadata.schema import tables_metadata
from tidelog.metadata.store import MetadataStore, Transaction

Verb = Callable[[Transaction], object]

_LOOK_AGAIN_SECONDS = 0.002
_LIMIT_SECONDS = 20
_TABLES = re.compile(rf"\b({'|'.join(tables_metadata.tables)})\b")
_WRITTEN = re.compile(rf"\b(?:INSERT INTO|UPDATE|DELETE FROM) ({'|'.join(tables_metadata.tables)})\b")
_REFERRED = {"partitions": "topics"}  # a row that is inserted locks the row its foreign key names


class Deadlock(AssertionError):
    """Transactions wait for each other in a circle, or the server reported that they did."""


class _Abandoned(Exception):
    """Raised inside a verb to roll back an order of which an equivalent one was run."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verb returned, or what it raised."""

    value: object = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Interleaving:
    """One order in which the transactions ran to their ends."""

    answers: tuple[Answer, ...]
    """In the order of the verbs."""
    order: str
    """One letter per step, A for the first verb; in lower case where the step then waited for a lock."""


@dataclass(frozen=True, slots=True)
class _Footprint:
    """Which tables a step may read, and in which it may take or give back locks of rows."""

    reads: frozenset[str]
    locks: frozenset[str]
    ends: bool = False

    def touches(self, other: "_Footprint") -> bool:
        """Say whether the two steps, of different transactions, may not be exchanged."""
        if self.ends or other.ends:  # what others wrote is seen from their COMMIT on
            return bool(self.locks & (other.reads | other.locks) or other.locks & self.reads)
        return bool(self.locks & other.locks)


@dataclass(eq=False, slots=True)
class _Stepped:
    """One transaction under way."""

    letter: str
    verb: Verb
    changed: asyncio.Event
    pid: int = 0
    waiting: _Footprint | None = None
    """Of the next step, while it waits for its permit."""
    permit: asyncio.Event = field(default_factory=asyncio.Event)
    held: frozenset[str] = frozenset()
    abandoned: bool = False
    answer: Answer | None = None

    @property
    def running(self) -> bool:
        return self.waiting is None and self.answer is None

    async def run(self, store: MetadataStore) -> None:
        try:
            self.answer = Answer(await store.run(self._attached))
        except Exception as error:  # noqa: BLE001 - it is the answer
            self.answer = Answer(error=error)
        self.changed.set()

    def _attached(self, tx: Transaction) -> object:
        driver: Any = tx.connection.connection.driver_connection
        self.pid = driver.get_server_pid()
        without_sync(tx)
        event.listen(tx.connection, "before_cursor_execute", self._before_statement)
        event.listen(tx.connection, "commit", self._before_end)
        event.listen(tx.connection, "rollback", self._before_end)
        return self.verb(tx)

    def _before_statement(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        named = frozenset(_TABLES.findall(statement))
        written = frozenset(_WRITTEN.findall(statement))
        locks = named if re.search(r"\bFOR (UPDATE|SHARE)\b", statement) else written | {_REFERRED[t] for t in written & _REFERRED.keys()}
        if "advisory_xact_lock" in statement:
            locks |= {"locks that are not of rows"}
        self.held |= locks
        self._stop(_Footprint(named, locks))

    def _before_end(self, _connection: object) -> None:
        if not self.abandoned:
            self._stop(_Footprint(frozenset(), self.held, ends=True))

    def _stop(self, step: _Footprint) -> None:
        if not self.abandoned:
            self.permit.clear()
            self.waiting = step
            self.changed.set()
            await_only(self.permit.wait())
        if self.abandoned:
            raise _Abandoned

    def go(self) -> None:
        self.waiting = None
        self.permit.set()

    def abandon(self) -> None:
        """Roll back, as soon as the statement that is under way has ended."""
        self.abandoned = True
        self.permit.set()


@dataclass(slots=True)
class _Node:
    """A place where the search chooses who makes the next step."""

    asleep: set[int]
    """Whose next steps lead to orders that are equivalent to ones which were run."""
    choices: list[int]
    """Yet to be tried; the first is being tried."""


def without_sync(tx: Transaction) -> None:
    """Let this transaction's COMMIT not wait for the disk: nothing else about it changes, and thousands are run."""
    tx.execute("SET LOCAL synchronous_commit = off")


class Stepper:
    """Searches the orders of transactions on one store; `watcher` is a connection beside it that asks who blocks whom."""

    def __init__(
        self, store: MetadataStore, watcher: "asyncpg.Connection[asyncpg.Record]", *, restore: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._watcher = watcher
        self._restore = restore

    async def interleavings(self, verbs: Sequence[Verb]) -> AsyncIterator[Interleaving]:
        """Run the verbs in each order that matters, every time from the state that `restore` makes. Raises Deadlock."""
        path: list[_Node] = []
        while True:
            await self._restore()
            if (found := await self._follow(verbs, path)) is not None:
                yield found
            while path:
                tried = path[-1].choices.pop(0)
                if path[-1].choices:
                    path[-1].asleep.add(tried)
                    break
                path.pop()
            else:
                return

    async def walks(self, verbs: Sequence[Verb], *, count: int, chance: Random) -> AsyncIterator[Interleaving]:
        """Run the verbs in `count` orders drawn by chance: for three and more, which have too many. Raises Deadlock."""
        for _ in range(count):
            await self._restore()
            found = await self._follow(verbs, [], chance)
            assert found is not None
            yield found

    async def _follow(self, verbs: Sequence[Verb], path: list[_Node], chance: Random | None = None) -> Interleaving | None:
        """Run along `path` and then on, adding to it; None where this turns out to be equivalent to an order run before."""
        changed = asyncio.Event()
        all_of_them = [_Stepped(chr(ord("A") + number), verb, changed) for number, verb in enumerate(verbs)]
        order = ""
        depth = 0
        equivalent = False
        asleep: set[int] = set()
        async with asyncio.timeout(_LIMIT_SECONDS), asyncio.TaskGroup() as tasks:
            for one in all_of_them:
                tasks.create_task(one.run(self._store))
            try:
                await self._settle(all_of_them, changed)
                while waiting := {number: one.waiting for number, one in enumerate(all_of_them) if one.waiting is not None}:
                    if depth == len(path):
                        choices = [number for number in waiting if number not in asleep]
                        equivalent = equivalent or not choices
                        if chance is not None:
                            chance.shuffle(choices)
                        if not equivalent:
                            path.append(_Node(asleep, choices))
                    if equivalent:
                        chosen = min(waiting)
                    else:
                        node = path[depth]
                        depth += 1
                        chosen = node.choices[0]
                        asleep = {number for number in node.asleep if not waiting[number].touches(waiting[chosen])}
                    all_of_them[chosen].go()
                    await self._settle(all_of_them, changed)
                    order += all_of_them[chosen].letter.lower() if all_of_them[chosen].running else all_of_them[chosen].letter
            finally:
                for one in all_of_them:
                    one.abandon()
        answers = tuple(one.answer for one in all_of_them if one.answer is not None)
        for answer in answers:
            if any(isinstance(cause, _Abandoned | asyncpg.DeadlockDetectedError) for cause in _causes(answer.error)):
                raise Deadlock(f"after the order {order} transactions wait for each other's locks: {answers}")
        return None if equivalent else Interleaving(answers, order)

    async def _settle(self, all_of_them: Sequence[_Stepped], changed: asyncio.Event) -> None:
        """Return once each transaction has ended, has stopped before a step, or waits for a lock of another one."""
        while any(one.running for one in all_of_them):
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await changed.wait()
            changed.clear()
            running = [one.pid for one in all_of_them if one.running]
            if not running:
                return
            if 0 in running:
                continue
            ours = [one.pid for one in all_of_them]
            rows = await self._watcher.fetch("SELECT pg_blocking_pids(pid) && $2::int[] FROM unnest($1::int[]) AS pid", running, ours)
            if all(row[0] for row in rows) and running == [one.pid for one in all_of_them if one.running]:
                return


def _causes(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__
    return chain
