"""The metadata store on PostgreSQL, for production.

Every session asserts what durability and take-over rest on, and gives up by itself well within a lease: so the row locks
of a broker that was paused inside a transaction cannot keep another from taking over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Concatenate

import asyncpg
from sqlalchemy import Connection, TextClause, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from tidelog.errors import MetadataError, MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable, TidelogError
from tidelog.executors import Effects
from tidelog.metadata.migrations import check, migrate
from tidelog.metadata.store import P, T, Transaction

_REQUIRED = {
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "synchronous_commit": ("on", "remote_apply"),
    "default_transaction_isolation": ("read committed",),  # the cleaner's proof needs later statements to see later commits (I7)
    "transaction_read_only": ("off",),
    "in_recovery": ("off",),
    "server_encoding": ("UTF8",),
}
_REMEDIES = {
    "fsync": "a crash would lose acknowledged records: set fsync = on",
    "full_page_writes": "a crash could tear pages: set full_page_writes = on",
    "synchronous_commit": "acknowledged commits could be lost: allow synchronous_commit = on",
    "default_transaction_isolation": "set default_transaction_isolation = 'read committed'",
    "transaction_read_only": "it only reads: name the primary, or set default_transaction_read_only = off",
    "in_recovery": "it is a standby: name the primary",
    "server_encoding": "create the database with ENCODING 'UTF8'",
}
_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
_SPOILT = (asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.ReadOnlySQLTransactionError)
"""What a session says that is to be replaced: its driver lost its place, or its server was demoted and only reads now."""
_FAILURES = (
    DBAPIError,
    PoolTimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What a transaction ends with. While a session is asserted the driver's errors come as they are."""
_NOT_NOW = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.InvalidCachedStatementError,  # the schema was migrated beside; the driver has forgotten its statements by now
    OSError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """How to use a database."""

    url: str
    """`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; `?host=/DIRECTORY` for a Unix socket."""
    lease_ttl_ms: int = 10_000
    """Length of a broker's lease; every time-out of a session lies below half of it."""
    pool_size: int = 4
    """Connections of the pool, the reserved one not counted. At least 1."""
    connect_timeout_ms: int = 5_000
    """Limit on making one connection, and on waiting for a free one."""

    @property
    def session_timeout_ms(self) -> int:
        """Limit on a statement, on waiting for a lock, and on idling inside a transaction: two fifths of a lease."""
        return self.lease_ttl_ms * 2 // 5


