"""One tenant's data goes, wherever it is kept; what is another's stays, also of one whose name begins alike."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, insert, select, update

from routing.query import Query
from storage.answer import answer_key, owned
from storage.database import build_engine
from storage.erase import BATCH, rows_of_tenant, without
from storage.event import rows_of
from storage.job import Draft
from storage.ledger import DONE, USAGE, Ending, Ledger
from storage.line import Lines
from storage.record import write
from storage.table import api_keys, events, metadata, queries
from storage.usage import POISON, UsageStream
from tasks.erase import Erase
from tests import ledger_case
from tests.conftest import migrate
from tests.usage_entries import FACTS, accepted, caller, ended, hit

ROOT = Path(__file__).parent.parent
TENANT = "acme.co"
NEIGHBOURS = ("acme", "acme.com", "acme-co", "default")


def key_of(tenant: str) -> str:
    return f"key-{tenant}"


def draft(tenant: str, name: str) -> Draft:
    query_id = f"{name}-{tenant}"
    routing = {"score": 0, "words": 1, "signals": []}
    payload = {"query": asdict(Query(name)), "tenant": tenant, "request_id": "r", "routing": routing, "cache": None}
    who = json.dumps(caller(query_id, tenant=tenant, tier="simple"))
    return ledger_case.draft(
        query_id,
        tenant=tenant,
        fingerprint=owned(tenant, name),
        payload=json.dumps(payload).encode(),
        caller=who.encode(),
    )


def of(tenant: str, entry: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value.replace(b'"tenant": "t"', f'"tenant": "{tenant}"'.encode()) for name, value in entry.items()}


def plant_in_redis(redis: Redis, ledger: Ledger, tenant: str) -> None:
    ending = Ending("completed", FACTS, answer=b"{}\n{}", cache=(owned(tenant, "ended"), 60_000))
    for number, name in enumerate(("ended", "running", "waiting")):
        ledger.accept(replace(draft(tenant, name), tier=f"tier-of-{tenant}"))
        if name != "waiting":
            assert ledger.claim(f"tier-of-{tenant}", f"token-{tenant}-{number}", "w") is not None
        if name == "ended":
            ledger.finish(f"ended-{tenant}", f"token-{tenant}-{number}", ending)
    redis.set(f"aqr:idempotency:{tenant}:k1", f"ended-{tenant}")
    redis.set(f"aqr:spend:{key_of(tenant)}", "1.5")
    redis.zadd(f"aqr:dead:{tenant}", {f"ended-{tenant}": 1})
    redis.sadd("aqr:dead_tenants", tenant)
    redis.xadd(USAGE, of(tenant, hit(f"hit-{tenant}")))
    redis.xadd(POISON, {**of(tenant, accepted(f"poison-{tenant}")), "reason": "DataError"})
    redis.xadd(POISON, {"kind": "nonsense", "half": f'{{"tenant":"{tenant}"', "reason": "KeyError"})


def plant_in_sql(engine: Engine, tenant: str, count: int = 1) -> None:
    entries = [of(tenant, ended(f"q{n}-{tenant}")) for n in range(count)]
    write(engine, rows_of(entries))
    key = {"id": key_of(tenant), "tenant": tenant, "name": "n", "secret_sha256": "s", "created_at": None}
    with engine.begin() as connection:
        [at] = connection.execute(select(queries.c.created_at).limit(1)).scalars()
        connection.execute(insert(api_keys).values({**key, "scopes": [], "tiers": [], "created_at": at}))


def redis_state(redis: Redis) -> dict[bytes, Any]:
    """Every key and its value, but for what is about no tenant: job ids that ended, and when."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"stream": redis.xrange,
    }
    found = {key: read[redis.type(key)](key) for key in redis.scan_iter(count=1_000)}
    told = (DONE.encode(), b"aqr:drain:", b"aqr:claimed:")
    kept = {key: value for key, value in found.items() if not key.startswith(told)}
    for key in [key for key in kept if key.startswith(b"aqr:share:")]:
        kept[key] = {name: count for name, count in kept[key].items() if not name.startswith(b"now:")}
        kept = kept if kept[key] else {name: value for name, value in kept.items() if name != key}
    return kept


def sql_state(engine: Engine) -> dict[str, list[Any]]:
    with engine.connect() as connection:
        return {
            table.name: connection.execute(select(table).order_by(*table.primary_key)).all()
            for table in metadata.sorted_tables
        }


def erase(engine: Engine, redis: Redis, tenant: str = TENANT, say: Callable[..., None] = lambda *_: None) -> bool:
    return Erase(tenant, engine, redis, redis).run(say, pause_s=0)


def test_it_leaves_redis_as_if_the_tenant_had_never_been(engine: Engine, redis: Redis, ledger: Ledger) -> None:
    for tenant in NEIGHBOURS:
        plant_in_redis(redis, ledger, tenant)
    before = redis_state(redis)
    plant_in_redis(redis, ledger, TENANT)
    plant_in_sql(engine, TENANT)

    assert erase(engine, redis)

    assert redis_state(redis) == before
    assert f'"{TENANT}"' not in str(redis_state(redis))


