"""SQLAlchemy engines for PostgreSQL and SQLite, each with the limits that keep a wait from hanging."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection

POOL_WAIT_S = 5
_POSTGRES_OPTIONS = "-c statement_timeout=10000 -c idle_in_transaction_session_timeout=15000"


def build_engine(url: str) -> Engine:
    """An engine that connects at first use. Makes the folder of a SQLite file."""
    return _sqlite_engine(url) if url.startswith("sqlite") else _postgres_engine(url)


def _postgres_engine(url: str) -> Engine:
    return create_engine(
        url,
        pool_size=5,
        max_overflow=5,
        pool_timeout=POOL_WAIT_S,
        pool_pre_ping=True,
        pool_recycle=1800,
        pool_use_lifo=True,
        hide_parameters=True,  # errors are logged, and parameters may hold the text of queries
        connect_args={
            "connect_timeout": 3,
            "application_name": "ai-query-router",
            "options": _POSTGRES_OPTIONS,
            # A host that vanishes says nothing: without these an open connection would wait for a quarter of an hour.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        },
    )


def _sqlite_engine(url: str) -> Engine:
    if path := make_url(url).database:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=5, max_overflow=5, pool_timeout=POOL_WAIT_S, hide_parameters=True)
    event.listen(engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: DBAPIConnection, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def begin_writing(connection: Connection) -> None:
    """Take SQLite's write lock before anything is read, so that it stays as it was read; PostgreSQL locks rows."""
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite" and not driver.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def insert_into(table: Table, dialect: Dialect) -> Any:
    """An INSERT that knows ON CONFLICT, in the dialect's own form."""
    return (postgresql if dialect.name == "postgresql" else sqlite).insert(table)


def ping(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
