"""Roll-ups equal what a scan of the rows gives, whatever was written, delivered twice, purged or erased."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, select, text, update

from storage.database import build_engine
from storage.erase import erase_rows, rows_of_tenant
from storage.event import rows_of
from storage.record import write
from storage.retention import Periods, chores, sweep
from storage.rollup import ALL, SPANS, Change, buckets_since, minute_of, recount, total
from storage.table import attempts, metadata, queries, rollups
from tests.conftest import ROOT
from tests.usage_entries import AT, accepted, ended, hit

NOW = datetime.fromtimestamp(AT / 1000, UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
AGES = (timedelta(0), MINUTE, 59 * MINUTE, HOUR, 23 * HOUR, DAY, 40 * DAY)
TENANTS = ("t", "acme", "acme.co")
PERIODS = Periods(texts=30, queries=30, attempts=1, events=30, is_relayed=False)


def scan(engine: Engine, since: datetime, tenant: str | None = None) -> Counter[str]:
    """What SQL says of the rows themselves, in whole µUSD and µs."""
    q, a, found = queries.c, attempts.c, Counter[str]()
    own = (tenant is None, tenant)
    with engine.connect() as connection:
        asked = connection.execute(select(queries).where(q.created_at >= since)).all()
        tried = connection.execute(select(attempts).where(a.started_at >= since, a.provider.is_not(None))).all()
    for row in (row for row in asked if own[0] or row.tenant == own[1]):
        group = f"{row.tier}/{row.cache}/{row.status}"
        found[f"queries/{group}"] += 1
        found[f"cost/{group}"] += round(row.cost_usd * 1e12)
        found[f"baseline/{group}"] += round(row.baseline_usd * 1e12)
        found[f"prompt_tokens/{group}"] += row.prompt_tokens or 0
        found[f"completion_tokens/{group}"] += row.completion_tokens or 0
        if row.status == "completed" and row.latency_bucket is not None:
            found[f"latency/{row.tier}/{row.latency_bucket}"] += 1
    for row in (row for row in tried if own[0] or row.tenant == own[1]):
        group = f"{row.provider}/{row.outcome}"
        found[f"attempts/{group}"] += 1
        found[f"spent/{group}"] += round(row.cost_usd * 1e12)
        if row.latency_ms is not None:
            found[f"timed/{group}"] += 1
            found[f"micros/{group}"] += round(row.latency_ms * 1000)
    return +found


def rolled_up(engine: Engine, since: datetime, tenant: str | None = None) -> Counter[str]:
    with engine.connect() as connection:
        return total(connection, since, tenant)


def assert_equal(engine: Engine) -> None:
    for since in (NOW - age for age in (*AGES, 100 * DAY)):
        for tenant in (None, *TENANTS):
            assert rolled_up(engine, since, tenant) == scan(engine, since, tenant)


def stored(engine: Engine) -> dict[tuple[str, int, int], Counter[str]]:
    with engine.connect() as connection:
        return {(t, m, s): Counter(json.loads(tally)) for t, m, s, tally in connection.execute(select(rollups))}


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(delete(table))


def purge(engine: Engine) -> None:
    for chore in chores(PERIODS):
        list(sweep(engine, chore, NOW - timedelta(days=chore.days)))


def erase(engine: Engine, tenant: str) -> None:
    for rows in rows_of_tenant(tenant):
        list(erase_rows(engine, rows))


def of(tenant: str, entry: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value.replace(b'"tenant": "t"', f'"tenant": "{tenant}"'.encode()) for name, value in entry.items()}


def attempt(at: int, outcome: str, latency_ms: float | None, provider: str | None = "groq") -> dict[str, Any]:
    return {
        "provider": provider,
        "outcome": outcome,
        "started_at": at,
        "latency_ms": latency_ms,
        "cost_usd": 0.0000123,
    }


def left(query_id: str, job: str, at: int) -> dict[str, bytes]:
    """The caller of the query cancelled, while the job went on."""
    entry = accepted(query_id, job=job, at=at)
    who = json.dumps({"at": at, "caller": json.loads(entry["caller"])}).encode()
    return {**entry, "kind": b"left", "caller": who}


@st.composite
def entries(draw: st.DrawFn) -> dict[str, bytes]:
    """One of a few queries, each of one tenant and time, that begins, ends or begins anew."""
    number = draw(st.integers(0, 6))
    name, tenant, at = f"q{number}", TENANTS[number % 3], AT - int(AGES[number].total_seconds() * 1000)
    kind = draw(st.sampled_from(["accepted", "joined", "ended", "failed", "hit", "left"]))
    if kind == "accepted":
        return of(tenant, accepted(name, at=at))
    if kind == "joined":
        return of(tenant, accepted(name + "-follower", job=name, at=at + 5))
    if kind == "hit":
        return of(tenant, hit(f"h{number}", at=at))
    if kind == "left":
        return of(tenant, left(name + "-follower", name, at + 5))
    callers = draw(st.sampled_from([[name], [name, name + "-follower"]]))
    outcomes = draw(st.lists(st.sampled_from(["ok", "timeout", "throttled"]), max_size=2))
    tries = [attempt(at, outcome, draw(st.sampled_from([None, 12.3456, 900.0]))) for outcome in outcomes]
    status = "completed" if kind == "ended" else draw(st.sampled_from(["failed", "cancelled", "expired", "dead"]))
    took = draw(st.integers(1, 60_000))
    arrivals = dict.fromkeys(callers, at)
    return of(tenant, ended(name, status=status, callers=callers, arrivals=arrivals, attempts=tries, at=at + took))


steps = st.one_of(st.lists(entries(), min_size=1, max_size=12), st.just("purge"), st.sampled_from(TENANTS))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=1, max_size=6))
def test_whatever_happens_they_equal_a_scan(engine: Engine, happened: list[Any]) -> None:
    empty(engine)
    for step in happened:
        if step == "purge":
            purge(engine)
        elif isinstance(step, str):
            erase(engine, step)
        else:
            write(engine, rows_of(step))

    assert_equal(engine)
    counted = stored(engine)
    with engine.begin() as connection:
        list(recount(connection))
    assert stored(engine) == counted


def test_a_window_begins_with_its_minute(engine: Engine) -> None:
    for age in (29, 61, 3_599, 3_601, 86_399, 86_401, 9_000_000):
        write(engine, rows_of([hit(f"h{age}", at=AT - age * 1000)]))

    for age in (0, 29, 59, 60, 61, 3_600, 3_661, 86_340, 86_400, 86_460, 9_000_000, 400 * 86_400):
        since = NOW - timedelta(seconds=age)
        assert rolled_up(engine, since) == scan(engine, since.replace(second=0)), age


def test_nothing_is_left_of_buckets_whose_rows_are_gone(engine: Engine) -> None:
    write(engine, rows_of([of("acme", ended("q1")), of("acme", hit("h1")), hit("h2", at=AT - 40 * 86_400_000)]))

    erase(engine, "acme")
    assert {tenant for tenant, _, _ in stored(engine)} == {ALL, "t"}
    purge(engine)
    assert stored(engine) == {}


def test_a_long_window_is_a_few_buckets(engine: Engine) -> None:
    write(engine, rows_of([hit(f"h{n}", at=AT - n * 600_000) for n in range(40 * 144)]))

    since = NOW - timedelta(days=39, minutes=7)
    with engine.connect() as connection:
        read = connection.execute(buckets_since(minute_of(since), ALL)).all()
        assert total(connection, since)["queries/medium/HIT/completed"] == 39 * 144 + 1
    assert len(read) <= 59 + 23 + 40


@pytest.mark.parametrize("span", SPANS)
def test_buckets_are_found_by_their_key(engine: Engine, span: int) -> None:
    statement = buckets_since(minute_of(NOW) + span, ALL).compile(engine, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # the table is empty
        plan = str(connection.exec_driver_sql(f"{explain} {statement}").all())
    assert plan.count("tenant=? AND minutes=? AND start>?") + plan.count("(start >= ") == len(SPANS)


def test_recorders_at_the_same_time_count_each_row_once(engine: Engine) -> None:
    """Each has every entry, in its own order and batches: one begins what another ends."""
    history = [accepted(f"q{n}") for n in range(60)] + [ended(f"q{n}") for n in range(60)]
    barrier, errors = threading.Barrier(3), []

    def record(step: int) -> None:
        mine = [history[(n * step) % len(history)] for n in range(len(history))]
        for start in range(0, len(mine), 20):
            barrier.wait(30)
            try:
                write(engine, rows_of(mine[start : start + 20]))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is to tell
                errors.append(error)

    threads = [threading.Thread(target=record, args=(step,)) for step in (1, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert rolled_up(engine, NOW)["queries/medium/MISS/completed"] == 60
    assert_equal(engine)


def test_a_recorder_that_finds_a_row_of_another_counts_the_difference(engine: Engine) -> None:
    """The other one's transaction is open while this one looks, and is committed while it writes."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    other, slow = build_engine(engine.url.render_as_string(hide_password=False)), threading.Event()
    with other.connect() as connection:
        begun = connection.begin()
        [row] = rows_of([accepted("q1")]).opened
        connection.execute(insert(queries), row)
        change = Change()
        change.add(queries, [row])
        thread = threading.Thread(target=lambda: (write(engine, rows_of([ended("q1")])), slow.set()))
        thread.start()
        waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with other.connect() as watch:
            while not watch.execute(waits).scalar_one():
                watch.rollback()
        change.apply(connection)
        begun.commit()
    thread.join()
    other.dispose()

    assert slow.is_set()
    assert rolled_up(engine, NOW)["queries/medium/MISS/completed"] == 1
    assert_equal(engine)


def test_minutes_are_those_of_utc() -> None:
    assert minute_of(datetime(1970, 1, 2, 0, 1, 59, tzinfo=UTC)) == 1441


def test_the_command_counts_anew(engine: Engine) -> None:
    write(engine, rows_of([accepted("q1"), ended("q1"), hit("h1")]))
    counted = stored(engine)
    with engine.begin() as connection:
        connection.execute(update(rollups).values(tally='{"queries/medium/HIT/completed": 70}'))
    url = engine.url.render_as_string(hide_password=False)
    env = {**os.environ, "DATABASE_URL": url, "ENV_FILE": os.devnull}
    command = [sys.executable, "-m", "tasks.recount"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "3 rows counted")
    assert stored(engine) == counted
