"""Headers that tell browsers what they may do with our responses, and which pages of other origins may call."""

from flask import Flask, Response, request

from webapp.document import HEADERS, REQUEST_HEADERS

# Everything is refused that is not ours; Swagger UI's style sheet brings its pictures as data:.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_READABLE = ", ".join(["X-Request-Id", *HEADERS])
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": ", ".join(
        ["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Api-Key", *REQUEST_HEADERS]
    ),
    "Access-Control-Max-Age": "600",
}


def protect(app: Flask, origins: frozenset[str]) -> None:
    """Set these headers on every response; pages of `origins` may call, with a key and never with cookies."""

    def answer_preflight() -> Response | None:
        return Response(status=204) if origins and _is_preflight() else None

    def finish(response: Response) -> Response:
        is_page = response.mimetype == "text/html"
        response.headers["Content-Security-Policy"] = PAGE_POLICY if is_page else DATA_POLICY
        response.headers.update(ALWAYS)
        if request.path.startswith("/api/"):
            response.headers["Cache-Control"] = "no-store"
        if origins:
            response.vary.add("Origin")
            _admit(response, origins)
        return response

    app.before_request(answer_preflight)
    app.after_request(finish)


def _is_preflight() -> bool:
    return request.method == "OPTIONS" and "Origin" in request.headers and bool(request.access_control_request_method)


def _admit(response: Response, origins: frozenset[str]) -> None:
    origin = request.headers.get("Origin", "")
    if origin not in origins:
        return
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = _READABLE
    if _is_preflight():
        response.headers.update(_PREFLIGHT)
