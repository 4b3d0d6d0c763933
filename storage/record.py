"""Writing rows: one transaction a batch, and the same batch twice changes nothing."""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select, update

from storage.database import begin_writing, insert_into
from storage.event import Row, Rows
from storage.rollup import QUERY, Change
from storage.table import attempts, events, queries

COUNTED_AT_MOST = 10_000  # events; more than that is told by their numbers


def write(engine: Engine, rows: Rows) -> None:
    """Write all rows or none. SQLAlchemy errors pass through."""
    ended = {row["id"]: row for row in rows.ended}
    opened = {row["id"]: row for row in rows.opened if row["id"] not in ended}
    with engine.begin() as connection:
        begin_writing(connection)
        change = Change()
        _write_queries(connection, opened, ended, change)
        change.add(attempts, _insert_counted(connection, attempts, rows.attempts))
        _insert_new(connection, events, rows.events)
        change.apply(connection)


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
    """Exact up to COUNTED_AT_MOST; beyond that, how many there are from the first that waits to the newest event.

    Events leave in order, so nearly all of those wait.
    """
    waiting = select(events.c.seq).where(events.c.published_at.is_(None)).order_by(events.c.seq)
    first = waiting.limit(COUNTED_AT_MOST + 1).subquery()
    count, oldest = connection.execute(select(func.count(), func.min(first.c.seq))).one()
    if count > COUNTED_AT_MOST:
        count = connection.execute(select(func.max(events.c.seq))).scalar_one() - oldest + 1
    return int(count)


def _write_queries(connection: Connection, opened: dict[str, Row], ended: dict[str, Row], change: Change) -> None:
    """New rows, and ended ones in place of what was there, which another recorder may be writing at this moment."""
    replaced = _lock(connection, ended)
    absent = [row for key, row in (opened | ended).items() if key not in replaced]
    fresh = _insert_counted(connection, queries, absent)
    replaced |= _lock(connection, ended.keys() - replaced.keys() - {row["id"] for row in fresh})
    final = [ended[key] for key in replaced]
    _upsert(connection, queries, final)
    change.count(queries, replaced.values(), -1)
    change.add(queries, [*fresh, *final])


def _lock(connection: Connection, ids: Collection[str]) -> dict[str, Sequence[Any]]:
    """Which of the queries are there, and what they count as; until the end of the transaction they stay so."""
    if not ids:
        return {}
    there = select(*QUERY, queries.c.id).where(queries.c.id.in_(list(ids))).order_by(queries.c.id).with_for_update()
    return {found[-1]: found[:-1] for found in connection.execute(there)}


def _insert_counted(connection: Connection, table: Table, rows: Iterable[Row]) -> list[Row]:
    """Those that were not there yet, inserted in the order of their keys: two recorders then never lock crosswise."""
    names = table.primary_key.columns.keys()
    given = {tuple(row[name] for name in names): row for row in reversed(list(rows))}  # of two alike the first counts
    if not given:
        return []
    insert = insert_into(table, connection.dialect).on_conflict_do_nothing().returning(*table.primary_key.columns)
    inserted = connection.execute(insert, [given[key] for key in sorted(given)])
    return [given[tuple(key)] for key in inserted]


def _insert_new(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    if rows := list(rows):
        connection.execute(insert_into(table, connection.dialect).on_conflict_do_nothing(), rows)


def _upsert(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    if rows := list(rows):
        insert = insert_into(table, connection.dialect)
        changed = {name: insert.excluded[name] for name in rows[0] if name != "id"}
        connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed), rows)