def test_it_leaves_sql_as_if_the_tenant_had_never_been(engine: Engine, redis: Redis) -> None:
    for tenant in NEIGHBOURS:
        plant_in_sql(engine, tenant)
    before = sql_state(engine)
    plant_in_sql(engine, TENANT, BATCH + 1)
    with engine.begin() as connection:  # events from before they had a column for it
        old = connection.execute(select(events.c.seq).where(events.c.tenant == TENANT).limit(10)).scalars().all()
        connection.execute(update(events).where(events.c.seq.in_(old)).values(tenant=None))

    said: list[tuple[str, int]] = []
    assert erase(engine, redis, say=lambda *line: said.append(line))

    assert sql_state(engine) == before
    assert ("attempts", BATCH) in said
    assert ("attempts", BATCH + 1) in said


def test_what_a_recorder_writes_meanwhile_goes_too(engine: Engine, redis: Redis) -> None:
    redis.xadd(USAGE, of(TENANT, ended("q1")))
    stream = UsageStream(redis, "r1")
    stream.open()
    read = stream.read(10, 10)

    def record_late(name: str, count: int) -> None:
        """The recorder had the entry in its hands when it was erased."""
        if name == "entries not yet recorded":
            write(engine, rows_of(entry.fields for entry in read))
            stream.acknowledge(read)

    assert erase(engine, redis, say=record_late)
    assert {name: len(rows) for name, rows in sql_state(engine).items()} == dict.fromkeys(metadata.tables, 0)


def test_a_running_job_ends_in_nothing(engine: Engine, redis: Redis, ledger: Ledger) -> None:
    plant_in_redis(redis, ledger, TENANT)
    erase(engine, redis)

    late = Ending("completed", FACTS, answer=b"{}\n{}", cache=(owned(TENANT, "running"), 60_000))
    assert not ledger.finish(f"running-{TENANT}", f"token-{TENANT}-1", late)
    assert redis.keys("aqr:answer:*") == redis.keys("aqr:job:*") == redis.xrange(USAGE) == []


def test_it_finds_the_answers_in_a_redis_of_their_own(sqlite_url: str, redis: Redis, redis_url: str) -> None:
    built = build_engine(sqlite_url)
    migrate(built)
    apart = Redis.from_url(redis_url.removesuffix("0") + "1")
    for tenant in (TENANT, "acme"):
        apart.set(answer_key(owned(tenant, "f")), "answer")

    Erase(TENANT, built, redis, apart).run(lambda *_: None, pause_s=0)
    assert apart.keys() == [b"aqr:answer:acme:f"]


def test_it_takes_only_the_tenants_callers_out_of_a_job_that_others_shared() -> None:
    mine, other = of(TENANT, ended("q1")), of("other", ended("q2"))
    both = {**other, "callers": json.dumps([*json.loads(mine["callers"]), *json.loads(other["callers"])]).encode()}

    rest = without(both, TENANT)
    assert json.loads(rest["callers"]) == json.loads(other["callers"])
    assert {**rest, "callers": b""} == {**both, "callers": b""}
    assert (without(mine, TENANT), without(other, TENANT)) == ({}, other)


def test_tenants_that_share_answers_share_no_job(engine: Engine, redis: Redis, ledger: Ledger) -> None:
    for tenant in ("other", TENANT):
        accepted = ledger.accept(replace(draft(tenant, "same"), fingerprint=owned("shared", "same")))
        assert accepted.kind == "leader"

    erase(engine, redis)
    assert ledger.job(f"same-{TENANT}") is None
    assert ledger.job("same-other") is not None
    assert Lines(redis).depths(["simple"])["simple"]["queued"] == 1


def run(redis_url: str, engine: Engine, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    url = engine.url.render_as_string(hide_password=False)
    env = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": url, "ENV_FILE": os.devnull}
    command = [sys.executable, "-m", "tasks.erase", *words]
    return subprocess.run(command, cwd=ROOT, env=env, input=typed, capture_output=True, text=True, timeout=60)


def test_the_command_asks_first_and_says_what_it_cannot_erase(engine: Engine, redis: Redis, redis_url: str) -> None:
    plant_in_sql(engine, TENANT)
    refused = run(redis_url, engine, TENANT, typed="acme\n")
    assert (refused.returncode, len(sql_state(engine)["queries"])) == (1, 1)

    done = run(redis_url, engine, TENANT, typed=TENANT + "\n")
    assert (done.returncode, len(sql_state(engine)["queries"])) == (0, 0)
    assert "Nothing of it is left." in done.stdout
    assert "Kafka" in done.stdout

    plant_in_sql(engine, TENANT)
    assert run(redis_url, engine, TENANT, "--yes").returncode == 0
    assert sql_state(engine)["queries"] == []


@pytest.mark.parametrize("name", ["*", "a*", "a:b", "", "x" * 65, "a b", "[ab]", "a\n"])
def test_the_command_takes_no_name_that_could_mean_others(sqlite_url: str, redis_url: str, name: str) -> None:
    env = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": sqlite_url, "ENV_FILE": os.devnull}
    command = [sys.executable, "-m", "tasks.erase", "--yes", "--", name]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "1 to 64 letters" in done.stderr) == (2, True)


def test_every_table_that_names_a_tenant_is_among_them() -> None:
    assert {rows.table for rows in rows_of_tenant(TENANT)} == {t for t in metadata.tables.values() if "tenant" in t.c}
