"""The HTTP contract, in process, on a real Valkey and SQLite; a thread plays the worker."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from redis import Redis
from sqlalchemy import Engine, select
from werkzeug.test import TestResponse

from config import Settings
from routing.errors import AllTargetsFailed, QueryRejected
from routing.query import Target
from storage.answer import AnswerCache
from storage.database import build_engine
from storage.name import USAGE
from storage.presence import Presence
from storage.table import queries
from tests.conftest import migrate
from tests.test_answer import ATTEMPT
from tests.web_case import QUERY, EchoChain, app, ask, chain, client, poll, serving, worker
from webapp import create_app, draining
from webapp.problem import PROBLEMS

__all__ = ["app", "chain", "client", "worker"]  # fixtures


@pytest.mark.usefixtures("worker")
def test_it_answers_a_query_with_every_field_of_the_contract(client: FlaskClient) -> None:
    response = ask(client)

    assert response.status_code == 200
    assert response.headers["X-Cache"] == "MISS"
    assert "total;dur=" in response.headers["Server-Timing"]
    body = response.json
    assert body["latency_ms"] > 0
    body |= {"id": "i", "latency_ms": 1}
    assert body == {
        "id": "i",
        "query": "What is AI?",
        "response": "answer to: What is AI?",
        "model_used": "openai/gpt-oss-20b",
        "provider": "groq",
        "complexity": "simple",
        "latency_ms": 1,
        "cached": False,
        "cost_estimate": pytest.approx(10 * 0.075e-6 + 20 * 0.30e-6),
        "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
        "routing": {"score": 0, "words": 3, "signals": []},
        "finish_reason": "stop",
    }


@pytest.mark.usefixtures("worker")
def test_it_answers_the_second_time_from_the_cache(client: FlaskClient, chain: EchoChain) -> None:
    first = ask(client, "What is  AI?").json
    response = ask(client, "what is AI?")

    assert response.headers["X-Cache"] == "HIT"
    assert int(response.headers["Age"]) >= 0
    assert (response.json["cached"], response.json["cost_estimate"]) == (True, 0.0)
    assert response.json["response"] == first["response"]
    assert response.json["query"] == "what is AI?"
    assert response.json["id"] != first["id"]
    assert len(chain.calls) == 1


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("query", "tier"),
    [
        ("What is AI?", "simple"),
        ("Explain binary search", "medium"),
        ("Provide a comprehensive analysis of microservices", "complex"),
    ],
)
def test_it_sends_each_query_to_its_tier(client: FlaskClient, query: str, tier: str) -> None:
    assert ask(client, query).json["complexity"] == tier


@pytest.mark.usefixtures("worker")
def test_it_obeys_the_callers_tier(client: FlaskClient) -> None:
    assert ask(client, tier="complex").json["complexity"] == "complex"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("body", "headers"),
    [({"wait_seconds": 0}, {}), ({}, {"Prefer": "Respond-Async"}), ({}, {"Prefer": "foo, Wait=0; bar"})],
)
def test_it_promises_an_answer_and_keeps_it(
    client: FlaskClient, chain: EchoChain, body: dict[str, Any], headers: dict[str, str]
) -> None:
    chain.gate.clear()
    response = ask(client, headers=headers, **body)

    assert response.status_code == 202
    job = response.json
    assert response.headers["Location"] == job["links"]["self"] == f"/api/v1/jobs/{job['id']}"
    assert job["object"] == "job"
    assert job["status"] in ("queued", "running")
    assert job["result"] is None
    chain.gate.set()
    done = poll(client, job["links"]["self"])
    assert (done["status"], done["id"], done["result"]["id"]) == ("completed", job["id"], job["id"])
    assert done["result"]["response"] == "answer to: What is AI?"
    assert done["attempts"][0]["outcome"] == "ok"
    assert done["timings"]["queued_ms"] >= 0


@pytest.mark.usefixtures("worker")
def test_a_wait_that_ends_early_leaves_a_job_that_goes_on(client: FlaskClient, chain: EchoChain) -> None:
    chain.gate.clear()
    response = ask(client, wait_seconds=0.05)
    assert response.status_code == 202

    chain.gate.set()
    assert poll(client, response.json["links"]["self"])["status"] == "completed"


@pytest.mark.usefixtures("worker")
def test_fifty_identical_queries_make_one_call_and_fifty_answers(app: Flask, chain: EchoChain, redis: Redis) -> None:
    chain.gate.clear()
    with ThreadPoolExecutor(50) as pool:
        futures = [pool.submit(ask, app.test_client()) for _ in range(50)]
        until = time.monotonic() + 10
        while redis.xlen(USAGE) < 50 and time.monotonic() < until:
            time.sleep(0.01)
        chain.gate.set()
        responses = [future.result() for future in futures]

    assert {r.status_code for r in responses} == {200}
    assert {r.json["response"] for r in responses} == {"answer to: What is AI?"}
    assert len({r.json["id"] for r in responses}) == 50
    assert [r.headers["X-Cache"] for r in responses].count("COALESCED") == 49
    assert sum(r.json["cost_estimate"] > 0 for r in responses) == 1
    assert len(chain.calls) == 1


@pytest.mark.usefixtures("worker")
def test_cache_modes_do_what_they_say(client: FlaskClient, chain: EchoChain) -> None:
    only = ask(client, cache={"mode": "only"})
    assert (only.status_code, only.json["code"]) == (404, "not_cached")

    assert ask(client, cache={"mode": "bypass"}).headers["X-Cache"] == "BYPASS"
    assert ask(client, cache={"mode": "only"}).status_code == 404
    assert ask(client, cache={"mode": "refresh"}).headers["X-Cache"] == "REFRESH"
    assert ask(client, cache={"mode": "only"}).headers["X-Cache"] == "HIT"
    assert ask(client, cache={"mode": "refresh"}).headers["X-Cache"] == "REFRESH"
    assert len(chain.calls) == 3


@pytest.mark.usefixtures("worker")
def test_what_changes_the_answer_changes_the_cache_key(client: FlaskClient, chain: EchoChain) -> None:
    for body in ({}, {"system": "Be brief."}, {"temperature": 0.5}, {"max_tokens": 9}, {"tier": "medium"}):
        assert ask(client, **body).headers["X-Cache"] == "MISS"
        assert ask(client, **body).headers["X-Cache"] == "HIT"
    assert len(chain.calls) == 5


@pytest.mark.usefixtures("worker")
def test_it_says_why_no_target_answered(client: FlaskClient, chain: EchoChain) -> None:
    chain.error = AllTargetsFailed([ATTEMPT], QueryRejected(Target("groq", "m"), "HTTP 400: bad"))

    response = ask(client)
    assert (response.status_code, response.json["code"]) == (422, "provider_query_rejected")
    assert response.mimetype == "application/problem+json"


def test_it_refuses_when_no_provider_is_configured(redis: Redis, settings: Callable[..., Settings]) -> None:
    response = ask(create_app(settings()).test_client())

    assert (response.status_code, response.json["code"]) == (503, "no_provider")
    assert "GROQ_API_KEY" in response.json["detail"]


def test_it_refuses_a_query_when_the_queue_is_full(redis: Redis, settings: Callable[..., Settings]) -> None:
    client = create_app(settings(groq_api_key="k", max_queue_depth=1)).test_client()
    ask(client, "one", wait_seconds=0)

    response = ask(client, "two", wait_seconds=0)
    assert (response.status_code, response.json["code"]) == (429, "queue_full")
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "query"),
        ({"query": ""}, 422, "query"),
        ({"query": " \n\t "}, 422, "query"),
        ({"query": 5}, 422, "query"),
        ({"query": None}, 422, "query"),
        ({"query": ["x"]}, 422, "query"),
        ({"query": "\u200b\ufeff"}, 422, "query"),
        ({"query": "a\x00b"}, 422, "query"),
        ({"query": "a\ud800b"}, 422, "query"),
        ({"query": "x", "system": "\udfff"}, 422, "system"),
        ({"query": "x", "nope": 1}, 422, "nope"),
        ({"query": "x", "tier": "huge"}, 422, "tier"),
        ({"query": "x", "tier": 1}, 422, "tier"),
        ({"query": "x", "wait_seconds": -1}, 422, "wait_seconds"),
        ({"query": "x", "wait_seconds": "5"}, 422, "wait_seconds"),
        ({"query": "x", "wait_seconds": True}, 422, "wait_seconds"),
        ({"query": "x", "wait_seconds": 1e9}, 422, "wait_seconds"),
        ({"query": "x", "max_tokens": 0}, 422, "max_tokens"),
        ({"query": "x", "max_tokens": 1.5}, 422, "max_tokens"),
        ({"query": "x", "temperature": 3}, 422, "temperature"),
        ({"query": "x", "deadline_seconds": 0}, 422, "deadline_seconds"),
        ({"query": "x", "deadline_seconds": 1e9}, 422, "deadline_seconds"),
        ({"query": "x", "priority": "urgent"}, 422, "priority"),
        ({"query": "x", "cache": {"mode": "never"}}, 422, "cache.mode"),
        ({"query": "x", "cache": {"ttl": -1}}, 422, "cache.ttl"),
        ({"query": "x", "cache": {"depth": 1}}, 422, "cache.depth"),
        ({"query": "x" * 1_001}, 413, "query"),
        ([1], 422, "body"),
        ("x", 422, "body"),
        (None, 422, "body"),
    ],
)
def test_it_names_the_field_that_does_not_fit(client: FlaskClient, body: Any, status: int, field: str) -> None:
    response = client.post(QUERY, data=json.dumps(body), content_type="application/json")

    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    assert response.json["errors"][0]["field"] == field
    assert response.json["status"] == status


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"{nope", "application/json", "malformed_json"),
        (b"", "application/json", "malformed_json"),
        (b"\xff\xfe", "application/json", "malformed_json"),
        (b'{"query": NaN}', "application/json", "malformed_json"),
        (b"[" * 8_000, "application/json", "malformed_json"),
        (b"query=x", "application/x-www-form-urlencoded", "not_json"),
        (b'{"query": "x"}', "", "not_json"),
        (b'{"query": "' + b"x" * 10_000_000 + b'"}', "application/json", "body_too_large"),
    ],
)
def test_it_refuses_bodies_that_are_not_json(client: FlaskClient, body: bytes, kind: str, code: str) -> None:
    response = client.post(QUERY, data=body, content_type=kind)

    assert response.json["code"] == code
    assert response.status_code == PROBLEMS[code][0]
    assert response.mimetype == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nope", "not_found"),
        ("GET", "/api/v1/jobs/nope", "job_unknown"),
        ("GET", QUERY, "method_not_allowed"),
        ("DELETE", "/health", "method_not_allowed"),
        ("GET", "/api/v1/metrics?hours=x", "invalid_request"),
        ("GET", "/api/v1/metrics?hours=-1", "invalid_request"),
        ("GET", "/api/v1/metrics?days=1", "invalid_request"),
        ("GET", "/api/v1/jobs/" + "x" * 65, "invalid_request"),
    ],
)
def test_every_error_is_a_problem(client: FlaskClient, method: str, path: str, code: str) -> None:
    response = client.open(path, method=method)

    assert response.json["code"] == code
    assert response.mimetype == "application/problem+json"
    assert response.json["instance"] == response.headers["X-Request-Id"]


def test_a_bug_becomes_a_problem_without_its_text(app: Flask) -> None:
    app.add_url_rule("/boom", view_func=lambda: 1 / 0)

    response = app.test_client().get("/boom")
    assert (response.status_code, response.json["code"]) == (500, "internal_error")
    assert "division" not in response.text


@pytest.mark.parametrize(("sent", "kept"), [("abc-123", True), ("a b", False), ("x" * 65, False), ("é", False)])
def test_it_keeps_a_sane_request_id(client: FlaskClient, sent: str, kept: bool) -> None:
    found = client.get("/livez", headers={"X-Request-Id": sent}).headers["X-Request-Id"]

    assert (found == sent) is kept
    assert found


def test_a_wait_that_is_no_number_of_seconds_is_ignored(client: FlaskClient, settings: Callable[..., Settings]) -> None:
    client = create_app(settings(groq_api_key="k", sync_wait_seconds=0.3)).test_client()
    started = time.monotonic()

    assert ask(client, headers={"Prefer": "wait=0.1"}).status_code == 202
    assert time.monotonic() - started >= 0.3


def test_the_estimate_knows_of_free_slots(redis: Redis, settings: Callable[..., Settings]) -> None:
    client = create_app(settings(groq_api_key="k")).test_client()
    assert ask(client, "one", wait_seconds=0).json["estimated_wait_seconds"] is None

    Presence(redis).show_worker("w1", ["simple"], 2)
    job = ask(client, "two", wait_seconds=0)
    assert (job.json["queue_position"], job.json["estimated_wait_seconds"]) == (2, 0.0)
    assert job.headers["Retry-After"] == "1"
    redis.lpush("aqr:drain:simple", *[int(redis.time()[0] * 1000 - 1_000 * n) for n in range(9, -1, -1)])
    assert ask(client, "three", wait_seconds=0).json["estimated_wait_seconds"] > 0


def test_classify_explains_itself_with_characters_of_the_query(client: FlaskClient) -> None:
    text = "Compare and contrast different sorting algorithms"
    found = client.post("/api/v1/classify", json={"query": text}).json

    assert (found["tier"], found["score"], found["words"]) == ("complex", 4, 6)
    [signal] = [s for s in found["signals"] if s["name"] == "high_complexity_indicator"]
    assert [word.split()[-1] for word in signal["texts"]] == ["Compare", "contrast"]
    assert [text[start:end] for start, end in signal["spans"]] == signal["texts"]
    assert found["targets"] == [{"provider": "groq", "model": "openai/gpt-oss-120b"}]


def test_metrics_agree_with_an_empty_history(client: FlaskClient, sqlite_url: str) -> None:
    migrate(build_engine(sqlite_url))
    found = client.get("/api/v1/metrics").json

    assert found["queries"]["total"] == 0
    assert found["queues"]["simple"] == {"queued": 0, "running": 0}
    assert found["cost"]["baseline"] == "every query answered by groq:openai/gpt-oss-120b"


def test_metrics_say_when_the_database_is_away(redis: Redis, settings: Callable[..., Settings]) -> None:
    client = create_app(settings(database_url="postgresql://nobody@127.0.0.1:1/none")).test_client()

    response = client.get("/api/v1/metrics")
    assert (response.status_code, response.json["code"]) == (503, "database_unavailable")


def test_prometheus_exposes_traffic_and_the_fleet(client: FlaskClient) -> None:
    client.get("/livez")
    text = client.get("/metrics").text

    assert 'aqr_http_requests_total{method="GET",route="/livez",status="200"} 1.0' in text
    assert 'aqr_fleet_jobs_queued{tier="simple"} 0.0' in text
    assert "aqr_fleet_redis_up 1.0" in text


def test_the_document_describes_every_route(app: Flask) -> None:
    found = app.test_client().get("/openapi.json").json

    assert found["openapi"].startswith("3.1")
    routes = {rule.rule.replace("<string:id>", "{id}") for rule in app.url_map.iter_rules()}
    documented = set(found["paths"])
    assert routes - documented == {"/", "/openapi.json", "/docs", "/docs/start.js", "/docs/assets/<path:name>"}
    assert "ProblemDetails" in found["components"]["schemas"]


def test_the_document_is_valid_openapi(app: Flask) -> None:
    validate(app.test_client().get("/openapi.json").json)


@pytest.mark.usefixtures("worker")
def test_answers_and_jobs_are_as_the_document_says(app: Flask, client: FlaskClient) -> None:
    components = client.get("/openapi.json").json["components"]

    def check(response: TestResponse, model: str) -> None:
        schema = {"components": components, "$ref": f"#/components/schemas/{model}"}
        Draft202012Validator(schema).validate(response.json)

    check(ask(client), "QueryAnswer")
    accepted = ask(client, "What is a job?", wait_seconds=0)
    check(accepted, "JobView")
    poll(client, accepted.headers["Location"])
    check(client.get(accepted.headers["Location"]), "JobView")
    check(client.get("/api/v1/jobs/nope"), "ProblemDetails")
    check(client.post("/api/v1/classify", json={"query": "Why?"}), "ClassifyView")


def test_swagger_ui_needs_nothing_from_elsewhere(client: FlaskClient) -> None:
    page = client.get("/", follow_redirects=True).text

    assert "http://" not in page
    assert "https://" not in page
    for path in ("/docs/assets/css/swagger-ui.css", "/docs/assets/js/swagger-ui-bundle.js", "/docs/start.js"):
        assert path in page
        assert client.get(path).status_code == 200


def test_it_is_not_ready_while_it_stops(client: FlaskClient) -> None:
    assert client.get("/readyz").status_code == 200
    draining.start()
    try:
        assert client.get("/readyz").status_code == 503
        assert ask(client).status_code == 202  # accepted, and not waited for
    finally:
        draining._draining.clear()


@pytest.fixture
def recorded(sqlite_url: str) -> Engine:
    engine = build_engine(sqlite_url)
    migrate(engine)
    return engine


def test_it_answers_without_redis_and_records_it(
    settings: Callable[..., Settings], chain: EchoChain, recorded: Engine
) -> None:
    app = create_app(settings(redis_url="redis://127.0.0.1:1/0", groq_api_key="k"))
    answerer = app.extensions["services"].inline._answerer
    object.__setattr__(answerer, "chain", chain)

    response = ask(app.test_client(), wait_seconds=0)

    assert response.status_code == 200
    assert response.headers["X-Router-Degraded"] == "redis"
    assert response.headers["X-Cache"] == "BYPASS"
    assert response.json["response"] == "answer to: What is AI?"
    with recorded.connect() as connection:
        row = connection.execute(select(queries)).one()
    assert (row.id, row.status, row.is_degraded) == (response.json["id"], "completed", True)


def test_it_bounds_what_it_answers_without_redis(settings: Callable[..., Settings], chain: EchoChain) -> None:
    app = create_app(settings(redis_url="redis://127.0.0.1:1/0", groq_api_key="k", max_inline_answers=1))
    object.__setattr__(app.extensions["services"].inline._answerer, "chain", chain)
    chain.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, app.test_client())
        until = time.monotonic() + 5
        while not chain.calls and time.monotonic() < until:
            time.sleep(0.01)
        second = ask(app.test_client())
        chain.gate.set()

    assert (second.status_code, second.json["code"]) == (503, "overloaded")
    assert second.headers["Retry-After"] == "1"
    assert first.result().status_code == 200


def test_a_query_that_redis_may_have_accepted_ends_in_the_record_when_it_is_refused(
    settings: Callable[..., Settings], chain: EchoChain, recorded: Engine
) -> None:
    app = create_app(settings(redis_url="redis://127.0.0.1:1/0", groq_api_key="k", max_inline_answers=1))
    inline = app.extensions["services"].inline
    object.__setattr__(inline._answerer, "chain", chain)
    with inline._slots:
        response = ask(app.test_client(), cache={"mode": "bypass"})  # nothing is looked up: accept comes first

    assert (response.status_code, response.json["code"]) == (503, "overloaded")
    with recorded.connect() as connection:
        row = connection.execute(select(queries)).one()
    assert (row.status, row.error_code, row.cost_usd, chain.calls) == ("failed", "overloaded", 0, [])


def test_a_query_that_wants_the_cache_only_costs_nothing_without_redis(
    settings: Callable[..., Settings], chain: EchoChain
) -> None:
    app = create_app(settings(redis_url="redis://127.0.0.1:1/0", groq_api_key="k"))
    object.__setattr__(app.extensions["services"].inline._answerer, "chain", chain)

    response = ask(app.test_client(), cache={"mode": "only"})
    assert (response.status_code, response.json["code"]) == (503, "redis_unavailable")
    assert chain.calls == []


def test_an_answer_without_redis_takes_no_longer_than_a_request_may(
    settings: Callable[..., Settings], chain: EchoChain
) -> None:
    app = create_app(settings(redis_url="redis://127.0.0.1:1/0", groq_api_key="k", sync_wait_seconds=5))
    object.__setattr__(app.extensions["services"].inline._answerer, "chain", chain)
    ask(app.test_client(), wait_seconds=0, deadline_seconds=3_600)

    assert 0 < chain.deadlines[0] - time.monotonic() <= 5


def test_a_hit_is_served_from_its_own_cache_while_the_ledger_is_away(
    redis: Redis, redis_url: str, settings: Callable[..., Settings], chain: EchoChain
) -> None:
    apart = {"cache_redis_url": redis_url.removesuffix("0") + "1", "groq_api_key": "k"}
    with serving(redis, chain, holds_cache=False, cache=AnswerCache(Redis.from_url(apart["cache_redis_url"]))):
        assert ask(create_app(settings(**apart)).test_client()).status_code == 200

    app = create_app(settings(**apart, redis_url="redis://127.0.0.1:1/0"))
    response = ask(app.test_client())
    assert (response.status_code, response.headers["X-Cache"]) == (200, "HIT")
    assert len(chain.calls) == 1


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("is_shared", "owner"), [(False, "default"), (True, "shared")])
def test_a_cached_answer_says_whose_it_is(
    redis: Redis, settings: Callable[..., Settings], is_shared: bool, owner: str
) -> None:
    assert ask(create_app(settings(groq_api_key="k", share_cache=is_shared)).test_client()).status_code == 200

    [key] = redis.keys("aqr:answer:*")
    assert key.startswith(f"aqr:answer:{owner}:".encode())


@pytest.mark.usefixtures("worker")
def test_the_error_of_a_job_is_a_problem(client: FlaskClient, chain: EchoChain) -> None:
    chain.error = AllTargetsFailed([ATTEMPT], QueryRejected(Target("groq", "m"), "HTTP 400"))
    accepted = ask(client, wait_seconds=0)

    error = poll(client, accepted.headers["Location"])["error"]
    assert (error["status"], error["code"], error["title"]) == (
        422,
        "provider_query_rejected",
        "The provider refused the query",
    )
    assert error["type"].endswith(":provider_query_rejected")


@pytest.mark.usefixtures("worker")
def test_a_job_that_joined_another_is_charged_nothing(client: FlaskClient, chain: EchoChain) -> None:
    chain.gate.clear()
    leader = ask(client, wait_seconds=0).headers["Location"]
    follower = ask(client, "what is  AI?", wait_seconds=0).headers["Location"]
    chain.gate.set()

    paid, joined = poll(client, leader)["result"], poll(client, follower)["result"]
    assert paid["cost_estimate"] > 0
    assert (joined["cost_estimate"], joined["query"]) == (0.0, "what is  AI?")
    assert joined["response"] == paid["response"]


def test_invented_methods_make_no_time_series(client: FlaskClient) -> None:
    for n in range(5):
        client.open("/livez", method=f"INVENTED{n}")

    text = client.get("/metrics").text
    assert "INVENTED" not in text
    assert 'method="other"' in text


def test_jobs_say_when_redis_is_away(settings: Callable[..., Settings]) -> None:
    client = create_app(settings(redis_url="redis://127.0.0.1:1/0", groq_api_key="k")).test_client()

    response = client.get("/api/v1/jobs/x")
    assert (response.status_code, response.json["code"]) == (503, "redis_unavailable")


@pytest.mark.usefixtures("worker")
def test_no_answer_or_error_carries_a_key(client: FlaskClient) -> None:
    for response in (ask(client), client.get("/health"), client.get("/openapi.json"), client.get("/metrics")):
        assert "gsk_planted_secret" not in response.text
