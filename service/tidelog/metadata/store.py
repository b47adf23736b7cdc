"""The port of the metadata store: one verb is one transaction.

Verbs are plain functions of a `Transaction` (the other modules of this package), typed with frozen dataclasses. How they
run is a store's business: in a thread (`sqlite`), over asyncpg (`postgres`), or inline (a simulator on in-memory SQLite).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import orjson

P = ParamSpec("P")
T = TypeVar("T")
Dialect = Literal["sqlite", "postgresql"]
ColumnType = Literal["bigint", "text"]
Run = Callable[[str, dict[str, object]], Sequence[Any]]
"""Runs a statement with parameters that it may name, or not; returns its rows, whose attributes are the columns."""


class Transaction:
    """An open transaction, and what SQLite and PostgreSQL say differently.

    Statements take their parameters by name. A list or a tuple is the rows of a `recordset`.
    """

    __slots__ = ("connection", "dialect", "run")

    def __init__(self, connection: Any, run: Run, *, dialect: Dialect) -> None:
        self.connection = connection
        """What the store runs statements on; verbs leave it alone."""
        self.run = run
        self.dialect: Dialect = dialect

    @property
    def now(self) -> str:
        """The SQL expression for the metadata store's own time, in Unix milliseconds."""
        return "tidelog_now_ms()" if self.dialect == "sqlite" else "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"

    def now_ms(self) -> int:
        """Return the metadata store's own time, in Unix milliseconds."""
        (row,) = self.rows(f"SELECT {self.now} AS now_ms")
        now_ms: int = row.now_ms
        return now_ms

    def execute(self, sql: str, /, **parameters: object) -> None:
        """Run a statement whose result nobody needs."""
        self.run(sql, _encoded(parameters))

    def execute_all(self, statements: Sequence[str], /, **parameters: object) -> None:
        """Run statements that write to different tables and do not read each other's changes: in one round trip where possible.

        All see the parameters; those that a statement does not name are ignored.
        """
        parameters = _encoded(parameters)
        if self.dialect == "sqlite":
            for sql in statements:
                self.execute(sql, **parameters)
            return
        *first, last = statements
        together = ", ".join(f"s{number} AS ({sql})" for number, sql in enumerate(first))
        self.execute(f"WITH {together} {last}" if first else last, **parameters)

    def rows(self, sql: str, /, **parameters: object) -> Sequence[Any]:
        """Run a statement and return its rows, whose attributes are the columns."""
        return self.run(sql, _encoded(parameters))

    def delete(self, table: str, where: str, /, *, key: str, **parameters: object) -> Sequence[Any]:
        """Delete rows and return their keys, in no order.

        They are locked ascending by `key`; a DELETE by itself locks rows in the order in which its plan finds them.
        """
        found = f"SELECT {key} FROM {table} WHERE {where} ORDER BY {key}{self.for_update()}"
        return self.rows(f"DELETE FROM {table} WHERE ({key}) IN ({found}) RETURNING {key}", **parameters)

    def recordset(self, parameter: str, alias: str, /, **columns: ColumnType) -> str:
        """Return a FROM item that reads one parameter, a list of rows, as these columns.

        The rows travel as JSON, not as generated VALUES: the statement's text stays the same for any number of rows, so it
        is compiled and planned once. Array parameters would cost the driver ten times the CPU to encode.
        """
        return _recordset(self.dialect, parameter, alias, tuple(columns.items()))

    def for_update(self, of: str = "") -> str:
        """Return the clause that locks the rows read; SQLite locks the whole store as the transaction begins."""
        return self._locking("UPDATE", of)

    def for_share(self, of: str = "") -> str:
        """Return the clause that keeps others from changing the rows read."""
        return self._locking("SHARE", of)

    def shared(self, parameter: str) -> str:
        """Return an expression for a select list that holds locks on pairs of numbers, rows of one parameter, shared with others.

        Until the transaction ends; against `take_while_free`.
        """
        if self.dialect == "sqlite":
            return "0"
        pairs = self.recordset(parameter, "h", one="bigint", other="bigint")
        return f"(SELECT count(pg_advisory_xact_lock_shared(CAST(h.one AS integer), CAST(h.other AS integer))) FROM {pairs})"

    def take_while_free(self, one: int, first: int, end: int) -> int:
        """Lock the pairs (one, first), (one, first + 1), … as long as nobody shares them; return the first not locked, at most `end`."""
        if self.dialect == "sqlite":
            return end
        rows = self.rows(
            "SELECT other FROM generate_series(CAST(:first AS bigint), CAST(:end AS bigint) - 1) AS other"
            " WHERE NOT pg_try_advisory_xact_lock(CAST(:one AS integer), CAST(other AS integer)) LIMIT 1",
            one=one,
            first=first,
            end=end,
        )
        return rows[0].other if rows else end

    def _locking(self, strength: str, of: str) -> str:
        if self.dialect == "sqlite":
            return ""
        return f" FOR {strength} OF {of}" if of else f" FOR {strength}"


class MetadataStore(Protocol):
    """Runs verbs."""

    exclusive: bool
    """Whether holding the store proves all other processes that ever held it dead (SQLite's process lock)."""

    async def run(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one verb as one transaction and return its answer, which is durable by then (I2).

        What the verb raises rolls back and passes. A cancelled caller does not stop the transaction (I5).

        Raises MetadataUnavailable (not committed and never will be), MetadataOutcomeUnknown, MetadataUnusable.
        """
        ...

    async def run_reserved(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one verb on the connection that is kept for the lease, so that renewals never queue behind commits."""
        ...

    async def close(self) -> None:
        """Wait for transactions that have begun, then give connections and locks back."""
        ...


def _encoded(parameters: dict[str, object]) -> dict[str, object]:
    return {name: orjson.dumps(value).decode() if isinstance(value, list | tuple) else value for name, value in parameters.items()}


@lru_cache(maxsize=1024)
def _recordset(dialect: Dialect, parameter: str, alias: str, columns: tuple[tuple[str, ColumnType], ...]) -> str:
    if dialect == "sqlite":
        fields = ", ".join(f"json_extract(j.value, '$[{number}]') AS {name}" for number, (name, _) in enumerate(columns))
        return f"(SELECT {fields} FROM json_each(:{parameter}) AS j) AS {alias}"
    fields = ", ".join(f"CAST(j.v ->> {number} AS {kind}) AS {name}" for number, (name, kind) in enumerate(columns))
    return f"(SELECT {fields} FROM jsonb_array_elements(CAST(:{parameter} AS jsonb)) AS j(v)) AS {alias}"
