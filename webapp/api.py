"""The routes of queries: ask, classify, measure."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Response, g
from flask_openapi3 import APIBlueprint, Tag
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from clock import now_ms
from routing.classifier import classify
from routing.tier import TIER_NAMES
from storage.answer import Answer
from storage.metric import measure
from tasks.answer import BASELINE_TIER
from webapp.accept import Outcome, accept
from webapp.ask import Ask, check_length, read_ask
from webapp.auth import caller
from webapp.document import problems, with_headers
from webapp.problem import Problem
from webapp.schema import (
    ClassifyBody,
    ClassifyView,
    JobView,
    MetricsQuery,
    MetricsView,
    QueryAnswer,
    QueryBody,
)
from webapp.service import services
from webapp.view import answer_body, job_body, json_response, lost_sight_body, poll_after

_measuring = threading.BoundedSemaphore(4)  # statistics read many rows: a few at a time in a process
REPEATED = {"Idempotency-Replayed": "true"}

api = APIBlueprint("api", __name__, url_prefix="/api/v1", abp_tags=[Tag(name="queries")])


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
    ask = read_ask(body)
    outcome = accept(ask, parts)
    if outcome.answer is None:
        return _accepted(ask.id, outcome)
    parts.meter.count_query(outcome.answer.tier, outcome.cache)
    return _answered(ask, outcome.answer, outcome)


@api.post("/classify", summary="Dry run", responses={200: ClassifyView, **problems(400, 413, 415, 422, 500)})
def classify_query(body: ClassifyBody) -> Response:
    """Which tier the query would go to, the signals that say so, and the targets in order. Calls no provider."""
    parts = services()
    check_length(body.query)
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
    since = (datetime.now(UTC) - timedelta(hours=query.hours)).replace(second=0, microsecond=0)  # as they are rolled up
    if not _measuring.acquire(blocking=False):
        raise Problem("overloaded", "Others are asking for statistics already.", retry_after=1)
    try:
        with parts.engine.connect() as connection:
            measured = measure(connection, since, caller().visible_tenant)
    except SQLAlchemyError:
        raise Problem(
            "database_unavailable", "Statistics live in the database, which is away.", retry_after=5
        ) from None
    finally:
        _measuring.release()
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
