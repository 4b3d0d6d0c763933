"""Writing to SQL, on SQLite and PostgreSQL alike."""

from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Engine, Table, func, insert, select

from storage.event import rows_of
from storage.record import COUNTED_AT_MOST, count_unpublished, mark_published, mark_unpublished, unpublished, write
from storage.table import attempts, events, queries
from tests.usage_entries import accepted, ended, hit


def count(engine: Engine, table: Table) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def query(engine: Engine, query_id: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(select(queries).where(queries.c.id == query_id)).one()


def test_it_writes_a_query_from_acceptance_to_answer(engine: Engine) -> None:
    write(engine, rows_of([accepted("q1")]))
    assert query(engine, "q1").status == "queued"

    write(engine, rows_of([ended("q1")]))
    row = query(engine, "q1")
    assert (row.status, row.cost_usd, row.latency_ms, row.attempts) == ("completed", 0.002, 1000.0, 1)
    assert row.created_at.tzinfo is not None
    assert count(engine, attempts) == 1


def test_it_changes_nothing_when_a_batch_comes_twice(engine: Engine) -> None:
    batch = [accepted("q1"), accepted("q2", job="q1"), ended("q1", callers=["q1", "q2"]), hit("q3")]
    write(engine, rows_of(batch))
    before = [count(engine, table) for table in (queries, attempts, events)]

    write(engine, rows_of(batch))
    write(engine, rows_of(batch[:2]))  # late and out of order

    assert [count(engine, table) for table in (queries, attempts, events)] == before
    assert query(engine, "q1").status == "completed"


def test_it_does_not_mind_the_end_before_the_beginning(engine: Engine) -> None:
    write(engine, rows_of([ended("q1")]))
    write(engine, rows_of([accepted("q1")]))

    assert query(engine, "q1").status == "completed"


def test_it_takes_one_query_twice_in_a_batch(engine: Engine) -> None:
    write(engine, rows_of([ended("q1"), ended("q1"), accepted("q1")]))

    assert count(engine, queries) == 1


def test_it_hands_the_outbox_out_in_order_and_marks_what_was_published(engine: Engine) -> None:
    write(engine, rows_of([accepted("q1"), ended("q1")]))
    with engine.begin() as connection:
        waiting = unpublished(connection, 10)
        assert [row.event_id for row in waiting] == ["q1.accepted", "q1.completed", "q1.recorded", "q1.attempt.1"]
        mark_published(connection, [row.seq for row in waiting[:3]])

    with engine.connect() as connection:
        assert [row.event_id for row in unpublished(connection, 10)] == ["q1.attempt.1"]
        assert count_unpublished(connection) == 1
        assert orjson.loads(unpublished(connection, 10)[0].payload)["outcome"] == "ok"


def test_it_can_put_everything_back_into_the_outbox(engine: Engine) -> None:
    write(engine, rows_of([accepted("q1"), ended("q1")]))
    with engine.begin() as connection:
        mark_published(connection, [row.seq for row in unpublished(connection, 10)])

    assert mark_unpublished(engine) == 4
    with engine.connect() as connection:
        assert count_unpublished(connection) == 4


def test_a_long_outbox_is_told_by_its_numbers_and_not_counted(engine: Engine) -> None:
    long = COUNTED_AT_MOST + 5
    row = {"type": "t", "topic": "t", "key": "k", "payload": {}, "occurred_at": datetime.now(UTC), "published_at": None}
    with engine.begin() as connection:
        connection.execute(insert(events), [row | {"event_id": f"e{n}"} for n in range(long)])
        first = unpublished(connection, 3)
        assert count_unpublished(connection) == long
        mark_published(connection, [row.seq for row in first])
        assert count_unpublished(connection) == long - 3
