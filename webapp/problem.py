"""Every error the API can answer, as one table, in the form of RFC 9457 (application/problem+json)."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson
from flask import Flask, Response, current_app, g
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ai-query-router:problem:"

# code → (status, title). docs/api.md explains each; a test holds the two together.
PROBLEMS: Mapping[str, tuple[int, str]] = {
    "malformed_json": (400, "The body is not JSON"),
    "bad_request": (400, "Bad request"),
    "unauthorized": (401, "A valid API key is needed"),
    "forbidden": (403, "The API key does not allow this"),
    "tier_not_allowed": (403, "The API key does not allow this tier"),
    "not_found": (404, "No such resource"),
    "job_unknown": (404, "No such job"),
    "dead_letter_unknown": (404, "No such dead letter"),
    "key_unknown": (404, "No such API key"),
    "not_cached": (404, "The answer is not in the cache"),
    "method_not_allowed": (405, "Method not allowed"),
    "job_ended": (409, "The job has ended"),
    "cancelled": (409, "The query was cancelled"),
    "key_ended": (409, "The API key has ended"),
    "body_too_large": (413, "The body is too large"),
    "query_too_long": (413, "The query is too long"),
    "not_json": (415, "The content type is not JSON"),
    "invalid_request": (422, "The request does not fit"),
    "idempotency_conflict": (422, "The Idempotency-Key belongs to another request"),
    "queue_full": (429, "The tier's queue is full"),
    "tenant_queue_full": (429, "Too many of your queries are waiting"),
    "too_many_callers": (429, "Too many callers wait for this answer"),
    "too_many_open_jobs": (429, "Too many open jobs"),
    "rate_limited": (429, "Too many requests"),
    "token_limit_reached": (429, "The tokens of the day are used up"),
    "budget_spent": (429, "The budget is spent"),
    "internal_error": (500, "Something broke in the router"),
    "provider_failed": (502, "No provider answered"),
    "provider_unreachable": (502, "No provider could be reached"),
    "provider_overloaded": (503, "Every provider is overloaded"),
    "provider_reply_unusable": (502, "The providers' replies were unusable"),
    "provider_key_rejected": (502, "A provider refused the router's key"),
    "provider_model_gone": (502, "The configured models are gone"),
    "provider_throttled": (503, "Every provider is throttling"),
    "provider_timed_out": (504, "The providers took too long"),
    "provider_prompt_too_long": (413, "The query is too long for every model"),
    "provider_query_rejected": (422, "The provider refused the query"),
    "no_provider": (503, "No provider is configured"),
    "expired": (504, "The deadline passed"),
    "dead": (502, "The query failed every time it was tried"),
    "recording_backlog": (503, "Too much is waiting to be recorded"),
    "overloaded": (503, "Too many queries at the same time"),
    "redis_unavailable": (503, "Redis cannot be reached"),
    "database_unavailable": (503, "The database cannot be reached"),
}
_BY_STATUS = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "not_json",
}


class FieldError(BaseModel):
    """One thing wrong with one field."""

    field: str = Field(description="Path of the field, `cache.ttl`")
    message: str


class ProblemDetails(BaseModel):
    """An error, RFC 9457."""

    type: str = Field(examples=[TYPE_PREFIX + "invalid_request"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="The request's id, as in X-Request-Id")
    code: str = Field(examples=["invalid_request"])
    errors: list[FieldError] | None = None
    retry_after: float | None = Field(None, description="Seconds; also in Retry-After")


class Problem(Exception):
    """Raised anywhere in a request; becomes the response."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail = code if code in PROBLEMS else "provider_failed", detail
        self.errors, self.retry_after = errors, retry_after

    @property
    def status(self) -> int:
        return PROBLEMS[self.code][0]

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the status calls for."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after))
        return headers

    def as_dict(self, instance: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": PROBLEMS[self.code][1],
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
        }
        if self.errors:
            body["errors"] = [{"field": field, "message": message} for field, message in self.errors]
        if self.retry_after is not None:
            body["retry_after"] = self.retry_after
        return body


def invalid(field: str, message: str) -> Problem:
    """A 422 that names one field."""
    return Problem("invalid_request", f"{field}: {message}", errors=[(field, message)])


def problem_response(problem: Problem) -> Response:
    body = orjson.dumps(problem.as_dict(g.get("request_id", "")))
    return Response(body, status=problem.status, mimetype=MEDIA_TYPE, headers=problem.headers)


def from_validation(error: ValidationError) -> Response:
    """Pydantic's findings, field by field; never what was sent, which may be a prompt."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    errors = [(".".join(map(str, e["loc"])) or "body", e["msg"].removeprefix("Value error, ")) for e in found]
    detail = "; ".join(f"{field}: {message}" for field, message in errors[:5])
    return problem_response(Problem("invalid_request", detail, errors=errors[:20]))


def register_problems(app: Flask) -> None:
    app.register_error_handler(Problem, problem_response)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(Exception, _from_bug)


def _from_http(error: HTTPException) -> Response:
    if error.code is not None and error.code < 400:  # a redirect
        return cast(Response, error.get_response())
    code = _BY_STATUS.get(error.code or 500)
    if code is None:
        code = "bad_request" if (error.code or 500) < 500 else "internal_error"
    detail = error.description or error.name
    if code == "body_too_large":
        detail = f"The body may have at most {current_app.config['MAX_CONTENT_LENGTH'] - 1} bytes."
    response = problem_response(Problem(code, detail))
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _from_bug(error: Exception) -> Response:
    log.exception("request.failed")
    detail = "An unexpected error; it is in the log under this request's id. Nothing that was accepted is lost."
    return problem_response(Problem("internal_error", detail))
