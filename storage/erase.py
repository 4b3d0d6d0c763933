"""Removing what is kept of one tenant, in Redis and in SQL, a little at a time while the service runs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from sqlalchemy import ColumnElement, Engine, Table, and_, select, tuple_, update

from storage.answer import answer_key
from storage.connection import RedisClient, load_script
from storage.ledger import JOB_PARTS
from storage.name import DONE, DUE, PREFIX, USAGE, attempts_key, callers_key, dead_key, job_key
from storage.rollup import delete_counted
from storage.table import api_keys, attempts, events, queries, rollups
from storage.usage import GROUP, POISON, entries_of

BATCH = 1_000
MAX_TELLINGS = 10_000  # as many as jobs' endings are kept by default
PAGE = 500


@dataclass(frozen=True, slots=True)
class Keys:
    """Redis keys that go whole; {tenant} or {key_id} in their pattern is filled in."""

    name: str
    pattern: str
    is_cached: bool = False


# A new kind of key is a row here.
KEYS = (
    Keys("cached answers", answer_key("{tenant}:*"), is_cached=True),
    Keys("dead letters", dead_key("{tenant}")),
    Keys("queries in flight", PREFIX + "flight:{tenant}:*"),
    Keys("idempotency keys", PREFIX + "idempotency:{tenant}:*"),
    Keys("spending", PREFIX + "spend:{key_id}"),
    Keys("open jobs of keys", PREFIX + "open:{key_id}"),
    Keys("requests of keys", PREFIX + "rate:{key_id}"),
)
STREAMS = (("entries not yet recorded", USAGE), ("entries set aside", POISON))


@dataclass(frozen=True, slots=True)
class Rows:
    """A tenant's rows of one table."""

    name: str
    table: Table
    condition: ColumnElement[bool]


def rows_of_tenant(tenant: str) -> tuple[Rows, ...]:
    # Events from before they had a tenant of their own say it in their payload.
    untold = and_(events.c.tenant.is_(None), events.c.payload["tenant"].as_string() == tenant)
    # With queries and attempts go their sums, also from those of all tenants: roll-ups come after them.
    tables = (api_keys, queries, attempts, events, rollups)
    named = tuple(Rows(table.name, table, table.c.tenant == tenant) for table in tables)
    return (*named, Rows("events", events, untold))


def revoke_keys(engine: Engine, tenant: str) -> None:
    """End the tenant's keys, so that nothing new is asked; their rows go last, since they name what else is kept."""
    living = (api_keys.c.tenant == tenant, api_keys.c.revoked_at.is_(None))
    with engine.begin() as connection:
        connection.execute(update(api_keys).where(*living).values(revoked_at=datetime.now(UTC)))


def key_ids(engine: Engine, tenant: str) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(select(api_keys.c.id).where(api_keys.c.tenant == tenant)).scalars())


def erase_rows(engine: Engine, rows: Rows) -> Iterator[int]:
    """Delete them batch by batch, each its own transaction; yields how many. SQLAlchemy errors pass through."""
    key = tuple_(*rows.table.primary_key.columns)
    some = select(*rows.table.primary_key.columns).where(rows.condition).limit(BATCH)
    while True:
        with engine.begin() as connection:
            count = delete_counted(connection, rows.table, key.in_(some))
        yield count
        if count < BATCH:
            return


def erase_keys(client: RedisClient, pattern: str) -> Iterator[int]:
    """Unlink what the pattern matches, a page at a time; yields how many. Redis errors pass through."""
    for page in _pages(client, pattern):
        yield int(client.unlink(*page))


def tell_erased(client: RedisClient) -> None:
    """Have every web process forget the answers that it keeps in memory. Redis errors pass through."""
    client.xadd(DONE, {"erased": "answers"}, maxlen=MAX_TELLINGS, approximate=True)


def erase_jobs(client: RedisClient, tenant: str) -> Iterator[int]:
    """Drop the tenant's jobs, open and ended, with all that belongs to them. A worker on one finds that it is gone."""
    forget, prefix = load_script(client, "forget", *JOB_PARTS), job_key("")
    for page in _pages(client, prefix + "*"):
        with client.pipeline(transaction=False) as pipe:
            for name in page:
                pipe.hget(name, "tenant")
            found = list(zip(page, pipe.execute(), strict=True))
        mine = [name.decode().removeprefix(prefix) for name, owner in found if owner == tenant.encode()]
        for job_id in mine:
            forget(keys=[job_key(job_id), callers_key(job_id), attempts_key(job_id), DUE], args=[job_id])
        yield len(mine)


def erase_entries(client: RedisClient, stream: str, tenant: str) -> Iterator[int]:
    """Take the tenant out of a stream's entries; those of others who shared a job with it stay."""
    after = "-"
    while page := entries_of(client.xrange(stream, min=after, count=PAGE)):
        after = f"({page[-1].id.decode()}"
        rests = [(entry, without(entry.fields, tenant)) for entry in page]
        touched = [(entry, rest) for entry, rest in rests if rest != entry.fields]
        with client.pipeline() as pipe:
            for entry, rest in touched:
                if rest:
                    pipe.xadd(stream, rest)
                pipe.xdel(stream, entry.id)
                if stream == USAGE:
                    pipe.xack(stream, GROUP, entry.id)
            pipe.execute()
        yield len(touched)


def without(fields: Mapping[str, bytes], tenant: str) -> Mapping[str, bytes]:
    """A usage entry less the callers of the tenant; nothing where no other caller is left."""
    if "tenant" in fields:
        return {} if fields["tenant"].decode() == tenant else fields
    try:
        if "callers" not in fields:
            return {} if orjson.loads(fields["caller"])["tenant"] == tenant else fields
        callers = orjson.loads(fields["callers"])
        others = [asked for asked in callers if asked["caller"]["tenant"] != tenant]
    except (KeyError, ValueError, TypeError):  # set aside because it is no proper entry: then any mention counts
        mention = re.compile(rb'"tenant":\s*"' + re.escape(tenant.encode()) + b'"')
        return {} if any(map(mention.search, fields.values())) else fields
    if len(others) == len(callers):
        return fields
    return {**fields, "callers": orjson.dumps(others)} if others else {}


def _pages(client: RedisClient, pattern: str) -> Iterator[Sequence[bytes]]:
    cursor = 0
    while True:
        cursor, page = client.scan(cursor, match=pattern, count=PAGE)
        if page:
            yield page
        if not cursor:
            return
