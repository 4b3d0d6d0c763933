"""Who gets in, over a real SQLite and Valkey: keys, scopes, expiry, revocation, and a database that is away."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, g
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Engine, event, text
from werkzeug.test import TestResponse

from config import Settings
from storage.api_key import OPERATOR_TENANT, SCOPES, KeyLimits, KeyStore
from storage.database import build_engine
from tests.conftest import Clock, migrate
from tests.test_api_key import facts
from webapp import create_app
from webapp.auth import ACCESS, Door, access_of
from webapp.caller import ANYONE, Caller
from webapp.key_cache import MAX_AWAY_S, KeyCache

JOB = "/api/v1/jobs/x"
METRICS = "/api/v1/metrics"
KEYS = "/api/v1/keys"
OPEN = ["/", "/docs", "/docs/start.js", "/docs/assets/css/swagger-ui.css", "/openapi.json", "/livez", "/readyz"]
NOBODYS = "aqr_abcdefghijkl_" + "x" * 43


@pytest.fixture
def database(sqlite_url: str) -> Engine:
    engine = build_engine(sqlite_url)
    migrate(engine)
    return engine


@pytest.fixture
def store(database: Engine, clock: Clock) -> KeyStore:
    return KeyStore(database, now_ms=clock)


@pytest.fixture
def build(redis: Redis, settings: Callable[..., Settings], database: Engine, clock: Clock) -> Callable[[], Flask]:
    """One more web process, whose time is the test's."""

    def make() -> Flask:
        app = create_app(settings(auth="on", groq_api_key="k"))
        known = KeyStore(app.extensions["services"].engine, now_ms=clock)
        app.extensions["door"] = Door(known, KeyCache(known.find, 30, lambda: clock.ms / 1000), requires_key=True)
        return app

    return make


@pytest.fixture
def client(build: Callable[[], Flask]) -> FlaskClient:
    return build().test_client()


def made(store: KeyStore, *scopes: str, **given: Any) -> str:
    return store.create(facts(scopes=frozenset(scopes or SCOPES), **given))[1]


def get(client: FlaskClient, path: str, key: str, method: str = "GET", **given: Any) -> TestResponse:
    return client.open(path, method=method, headers={"Authorization": f"Bearer {key}"}, **given)


def key_id(key: str) -> str:
    return key.split("_", 2)[1]


def without_instance(response: TestResponse) -> dict[str, Any]:
    return {name: value for name, value in response.json.items() if name != "instance"}


def test_every_route_is_in_the_table(client: FlaskClient) -> None:
    for rule in client.application.url_map.iter_rules():
        assert access_of(rule.rule), f"{rule.rule} needs a row in ACCESS"


def test_no_row_of_the_table_hides_a_later_one() -> None:
    for position, (pattern, _) in enumerate(ACCESS):
        covered = [later for later, _ in ACCESS[position + 1 :] if access_of(later) is not dict(ACCESS)[later]]
        assert not covered, pattern


