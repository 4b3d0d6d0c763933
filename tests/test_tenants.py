"""Tenants apart: nobody reads, cancels or replays another's, or can tell that it exists; each key has its limits."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import Engine

from config import Settings
from routing.errors import AllTargetsFailed, TargetUnreachable
from routing.query import Target
from storage.api_key import OPERATOR_TENANT, SCOPES, KeyLimits, KeyStore
from storage.database import build_engine
from storage.event import rows_of
from storage.name import USAGE
from storage.record import write
from tests.conftest import migrate
from tests.test_answer import ATTEMPT
from tests.test_api_key import facts
from tests.web_case import QUERY, EchoChain, chain, worker
from webapp import create_app

__all__ = ["chain", "worker"]  # fixtures


class As:
    """The API in the hands of one key."""

    def __init__(self, app: Flask, key: str) -> None:
        self._client: FlaskClient = app.test_client()
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(self, query: str = "What is AI?", headers: dict[str, str] | None = None, **body: Any) -> Any:
        return self.call("POST", QUERY, json={"query": query, **body}, headers=headers)

    def call(self, method: str, path: str, headers: dict[str, str] | None = None, **given: Any) -> Any:
        return self._client.open(path, method=method, headers={**self._headers, **(headers or {})}, **given)

    def poll(self, path: str) -> Any:
        until = time.monotonic() + 5
        while (response := self.call("GET", path)).status_code == 202:
            assert time.monotonic() < until
            time.sleep(0.01)
        return response.json


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Engine]:
    engine = build_engine(sqlite_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def key_of(redis: Redis, settings: Callable[..., Settings], database: Engine) -> Callable[..., As]:
    """A key of a tenant, in use; all of one app unless settings are given."""
    shared: list[Flask] = []

    def make(tenant: str, **given: Any) -> As:
        changes = given.pop("settings", {})
        if changes or not shared:
            shared.append(create_app(settings(auth="on", groq_api_key="k", **changes)))
        _, text = KeyStore(database).create(facts(tenant=tenant, scopes=frozenset(SCOPES), **given))
        return As(shared[-1], text)

    return make


def stripped(response: Any) -> tuple[int, dict[str, Any]]:
    return response.status_code, {k: v for k, v in response.json.items() if k != "instance"}


@pytest.mark.usefixtures("worker")
def test_another_tenants_job_and_its_stream_do_not_exist(key_of: Callable[..., As]) -> None:
    ann, bob = key_of("ann"), key_of("bob")
    job_id = ann.ask().json["id"]
    assert ann.call("GET", f"/api/v1/jobs/{job_id}").status_code == 200

    paths = (("GET", "/api/v1/jobs/{}"), ("GET", "/api/v1/jobs/{}/events"), ("POST", "/api/v1/jobs/{}/cancel"))
    for method, path in paths:
        assert stripped(bob.call(method, path.format(job_id))) == stripped(bob.call(method, path.format("nope")))


@pytest.mark.usefixtures("worker")
def test_another_tenants_answer_is_no_hit(key_of: Callable[..., As], chain: EchoChain) -> None:
    ann, bob = key_of("ann"), key_of("bob")

    said = [who.ask().headers["X-Cache"] for who in (ann, ann, bob, bob)]
    assert said == ["MISS", "HIT", "MISS", "HIT"]
    assert bob.ask("What is Rust?", cache={"mode": "only"}).json["code"] == "not_cached"
    assert len(chain.calls) == 2


@pytest.mark.usefixtures("worker")
def test_sharing_the_cache_is_a_choice(key_of: Callable[..., As], chain: EchoChain) -> None:
    ann = key_of("ann", settings={"share_cache": True})
    bob = key_of("bob")

    assert [who.ask().headers["X-Cache"] for who in (ann, bob)] == ["MISS", "HIT"]
    assert len(chain.calls) == 1


def test_queries_of_two_tenants_in_flight_are_two_jobs(key_of: Callable[..., As]) -> None:
    said = [key_of(tenant).ask(wait_seconds=0).headers["X-Cache"] for tenant in ("ann", "bob")]

    assert said == ["MISS", "MISS"]


@pytest.mark.usefixtures("worker")
def test_another_tenants_idempotency_key_is_free(key_of: Callable[..., As]) -> None:
    ann, bob = key_of("ann"), key_of("bob")
    headers = {"Idempotency-Key": "k"}

    first, second = ann.ask("What is AI?", headers), bob.ask("What is Rust?", headers)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json["id"] != second.json["id"]


def test_another_tenants_dead_letter_does_not_exist(
    key_of: Callable[..., As], chain: EchoChain, worker: None, redis: Redis
) -> None:
    ann, bob, operator = key_of("ann"), key_of("bob"), key_of(OPERATOR_TENANT)
    chain.error = AllTargetsFailed([ATTEMPT], TargetUnreachable(Target("groq", "m"), "refused"))
    job = ann.ask(wait_seconds=0).json
    ann.poll(job["links"]["self"])

    path = f"/api/v1/dead-letters/{job['id']}"
    for method, suffix in (("GET", ""), ("POST", "/replay"), ("DELETE", "")):
        unknown = bob.call(method, f"/api/v1/dead-letters/nope{suffix}")
        assert stripped(bob.call(method, path + suffix)) == stripped(unknown)
    assert bob.call("GET", "/api/v1/dead-letters?tenant=ann").json == {"dead_letters": []}
    assert bob.call("POST", "/api/v1/replays", json={"tenant": "ann"}).json == {"replayed": []}

    for who in (ann, operator):
        assert [letter["id"] for letter in who.call("GET", "/api/v1/dead-letters").json["dead_letters"]] == [job["id"]]


@pytest.mark.usefixtures("worker")
def test_metrics_are_ones_own(key_of: Callable[..., As], redis: Redis, database: Engine) -> None:
    ann, bob, operator = key_of("ann"), key_of("bob"), key_of(OPERATOR_TENANT)
    ann.ask()
    ann.ask()
    bob.ask("What is Rust?")
    entries = [fields for _, fields in redis.xrange(USAGE)]
    write(database, rows_of({name.decode(): value for name, value in fields.items()} for fields in entries))

    def seen(who: As) -> Any:
        return who.call("GET", "/api/v1/metrics").json

    assert [seen(who)["queries"]["total"] for who in (ann, bob, operator)] == [2, 1, 3]
    assert seen(bob)["recorder"] is seen(bob)["unpublished_events"] is None


def test_the_queues_of_others_are_not_seen(key_of: Callable[..., As]) -> None:
    ann, bob = key_of("ann"), key_of("bob")
    ann.ask(wait_seconds=0)

    queues = [who.call("GET", "/api/v1/metrics").json["queues"]["simple"] for who in (ann, bob)]
    assert queues == [{"queued": 1}, {"queued": 0}]


@pytest.mark.usefixtures("worker")
def test_a_key_has_its_requests_of_the_minute(key_of: Callable[..., As]) -> None:
    ann = key_of("ann", limits=KeyLimits(requests_per_minute=2))

    asked = [ann.ask() for _ in range(3)]
    assert [response.status_code for response in asked] == [200, 200, 429]
    assert asked[2].json["code"] == "rate_limited"
    assert 1 <= int(asked[2].headers["Retry-After"]) <= 60


def test_a_key_has_its_open_jobs(key_of: Callable[..., As]) -> None:
    ann = key_of("ann", limits=KeyLimits(max_open_jobs=1))

    first, second = ann.ask("What is 1?", wait_seconds=0), ann.ask("What is 2?", wait_seconds=0)
    assert (second.status_code, second.json["code"]) == (429, "too_many_open_jobs")
    ann.call("POST", first.json["links"]["cancel"])
    assert ann.ask("What is 3?", wait_seconds=0).status_code == 202


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (KeyLimits(budget_usd_per_day=1e-6), "budget_spent"),
        (KeyLimits(budget_usd_per_month=1e-6), "budget_spent"),
        (KeyLimits(tokens_per_day=10), "token_limit_reached"),
    ],
)
def test_what_could_cost_more_than_is_left_is_refused(
    key_of: Callable[..., As], chain: EchoChain, limits: KeyLimits, code: str
) -> None:
    refused = key_of("ann", limits=limits).ask()

    assert (refused.status_code, refused.json["code"]) == (429, code)
    assert chain.calls == []


@pytest.mark.usefixtures("worker")
def test_a_key_uses_the_tiers_it_may(key_of: Callable[..., As], chain: EchoChain) -> None:
    ann = key_of("ann", tiers=frozenset({"medium"}))

    assert ann.ask(tier="complex").json["code"] == "tier_not_allowed"
    assert ann.ask("What is AI?").json["complexity"] == "medium"
    assert key_of("ann").ask("What is AI?").json["complexity"] == "simple"


def test_limits_are_not_waived_while_redis_is_away(key_of: Callable[..., As]) -> None:
    ann = key_of("ann", limits=KeyLimits(budget_usd_per_day=5), settings={"redis_url": "redis://127.0.0.1:1/0"})

    refused = ann.ask()
    assert (refused.status_code, refused.json["code"]) == (503, "redis_unavailable")
