"""What is too old goes, on both databases: in batches, to the row, and out of the way of what is being written."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, event, insert, select, text, update

from storage.database import build_engine
from storage.event import rows_of
from storage.poison import Poison
from storage.presence import Presence
from storage.record import write
from storage.retention import BATCH, Chore, Periods, chores, page_of, sweep
from storage.table import attempts, events, queries
from storage.usage import POISON
from tasks.purge import LEADER_TTL_MS, Purge
from tests.conftest import migrate
from tests.usage_entries import accepted, ended, hit

NOW = datetime(2030, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PERIODS = Periods(texts=10, queries=30, attempts=20, events=15, is_relayed=True)


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def record(engine: Engine, query_id: str, age: timedelta, *, is_ended: bool = True, is_published: bool = True) -> None:
    """A query with its attempt and its events, asked `age` ago, with both texts."""
    at = ms(NOW - age)
    entries = [accepted(query_id, at=at, text="the question")]
    if is_ended:
        attempt = {"outcome": "ok", "started_at": at}
        entries.append(ended(query_id, at=at, attempts=[attempt], arrivals={query_id: at}))
    write(engine, rows_of(entries))
    with engine.begin() as connection:
        mine = queries.c.id == query_id
        connection.execute(update(queries).where(mine).values(query_text="the question", answer_text="the answer"))
        if is_published:
            connection.execute(update(events).where(events.c.key == query_id).values(published_at=NOW))


def purge(engine: Engine, redis: Redis, periods: Periods = PERIODS, now: datetime = NOW) -> None:
    once = Purge(engine, redis, periods, threading.Event(), lambda: now)
    once.run()
    once.resign()


def left(engine: Engine) -> tuple[list[str], list[str], list[str]]:
    """Whose rows there are in queries, attempts and events."""
    with engine.connect() as connection:
        found = [
            sorted(set(connection.execute(select(column)).scalars()))
            for column in (queries.c.id, attempts.c.job_id, events.c.key)
        ]
    return found[0], found[1], found[2]


def seed_old_queries(engine: Engine, count: int, age: timedelta = 100 * DAY, **values: Any) -> None:
    """Many ended queries of the same moment."""
    at = NOW - age
    row = {"tenant": "t", "status": "completed", "cache": "HIT", "tier": "simple", "score": 0, "words": 1}
    row |= {"created_at": at, "ended_at": at, **values}
    with engine.begin() as connection:
        connection.execute(insert(queries), [{**row, "id": f"old-{n:06}"} for n in range(count)])


def chore_of(name: str, periods: Periods = PERIODS) -> Chore:
    return next(chore for chore in chores(periods) if chore.name == name)


def test_each_table_keeps_its_rows_for_its_own_time_to_the_second(engine: Engine, redis: Redis) -> None:
    second = timedelta(seconds=1)
    for days in (15, 20, 30):
        record(engine, f"{days}-over", days * DAY + second)
        record(engine, f"{days}-under", days * DAY - second)

    purge(engine, redis)

    kept = left(engine)
    assert kept == (
        ["15-over", "15-under", "20-over", "20-under", "30-under"],
        ["15-over", "15-under", "20-under"],
        ["15-under"],
    )


def test_a_query_that_is_open_stays(engine: Engine, redis: Redis) -> None:
    record(engine, "open", 90 * DAY, is_ended=False)
    record(engine, "ended", 90 * DAY)

    purge(engine, redis)

    assert left(engine)[0] == ["open"]


def test_events_wait_for_kafka_and_only_where_there_is_one(engine: Engine, redis: Redis) -> None:
    record(engine, "waiting", 90 * DAY, is_published=False)
    record(engine, "published", 90 * DAY)

    purge(engine, redis)
    assert left(engine)[2] == ["waiting"]

    without_kafka = Periods(texts=10, queries=30, attempts=20, events=15, is_relayed=False)
    purge(engine, redis, without_kafka)
    assert left(engine)[2] == []


def test_texts_go_at_their_own_time_also_from_events_and_rows_that_stay(engine: Engine, redis: Redis) -> None:
    record(engine, "young", 9 * DAY, is_published=False)
    record(engine, "old", 11 * DAY)
    record(engine, "unpublished", 90 * DAY, is_published=False)
    record(engine, "open", 90 * DAY, is_ended=False)

    purge(engine, redis)

    with engine.connect() as connection:
        rows = connection.execute(select(queries.c.id, queries.c.query_text, queries.c.answer_text)).all()
        payloads = {row.event_id: row.payload for row in connection.execute(select(events))}
    texts = {row.id: (row.query_text, row.answer_text) for row in rows}
    assert texts == {"young": ("the question", "the answer"), "old": (None, None), "open": (None, None)}
    assert payloads["young.accepted"]["query_text"] == "the question"
    assert not [i for i, payload in payloads.items() if "query_text" in payload and not i.startswith("young")]
    assert payloads["unpublished.accepted"]["event_id"] == "unpublished.accepted"  # the rest of it is as it was
    assert payloads["unpublished.accepted"].keys() == payloads["young.accepted"].keys() - {"query_text"}


def test_it_goes_through_the_rows_in_batches(engine: Engine) -> None:
    seed_old_queries(engine, 2 * BATCH + 1)

    assert list(sweep(engine, chore_of("queries"), NOW - 30 * DAY)) == [BATCH, BATCH, 1]
    assert left(engine)[0] == []


def test_it_ends_where_many_rows_of_one_moment_have_to_stay(engine: Engine) -> None:
    seed_old_queries(engine, BATCH + 5, ended_at=None)
    record(engine, "last", 50 * DAY)

    assert list(sweep(engine, chore_of("queries"), NOW - 30 * DAY)) == [0, 1]
    assert len(left(engine)[0]) == BATCH + 5


def test_a_row_that_changed_since_it_was_looked_at_stays(engine: Engine) -> None:
    record(engine, "again", 90 * DAY)
    chore = chore_of("events")
    with engine.begin() as connection:
        page = connection.execute(page_of(chore, NOW, None, None)).all()
        connection.execute(update(events).values(published_at=None))  # `make republish`
        assert chore.act(chore, connection, [tuple(row[2:]) for row in page]) == 0


@pytest.mark.parametrize("name", [chore.name for chore in chores(PERIODS)])
def test_it_finds_old_rows_by_the_index_of_their_time(engine: Engine, name: str) -> None:
    chore = chore_of(name)
    page = page_of(chore, NOW, NOW - DAY, None)
    compiled = page.compile(engine, compile_kwargs={"render_postcompile": True})
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        if not is_sqlite:
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # the tables are empty
        explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
        values = tuple(compiled.params[k] for k in compiled.positiontup or ()) or compiled.params
        if is_sqlite:
            values = tuple(v.isoformat(" ") if isinstance(v, datetime) else v for v in values)
        plan = connection.exec_driver_sql(explain + str(compiled), values).all()
    assert f"ix_{chore.table.name}_{chore.time.name}" in str(plan)


def test_what_is_written_meanwhile_is_written_at_once(engine: Engine, redis: Redis) -> None:
    seed_old_queries(engine, 20 * BATCH)
    stopped, slowest, written = threading.Event(), 0.0, 0
    purging = threading.Thread(target=Purge(engine, redis, PERIODS, stopped, lambda: NOW).run)
    purging.start()
    while purging.is_alive():
        started = time.monotonic()
        write(engine, rows_of([ended(f"new-{written}", at=ms(NOW), arrivals={f"new-{written}": ms(NOW)})]))
        slowest, written = max(slowest, time.monotonic() - started), written + 1

    assert written > 20  # as many as there were batches, at the least
    assert slowest < 2
    assert len(left(engine)[0]) == written


def test_no_transaction_is_open_between_two_batches(engine: Engine) -> None:
    seed_old_queries(engine, BATCH + 1)
    batches = sweep(engine, chore_of("queries"), NOW)

    assert next(batches) == BATCH
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert list(batches) == [1]


def test_it_stops_between_two_batches_and_goes_on_next_time(engine: Engine, redis: Redis) -> None:
    seed_old_queries(engine, 3 * BATCH)
    stopped = threading.Event()

    @event.listens_for(engine, "after_cursor_execute")
    def stop_after_the_first_deletion(*args: Any) -> None:
        if "DELETE FROM queries" in args[2]:
            stopped.set()

    first = Purge(engine, redis, PERIODS, stopped, lambda: NOW)
    first.run()
    assert len(left(engine)[0]) == 2 * BATCH

    first.resign()
    purge(engine, redis)
    assert left(engine)[0] == []


def test_only_one_recorder_purges(engine: Engine, redis: Redis) -> None:
    record(engine, "old", 90 * DAY)
    presence = Presence(redis)
    assert presence.lead("purge", "another", LEADER_TTL_MS)
    purge(engine, redis)
    assert left(engine)[0] == ["old"]

    presence.resign("purge", "another")
    purge(engine, redis)
    assert left(engine)[0] == []


def test_a_row_that_could_not_go_at_its_time_goes_within_a_day(engine: Engine, redis: Redis) -> None:
    record(engine, "late", 15 * DAY + timedelta(hours=1), is_published=False)
    now = [NOW]
    purging = Purge(engine, redis, PERIODS, threading.Event(), lambda: now[0])
    purging.run()
    with engine.begin() as connection:
        connection.execute(update(events).values(published_at=NOW))

    now[0] += timedelta(minutes=10)
    purging.run()
    assert left(engine)[2] == ["late"]
    now[0] += DAY
    purging.run()
    assert left(engine)[2] == []


def test_poison_goes_with_the_texts_it_may_hold(sqlite_engine: Engine, redis: Redis) -> None:
    redis.xadd(POISON, {"kind": "old", "reason": "KeyError"}, id=f"{ms(NOW - 11 * DAY)}-0")
    redis.xadd(POISON, {"kind": "young", "reason": "KeyError"}, id=f"{ms(NOW - 9 * DAY)}-0")

    purge(sqlite_engine, redis)

    assert [entry.fields["kind"] for entry in Poison(redis).entries()] == [b"young"]


def test_a_hit_is_kept_as_long_as_any_query(engine: Engine, redis: Redis) -> None:
    write(engine, rows_of([hit("h-old", at=ms(NOW - 31 * DAY)), hit("h-young", at=ms(NOW - 29 * DAY))]))

    purge(engine, redis)

    assert left(engine)[0] == ["h-young"]


@pytest.fixture
def sqlite_engine(sqlite_url: str) -> Iterator[Engine]:
    engine = build_engine(sqlite_url)
    migrate(engine)
    yield engine
    engine.dispose()
