"""What callers may do about their jobs: cancel them, ask for one twice and get one; and admins: replay what failed."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from config import Settings
from providers.abort import AbortSignal
from routing.errors import AllTargetsFailed, QueryRejected, TargetUnreachable
from routing.query import Target
from tests.test_answer import ATTEMPT
from tests.web_case import QUERY, EchoChain, app, ask, chain, client, poll, worker
from webapp import create_app

__all__ = ["app", "chain", "client", "worker"]  # fixtures

DEAD = "/api/v1/dead-letters"


def cancel(client: FlaskClient, job_id: str) -> Any:
    return client.post(f"/api/v1/jobs/{job_id}/cancel")


def eventually(look: Callable[[], Any], limit_s: float = 5) -> Any:
    until = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_a_queued_job_is_cancelled_at_once(client: FlaskClient) -> None:
    job = ask(client, wait_seconds=0).json

    cancelled = cancel(client, job["id"])
    assert (cancelled.status_code, cancelled.json["status"]) == (200, "cancelled")
    assert client.get(job["links"]["self"]).json["status"] == "cancelled"
    assert client.post(job["links"]["cancel"]).status_code == 200


@pytest.mark.usefixtures("worker")
def test_a_job_that_has_ended_cannot_be_cancelled(client: FlaskClient) -> None:
    answered = ask(client).json

    refused = cancel(client, answered["id"])
    assert (refused.status_code, refused.json["code"]) == (409, "job_ended")
    assert client.get(f"/api/v1/jobs/{answered['id']}").json["status"] == "completed"


def test_an_unknown_job_cannot_be_cancelled(client: FlaskClient) -> None:
    assert cancel(client, "nope").json["code"] == "job_unknown"


@pytest.mark.usefixtures("worker")
def test_a_running_job_is_being_cancelled_until_its_worker_stops(client: FlaskClient, chain: EchoChain) -> None:
    chain.gate.clear()
    job = ask(client, wait_seconds=0).json
    eventually(lambda: chain.calls)

    cancelled = cancel(client, job["id"])
    assert (cancelled.status_code, cancelled.json["status"]) == (202, "running")
    chain.gate.set()
    assert poll(client, job["links"]["self"])["status"] == "cancelled"


def test_one_caller_of_a_shared_answer_leaves_and_the_other_gets_it(client: FlaskClient, chain: EchoChain) -> None:
    first, second = (ask(client, wait_seconds=0).json for _ in range(2))
    assert cancel(client, first["id"]).json["status"] == "cancelled"
    assert client.get(second["links"]["self"]).json["status"] == "queued"


@pytest.mark.usefixtures("worker")
def test_the_caller_that_stays_pays(client: FlaskClient, chain: EchoChain) -> None:
    chain.gate.clear()
    first, second = (ask(client, wait_seconds=0).json for _ in range(2))
    cancel(client, first["id"])
    chain.gate.set()

    assert poll(client, second["links"]["self"])["result"]["cost_estimate"] > 0


def test_who_waits_for_a_cancelled_query_is_told(app: Flask, client: FlaskClient, redis: Redis) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, app.test_client(), wait_seconds=10)
        [job_id] = eventually(lambda: redis.zrange("aqr:queued:simple", 0, -1))
        cancel(client, job_id.decode())

    assert (waiting.result().status_code, waiting.result().json["code"]) == (409, "cancelled")


@pytest.mark.usefixtures("worker")
def test_the_same_key_and_body_ask_once(client: FlaskClient, chain: EchoChain) -> None:
    headers = {"Idempotency-Key": "order-66"}
    first, second = (ask(client, headers=headers, cache={"mode": "bypass"}) for _ in range(2))

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json["id"] == second.json["id"]
    assert first.json["response"] == second.json["response"]
    assert first.json["cost_estimate"] == second.json["cost_estimate"] > 0
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len(chain.calls) == 1


@pytest.mark.usefixtures("worker")
def test_a_hit_keeps_its_id_too(client: FlaskClient) -> None:
    ask(client)
    first, second = (ask(client, headers={"Idempotency-Key": "k"}) for _ in range(2))

    assert (first.headers["X-Cache"], second.headers["X-Cache"]) == ("HIT", "HIT")
    assert first.json["id"] == second.json["id"]


@pytest.mark.usefixtures("worker")
def test_a_keyed_hit_stays_what_it_was(client: FlaskClient, chain: EchoChain, redis: Redis) -> None:
    ask(client)
    first = ask(client, headers={"Idempotency-Key": "k"})
    redis.delete(*redis.keys("aqr:answer:*"), *redis.keys("aqr:flight:*"))
    again = ask(client, headers={"Idempotency-Key": "k"})

    assert (again.headers["X-Cache"], again.json["cached"], again.json["id"]) == ("HIT", True, first.json["id"])
    assert again.json["cost_estimate"] == 0
    assert len(chain.calls) == 1


def test_the_same_key_with_another_body_is_refused(client: FlaskClient) -> None:
    ask(client, headers={"Idempotency-Key": "k"}, wait_seconds=0)

    refused = ask(client, "What is Rust?", headers={"Idempotency-Key": "k"}, wait_seconds=0)
    assert (refused.status_code, refused.json["code"]) == (422, "idempotency_conflict")


def test_a_repeated_promise_is_the_same_job(client: FlaskClient) -> None:
    first, second = (ask(client, headers={"Idempotency-Key": "k"}, wait_seconds=0) for _ in range(2))

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["Location"] == second.headers["Location"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
def test_a_key_that_is_none_is_refused(client: FlaskClient, key: str) -> None:
    refused = client.post(QUERY, json={"query": "x"}, headers={"Idempotency-Key": key.encode().decode("latin-1")})

    assert (refused.status_code, refused.json["errors"][0]["field"]) == (422, "Idempotency-Key")


def test_without_redis_no_key_is_promised(settings: Callable[..., Settings]) -> None:
    client = create_app(settings(groq_api_key="k", redis_url="redis://127.0.0.1:1/0")).test_client()

    refused = ask(client, headers={"Idempotency-Key": "k"})
    assert (refused.status_code, refused.json["code"]) == (503, "redis_unavailable")


@pytest.mark.usefixtures("worker")
def test_what_may_not_begin_in_time_never_reaches_a_provider(client: FlaskClient, chain: EchoChain) -> None:
    chain.gate.clear()
    for number in range(8):  # as many as the workers take at a time
        ask(client, f"What is {number}?", wait_seconds=0)
    eventually(lambda: len(chain.calls) == 8)
    late = ask(client, "What is late?", wait_seconds=0, start_within_seconds=0.05).json
    time.sleep(0.1)
    chain.gate.set()

    job = poll(client, late["links"]["self"])
    assert (job["status"], job["error"]["code"]) == ("expired", "expired")
    assert "What is late?" not in [call.text for call in chain.calls]


@pytest.fixture
def failed(client: FlaskClient, chain: EchoChain, worker: None) -> str:
    """The id of a job that no target answered."""
    chain.error = AllTargetsFailed([ATTEMPT], TargetUnreachable(Target("groq", "m"), "refused"))
    job = ask(client, wait_seconds=0, priority="batch").json
    assert poll(client, job["links"]["self"])["status"] == "failed"
    return str(job["id"])


def test_a_failed_job_is_a_dead_letter_until_it_is_replayed(
    client: FlaskClient, chain: EchoChain, failed: str, app: Flask
) -> None:
    [letter] = client.get(DEAD).json["dead_letters"]
    assert (letter["id"], letter["code"], letter["priority"]) == (failed, "provider_unreachable", "batch")
    assert "What is AI?" not in json.dumps(letter)
    assert client.get(f"{DEAD}/{failed}").json == letter

    chain.error = None
    replayed = client.post(f"{DEAD}/{failed}/replay")
    assert (replayed.status_code, replayed.json) == (202, {"replayed": [failed]})
    job = poll(client, f"/api/v1/jobs/{failed}")
    assert (job["status"], job["result"]["response"]) == ("completed", "answer to: What is AI?")
    assert client.get(DEAD).json == {"dead_letters": []}
    assert client.post(f"{DEAD}/{failed}/replay").json["code"] == "dead_letter_unknown"


def test_dead_letters_are_replayed_by_filter(client: FlaskClient, chain: EchoChain, failed: str) -> None:
    chain.error = None

    assert client.post("/api/v1/replays", json={"code": "provider_throttled"}).json == {"replayed": []}
    assert client.post("/api/v1/replays", json={"code": "provider_unreachable"}).json == {"replayed": [failed]}


def test_a_dropped_letter_is_gone(client: FlaskClient, failed: str) -> None:
    assert client.delete(f"{DEAD}/{failed}").status_code == 204
    assert client.delete(f"{DEAD}/{failed}").json["code"] == "dead_letter_unknown"
    assert client.get(f"/api/v1/jobs/{failed}").json["status"] == "failed"


@pytest.mark.usefixtures("worker")
def test_what_the_caller_got_wrong_is_no_dead_letter(client: FlaskClient, chain: EchoChain) -> None:
    chain.error = AllTargetsFailed([ATTEMPT], QueryRejected(Target("groq", "m"), "HTTP 400"))
    ask(client)

    assert client.get(DEAD).json == {"dead_letters": []}


def test_a_signal_reaches_its_callbacks_also_when_it_comes_first() -> None:
    said: list[str] = []
    signal = AbortSignal()
    with signal.calling(lambda: said.append("a")):
        signal.abort()
    with signal.calling(lambda: said.append("b")):
        pass
    signal.abort()

    assert said == ["a", "b"]


def test_a_parameter_is_given_once(client: FlaskClient) -> None:
    refused = client.get(f"{DEAD}?tier=simple&tier=medium")

    assert (refused.status_code, refused.json["errors"][0]["field"]) == (422, "tier")
