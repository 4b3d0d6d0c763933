"""The service on the servers of a real installation: Redis twice, PostgreSQL, and Apache Kafka.

Each test uses queries of its own, so that they can share one running service.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from redis import Redis

from embedded.port import free_port
from embedded.server import Server
from embedded.supervisor import Supervisor
from storage.event import ANALYTICS_TOPIC, TOPICS, USAGE_TOPIC
from tests import system_servers
from tests.integration.stack import Stack, eventually, running

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Beside:
    """The servers that `running` does not start: PostgreSQL, and the Redis of the answers."""

    supervisor: Supervisor
    postgres: Server
    cache: Server

    @property
    def cache_client(self) -> Redis:
        return Redis.from_url(self.cache.env["CACHE_REDIS_URL"], socket_timeout=5)


def installed(build: Callable[[Path, int], Server], folder: Path) -> Server:
    """The server, or a skip; with CI set a failure, since CI must have it."""
    try:
        return build(folder, free_port())
    except system_servers.NotInstalled as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="module")
def beside(folder: Path) -> Iterator[Beside]:
    with tempfile.TemporaryDirectory(prefix="router-postgres-") as open_folder:
        postgres = installed(system_servers.postgres, Path(open_folder))
        cache = installed(system_servers.cache_redis, folder)
        with Supervisor(folder / "beside", os.environ) as supervisor:
            postgres.start(supervisor)
            cache.start(supervisor)
            yield Beside(supervisor, postgres, cache)
            system_servers.stop_postgres(supervisor)


@pytest.fixture(scope="module")
def stack(folder: Path, beside: Beside) -> Iterator[Stack]:
    ledger = installed(system_servers.ledger_redis, folder)
    kafka = installed(system_servers.kafka, folder)
    url = beside.postgres.env["DATABASE_URL"]
    # One thread for the complex tier: of several jobs there, one runs and the others are queued.
    with running(folder, url, ledger, kafka, **beside.cache.env, COMPLEX_WORKER_THREADS="1") as stack:
        yield stack


@pytest.fixture(autouse=True)
def fresh_fake(stack: Stack) -> None:
    stack.fake.reset()


def is_recorded(stack: Stack, query_id: str) -> bool:
    return bool(stack.rows("SELECT 1 FROM queries WHERE id = :i AND status = 'completed'", i=query_id))


def usage_events(stack: Stack, job_id: str) -> int:
    return int(stack.rows("SELECT count(*) FROM events WHERE key = :k AND type = 'usage.recorded'", k=job_id)[0][0])


def is_outbox_empty(stack: Stack) -> bool:
    return not stack.rows("SELECT 1 FROM events WHERE published_at IS NULL LIMIT 1")


def recorded_event_ids(stack: Stack) -> set[tuple[str, str]]:
    """(topic, event_id) of every row."""
    return {tuple(row) for row in stack.rows("SELECT topic, event_id FROM events")}


def answers_in(redis: Redis) -> list[bytes]:
    return [redis.get(key) for key in redis.keys("aqr:answer:*")]


def read_as_group(stack: Stack, group: str) -> list[tuple[str, Any]]:
    """(topic, event) of all that the group has not read yet; afterwards it has."""
    consumer = KafkaConsumer(
        *TOPICS,
        bootstrap_servers=stack.env["KAFKA_BOOTSTRAP_SERVERS"],
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_timeout_ms=6_000,
    )
    found = [(message.topic, json.loads(message.value)) for message in consumer]
    consumer.commit()
    consumer.close()
    return found


def test_it_keeps_answers_in_the_cache_server_and_not_in_the_ledger(stack: Stack, beside: Beside) -> None:
    first, second = stack.ask("What is a cache?"), stack.ask("What is a cache?")

    assert (first.status_code, first.json()["cached"]) == (200, False)
    assert (second.json()["cached"], second.headers["X-Cache"]) == (True, "HIT")
    assert second.json()["response"] == first.json()["response"] == "answer to: What is a cache?"
    assert stack.fake.calls["groq"] == 1
    assert len([answer for answer in answers_in(beside.cache_client) if b"What is a cache?" in answer]) == 1
    assert answers_in(stack.redis) == []


def test_it_records_queries_in_postgresql(stack: Stack) -> None:
    miss, hit = stack.ask("What is a row?").json(), stack.ask("What is a row?").json()
    eventually(lambda: is_recorded(stack, miss["id"]) and is_recorded(stack, hit["id"]))

    assert stack.rows("SELECT version()")[0][0].startswith("PostgreSQL")
    rows = stack.rows("SELECT id, cache, tier, provider FROM queries WHERE id IN (:m, :h)", m=miss["id"], h=hit["id"])
    assert sorted(map(tuple, rows)) == [(miss["id"], "MISS", "simple", "groq"), (hit["id"], "HIT", "simple", "groq")]
    assert stack.rows("SELECT outcome FROM attempts WHERE job_id = :i", i=miss["id"])[0][0] == "ok"
    assert usage_events(stack, miss["id"]) == usage_events(stack, hit["id"]) == 1


def test_it_publishes_to_both_topics_of_apache_kafka(stack: Stack) -> None:
    query_id = stack.ask("What is a topic?").json()["id"]
    eventually(lambda: is_recorded(stack, query_id) and is_outbox_empty(stack))

    mine = [(topic, json.loads(value)) for topic, value in stack.events()]
    kinds = {(topic, event["type"]) for topic, event in mine if event["job_id"] == query_id}
    assert kinds == {
        (ANALYTICS_TOPIC, "query.accepted"),
        (ANALYTICS_TOPIC, "query.completed"),
        (ANALYTICS_TOPIC, "provider.attempt"),
        (USAGE_TOPIC, "usage.recorded"),
    }


def test_a_consumer_group_reads_each_event_once(stack: Stack) -> None:
    first = stack.ask("What is a consumer group?").json()["id"]
    eventually(lambda: is_recorded(stack, first) and is_outbox_empty(stack))
    read = read_as_group(stack, "billing")
    assert {(topic, event["event_id"]) for topic, event in read} == recorded_event_ids(stack)

    second = stack.ask("What is an offset?").json()["id"]
    eventually(lambda: is_recorded(stack, second) and is_outbox_empty(stack))
    assert {event["job_id"] for _, event in read_as_group(stack, "billing")} == {second}


def test_no_event_is_missing_after_kafka_was_killed(stack: Stack) -> None:
    before = [stack.ask(f"What is message {n}?").json()["id"] for n in range(5)]
    stack.supervisor.kill("kafka")
    during = [stack.ask(f"What is parcel {n}?").json()["id"] for n in range(5)]
    eventually(lambda: stack.health()["parts"]["kafka"]["status"] == "down")
    assert not is_outbox_empty(stack)

    stack.supervisor.restart("kafka")
    stack.wait_until_well()
    eventually(lambda: all(is_recorded(stack, i) for i in before + during) and is_outbox_empty(stack), 60)
    published = {(topic, json.loads(value)["event_id"]) for topic, value in stack.events()}
    assert published == recorded_event_ids(stack)
    assert {f"{i}.completed" for i in before + during} <= {event_id for _, event_id in published}


def test_jobs_outlive_a_restart_of_the_ledger(stack: Stack) -> None:
    stack.fake.set_latency(1.5)
    ids = [stack.ask(f"Explain restart {n}", tier="complex", wait_seconds=0).json()["id"] for n in range(4)]
    eventually(lambda: stack.fake.calls["groq"] == 1)
    jobs = [stack.get(f"/api/v1/jobs/{i}")["status"] for i in ids]
    assert sorted(jobs) == ["queued", "queued", "queued", "running"]

    stack.supervisor.restart("redis")
    stack.fake.set_latency(0)

    assert [stack.poll(i)["status"] for i in ids] == ["completed"] * 4
    eventually(lambda: all(is_recorded(stack, i) for i in ids))
    assert [usage_events(stack, i) for i in ids] == [1, 1, 1, 1]
    stack.wait_until_well()


def test_it_answers_without_its_cache_and_hits_again_once_it_is_back(stack: Stack, beside: Beside) -> None:
    beside.supervisor.kill("cache")
    try:
        first = stack.ask("What is amnesia?")
        # For two seconds the finished job itself still answers; then nobody remembers it.
        second = eventually(lambda: (r := stack.ask("What is amnesia?")).headers["X-Cache"] == "MISS" and r)
        assert (first.status_code, second.status_code) == (200, 200)
        assert stack.fake.calls["groq"] == 2
        assert "X-Router-Degraded" not in first.headers
        health = stack.health()
        assert health["status"] == "degraded"
        assert {name for name, part in health["parts"].items() if part["status"] == "down"} == {"cache"}
    finally:
        beside.supervisor.restart("cache")
    stack.wait_until_well()
    again = [stack.ask("What is a memory?") for _ in range(2)]
    assert [a.headers["X-Cache"] for a in again] == ["MISS", "HIT"]
    assert len([answer for answer in answers_in(beside.cache_client) if b"What is a memory?" in answer]) == 1


def test_queries_are_recorded_after_a_restart_of_postgresql(stack: Stack, beside: Beside) -> None:
    system_servers.stop_postgres(beside.supervisor)
    try:
        answers = [stack.ask(f"What is a checkpoint {n}?") for n in range(3)]
        assert [a.status_code for a in answers] == [200, 200, 200]
        eventually(lambda: stack.health()["parts"]["recorder"]["status"] == "degraded")
        health = stack.health()
        assert (health["status"], health["parts"]["database"]["status"]) == ("degraded", "down")
    finally:
        beside.supervisor.restart("postgres")
    stack.wait_until_well()
    ids = [a.json()["id"] for a in answers]
    eventually(lambda: all(is_recorded(stack, i) for i in ids))
    assert [usage_events(stack, i) for i in ids] == [1, 1, 1]


def test_fifty_identical_queries_make_one_provider_call(stack: Stack) -> None:
    stack.fake.set_latency(1.0)
    with ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(lambda _: stack.ask("What is a stampede?"), range(50)))

    assert {r.status_code for r in responses} == {200}
    assert {r.json()["response"] for r in responses} == {"answer to: What is a stampede?"}
    assert len({r.json()["id"] for r in responses}) == 50
    assert stack.fake.calls["groq"] == 1
    eventually(lambda: all(is_recorded(stack, r.json()["id"]) for r in responses))
