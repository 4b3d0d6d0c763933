"""The routes of /api/v1 for queries: ask, poll, cancel, classify, measure."""

import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from flask import Response, g, request
from flask_openapi3 import APIBlueprint, Tag
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from clock import now_ms
from routing.classifier import classify
from routing.query import Query
from routing.tier import TIER_NAMES
from storage.answer import Answer
from storage.idempotency import Conflict
from storage.job import Job
from storage.metric import measure
from tasks.answer import BASELINE_TIER
from tasks.ending import facts_of
from webapp.accept import NO_KEYS_NOW, Ask, Outcome, accept
from webapp.auth import caller
from webapp.document import problems, with_headers
from webapp.problem import Problem, invalid
from webapp.schema import (
    CachePolicy,
    ClassifyBody,
    ClassifyView,
    JobPath,
    JobView,
    MetricsQuery,
    MetricsView,
    QueryAnswer,
    QueryBody,
)
from webapp.service import services
from webapp.stream import job_stream
from webapp.view import answer_body, job_body, json_response, lost_sight_body, poll_after
from webapp.waiter import NoSlot

REPEATED = {"Idempotency-Replayed": "true"}

api = APIBlueprint("api", __name__, url_prefix="/api/v1", abp_tags=[Tag(name="queries")])

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})\s*(?:$|[,;])", re.IGNORECASE)


@api.post(
    "/query",
    summary="Ask",
    responses={
        200: with_headers(QueryAnswer, "X-Cache", "Age", "Server-Timing", "X-Router-Degraded", "Idempotency-Replayed"),
        202: with_headers(JobView, "Location", "Retry-After", "X-Cache", "Idempotency-Replayed"),
        **problems(400, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504),
    },
)
def ask_query(body: QueryBody) -> Response:
    """Answers with the cheapest model that is good enough, or with 202 and a job when it takes longer than the wait."""
    parts = services()
    ask = _ask(body)
    outcome = accept(ask, parts)
    if outcome.answer is None:
        return _accepted(ask.id, outcome)
    parts.meter.count_query(outcome.answer.tier, outcome.cache)
    return _answered(ask, outcome.answer, outcome)


@api.get(
    "/jobs/<string:id>",
    summary="Poll a job",
    responses={200: with_headers(JobView), 202: with_headers(JobView, "Retry-After"), **problems(404, 422, 500, 503)},
)
def get_job(path: JobPath) -> Response:
    """200 when the job has ended, 202 with Retry-After while it is open. Ended jobs are kept for JOB_TTL_SECONDS."""
    try:
        return _job_response(visible_job(path.id))
    except RedisError:
        raise _jobs_away() from None


@api.post(
    "/jobs/<string:id>/cancel",
    summary="Cancel a job",
    responses={
        200: with_headers(JobView),
        202: with_headers(JobView, "Retry-After"),
        **problems(404, 409, 422, 500, 503),
    },
)
def cancel_job(path: JobPath) -> Response:
    """200 when the job is cancelled, 202 while its call is being aborted, 409 when it had ended before.

    Others that wait for the same answer still get it.
    """
    parts = services()
    try:
        job = visible_job(path.id)
        said = parts.ledger.cancel(job, facts_of(job.tier, job.payload["routing"], "cancelled"))
        if said == "missing":
            raise _job_unknown()
        if said not in ("cancelled", "cancelling"):
            raise Problem("job_ended", f"The job has ended before: {said}.")
        return _job_response(visible_job(path.id))
    except RedisError:
        raise _jobs_away() from None


