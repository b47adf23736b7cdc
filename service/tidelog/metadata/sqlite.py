"""The metadata store on SQLite: one file, one process, every commit synced.

WAL with `synchronous=FULL`, both read back; transactions begin IMMEDIATE; a lock on `FILE.lock` is held for life, so
that whoever opens the store knows that every earlier process is dead. Verbs run on the driver itself: between them and
SQLite, SQLAlchemy would take more time than SQLite does.
"""

import fcntl
import os
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Concatenate
from urllib.parse import quote

from sqlalchemy import Connection, StaticPool, create_engine
from sqlalchemy.exc import DBAPIError

from tidelog.clock import Clock
from tidelog.errors import MetadataError, MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable
from tidelog.executors import Effects, Executor
from tidelog.metadata.migrations import check, migrate
from tidelog.metadata.store import P, T, Transaction

IN_MEMORY = ":memory:"


class SqliteStore:
    """Runs every verb on one connection, one after the other, through `executor` (one thread, or inline)."""

    exclusive = True

    def __init__(
        self, path: str, connection: sqlite3.Connection, *, executor: Executor, lock: IO[str] | None, begin: str = "BEGIN IMMEDIATE"
    ) -> None:
        self._path = path
        self._connection = connection
        self._executor = executor
        self._lock = lock
        self._begin = begin
        self._transactions = Effects()
        self._row_types: dict[str, Any] = {}
        """By statement, whose text stays the same for any number of rows."""

    async def run(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one verb as one transaction. See `MetadataStore.run`."""
        return await self._transactions.run(self._executor.run(self._transact, verb, *args, **kwargs))

    run_reserved = run  # one writer at a time is all that SQLite has

    async def close(self) -> None:
        """Wait for transactions that have begun, then close the file and give the lock back."""
        await self._transactions.settled()
        await self._executor.run(self._close)
        await self._executor.close()

    def _transact(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        committing = False
        try:
            self._connection.execute(self._begin)
            try:
                answer = verb(Transaction(self._connection, self._rows, dialect="sqlite"), *args, **kwargs)
                committing = True
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        except sqlite3.Error as error:
            if committing and _code(error) == sqlite3.SQLITE_IOERR:
                # The commit may be in the file, only its sync failed: then a restart brings it back (I5).
                raise MetadataOutcomeUnknown(
                    f"COMMIT was sent to {self._path!r}, but its disk failed ({error}); it may have happened: mend the disk and ask again"
                ) from error
            raise _explained(error, self._path) from error
        return answer

    def _rows(self, sql: str, parameters: dict[str, object]) -> Sequence[Any]:
        cursor = self._connection.execute(sql, parameters)
        if cursor.description is None:
            return ()
        row = self._row_types.get(sql)
        if row is None:
            row = self._row_types[sql] = _row(tuple(column[0] for column in cursor.description))
        return list(map(row._make, cursor.fetchall()))

    def _roll_back(self) -> None:
        # A full disk or an I/O error may have rolled back already; then there is no transaction to end.
        with suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")

    def _close(self) -> None:
        self._connection.close()
        if self._lock is not None:
            self._lock.close()


async def open_sqlite(path: str | Path, *, clock: Clock, executor: Executor, reading: bool = False) -> SqliteStore:
    """Open, and create or migrate where need be, the store at `path` (`:memory:` for one that dies with the process).

    `reading`: beside the process that has it, to look and change nothing; it must be there, with this release's schema.
    Raises MetadataUnusable where another process has it, or where the file cannot be used.
    """
    return await executor.run(_open, str(path), clock, executor, reading)


def _open(path: str, clock: Clock, executor: Executor, reading: bool) -> SqliteStore:
    lock = None if path == IN_MEMORY or reading else _lock(path)
    connection: sqlite3.Connection | None = None
    try:
        connection = _connect(f"file:{quote(path)}?mode=ro" if reading else path, clock)
        _bring_up_to_date(connection, check if reading else migrate)
        return SqliteStore(path, connection, executor=executor, lock=lock, begin="BEGIN" if reading else "BEGIN IMMEDIATE")
    except BaseException as error:
        if connection is not None:
            connection.close()
        if lock is not None:
            lock.close()
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, sqlite3.Error):
            raise _explained(cause, path) from error
        raise


def _bring_up_to_date(connection: sqlite3.Connection, how: Callable[[Connection], None]) -> None:
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.connect() as migrated:
        how(migrated.execution_options(isolation_level="AUTOCOMMIT"))


@lru_cache(maxsize=1024)
def _row(columns: tuple[str, ...]) -> Any:
    return namedtuple("Row", columns, rename=True)


def _lock(path: str) -> IO[str]:
    name = f"{os.path.realpath(path)}.lock"  # one file, one lock, whatever name it is opened by
    try:
        lock = open(name, "a+", encoding="ascii")  # noqa: SIM115 - held for the life of the store
    except OSError as error:
        raise MetadataUnusable(
            f"the metadata store {path!r} was to be opened, but its lock file cannot be written: {error.strerror};"
            " make the directory, or let this process write to it"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise MetadataUnusable(
            f"the metadata store {path!r} was to be opened, but process {holder} has it open; stop that one first, or use PostgreSQL for"
            " more than one broker process"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _connect(path: str, clock: Clock) -> sqlite3.Connection:
    uri = path.startswith("file:")
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512, uri=uri)
    try:
        connection.create_function("tidelog_now_ms", 0, clock.wall_ms)  # so that leases run on the clock that was handed in
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA busy_timeout = 5000")
        journal = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous = FULL")
        synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    except BaseException:
        connection.close()
        raise
    wanted = ("memory", 2) if path == IN_MEMORY else ("wal", 2)
    if (journal, synchronous) != wanted:
        connection.close()
        raise MetadataUnusable(
            f"the metadata store {path!r} needs journal_mode and synchronous {wanted}, but SQLite gave {(journal, synchronous)};"
            " put it on a local file system that supports both"
        )
    return connection


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _explained(error: sqlite3.Error, path: str) -> MetadataError:
    code = _code(error)
    asked = f"the metadata store {path!r} was to be changed, but"
    if code == sqlite3.SQLITE_FULL:
        return MetadataUnavailable(f"{asked} its disk is full; nothing was committed: free some space, then it goes on by itself")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MetadataUnavailable(f"{asked} another connection holds it locked; nothing was committed")
    if code == sqlite3.SQLITE_IOERR:
        return MetadataUnavailable(f"{asked} its disk failed ({error}); nothing was committed: look at the disk")
    if code == sqlite3.SQLITE_READONLY:
        return MetadataUnusable(f"{asked} the file is read-only; let this process write to it and to its directory")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return MetadataUnusable(f"{asked} the file is not a sound SQLite database ({error}); restore it, or rebuild it from the bucket")
    if code == sqlite3.SQLITE_CANTOPEN:
        return MetadataUnusable(f"{asked} the file cannot be opened; make its directory, and let this process write there")
    return MetadataUnusable(f"{asked} SQLite says: {error}")
