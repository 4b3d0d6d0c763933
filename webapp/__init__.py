"""The HTTP API: `gunicorn "webapp:create_app()"`."""

import json
import time
from typing import Any

import orjson
from flask import Flask, Response, current_app, g, request
from flask_openapi3 import Info, OpenAPI
from werkzeug.exceptions import RequestEntityTooLarge

from config import Settings, load_settings
from logs import bind_log_context, clear_log_context, configure_logging
from webapp.access_log import end_request, request_id_of
from webapp.admin import admin
from webapp.api import api
from webapp.auth import guard
from webapp.dead_letter import dead_letters
from webapp.document import complete, document
from webapp.header import protect
from webapp.job import jobs
from webapp.operation import operation
from webapp.problem import Problem, ProblemDetails, from_validation, invalid, register_problems
from webapp.service import attach, build_services, services

VERSION = "0.1.0"
_BODILESS = {"/api/v1/jobs/<string:id>/cancel", "/api/v1/dead-letters/<string:id>/replay"}
_WITH_PARAMETERS = {"/api/v1/metrics", "/api/v1/keys", "/api/v1/dead-letters"}


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI app. Connects to nothing until the first request."""
    if settings is None:
        settings = load_settings()
        configure_logging(settings.log_level, "web")
    app = OpenAPI(
        __name__,
        info=Info(title="AI Query Router", version=VERSION),
        doc_ui=False,
        validation_error_model=ProblemDetails,
        validation_error_callback=from_validation,
        security_schemes={},
        static_folder=None,
    )
    # One more than allowed: Werkzeug cuts a chunked body at the limit without a word, and so the cut shows.
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the document keeps our order: asking comes first
    parts = build_services(settings)
    attach(app, parts)
    register_problems(app)
    app.register_api(api)
    app.register_api(jobs)
    app.register_api(dead_letters)
    app.register_api(admin)
    app.register_api(operation)
    app.register_blueprint(document)
    complete(app, settings.auth, settings.requires_key)
    app.before_request(_begin)
    protect(app, settings.origins)
    guard(app, parts)
    app.before_request(_refuse_repeats)
    app.before_request(_parse_json)
    app.after_request(_end)
    return app


def _begin() -> None:
    g.started = time.perf_counter()
    g.request_id = request_id_of(request.headers)
    clear_log_context()
    bind_log_context(request_id=g.request_id)


def _refuse_repeats() -> None:
    """A parameter that is given twice means one of two things, and nobody can tell which."""
    if request.url_rule is None or request.url_rule.rule not in _WITH_PARAMETERS:
        return
    for name, values in request.args.lists():
        if len(values) > 1:
            raise invalid(name, "given more than once")


def _parse_json() -> None:
    """Refuse bodies that are not JSON here, so that the models only ever see JSON."""
    if request.method not in ("POST", "PUT", "PATCH") or request.url_rule is None:
        return
    if request.url_rule.rule in _BODILESS:
        return
    if not request.is_json:
        raise Problem("not_json", "Send the body as JSON, with Content-Type: application/json.")
    body = request.get_data()
    if len(body) >= current_app.config["MAX_CONTENT_LENGTH"]:
        raise RequestEntityTooLarge
    parsed = _loads(body)
    if not isinstance(parsed, dict):
        raise Problem("invalid_request", "The body must be a JSON object.", errors=[("body", "must be an object")])
    # What flask-openapi3 reads; Flask's own parser would take NaN and a second look at the bytes.
    request._cached_json = (parsed, parsed)


def _loads(body: bytes) -> Any:
    """The JSON value. What only orjson refuses (unpaired surrogates) is left to the models, which name the field."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise Problem("malformed_json", f"The body is not JSON: {error}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    route = request.url_rule.rule if request.url_rule else "unknown"
    seconds = time.perf_counter() - g.started
    end_request(services().meter, route, request.method, response.status_code, seconds)
    return response
