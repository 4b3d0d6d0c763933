"""How Alembic reaches our database: settings and engine are the service's own."""

import sys

from alembic import context
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from config import load_settings
from storage.database import build_engine
from storage.table import metadata

MIGRATION_LOCK = 7_283_641  # any constant: two migrations at once wait for each other (PostgreSQL)


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # An index on a large table, or the wait for another migration, takes longer than any request may.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()


def connect(engine: Engine) -> Connection:
    """An open connection, or the end of the process with what to do."""
    try:
        return engine.connect()
    except OperationalError as error:
        reason = str(error.orig).strip()
        sys.stderr.write(f"The database does not answer: {reason}\nCheck DATABASE_URL, and that its server runs.\n")
        sys.exit(1)


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    engine = build_engine(load_settings().sql_url)
    with connect(engine) as opened:
        migrate(opened)
    engine.dispose()