@api.get(
    "/jobs/<string:id>/events",
    summary="Follow a job",
    responses={
        200: {
            "description": "Server-sent events: one for each change, named by the status, with the job as its data",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(404, 422, 500, 503),
    },
)
def follow_job(path: JobPath) -> Response:
    """The job now and whenever it changes, until it has ended. `Last-Event-ID` says what the client has seen."""
    try:
        return job_stream(visible_job(path.id), request.headers.get("Last-Event-ID", ""), services())
    except NoSlot:
        raise Problem("overloaded", "As many requests wait here as may; poll the job instead.", retry_after=1) from None
    except RedisError:
        raise _jobs_away() from None


def visible_job(job_id: str) -> Job:
    """The job, where it exists for this caller. Redis errors pass through."""
    job = services().ledger.job(job_id)
    if job is None or not caller().may_see(job.tenant):
        raise _job_unknown()
    return job


def _job_unknown() -> Problem:
    return Problem("job_unknown", "No job has this id; ended jobs are forgotten after a while.")


def _jobs_away() -> Problem:
    return Problem("redis_unavailable", "Jobs live in Redis, which is away; the job goes on.", retry_after=1)


def _job_response(job: Job) -> Response:
    body = job_body(job, services())
    if not job.is_open:
        return json_response(body)
    return json_response(body, 202, {"Retry-After": poll_after(body)})


@api.post("/classify", summary="Dry run", responses={200: ClassifyView, **problems(400, 413, 415, 422, 500)})
def classify_query(body: ClassifyBody) -> Response:
    """Which tier the query would go to, the signals that say so, and the targets in order. Calls no provider."""
    parts = services()
    _check_length(body.query)
    judged = classify(body.query, parts.thresholds)
    signals = [
        {
            "name": s.name,
            "points": s.points,
            "spans": s.spans,
            "texts": [body.query[start:end] for start, end in s.spans],
        }
        for s in judged.signals
    ]
    targets = [{"provider": t.provider, "model": t.model} for t in parts.tiers[judged.tier].targets]
    return json_response(
        {
            "tier": judged.tier,
            "score": judged.score,
            "words": judged.words,
            "signals": signals,
            "targets": targets,
        }
    )


@api.get("/metrics", summary="Statistics", responses={200: MetricsView, **problems(422, 500, 503)})
def get_metrics(query: MetricsQuery) -> Response:
    """Queries, hit rate, latencies, tokens, cost and savings of the window, and the queues of this moment."""
    parts = services()
    since = datetime.now(UTC) - timedelta(hours=query.hours)
    try:
        with parts.engine.connect() as connection:
            measured = measure(connection, since, caller().visible_tenant)
    except SQLAlchemyError:
        raise Problem(
            "database_unavailable", "Statistics live in the database, which is away.", retry_after=5
        ) from None
    baseline = next(iter(parts.tiers[BASELINE_TIER].targets), None)
    measured["cost"]["baseline"] = f"every query answered by {baseline}"
    return json_response({"window_hours": query.hours, "since": since.isoformat(), **measured, **_queues()})


def _queues() -> dict[str, Any]:
    """The queues of this moment; who is no operator sees what it has in them itself."""
    parts, tenant = services(), caller().visible_tenant
    try:
        if tenant is not None:
            mine = parts.lines.waiting(tenant, TIER_NAMES)
            queues = {tier: {"queued": waiting} for tier, waiting in mine.items()}
            return {"queues": queues, "recorder": None, "unrecorded_hits": None}
        return {
            "queues": parts.lines.depths(TIER_NAMES),
            "recorder": parts.presence.recorder(),
            "unrecorded_hits": parts.ledger.unrecorded_hits(),
        }
    except RedisError:
        return {"queues": None, "recorder": None, "unrecorded_hits": None}


def _ask(body: QueryBody) -> Ask:
    settings = services().settings
    _check_length(body.query)
    _check_length(body.system or "", "system")
    _check_most("deadline_seconds", body.deadline_seconds, settings.max_deadline_seconds)
    _check_most("start_within_seconds", body.start_within_seconds, settings.max_deadline_seconds)
    _check_most("wait_seconds", body.wait_seconds, settings.max_wait_seconds, "; poll the job for longer")
    cache, query_id, key = body.cache or CachePolicy(), new_id(), _idempotency_key()
    return Ask(
        id=_first_id(key, body, query_id) if key else query_id,
        query=Query(body.query, _tier(body), body.system, body.max_tokens, body.temperature),
        caller=caller(),
        request_id=g.request_id,
        wait_s=_wait_seconds(body.wait_seconds),
        deadline_s=body.deadline_seconds or settings.job_deadline_seconds,
        start_within_s=body.start_within_seconds,
        priority=body.priority,
        cache_mode=cache.mode,
        ttl_s=cache.ttl or settings.cache_ttl_seconds,
        is_text_recorded=settings.record_query_text,
        is_idempotent=key is not None,
    )


def _tier(body: QueryBody) -> str | None:
    """The tier asked for; where a key may not use all of them, the nearest one to the classifier's choice."""
    who = caller()
    if body.tier:
        if not who.may_use(body.tier):
            raise Problem("tier_not_allowed", f"This API key may use: {', '.join(sorted(who.tiers))}.")
        return body.tier
    if not who.tiers:
        return None
    chosen = TIER_NAMES.index(classify(body.query, services().thresholds).tier)
    if who.may_use(TIER_NAMES[chosen]):
        return None
    return min(who.tiers, key=lambda tier: (abs(TIER_NAMES.index(tier) - chosen), TIER_NAMES.index(tier)))


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise invalid("Idempotency-Key", "1 to 255 visible ASCII characters")
    return key


def _first_id(key: str, body: QueryBody, query_id: str) -> str:
    """The query's id: the one of this key's first use, where there was one."""
    form = orjson.dumps(body.model_dump(), option=orjson.OPT_SORT_KEYS)
    try:
        return services().idempotency.remember(caller().tenant, key, form, query_id)
    except Conflict:
        raise Problem("idempotency_conflict", "This Idempotency-Key came with another body before.") from None
    except RedisError:
        raise Problem("redis_unavailable", NO_KEYS_NOW, retry_after=1) from None


def _check_most(field: str, value: float | None, most: float, advice: str = "") -> None:
    if value is not None and value > most:
        raise invalid(field, f"at most {most:g}{advice}")


def new_id() -> str:
    """An id that sorts by time, so that the tables' indexes grow at one end."""
    return f"{now_ms():012x}{secrets.token_hex(10)}"


def _wait_seconds(asked: float | None) -> float:
    """The body's word first, then the Prefer header (RFC 7240), then the default."""
    settings = services().settings
    if asked is not None:
        return asked
    prefer = request.headers.get("Prefer", "")
    if found := _PREFER_WAIT.search(prefer):
        return min(float(found[1]), settings.max_wait_seconds)
    return 0 if "respond-async" in prefer.lower() else settings.sync_wait_seconds


def _check_length(text: str, field: str = "query") -> None:
    most = services().settings.max_query_chars
    if len(text) > most:
        message = f"has {len(text)} characters; at most {most} are allowed"
        raise Problem("query_too_long", f"{field} {message}.", errors=[(field, message)])


def _answered(ask: Ask, answer: Answer, outcome: Outcome) -> Response:
    latency_ms = (time.perf_counter() - g.started) * 1000
    body = answer_body(
        answer,
        query_id=ask.id,
        query=ask.query.text,
        latency_ms=latency_ms,
        is_cached=outcome.cache == "HIT",
        cost_usd=answer.cost_usd if outcome.is_paid else 0.0,
    )
    headers = {"X-Cache": outcome.cache, "Server-Timing": f"total;dur={latency_ms:.2f}"}
    if outcome.cache == "HIT":
        headers["Age"] = str(max(0, now_ms() - answer.stored_at) // 1000)
    if outcome.is_repeat:
        headers |= REPEATED
    if outcome.is_degraded:
        headers["X-Router-Degraded"] = "redis"
    return json_response(body, headers=headers)


def _accepted(job_id: str, outcome: Outcome) -> Response:
    parts = services()
    try:
        job = outcome.job or parts.ledger.job(job_id)
        body = job_body(job, parts) if job else lost_sight_body(job_id)
    except RedisError:
        body = lost_sight_body(job_id)
    headers = {"Location": body["links"]["self"], "Retry-After": poll_after(body), "X-Cache": outcome.cache}
    if outcome.is_repeat:
        headers |= REPEATED
    return json_response(body, 202, headers)