@pytest.mark.parametrize("path", [*OPEN, "/health"])
def test_some_routes_are_open(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code in (200, 302, 503)


def test_all_others_ask_for_a_key(client: FlaskClient) -> None:
    asked = 0
    for rule in client.application.url_map.iter_rules():
        if access_of(rule.rule).is_open:
            continue
        for method in rule.methods:
            response = client.open(rule.rule.replace("<string:id>", "x"), method=method)
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer"), (rule, method)
            asked += 1
    assert asked > 10


def test_a_route_that_is_not_in_the_table_is_for_nobody(build: Callable[[], Flask], store: KeyStore) -> None:
    app = build()
    app.add_url_rule("/forgotten", view_func=lambda: "secret")

    assert app.test_client().get("/forgotten").status_code == 401
    response = get(app.test_client(), "/forgotten", made(store, tenant=OPERATOR_TENANT))
    assert (response.status_code, response.json["code"]) == (403, "forbidden")


@pytest.mark.parametrize("headers", [("Authorization", "Bearer "), ("Authorization", "bearer  "), ("X-Api-Key", "")])
def test_a_key_opens(client: FlaskClient, store: KeyStore, headers: tuple[str, str]) -> None:
    name, prefix = headers

    assert client.get(METRICS, headers={name: prefix + made(store)}).status_code == 200


def test_the_header_of_our_own_comes_before_one_that_a_proxy_may_need(client: FlaskClient, store: KeyStore) -> None:
    headers = {"Authorization": "Basic dTpw", "X-Api-Key": made(store)}
    assert client.get(METRICS, headers=headers).status_code == 200

    headers = {"Authorization": f"Bearer {made(store)}", "X-Api-Key": "nope"}
    assert client.get(METRICS, headers=headers).status_code == 401


ROUTES = [
    ("POST", "/api/v1/query", {"query"}),
    ("POST", "/api/v1/classify", {"query", "read"}),
    ("GET", JOB, {"query", "read"}),
    ("GET", METRICS, {"read"}),
    ("GET", KEYS, {"admin"}),
    ("POST", KEYS, {"admin"}),
    ("GET", KEYS + "/x", {"admin"}),
    ("DELETE", KEYS + "/x", {"admin"}),
    ("POST", KEYS + "/x/rotate", {"admin"}),
]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_opens_its_routes_and_no_other(client: FlaskClient, store: KeyStore, scope: str) -> None:
    key = made(store, scope)
    for method, path, scopes in ROUTES:
        response = get(client, path, key, method)
        if scope in scopes:
            assert response.status_code in (200, 404, 415), (method, path)
        else:
            assert (response.status_code, response.json["code"]) == (403, "forbidden"), (method, path)


def test_prometheus_is_for_operators_who_may_read(client: FlaskClient, store: KeyStore) -> None:
    assert get(client, "/metrics", made(store, "read")).status_code == 403
    assert get(client, "/metrics", made(store, "admin", tenant=OPERATOR_TENANT)).status_code == 403
    assert get(client, "/metrics", made(store, "read", tenant=OPERATOR_TENANT)).status_code == 200


def test_all_that_does_not_count_is_refused_alike(client: FlaskClient, store: KeyStore, clock: Clock) -> None:
    good, revoked = made(store), made(store)
    expired = made(store, expires_at=store.now())
    store.revoke(key_id(revoked))
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")

    refusals = [get(client, METRICS, key) for key in (wrong, revoked, expired, NOBODYS, "nope", "")]
    refusals.append(client.get(METRICS))
    assert [response.status_code for response in refusals] == [401] * 7
    assert all(without_instance(response) == without_instance(refusals[0]) for response in refusals)
    assert get(client, METRICS, good).status_code == 200


@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_malformed_header_gets_anything_but_401(client: FlaskClient, store: KeyStore, data: st.DataObject) -> None:
    known = "aqr_abcdefghijkl_" + "x" * 43
    sane = st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n")
    part = st.text(sane, max_size=80) | st.sampled_from(["Bearer", "bearer", "Basic", " ", "_", "aqr_", known, ","])
    value = "".join(data.draw(st.lists(part, max_size=5)))
    header = data.draw(st.sampled_from(["Authorization", "X-Api-Key"]))

    assert client.get(METRICS, headers={header: value}).status_code == 401


def test_nobody_gets_a_body_read_without_a_key(client: FlaskClient, store: KeyStore) -> None:
    body = {"data": b"x" * 10_000_000, "content_type": "text/plain"}
    assert client.post("/api/v1/query", **body).status_code == 401
    assert get(client, "/api/v1/query", made(store, "read"), "POST", **body).status_code == 403
    assert get(client, "/api/v1/query", made(store, "query"), "POST", **body).status_code in (413, 415)


def test_every_process_sees_a_revocation_within_the_cache_time(
    build: Callable[[], Flask], store: KeyStore, clock: Clock
) -> None:
    here, there = build().test_client(), build().test_client()
    key, boss = made(store), made(store, "admin")
    assert get(here, METRICS, key).status_code == get(there, METRICS, key).status_code == 200

    clock.advance(1)
    assert get(here, f"{KEYS}/{key_id(key)}", boss, "DELETE").status_code == 204
    assert get(here, METRICS, key).status_code == 401
    clock.advance(28)
    assert get(there, METRICS, key).status_code == 200  # believed, and so the test is one of the cache
    clock.advance(1)
    assert get(there, METRICS, key).status_code == 401


def test_the_cache_time_is_under_a_minute() -> None:
    with pytest.raises(ValueError, match="AUTH_CACHE_SECONDS|auth_cache_seconds"):
        Settings(auth_cache_seconds=60)


def test_a_key_expires_at_once_though_it_is_remembered(client: FlaskClient, store: KeyStore, clock: Clock) -> None:
    key = made(store, expires_at=store.now() + timedelta(seconds=2))
    assert get(client, METRICS, key).status_code == 200

    clock.advance(2)
    assert get(client, METRICS, key).status_code == 401


def test_the_database_is_asked_once_for_many_requests_and_guesses(client: FlaskClient, store: KeyStore) -> None:
    key = made(store)
    asked: list[str] = []
    engine = client.application.extensions["services"].engine
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    for _ in range(5):
        assert get(client, JOB, key).status_code == 404
        assert get(client, JOB, key[:-3] + "AAA").status_code == 401
        assert get(client, JOB, NOBODYS).status_code == 401
    assert len([statement for statement in asked if "api_keys" in statement]) == 2


def test_without_the_database_a_key_seen_before_counts_and_no_other(
    client: FlaskClient, store: KeyStore, database: Engine, clock: Clock
) -> None:
    seen, unseen = made(store), made(store)
    assert get(client, JOB, seen).status_code == 404
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE api_keys RENAME TO away"))

    clock.advance(MAX_AWAY_S)
    assert get(client, JOB, seen).status_code == 404
    assert get(client, JOB, seen[:-3] + "AAA").status_code == 401
    assert get(client, JOB, "nope").status_code == 401
    response = get(client, JOB, unseen)
    assert (response.status_code, response.json["code"]) == (503, "database_unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    clock.advance(1)
    assert get(client, JOB, seen).status_code == 503

    with database.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO api_keys"))
    clock.advance(5)
    assert get(client, JOB, seen).status_code == get(client, JOB, unseen).status_code == 404


def test_neither_log_nor_answer_shows_a_key(
    client: FlaskClient, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, other = made(store), made(store, tenant="other")
    seen = ""
    for sent in (key, other, key[:-3] + "AAA", NOBODYS, "Bearer " + key, key + "!"):
        for name in ("Authorization", "X-Api-Key"):
            for path in (METRICS, JOB, KEYS, "/metrics", "/nope", "/health"):
                value = f"Bearer {sent}" if name == "Authorization" else sent
                response = client.get(path, headers={name: value})
                seen += response.text + str(response.headers)
    seen += "".join(f"{record.__dict__}{record.getMessage()}" for record in caplog.records)

    assert "auth.refused" in seen
    for sent in (key, other, NOBODYS):
        assert sent.split("_", 2)[2][:30] not in seen
    assert "secret_sha256" not in seen


def test_the_caller_is_who_the_key_says(build: Callable[[], Flask], store: KeyStore) -> None:
    app = build()
    seen: list[Caller] = []

    @app.before_request
    def see() -> None:
        seen.append(g.caller)

    limits = KeyLimits(requests_per_minute=5)
    key = made(store, "query", "read", tiers=frozenset({"simple"}), limits=limits)
    get(app.test_client(), METRICS, key)
    assert seen == [Caller("acme", key_id(key), frozenset({"query", "read"}), frozenset({"simple"}), limits)]
    assert [seen[0].may_use(tier) for tier in ("simple", "complex")] == [True, False]
    assert [seen[0].may_see(tenant) for tenant in ("acme", "other")] == [True, False]

    get(app.test_client(), METRICS, made(store, tenant=OPERATOR_TENANT))
    assert seen[1].is_operator
    assert seen[1].may_see("other")
    assert seen[1].may_use("complex")


def test_without_authentication_everyone_is_an_operator_of_the_default_tenant(
    redis: Redis, settings: Callable[..., Settings], database: Engine
) -> None:
    client = create_app(settings(groq_api_key="k")).test_client()

    assert (ANYONE.tenant, ANYONE.key_id, ANYONE.scopes) == ("default", "", set(SCOPES))
    assert (ANYONE.is_operator, ANYONE.limits, ANYONE.may_use("complex")) == (True, KeyLimits(), True)
    for headers in ({}, {"Authorization": "Bearer nope"}):
        assert client.get(METRICS, headers=headers).status_code == 200
        assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "auth", "requires", "warns"),
    [
        ("127.0.0.1", "auto", False, False),
        ("localhost", "auto", False, False),
        ("127.0.0.1", "off", False, False),
        ("127.0.0.1", "on", True, False),
        ("0.0.0.0", "auto", True, False),
        ("10.0.0.1", "auto", True, False),
        ("::", "auto", True, False),
        ("0.0.0.0", "on", True, False),
        ("0.0.0.0", "off", False, True),
        ("10.0.0.1", "off", False, True),
    ],
)
def test_a_door_that_stands_open_is_warned_of(
    settings: Callable[..., Settings],
    caplog: pytest.LogCaptureFixture,
    host: str,
    auth: str,
    requires: bool,
    warns: bool,
) -> None:
    app = create_app(settings(host=host, auth=auth, groq_api_key="k"))

    assert (app.test_client().get(JOB).status_code == 401) is requires
    warnings = [record for record in caplog.records if record.getMessage() == "auth.off"]
    assert len(warnings) == warns
    assert all(record.levelno == logging.WARNING for record in warnings)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:8000"},
        {"X-Forwarded-For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"X-Real-Ip": "203.0.113.9"},
    ],
)
def test_auto_trusts_this_machine_and_nobody_behind_a_proxy_on_it(
    redis: Redis, settings: Callable[..., Settings], headers: dict[str, str]
) -> None:
    client = create_app(settings(auth="auto")).test_client()
    assert client.get(JOB).json["code"] == "job_unknown"
    assert client.get(JOB, headers={"Host": "[::1]:8000"}).json["code"] == "job_unknown"

    refused = client.get(JOB, headers=headers)
    assert (refused.status_code, refused.json["code"]) == (403, "forbidden")
    assert "AUTH=on" in refused.json["detail"]
    assert client.get("/livez", headers=headers).status_code == 200
    assert create_app(settings(auth="off")).test_client().get(JOB, headers=headers).json["code"] == "job_unknown"


def test_every_route_counts_as_a_request(client: FlaskClient, store: KeyStore) -> None:
    key = made(store, limits=KeyLimits(requests_per_minute=2))

    said = [get(client, path, key).status_code for path in (JOB, KEYS, METRICS)]
    assert said == [404, 200, 429]
