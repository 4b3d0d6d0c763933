"""Writing rows: one transaction a batch, and the same batch twice changes nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, Engine, Text, cast, func, select, update

from storage.bulk import insert_new, upsert
from storage.event import Rows
from storage.table import attempts, events, queries

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
        insert_new(connection, queries, list(opened.values()))
        upsert(connection, queries, list(ended.values()))
        insert_new(connection, attempts, rows.attempts)
        seqs = insert_new(connection, events, told)
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
    waiting = select(func.count()).select_from(events).where(_WAITS)
    return connection.execute(waiting).scalar_one()
