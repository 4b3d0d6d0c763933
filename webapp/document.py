"""The API's own documentation: /openapi.json, and Swagger UI at /docs from the package's files, without a CDN."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, redirect, send_from_directory
from flask_openapi3 import OpenAPI
from flask_openapi3.models import Schema
from pydantic import BaseModel

from webapp.auth import Access, access_of
from webapp.key_schema import NewKeyView
from webapp.problem import MEDIA_TYPE
from webapp.schema import DeadLetterList, JobView, QueryAnswer, ReplayView

_ASSETS = Path(str(files("flask_openapi3_swagger"))) / "templates" / "swagger"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AI Query Router: API</title>
<link rel="stylesheet" href="/docs/assets/css/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/js/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", tryItOutEnabled: true});\n'

HEADERS = {
    "X-Cache": "HIT, MISS, COALESCED, BYPASS or REFRESH",
    "Age": "Age of a hit in seconds",
    "Server-Timing": "Time within the service",
    "X-Router-Degraded": "`redis`: answered while Redis was away",
    "Location": "The job to poll, or the new key",
    "Retry-After": "Seconds to wait before the next poll",
    "Idempotency-Replayed": "`true`: the job that this Idempotency-Key already stood for",
}
REQUEST_HEADERS = {
    "Prefer": "`respond-async`, or `wait=N` seconds (RFC 7240); `wait_seconds` in the body comes first",
    "Idempotency-Key": "The same key and body stand for the same query; remembered for IDEMPOTENCY_TTL_SECONDS",
    "X-Request-Id": "Kept where it has up to 64 letters, digits or ._:-",
}

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same, for proxies' sake"},
}

document = Blueprint("document", __name__)


def problems(*statuses: int) -> dict[int, Any]:
    """The error responses of a route, for the document."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    content = {MEDIA_TYPE: {"schema": schema}}
    return {status: {"description": "A problem (RFC 9457)", "content": content} for status in statuses}


def with_headers(model: type[BaseModel], *names: str) -> dict[str, Any]:
    """A response with a JSON body and these headers of ours, for the document."""
    headers = {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in names}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"description": "OK", "headers": headers, "content": {"application/json": {"schema": schema}}}


def complete(app: OpenAPI, auth: str, requires_key: bool) -> None:
    """Make the document true where flask-openapi3 cannot know better."""
    for model in (QueryAnswer, JobView, DeadLetterList, ReplayView, NewKeyView):
        app.components_schemas |= _schemas(model)
    app.generate_spec_json()
    app.spec_json["components"].pop("securitySchemes", None)
    _drop_foreign_errors(app)
    _say_what_is_too_long(app)
    ask = app.spec_json["paths"]["/api/v1/query"]["post"]
    ask["parameters"] = [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in REQUEST_HEADERS.items()
    ]
    if requires_key:
        app.spec_json["components"]["securitySchemes"] = _SCHEMES
        for operation, access in _guarded(app):
            operation["security"] = [{scheme: []} for scheme in _SCHEMES]
            needs = f"Needs the scope {' or '.join(f'`{scope}`' for scope in sorted(access.scopes))}"
            operation["description"] += f" {needs}{' of an operator' if access.is_for_operators else ''}."
            # 429: the key's requests of the minute; 503: the database is away, and the key is not known.
            _add_problems(operation, 401, 403, 429, 503)
    elif auth == "auto":
        for operation, _ in _guarded(app):
            _add_problems(operation, 403)


def _say_what_is_too_long(app: OpenAPI) -> None:
    """gunicorn refuses a long request line by itself, with a page of its own."""
    page = {"description": "The address is too long", "content": {"text/html": {"schema": {"type": "string"}}}}
    for operations in app.spec_json["paths"].values():
        for operation in operations.values():
            if any(parameter["in"] in ("query", "path") for parameter in operation.get("parameters", ())):
                operation["responses"]["414"] = page


def _drop_foreign_errors(app: OpenAPI) -> None:
    for operations in app.spec_json["paths"].values():
        for operation in operations.values():
            # It adds a validation error of its own form to every route, also to those that validate nothing.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]


def _add_problems(operation: dict[str, Any], *statuses: int) -> None:
    for status, response in problems(*statuses).items():
        operation["responses"].setdefault(str(status), response)


def _guarded(app: OpenAPI) -> Iterator[tuple[dict[str, Any], Access]]:
    """The document's operations that are not open to everyone."""
    for rule in app.url_map.iter_rules():
        access = access_of(rule.rule)
        operations = app.spec_json["paths"].get(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), {})
        for method, operation in operations.items():
            if method.upper() not in (rule.methods or ()) or access is None or access.is_open:
                continue
            yield operation, access


def _schemas(model: type[BaseModel]) -> dict[str, Schema]:
    found = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    nested = found.pop("$defs", {})
    return {name: Schema(**schema) for name, schema in {model.__name__: found, **nested}.items()}


@document.get("/openapi.json")
def openapi() -> Any:
    return current_app.spec_json  # type: ignore[attr-defined]


@document.get("/")
def front_door() -> Any:
    return redirect("/docs")


@document.get("/docs")
def docs() -> Response:
    return Response(_PAGE, mimetype="text/html")


@document.get("/docs/start.js")
def start_script() -> Response:
    return Response(_START, mimetype="text/javascript")


@document.get("/docs/assets/<path:name>")
def assets(name: str) -> Response:
    return send_from_directory(_ASSETS, name, max_age=86_400)
