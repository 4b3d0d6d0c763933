"""Writing rows: one transaction a batch, and the same batch twice changes nothing."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select, update

from storage.database import insert_into
from storage.event import Row, Rows
from storage.table import attempts, events, queries


def write(engine: Engine, rows: Rows) -> None:
    """Write all rows or none. SQLAlchemy errors pass through."""
    ended = {row["id"]: row for row in rows.ended}
    opened = {row["id"]: row for row in rows.opened if row["id"] not in ended}
    with engine.begin() as connection:
        _insert_new(connection, queries, opened.values())
        _upsert(connection, queries, ended.values())
        _insert_new(connection, attempts, rows.attempts)
        _insert_new(connection, events, rows.events)


def unpublished(connection: Connection, at_most: int) -> list[Any]:
    """The oldest events that Kafka has not confirmed: rows of seq, topic, key, payload, event_id."""
    columns = (events.c.seq, events.c.topic, events.c.key, events.c.payload, events.c.event_id)
    waiting = select(*columns).where(events.c.published_at.is_(None)).order_by(events.c.seq).limit(at_most)
    return list(connection.execute(waiting).all())


def mark_published(connection: Connection, seqs: Iterable[int]) -> None:
    marked = update(events).where(events.c.seq.in_(list(seqs))).values(published_at=datetime.now(UTC))
    connection.execute(marked)


def mark_unpublished(engine: Engine) -> int:
    """Put every event back into the outbox, for a broker that has lost its topics. Returns how many."""
    with engine.begin() as connection:
        changed = connection.execute(update(events).where(events.c.published_at.is_not(None)).values(published_at=None))
    return int(changed.rowcount)


def count_unpublished(connection: Connection) -> int:
    waiting = select(func.count()).select_from(events).where(events.c.published_at.is_(None))
    return connection.execute(waiting).scalar_one()


def _insert_new(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    if rows := list(rows):
        connection.execute(insert_into(table, connection.dialect).on_conflict_do_nothing(), rows)


def _upsert(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    if rows := list(rows):
        insert = insert_into(table, connection.dialect)
        changed = {name: insert.excluded[name] for name in rows[0] if name != "id"}
        connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed), rows)
