"""The API's own documentation: /openapi.json, and Swagger UI at /docs from the package's files, without a CDN."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, send_from_directory

from webapp.problem import MEDIA_TYPE

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

document = Blueprint("document", __name__)


def problems(*statuses: int) -> dict[int, Any]:
    """The error responses of a route, for the document."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    content = {MEDIA_TYPE: {"schema": schema}}
    return {status: {"description": "A problem (RFC 9457)", "content": content} for status in statuses}


@document.get("/openapi.json")
def openapi() -> Any:
    return current_app.api_doc  # type: ignore[attr-defined]


@document.get("/docs")
def docs() -> Response:
    return Response(_PAGE, mimetype="text/html")


@document.get("/docs/start.js")
def start_script() -> Response:
    return Response(_START, mimetype="text/javascript")


@document.get("/docs/assets/<path:name>")
def assets(name: str) -> Response:
    return send_from_directory(_ASSETS, name, max_age=86_400)
