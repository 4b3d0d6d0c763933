"""What browsers are told: security headers, the content security policy, CORS, and what needs a key."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import validate
from redis import Redis
from werkzeug.test import TestResponse

from config import Settings
from webapp import create_app
from webapp.auth import access_of

OURS = "https://app.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture
def build(redis: Redis, settings: Callable[..., Settings]) -> Callable[..., Flask]:
    return lambda **given: create_app(settings(groq_api_key="k", **given))


def preflight(app: Flask, origin: str, path: str = "/api/v1/query") -> TestResponse:
    return app.test_client().options(path, headers={"Origin": origin, **PREFLIGHT})


def cors_headers(response: TestResponse) -> list[str]:
    return [name for name, _ in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    "path", ["/docs", "/docs/start.js", "/openapi.json", "/livez", "/nope", "/api/v1/jobs/x", "/api/v1/query", "/boom"]
)
@pytest.mark.parametrize("auth", ["on", "off"])
def test_every_response_says_what_browsers_must_not_do(build: Callable[..., Flask], path: str, auth: str) -> None:
    app = build(auth=auth)
    app.add_url_rule("/boom", view_func=lambda: 1 / 0)

    response = app.test_client().get(path)
    headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers.get("Cache-Control") == "no-store") is path.startswith("/api/")
    assert not cors_headers(response)


def test_the_page_of_the_api_has_nothing_that_its_policy_forbids(build: Callable[..., Flask]) -> None:
    client = build().test_client()
    page = client.get("/docs")

    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    assert "img-src 'self' data:;" in page.headers["Content-Security-Policy"]
    assert "<style" not in page.text
    assert " style=" not in page.text
    assert "<script>" not in page.text
    assert " on" not in page.text.split("<body>")[1]
    assert "url(data:" in client.get("/docs/assets/css/swagger-ui.css").text


def test_pages_of_other_origins_may_not_call(build: Callable[..., Flask]) -> None:
    app = build()

    for response in (preflight(app, OURS), app.test_client().get("/livez", headers={"Origin": OURS})):
        assert not cors_headers(response)


@pytest.mark.parametrize("auth", ["on", "off"])
def test_pages_of_a_named_origin_may_call(build: Callable[..., Flask], auth: str) -> None:
    app = build(auth=auth, cors_origins=f"{OURS}, http://localhost:3000")

    asked = preflight(app, OURS)
    assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, OURS)
    assert {"GET", "POST", "DELETE"} <= set(asked.headers["Access-Control-Allow-Methods"].split(", "))
    allowed = asked.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "x-api-key", "content-type", "idempotency-key", "prefer", "x-request-id"} <= set(allowed)
    assert "Access-Control-Allow-Credentials" not in asked.headers

    called = app.test_client().get("/api/v1/jobs/x", headers={"Origin": "http://localhost:3000"})
    assert called.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert "Origin" in called.headers["Vary"]
    assert {"X-Request-Id", "X-Cache", "Retry-After"} <= set(
        called.headers["Access-Control-Expose-Headers"].split(", ")
    )


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://app.example.evil", "http://app.example", ""]
)
def test_pages_of_an_origin_that_is_not_named_may_not(build: Callable[..., Flask], origin: str) -> None:
    app = build(cors_origins=OURS)

    for response in (preflight(app, origin), app.test_client().get("/livez", headers={"Origin": origin})):
        assert not cors_headers(response)
        assert "Origin" in response.headers["Vary"]


def test_an_options_request_that_no_browser_sent_first_needs_a_key_as_any_other(build: Callable[..., Flask]) -> None:
    app = build(auth="on", cors_origins=OURS)

    assert app.test_client().options("/api/v1/query", headers={"Origin": OURS}).status_code == 401
    assert app.test_client().options("/api/v1/query").status_code == 401


@pytest.mark.parametrize("origins", ["*", "app.example", "https://app.example/", "https://app.example, *", "null"])
def test_origins_that_browsers_do_not_send_are_refused(origins: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=origins)


def operations(app: Flask) -> list[tuple[str, dict[str, Any]]]:
    paths = app.test_client().get("/openapi.json").json["paths"]
    return [
        (path.replace("{id}", "<string:id>"), operation)
        for path, found in paths.items()
        for operation in found.values()
    ]


def test_the_document_says_which_routes_need_a_key_and_which_scope(build: Callable[..., Flask]) -> None:
    app = build(auth="on")
    document = app.test_client().get("/openapi.json").json
    validate(document)

    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for rule, operation in operations(app):
        access = access_of(rule)
        assert bool(operation.get("security")) is not access.is_open, rule
        if not access.is_open:
            assert {"401", "403"} <= set(operation["responses"]), rule
            assert all(f"`{scope}`" in operation["description"] for scope in access.scopes), rule


def test_the_document_asks_for_no_key_where_none_is_needed(build: Callable[..., Flask]) -> None:
    app = build()

    assert "securitySchemes" not in app.test_client().get("/openapi.json").json["components"]
    assert not [rule for rule, operation in operations(app) if "security" in operation]


def test_the_document_shows_nothing_that_looks_like_a_key(build: Callable[..., Flask]) -> None:
    text = build(auth="on").test_client().get("/openapi.json").text

    assert not re.search("aqr_[a-z2-7]{12}", text)
    assert "Bearer " not in text
    assert "gsk_" not in text
