"""The routes of queries: ask, classify, measure."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Response, g, request
from flask_openapi3 import APIBlueprint, Tag
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from routing.classifier import classify
from routing.tier import TIER_NAMES
from storage.metric import measure
from tasks.answer import BASELINE_TIER
from webapp.accept import accept
from webapp.ask import Envelope, check_length, read_ask
from webapp.auth import caller
from webapp.document import problems, with_headers
from webapp.problem import Problem
from webapp.reply import reply_to
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
from webapp.view import json_response

_measuring = threading.BoundedSemaphore(4)  # of the threads and connections that others need, statistics get a few

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
    ask = read_ask(body, Envelope(request.headers, caller(), g.request_id), parts)
    outcome = accept(ask, parts)
    reply = reply_to(ask, outcome, parts, time.perf_counter() - g.started)
    return Response(reply.body, reply.status, reply.headers, mimetype=reply.media_type)


@api.post("/classify", summary="Dry run", responses={200: ClassifyView, **problems(400, 413, 415, 422, 500)})
def classify_query(body: ClassifyBody) -> Response:
    """Which tier the query would go to, the signals that say so, and the targets in order. Calls no provider."""
    parts = services()
    check_length(body.query, parts.settings)
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
