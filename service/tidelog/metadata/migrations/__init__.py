"""The schema's history: numbered steps, run by Alembic. Expand first; contract one release later."""

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from tidelog.errors import MetadataUnusable

_SCRIPTS = ScriptDirectory(str(Path(__file__).parent))
MIGRATION_LOCK = 0x7469_6465_6C6F_67
"""Key of PostgreSQL's advisory lock around a migration: "tidelog"."""


def schema_version(connection: Connection) -> str | None:
    """Return the schema's version as the store has it; None where there is no schema."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_version() -> str:
    """Return the schema version that this release works with."""
    head = _SCRIPTS.get_current_head()
    assert head is not None
    return head


def migrate(connection: Connection) -> None:
    """Bring the schema to this release's version, in one transaction; nothing happens where it is there.

    Raises MetadataUnusable where the store is newer than this release.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")
    try:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        found = schema_version(connection)
        if found != newest_version():
            _check_known(found)
            _upgrade(connection)
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        if not connection.invalidated:  # a session that is gone rolled back by itself
            connection.exec_driver_sql("ROLLBACK")
        raise


def check(connection: Connection) -> None:
    """Raise MetadataUnusable unless the schema is the one that this release works with."""
    found = schema_version(connection)
    if found == newest_version():
        return
    _check_known(found)
    raise MetadataUnusable(
        f"the metadata store's schema is {found or 'missing'}, but this release needs {newest_version()}; start one broker with migrations"
        " allowed, once"
    )


def _check_known(found: str | None) -> None:
    if found is not None and found not in {script.revision for script in _SCRIPTS.walk_revisions()}:
        raise MetadataUnusable(
            f"the metadata store's schema is {found}, which this release (schema {newest_version()}) does not know: it was written by a"
            " newer one; run that release, or a later one"
        )


def _upgrade(connection: Connection) -> None:
    def upgrade(revision: object, _context: object) -> object:
        return _SCRIPTS._upgrade_revs(newest_version(), revision)  # type: ignore[arg-type]  # Alembic types it more narrowly than it calls it

    from alembic.config import Config

    with EnvironmentContext(Config(), _SCRIPTS, fn=upgrade, destination_rev=newest_version()) as environment:
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()