class PostgresStore:
    """Runs verbs on a pool of connections, and one kind of verb on a connection of its own."""

    exclusive = False

    def __init__(self, settings: PostgresSettings, engine: AsyncEngine, reserved: AsyncEngine) -> None:
        self._settings = settings
        self._engine = engine
        self._reserved = reserved
        self._transactions = Effects()

    async def run(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one verb as one transaction. See `MetadataStore.run`."""
        return await self._transactions.run(self._transact(self._engine, lambda tx: verb(tx, *args, **kwargs)))

    async def run_reserved(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one verb on the reserved connection. See `MetadataStore.run_reserved`."""
        return await self._transactions.run(self._transact(self._reserved, lambda tx: verb(tx, *args, **kwargs)))

    async def close(self) -> None:
        """Wait for transactions that have begun, then close all connections."""
        await self._transactions.settled()
        await self._engine.dispose()
        await self._reserved.dispose()

    async def _transact(self, engine: AsyncEngine, verb: Callable[[Transaction], T]) -> T:
        committing = False
        try:
            async with engine.connect() as connection:
                try:
                    answer = await connection.run_sync(self._call, verb)
                    committing = True
                    await connection.commit()
                except DBAPIError as error:
                    if isinstance(_cause(error), _SPOILT):  # which the pool does not tell from a sound one
                        await connection.invalidate()
                    raise
                return answer
        except TidelogError:
            raise
        except _FAILURES as error:
            raise _explained(error, self._settings, committing=committing) from error

    def _call(self, connection: Connection, verb: Callable[[Transaction], T]) -> T:
        return verb(Transaction(connection, partial(_rows, connection), dialect="postgresql"))


def _rows(connection: Connection, sql: str, parameters: dict[str, object]) -> Sequence[Any]:
    result = connection.execute(_text(sql), parameters)
    return result.all() if result.returns_rows else ()


@lru_cache(maxsize=1024)
def _text(sql: str) -> TextClause:
    return text(sql)


async def open_postgres(settings: PostgresSettings, *, allow_migration: bool = True) -> PostgresStore:
    """Connect, check what the database promises, and bring its schema to this release's version.

    Raises MetadataUnavailable (try again) and MetadataUnusable (a person must act).
    """
    engine = _engine(settings, connections=settings.pool_size, name="tidelog")
    reserved = _engine(settings, connections=1, name="tidelog-lease")
    store = PostgresStore(settings, engine, reserved)
    try:
        async with engine.connect() as connection:
            if allow_migration:
                await (await connection.execution_options(isolation_level="AUTOCOMMIT")).run_sync(migrate)
            else:
                await _checked(connection)
    except _FAILURES as error:
        await store.close()
        raise _explained(error, settings, committing=False) from error
    except BaseException:
        await store.close()
        raise
    return store


async def _checked(connection: AsyncConnection) -> None:
    await connection.run_sync(check)


def _engine(settings: PostgresSettings, *, connections: int, name: str) -> AsyncEngine:
    try:
        url = make_url(settings.url).set(drivername="postgresql+asyncpg")
    except (ArgumentError, NoSuchModuleError) as error:
        raise MetadataUnusable(
            f"the metadata store's URL {settings.url!r} cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from error
    limit = str(settings.session_timeout_ms)
    keepalive_seconds = max(1, settings.session_timeout_ms // 4000)
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=settings.connect_timeout_ms / 1000,
        pool_use_lifo=True,
        connect_args={
            "timeout": settings.connect_timeout_ms / 1000,
            "command_timeout": settings.lease_ttl_ms / 2000,
            "prepared_statement_cache_size": 500,
            "server_settings": {
                "application_name": name,
                "synchronous_commit": "on",
                **dict.fromkeys(_TIMEOUTS, limit),
                "tcp_keepalives_idle": str(keepalive_seconds),
                "tcp_keepalives_interval": str(keepalive_seconds),
                "tcp_keepalives_count": "2",
                "tcp_user_timeout": limit,
                "jit": "off",
            },
        },
    )
    event.listen(engine.sync_engine, "connect", lambda connection, _record: _assert_session(connection, settings))
    return engine


def _assert_session(connection: Any, settings: PostgresSettings) -> None:
    """Refuse a session that does not promise what acknowledgements rest on, or does not give up in time for a take-over."""
    query = (
        "SELECT name, setting FROM pg_settings WHERE name = ANY($1) UNION ALL SELECT 'database', current_database()"
        " UNION ALL SELECT 'in_recovery', CASE WHEN pg_is_in_recovery() THEN 'on' ELSE 'off' END"
    )
    found = dict(connection.run_async(lambda driver: driver.fetch(query, [*_REQUIRED, *_TIMEOUTS])))
    for name, allowed in _REQUIRED.items():
        if found[name] not in allowed:
            raise MetadataUnusable(
                f"the metadata store needs a database with {name} = {' or '.join(allowed)}, but {found['database']!r} has"
                f" {found[name]!r}: {_REMEDIES[name]}"
            )
    for name in _TIMEOUTS:
        if not 0 < int(found[name]) <= settings.session_timeout_ms:
            raise MetadataUnusable(
                f"the metadata store asked {found['database']!r} for sessions with {name} = {settings.session_timeout_ms} ms, but got"
                f" {found[name]}: the locks of a paused broker would keep others from taking over; connect to the database itself, or"
                " through a pooler that passes settings on"
            )


def _explained(error: Exception, settings: PostgresSettings, *, committing: bool) -> MetadataError:
    cause = _cause(error)
    place = make_url(settings.url).render_as_string(hide_password=True)
    if committing:
        return MetadataOutcomeUnknown(f"COMMIT was sent to {place}, but no answer came ({cause}); it may have happened: ask again")
    if isinstance(cause, asyncpg.ReadOnlySQLTransactionError):
        return MetadataUnusable(f"the database at {place} only reads; name the primary")
    if isinstance(cause, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        return MetadataUnusable(
            f"the database at {place} lacks part of the schema ({cause}); start one broker with migrations allowed, once"
        )
    if isinstance(
        cause, asyncpg.InsufficientPrivilegeError | asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError
    ):
        return MetadataUnusable(f"the database at {place} refuses: {cause}; check the user, the password, the database and its grants")
    if isinstance(cause, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError | asyncpg.DeadlockDetectedError):
        return MetadataUnavailable(
            f"the database at {place} did not answer within {settings.session_timeout_ms} ms ({cause}); nothing was committed, try again"
        )
    if isinstance(cause, TimeoutError):
        return MetadataUnavailable(
            f"the database at {place} did not answer within the {settings.lease_ttl_ms // 2} ms of a statement or the"
            f" {settings.connect_timeout_ms} ms of a connection; nothing was committed: look at the network and at its load"
        )
    if isinstance(cause, asyncpg.DiskFullError):
        return MetadataUnavailable(f"the disk of the database at {place} is full; nothing was committed: free some space")
    if isinstance(error, PoolTimeoutError):
        return MetadataUnavailable(
            f"all {settings.pool_size} connections to {place} were in use for {settings.connect_timeout_ms} ms; nothing was committed"
        )
    if isinstance(cause, _NOT_NOW):
        return MetadataUnavailable(
            f"the database at {place} cannot be reached ({str(cause) or type(cause).__name__}); nothing was committed"
        )
    return MetadataUnusable(f"the database at {place} refused a statement: {cause}")


def _cause(error: Exception) -> BaseException:
    """Return the driver's own error inside of SQLAlchemy's."""
    cause: BaseException = error
    while type(cause).__module__.startswith("sqlalchemy.") and cause.__cause__ is not None:
        cause = cause.__cause__
    return cause
