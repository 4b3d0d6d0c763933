"""Many rows in one statement: what is then in the table is what SQLAlchemy itself would have put there."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Boolean, Column, Engine, Float, Integer, Table, delete, insert, select
from sqlalchemy.exc import DataError

from storage.bulk import insert_absent, insert_numbered, upsert
from storage.table import UtcDateTime, attempts, events, queries

BIGGEST = 2**31 - 1
NO_NUL = st.characters(codec="utf-8", exclude_characters="\x00")
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(NO_NUL, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(NO_NUL, max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def values_of(column: Column[Any]) -> st.SearchStrategy[Any]:
    kind = column.type
    if isinstance(kind, UtcDateTime):
        made: st.SearchStrategy[Any] = st.integers(0, 10**17).map(
            lambda us: EPOCH + timedelta(microseconds=us % 10**15)
        )
    elif isinstance(kind, JSON):
        made = st.dictionaries(st.text(NO_NUL, max_size=4), JSON_VALUES, max_size=4)
    elif isinstance(kind, Boolean):
        made = st.booleans()
    elif isinstance(kind, Float):
        made = st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, BIGGEST)
    elif isinstance(kind, Integer):
        made = st.integers(-BIGGEST, BIGGEST)
    else:
        made = st.text(NO_NUL, max_size=getattr(kind, "length", None) or 30)
    return st.none() | made if column.nullable else made


def rows_for(table: Table) -> st.SearchStrategy[list[dict[str, Any]]]:
    given_columns = [column for column in table.columns if column.name != "seq"]
    row = st.fixed_dictionaries({str(column.name): values_of(column) for column in given_columns})
    unique = {"queries": ("id",), "attempts": ("job_id", "number"), "events": ("event_id",)}[table.name]
    return st.lists(row, min_size=1, max_size=6, unique_by=lambda one: tuple(one[name] for name in unique))


def ready(table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the bulk statements want them: JSON made already."""
    names = [column.name for column in table.columns if isinstance(column.type, JSON)]
    return [{**row, **{name: orjson.dumps(row[name]) for name in names}} for row in rows]


def contents(engine: Engine, table: Table) -> list[tuple[Any, ...]]:
    columns = [column for column in table.columns if column.name != "seq"]
    order = table.c.seq if "seq" in table.c else None
    with engine.connect() as connection:
        found = connection.execute(select(*columns).order_by(order)).all()
    return [tuple(row) for row in found] if order is not None else sorted(map(tuple, found), key=repr)


@pytest.mark.parametrize("table", [queries, attempts, events], ids=lambda table: table.name)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_table_holds_what_plain_inserts_would_have_put_there(
    engine: Engine, table: Table, data: st.DataObject
) -> None:
    rows = data.draw(rows_for(table))
    with engine.begin() as connection:
        connection.execute(delete(table))
        connection.execute(insert(table), rows)
    expected = contents(engine, table)
    for again in range(2):
        with engine.begin() as connection:
            if not again:
                connection.execute(delete(table))
            insert_any = insert_numbered if table is events else insert_absent
            insert_any(connection, table, ready(table, rows))
        assert contents(engine, table) == expected


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=rows_for(queries), new=rows_for(queries))
def test_upsert_replaces_whole_rows_and_keeps_the_others(
    engine: Engine, old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> None:
    new = [*new, {**new[0], **{"id": old[0]["id"]}}] if old[0]["id"] not in {row["id"] for row in new} else new
    last = {row["id"]: row for row in (*old, *new)}
    with engine.begin() as connection:
        connection.execute(delete(queries))
        connection.execute(insert(queries), list(last.values()))
    expected = contents(engine, queries)
    with engine.begin() as connection:
        connection.execute(delete(queries))
        upsert(connection, queries, old)
        upsert(connection, queries, new)
    assert contents(engine, queries) == expected


def event(event_id: str) -> dict[str, Any]:
    named = {"event_id": event_id, "type": "query.accepted", "topic": "t", "key": "k", "tenant": None}
    return {**named, "payload": b'{"a":1}', "occurred_at": EPOCH, "published_at": None}


def seqs_of(engine: Engine, *event_ids: str) -> list[int]:
    with engine.connect() as connection:
        found = {event_id: seq for event_id, seq in connection.execute(select(events.c.event_id, events.c.seq))}
    return [found[event_id] for event_id in event_ids]


def test_it_tells_the_numbers_of_new_rows_in_their_order(engine: Engine) -> None:
    with engine.begin() as connection:
        insert_numbered(connection, events, [event("first")])
        told = insert_numbered(connection, events, [event("z"), event("a"), event("m")])

    assert told == seqs_of(engine, "z", "a", "m") == sorted(told)


def test_it_tells_no_numbers_where_some_were_there(engine: Engine) -> None:
    with engine.begin() as connection:
        insert_numbered(connection, events, [event("a")])
        assert insert_numbered(connection, events, [event("a"), event("b")]) == []

    assert len(seqs_of(engine, "a", "b")) == 2


def test_nothing_is_no_statement(engine: Engine) -> None:
    with engine.begin() as connection:
        assert insert_numbered(connection, events, []) == []
        upsert(connection, queries, [])


def test_a_text_that_its_column_cannot_hold_is_refused_and_never_cut(engine: Engine) -> None:
    is_bounded = engine.dialect.name == "postgresql"  # SQLite knows no lengths
    with pytest.raises(DataError) if is_bounded else nullcontext(), engine.begin() as connection:
        insert_numbered(connection, events, [{**event("a"), "type": "x" * 33}])

    with engine.connect() as connection:
        assert connection.execute(select(events.c.type)).scalars().all() == ([] if is_bounded else ["x" * 33])


def test_of_rows_that_are_there_in_part_it_inserts_and_tells_the_others(engine: Engine) -> None:
    rows = [attempt(number) for number in (3, 1, 2)]
    with engine.begin() as connection:
        connection.execute(delete(attempts))
        insert_absent(connection, attempts, rows[:1])
        told = insert_absent(connection, attempts, [*rows, {**rows[1], "outcome": "late"}])

    assert [row["number"] for row in told] == [1, 2]
    assert [row[5 + 1] for row in sorted(contents(engine, attempts), key=lambda row: row[1])] == ["ok"] * 3


def attempt(number: int) -> dict[str, Any]:
    row = dict.fromkeys(str(column.name) for column in attempts.columns)
    told = {"job_id": "j", "number": number, "tenant": "t", "tier": "simple", "outcome": "ok", "started_at": EPOCH}
    return {**row, **told, "cost_usd": 0.0, "possible_cost_usd": 0.0}
