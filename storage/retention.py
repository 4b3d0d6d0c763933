"""How long rows and texts are kept: what is too old goes in small batches, each a short transaction of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Table,
    and_,
    cast,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from storage.rollup import delete_counted
from storage.table import attempts, events, queries

BATCH = 1_000

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Periods:
    """Days. `is_relayed` says that events go to Kafka: those that it has not confirmed then stay."""

    texts: int
    queries: int
    attempts: int
    events: int
    is_relayed: bool


@dataclass(frozen=True, slots=True)
class Chore:
    """Rows of one table that have come of age. `act` changes those of the keys that are due, and counts them."""

    name: str
    table: Table
    time: Column[datetime]
    days: int
    is_due: ColumnElement[bool]
    act: Callable[["Chore", Connection, Sequence[Key]], int]


def chores(periods: Periods) -> tuple[Chore, ...]:
    """Everything there is to do, texts first.

    A text stands in `queries` and, where it is published, in the payload of the query's events. It leaves both at its
    own age, also where the row stays: an event that Kafka has not taken by then goes out without it.
    """
    has_text = or_(queries.c.query_text.is_not(None), queries.c.answer_text.is_not(None))
    tells_text = events.c.payload["query_text"].as_string().is_not(None)
    is_ended = queries.c.ended_at.is_not(None)
    is_free = events.c.published_at.is_not(None) if periods.is_relayed else true()
    asked, tried, occurred = queries.c.created_at, attempts.c.started_at, events.c.occurred_at
    return (
        Chore("query_texts", queries, asked, periods.texts, has_text, _forget_texts),
        Chore("event_texts", events, occurred, periods.texts, tells_text, _strip_payloads),
        Chore("queries", queries, asked, periods.queries, is_ended, delete_rows),
        Chore("attempts", attempts, tried, periods.attempts, true(), delete_rows),
        Chore("events", events, occurred, periods.events, is_free, delete_rows),
    )


def sweep(engine: Engine, chore: Chore, before: datetime, since: datetime | None = None) -> Iterator[int]:
    """Walk the rows from `since` (or the first) to `before` by the time's index, and act on those that are due.

    Yields how many rows each batch changed. No batch looks at more than BATCH rows, however few of them are due; no
    lock or transaction is held while the caller has the word. SQLAlchemy errors pass through.
    """
    last: Row[Any] | None = None
    while True:
        with engine.connect() as connection:
            page = connection.execute(page_of(chore, before, since, last)).all()
        due = [tuple(row[2:]) for row in page if row.is_due]
        changed = 0
        if due:
            with engine.begin() as connection:
                changed = chore.act(chore, connection, due)
        yield changed
        if len(page) < BATCH:
            return
        last = page[-1]


def page_of(chore: Chore, before: datetime, since: datetime | None, last: Row[Any] | None) -> Select[Any]:
    """The next BATCH rows after `last` in the order of time: whether each is due, its time, its primary key."""
    time, key = chore.time, tuple(chore.table.primary_key.columns)
    page = select(chore.is_due.label("is_due"), time.label("time"), *key).where(time < before)
    if last is not None:
        after = tuple_(*key) > tuple_(*(literal(last[2 + n], column.type) for n, column in enumerate(key)))
        page = page.where(time >= last.time, or_(time > last.time, after))
    elif since is not None:
        page = page.where(time >= since)
    return page.order_by(time, *key).limit(BATCH)


def delete_rows(chore: Chore, connection: Connection, keys: Sequence[Key]) -> int:
    return delete_counted(connection, chore.table, _among(chore, keys))


def _forget_texts(chore: Chore, connection: Connection, keys: Sequence[Key]) -> int:
    forgotten = update(queries).where(_among(chore, keys)).values(query_text=None, answer_text=None)
    return int(connection.execute(forgotten).rowcount)


def _strip_payloads(chore: Chore, connection: Connection, keys: Sequence[Key]) -> int:
    payload: ColumnElement[Any] = func.json_remove(events.c.payload, "$.query_text", type_=JSON)
    if connection.dialect.name == "postgresql":
        payload = cast(cast(events.c.payload, JSONB).op("-")("query_text"), JSON)
    return int(connection.execute(update(events).where(_among(chore, keys)).values(payload=payload)).rowcount)


def _among(chore: Chore, keys: Sequence[Key]) -> ColumnElement[bool]:
    """Those keys, if they are still due: a row may have changed since it was looked at."""
    return and_(tuple_(*chore.table.primary_key.columns).in_(keys), chore.is_due)
