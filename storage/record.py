"""Writing rows: one transaction a batch, and the same batch twice changes nothing."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Engine, Text, cast, func, select, update

from storage.bulk import insert_absent, insert_numbered, upsert
from storage.database import begin_writing
from storage.event import Row, Rows
from storage.rollup import QUERY, Change
from storage.table import attempts, events, queries

COUNTED_AT_MOST = 10_000  # events; more than that is told by their numbers
_WAITS = events.c.published_at.is_(None)
_SENT = itemgetter("topic", "key", "payload", "event_id")


class Outgoing(NamedTuple):
    """A recorded event as Kafka gets it; `payload` is its JSON."""

    seq: int
    topic: str
    key: str
    payload: bytes
    event_id: str


def write(engine: Engine, rows: Rows) -> list[Outgoing]:
    """Write all rows or none. SQLAlchemy errors pass through.

    Returns the new events, for a relay that need not read them again; none where some of them had been recorded before.
    """
    ended = {row["id"]: row for row in rows.ended}
    opened = {row["id"]: row for row in rows.opened if row["id"] not in ended}
    told = [{**row, "payload": orjson.dumps(row["payload"])} for row in rows.events]
    with engine.begin() as connection:
        begin_writing(connection)
        change = Change()
        _write_queries(connection, opened, ended, change)
        change.add(attempts, insert_absent(connection, attempts, rows.attempts))
        seqs = insert_numbered(connection, events, told)
        change.apply(connection)
    return [Outgoing(seq, *_SENT(row)) for seq, row in zip(seqs, told, strict=False)]


def unpublished(connection: Connection, at_most: int) -> list[Outgoing]:
    """The oldest events that Kafka has not confirmed."""
    columns = (events.c.seq, events.c.topic, events.c.key, cast(events.c.payload, Text), events.c.event_id)
    waiting = select(*columns).where(_WAITS).order_by(events.c.seq).limit(at_most)
    found = connection.execute(waiting)
    return [Outgoing(seq, topic, key, text.encode(), event_id) for seq, topic, key, text, event_id in found]


def unpublished_seqs(connection: Connection, at_most: int) -> list[int]:
    """The numbers of the oldest events that Kafka has not confirmed."""
    waiting = select(events.c.seq).where(_WAITS).order_by(events.c.seq).limit(at_most)
    return list(connection.execute(waiting).scalars())


def mark_published(connection: Connection, seqs: Sequence[int]) -> None:
    """Mark events as confirmed; `seqs` in order. A range is named by its ends."""
    if not seqs:
        return
    is_range = seqs[-1] - seqs[0] == len(seqs) - 1
    confirmed = events.c.seq.between(seqs[0], seqs[-1]) if is_range else events.c.seq.in_(seqs)
    connection.execute(update(events).where(confirmed).values(published_at=datetime.now(UTC)))


def mark_unpublished(engine: Engine) -> int:
    """Put every event back into the outbox, for a broker that has lost its topics. Returns how many."""
    with engine.begin() as connection:
        changed = connection.execute(update(events).where(events.c.published_at.is_not(None)).values(published_at=None))
    return int(changed.rowcount)


def count_unpublished(connection: Connection) -> int:
    """Exact up to COUNTED_AT_MOST; beyond that, how many there are from the first that waits to the newest event.

    Events leave in order, so nearly all of those wait.
    """
    waiting = select(events.c.seq).where(_WAITS).order_by(events.c.seq)
    first = waiting.limit(COUNTED_AT_MOST + 1).subquery()
    count, oldest = connection.execute(select(func.count(), func.min(first.c.seq))).one()
    if count > COUNTED_AT_MOST:
        count = connection.execute(select(func.max(events.c.seq))).scalar_one() - oldest + 1
    return int(count)


def _write_queries(connection: Connection, opened: dict[str, Row], ended: dict[str, Row], change: Change) -> None:
    """New rows, and ended ones in place of what was there, which another recorder may be writing at this moment."""
    replaced = _lock(connection, ended)
    absent = [row for key, row in (opened | ended).items() if key not in replaced]
    fresh = insert_absent(connection, queries, absent)
    replaced |= _lock(connection, ended.keys() - replaced.keys() - {row["id"] for row in fresh})
    final = [ended[key] for key in replaced]
    upsert(connection, queries, final)
    change.count(queries, replaced.values(), -1)
    change.add(queries, [*fresh, *final])


def _lock(connection: Connection, ids: Collection[str]) -> dict[str, Sequence[Any]]:
    """Which of the queries are there, and what they count as; until the end of the transaction they stay so."""
    if not ids:
        return {}
    there = select(*QUERY, queries.c.id).where(queries.c.id.in_(list(ids))).order_by(queries.c.id).with_for_update()
    return {found[-1]: found[:-1] for found in connection.execute(there)}
