"""Roll-ups: what the statistics add up, kept per minute, hour and day by every transaction that changes the rows.

A bucket's tally is what a scan of its rows would count: a flat JSON object of whole numbers, so that tallies add and
subtract exactly. `queries/<tier>/<cache>/<status>` is how many there were, likewise `cost` and `baseline` (PICO_USD)
and the tokens; `latency/<tier>/<latency_bucket>` those answered so fast; `attempts/<provider>/<outcome>` how many
calls, likewise what they `spent` (PICO_USD), how many were `timed`, and the `micros` they took.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from operator import itemgetter
from typing import Any, TypeAlias

import orjson
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    delete,
    literal,
    or_,
    select,
    text,
    tuple_,
    union_all,
)

from storage.database import begin_writing, insert_into
from storage.table import attempts, queries, rollups

ALL = "*"  # every tenant's sum; none can be named so
SPANS = (1, 60, 1440)  # minutes; each a multiple of the one before
PICO_USD = 10**12  # list prices have at most six decimals per 1M tokens, so sums in this unit are exact
ADVISORY_LOCK = 7_283_642  # any constant: transactions change roll-ups one after the other (PostgreSQL)
PAGE = 10_000

Tally: TypeAlias = Counter[str]
Facts: TypeAlias = Sequence[Any]
Bucket: TypeAlias = tuple[str, int, int]  # tenant, minutes long, start
Columns: TypeAlias = tuple[Column[Any], ...]

QUERY: Columns = tuple(
    queries.c[
        "tenant",
        "created_at",
        "tier",
        "cache",
        "status",
        "cost_usd",
        "baseline_usd",
        "prompt_tokens",
        "completion_tokens",
        "latency_bucket",
    ]
)
ATTEMPT: Columns = tuple(attempts.c["tenant", "started_at", "provider", "outcome", "cost_usd", "latency_ms"])


def _count_query(facts: Facts) -> Iterator[tuple[str, int]]:
    tier, cache, status, cost, baseline, prompt, completion, bucket = facts[2:]
    group = f"{tier}/{cache}/{status}"
    yield f"queries/{group}", 1
    yield f"cost/{group}", round(cost * PICO_USD)
    yield f"baseline/{group}", round(baseline * PICO_USD)
    yield f"prompt_tokens/{group}", prompt or 0
    yield f"completion_tokens/{group}", completion or 0
    if status == "completed" and bucket is not None:
        yield f"latency/{tier}/{bucket}", 1


def _count_attempt(facts: Facts) -> Iterator[tuple[str, int]]:
    provider, outcome, cost, latency_ms = facts[2:]
    if provider is None:
        return
    group = f"{provider}/{outcome}"
    yield f"attempts/{group}", 1
    yield f"spent/{group}", round(cost * PICO_USD)
    if latency_ms is not None:
        yield f"timed/{group}", 1
        yield f"micros/{group}", round(latency_ms * 1000)


# What of a table's rows is rolled up, and how: tenant and time come first.
COUNTED: Mapping[Table, tuple[Columns, Callable[[Facts], Iterator[tuple[str, int]]]]] = {
    queries: (QUERY, _count_query),
    attempts: (ATTEMPT, _count_attempt),
}


class Change:
    """What one transaction adds to the tallies and takes from them."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[str, int], Tally] = defaultdict(Counter)

    def add(self, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows that are there now, as they were written."""
        facts = itemgetter(*(column.name for column in COUNTED[table][0]))
        self.count(table, map(facts, rows))

    def count(self, table: Table, rows: Iterable[Facts], sign: int = 1) -> None:
        """Rows by their facts, in the order of `COUNTED`; -1 for those that are no longer there."""
        count = COUNTED[table][1]
        for row in rows:
            tally = self._minutes[row[0], minute_of(row[1])]
            for key, number in count(row):
                tally[key] += sign * number

    def apply(self, connection: Connection) -> None:
        """The last thing a transaction does before its end: from here to there others wait for it."""
        changes = self._by_bucket()
        if not changes:
            return
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
        tallies = _read(connection, changes)
        # `+` of two Counters keeps what is above zero.
        _write(connection, {bucket: tallies[bucket] + change for bucket, change in changes.items()})

    def _by_bucket(self) -> dict[Bucket, Tally]:
        changes: dict[Bucket, Tally] = defaultdict(Counter)
        for (tenant, minute), tally in self._minutes.items():
            changed = {key: number for key, number in tally.items() if number}
            for whose in (tenant, ALL) if changed else ():
                for span in SPANS:
                    changes[whose, span, minute - minute % span].update(changed)
        return changes


def delete_counted(connection: Connection, table: Table, condition: ColumnElement[bool]) -> int:
    """Delete rows, and take from the roll-ups what they count there. Returns how many."""
    deletion = delete(table).where(condition)
    if table not in COUNTED:
        return int(connection.execute(deletion).rowcount)
    gone = connection.execute(deletion.returning(*COUNTED[table][0])).all()
    change = Change()
    change.count(table, gone, -1)
    change.apply(connection)
    return len(gone)


def total(connection: Connection, since: datetime, tenant: str | None = None) -> Tally:
    """Everything from the minute of `since` on, of one tenant or of all."""
    found: Tally = Counter()
    for tally in connection.execute(buckets_since(minute_of(since), tenant or ALL)).scalars():
        found.update(orjson.loads(tally))
    return found


def recount(connection: Connection) -> Iterator[int]:
    """Make all roll-ups anew from the rows there are, PAGE of them at a time; yields how many were counted.

    Recorders wait until the transaction ends: what one wrote meanwhile would be counted by nobody.
    """
    begin_writing(connection)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("LOCK TABLE queries, attempts IN SHARE MODE"))
    connection.execute(delete(rollups))
    for table, (columns, _) in COUNTED.items():
        last: Facts | None = None
        while page := connection.execute(_page(table, last)).all():
            change = Change()
            change.count(table, (row[: len(columns)] for row in page))
            change.apply(connection)
            last = page[-1]
            yield len(page)


def minute_of(at: datetime) -> int:
    """Minutes since 1970, UTC."""
    return int(at.timestamp() // 60)


def buckets_since(minute: int, tenant: str) -> Select[Any]:
    """Minutes up to the next full hour, hours up to the next full day, days: few rows, whatever the window."""
    r, parts = rollups.c, []
    for span, longer in pairwise(SPANS):
        end = minute + -minute % longer
        parts.append(select(r.tally).where(r.tenant == tenant, r.minutes == span, r.start >= minute, r.start < end))
        minute = end
    parts.append(select(r.tally).where(r.tenant == tenant, r.minutes == SPANS[-1], r.start >= minute))
    return select(union_all(*parts).subquery().c.tally)


def _page(table: Table, last: Facts | None) -> Select[Any]:
    columns, key = COUNTED[table][0], tuple(table.primary_key.columns)
    time = columns[1]
    page = select(*columns, *key)
    if last is not None:
        after = tuple_(*key) > tuple_(*(literal(value) for value in last[len(columns) :]))
        page = page.where(time >= last[1], or_(time > last[1], after))
    return page.order_by(time, *key).limit(PAGE)


def _read(connection: Connection, buckets: Iterable[Bucket]) -> Mapping[Bucket, Tally]:
    tenants, spans, starts = (sorted(set(part)) for part in zip(*buckets, strict=True))
    r = rollups.c
    among = (r.tenant.in_(tenants), r.minutes.in_(spans), r.start.in_(starts))
    found: dict[Bucket, Tally] = defaultdict(Counter)
    for tenant, span, start, tally in connection.execute(select(r.tenant, r.minutes, r.start, r.tally).where(*among)):
        found[tenant, span, start] = Counter(orjson.loads(tally))
    return found


def _write(connection: Connection, tallies: Mapping[Bucket, Tally]) -> None:
    empty = [bucket for bucket, tally in tallies.items() if not tally]
    if empty:
        connection.execute(delete(rollups).where(tuple_(*rollups.primary_key.columns).in_(empty)))
    names = tuple(rollups.c.keys())
    rows = [
        dict(zip(names, (*bucket, orjson.dumps(tally).decode()), strict=True))
        for bucket, tally in tallies.items()
        if tally
    ]
    if rows:
        insert = insert_into(rollups, connection.dialect)
        changed = {"tally": insert.excluded.tally}
        connection.execute(insert.on_conflict_do_update(index_elements=rollups.primary_key, set_=changed), rows)
