"""The routes that manage keys: no privilege grows, and another tenant's keys do not exist."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from redis import Redis
from sqlalchemy import Engine, text
from werkzeug.test import TestResponse

from config import Settings
from storage.api_key import OPERATOR_TENANT, KeyLimits, KeyStore
from storage.database import build_engine
from tests.conftest import migrate
from tests.test_auth import KEYS, get, key_id, made, without_instance
from webapp import create_app


@pytest.fixture
def database(sqlite_url: str) -> Engine:
    engine = build_engine(sqlite_url)
    migrate(engine)
    return engine


@pytest.fixture
def store(database: Engine) -> KeyStore:
    return KeyStore(database)


@pytest.fixture
def app(redis: Redis, settings: Callable[..., Settings]) -> Flask:
    return create_app(settings(auth="on", groq_api_key="k"))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def post(client: FlaskClient, key: str, path: str = KEYS, **body: Any) -> TestResponse:
    return get(client, path, key, "POST", json=body)


def check(client: FlaskClient, response: TestResponse, model: str) -> None:
    components = client.get("/openapi.json").json["components"]
    schema = {"components": components, "$ref": f"#/components/schemas/{model}"}
    Draft202012Validator(schema).validate(response.json)


def test_a_key_is_made_shown_once_and_opens(client: FlaskClient, store: KeyStore) -> None:
    limits = {"requests_per_minute": 60, "budget_usd_per_day": 2.5}
    response = post(
        client,
        made(store),
        name="reports",
        scopes=["query"],
        tiers=["simple"],
        limits=limits,
        expires_in_seconds=3_600,
    )

    assert response.status_code == 201
    check(client, response, "NewKeyView")
    body = response.json
    assert (body["tenant"], body["name"], body["state"]) == ("acme", "reports", "live")
    assert (body["scopes"], body["tiers"]) == (["query"], ["simple"])
    assert body["limits"] == {**dict.fromkeys(body["limits"]), **limits}
    assert response.headers["Location"] == f"{KEYS}/{body['id']}"
    assert response.headers["Cache-Control"] == "no-store"
    found = store.find(body["id"])
    assert found
    assert found.expires_at
    assert timedelta(minutes=59) < found.expires_at - store.now() <= timedelta(hours=1)
    assert get(client, "/api/v1/jobs/x", body["key"]).status_code == 404

    read = get(client, response.headers["Location"], made(store))
    check(client, read, "KeyView")
    assert read.json == {name: value for name, value in body.items() if name != "key"}


def test_a_list_shows_no_secret_and_goes_on_page_by_page(client: FlaskClient, store: KeyStore) -> None:
    boss, other = made(store), made(store, tenant="other")
    ids = sorted(key_id(key) for key in (boss, made(store), made(store)))

    response = get(client, KEYS, boss)
    check(client, response, "KeyListView")
    assert [key["id"] for key in response.json["data"]] == ids
    assert "secret" not in response.text
    first = get(client, f"{KEYS}?limit=2", boss).json
    assert ([key["id"] for key in first["data"]], first["next"]) == (ids[:2], ids[1])
    second = get(client, f"{KEYS}?limit=2&after={first['next']}", boss).json
    assert ([key["id"] for key in second["data"]], second["next"]) == (ids[2:], None)
    assert key_id(other) not in ids


def test_a_tenant_sees_and_touches_nothing_of_another_and_cannot_tell_that_it_exists(
    client: FlaskClient, store: KeyStore
) -> None:
    boss, theirs = made(store), key_id(made(store, tenant="other"))
    operators = key_id(made(store, tenant=OPERATOR_TENANT))
    before = store.list("other") + store.list(OPERATOR_TENANT)

    for method, path, body in (("GET", "", None), ("DELETE", "", None), ("POST", "/rotate", {})):
        unknown = get(client, f"{KEYS}/abcdefghijkl{path}", boss, method, json=body)
        assert (unknown.status_code, unknown.json["code"]) == (404, "key_unknown")
        for existing in (theirs, operators):
            response = get(client, f"{KEYS}/{existing}{path}", boss, method, json=body)
            assert response.status_code == 404
            assert without_instance(response) == without_instance(unknown)
            assert {name for name, _ in response.headers} == {name for name, _ in unknown.headers}
    nobodys, others = (get(client, f"{KEYS}?tenant={name}", boss) for name in ("nobody", "other"))
    assert others.json == nobodys.json == {"object": "list", "data": [], "next": None}
    nobodys, others = (post(client, boss, name="x", tenant=name) for name in ("nobody", "other"))
    assert without_instance(others) == without_instance(nobodys)
    assert others.status_code == 403
    assert store.list("other") + store.list(OPERATOR_TENANT) == before


@pytest.mark.parametrize(
    ("wanted", "grown"),
    [
        ({"scopes": ["query", "admin"]}, "scopes"),
        ({"tiers": []}, "tiers"),
        ({"tiers": ["simple", "complex"]}, "tiers"),
        ({"expires_in_seconds": None}, "expires_in_seconds"),
        ({"expires_in_seconds": 7_200}, "expires_in_seconds"),
    ],
)
def test_a_key_makes_none_that_may_do_more(
    client: FlaskClient, store: KeyStore, wanted: dict[str, Any], grown: str
) -> None:
    until = store.now() + timedelta(hours=1)
    boss = made(store, "admin", "read", tiers=frozenset({"simple", "medium"}), expires_at=until)
    within = {
        "name": "x",
        "scopes": ["admin"],
        "tiers": ["simple"],
        "limits": {"requests_per_minute": 5, "budget_usd_per_day": 0.5},
        "expires_in_seconds": 60,
    }
    assert post(client, boss, **within).status_code == 201

    response = post(client, boss, **within | wanted)
    assert (response.status_code, response.json["code"]) == (403, "forbidden")
    assert grown in response.json["detail"]
    assert len(store.list()) == 2


def test_a_key_rotates_none_that_may_do_more(client: FlaskClient, store: KeyStore) -> None:
    boss, stronger = made(store, "admin"), made(store, "admin", "query")

    response = post(client, boss, f"{KEYS}/{key_id(stronger)}/rotate")
    assert (response.status_code, response.json["code"]) == (403, "forbidden")
    assert len(store.list()) == 2


@pytest.mark.parametrize("tenant", [OPERATOR_TENANT, "**", "", " *"])
def test_nobody_makes_an_operator_here(client: FlaskClient, store: KeyStore, tenant: str) -> None:
    for boss in (made(store), made(store, tenant=OPERATOR_TENANT)):
        before = len(store.list())
        assert post(client, boss, name="x", tenant=tenant).status_code == 422
        assert len(store.list()) == before


def test_an_operator_says_whose_key_it_makes_and_leaves_operators_to_the_command(
    client: FlaskClient, store: KeyStore
) -> None:
    operator = made(store, tenant=OPERATOR_TENANT)

    assert post(client, operator, name="x").status_code == 422
    assert post(client, operator, f"{KEYS}/{key_id(operator)}/rotate").status_code == 403
    response = post(client, operator, name="x", tenant="other")
    assert (response.status_code, response.json["tenant"]) == (201, "other")


def test_an_operator_manages_the_keys_of_all_tenants(client: FlaskClient, store: KeyStore) -> None:
    operator = made(store, tenant=OPERATOR_TENANT)
    theirs = key_id(made(store, tenant="other"))

    assert len(get(client, KEYS, operator).json["data"]) == 2
    assert [key["id"] for key in get(client, f"{KEYS}?tenant=other", operator).json["data"]] == [theirs]
    assert get(client, f"{KEYS}/{theirs}", operator).json["tenant"] == "other"
    rotated = post(client, operator, f"{KEYS}/{theirs}/rotate").json
    assert rotated["tenant"] == "other"
    assert get(client, f"{KEYS}/{rotated['id']}", operator, "DELETE").status_code == 204


def test_rotation_hands_over_within_the_grace_period(client: FlaskClient, store: KeyStore) -> None:
    boss, old = made(store), made(store, "read")
    response = post(client, boss, f"{KEYS}/{key_id(old)}/rotate", grace_seconds=60)

    assert response.status_code == 201
    check(client, response, "NewKeyView")
    assert get(client, "/api/v1/jobs/x", old).status_code == 404
    assert get(client, "/api/v1/jobs/x", response.json["key"]).status_code == 404

    at_once = post(client, boss, f"{KEYS}/{response.json['id']}/rotate").json
    assert get(client, "/api/v1/jobs/x", response.json["key"]).status_code == 401
    assert get(client, "/api/v1/jobs/x", at_once["key"]).status_code == 404
    again = post(client, boss, f"{KEYS}/{response.json['id']}/rotate")
    assert (again.status_code, again.json["code"]) == (409, "key_ended")


def test_a_revoked_key_is_refused_at_once_here_and_stays_listed(client: FlaskClient, store: KeyStore) -> None:
    boss, key = made(store), made(store, "read")
    assert get(client, "/api/v1/jobs/x", key).status_code == 404

    for _ in range(2):
        response = get(client, f"{KEYS}/{key_id(key)}", boss, "DELETE")
        assert (response.status_code, response.data) == (204, b"")
    assert get(client, "/api/v1/jobs/x", key).status_code == 401
    assert get(client, f"{KEYS}/{key_id(key)}", boss).json["state"] == "revoked"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\ud800"}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes.0"),
        ({"name": "x", "scopes": ["read", "read"]}, "scopes"),
        ({"name": "x", "scopes": "read"}, "scopes"),
        ({"name": "x", "tiers": ["huge"]}, "tiers.0"),
        ({"name": "x", "tenant": "a b"}, "tenant"),
        ({"name": "x", "tenant": "acme\n"}, "tenant"),
        ({"name": "x", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        ({"name": "x", "limits": {"requests_per_minute": 1.5}}, "limits.requests_per_minute"),
        ({"name": "x", "limits": {"tokens_per_day": 10**16}}, "limits.tokens_per_day"),
        ({"name": "x", "limits": {"budget_usd_per_day": 0}}, "limits.budget_usd_per_day"),
        ({"name": "x", "limits": {"budget_usd_per_month": "5"}}, "limits.budget_usd_per_month"),
        ({"name": "x", "limits": {"luck": 1}}, "limits.luck"),
        ({"name": "x", "expires_in_seconds": 0}, "expires_in_seconds"),
        ({"name": "x", "expires_in_seconds": 10**12}, "expires_in_seconds"),
        ({"name": "x", "id": "abcdefghijkl"}, "id"),
    ],
)
def test_it_names_the_field_that_does_not_fit(
    client: FlaskClient, store: KeyStore, body: dict[str, Any], field: str
) -> None:
    response = post(client, made(store), **body)

    assert response.status_code == 422
    assert response.json["errors"][0]["field"] == field
    assert len(store.list()) == 1


@pytest.mark.parametrize("query", ["tenant=%00", "tenant=*", "after=%27", "limit=0", "limit=1001", "who=me"])
def test_it_refuses_a_list_that_does_not_fit(client: FlaskClient, store: KeyStore, query: str) -> None:
    assert get(client, f"{KEYS}?{query}", made(store)).status_code == 422


@pytest.mark.parametrize("key_id", ["x", "a%00b", "%F0%9F%98%80", "..", "ABCDEFGHIJKL"])
def test_what_is_no_id_is_unknown(client: FlaskClient, store: KeyStore, key_id: str) -> None:
    boss = made(store)

    assert get(client, f"{KEYS}/{key_id}", boss).status_code == 404
    assert get(client, f"{KEYS}/{key_id}", boss, "DELETE").status_code == 404
    assert post(client, boss, f"{KEYS}/{key_id}/rotate").status_code == 404


def test_it_says_when_the_database_is_away(client: FlaskClient, store: KeyStore, database: Engine) -> None:
    boss = made(store)
    assert get(client, KEYS, boss).status_code == 200
    with database.begin() as connection:
        connection.execute(text("DROP TABLE api_keys"))

    for method, path, body in (
        ("GET", KEYS, None),
        ("POST", KEYS, {"name": "x"}),
        ("DELETE", f"{KEYS}/{'a' * 12}", None),
    ):
        response = get(client, path, boss, method, json=body)
        assert (response.status_code, response.json["code"]) == (503, "database_unavailable")
        assert "api_keys" not in response.text


def test_without_authentication_whoever_is_on_this_machine_manages_keys(
    redis: Redis, settings: Callable[..., Settings], store: KeyStore
) -> None:
    client = create_app(settings(groq_api_key="k")).test_client()
    response = client.post(KEYS, json={"name": "x"})

    assert (response.status_code, response.json["tenant"]) == (201, "default")
    assert client.post(KEYS, json={"name": "x", "tenant": "acme"}).json["tenant"] == "acme"
    assert len(client.get(KEYS).json["data"]) == 2
    assert client.post(KEYS, json={"name": "x", "tenant": OPERATOR_TENANT}).status_code == 422


def test_a_key_that_has_limits_makes_and_rotates_none(client: FlaskClient, store: KeyStore) -> None:
    """Each new one would begin with limits that nobody has used."""
    boss = made(store, "admin", limits=KeyLimits(budget_usd_per_day=1.0))

    assert post(client, boss, name="x", scopes=["admin"], limits={"budget_usd_per_day": 0.5}).status_code == 403
    rotated = client.post(f"{KEYS}/{key_id(boss)}/rotate", json={}, headers={"Authorization": f"Bearer {boss}"})
    assert rotated.status_code == 403
