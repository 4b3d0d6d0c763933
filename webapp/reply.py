"""What a request for an answer gets back, before any web framework is involved: status, headers and body."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis import RedisError

from clock import now_ms
from storage.answer import Answer
from webapp.accept import Outcome
from webapp.ask import Ask
from webapp.problem import MEDIA_TYPE, Problem
from webapp.service import Services
from webapp.view import answer_body, job_body, lost_sight_body, poll_after

JSON = "application/json"
_REPEATED = {"Idempotency-Replayed": "true"}


@dataclass(frozen=True, slots=True)
class Reply:
    """`headers` are those that this reply has beside the ones that all have."""

    status: int
    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def reply_to(ask: Ask, outcome: Outcome, parts: Services, seconds: float) -> Reply:
    """200 with the answer, or 202 with the job; counts the answer. `seconds` have passed since the request came in."""
    if outcome.answer is None:
        return _accepted(ask.id, outcome, parts)
    parts.meter.count_query(outcome.answer.tier, outcome.cache)
    return _answered(ask, outcome.answer, outcome, seconds * 1000)


def reply_with(problem: Problem, request_id: str) -> Reply:
    """The problem, as RFC 9457 has it."""
    return Reply(problem.status, orjson.dumps(problem.as_dict(request_id)), MEDIA_TYPE, problem.headers)


def _answered(ask: Ask, answer: Answer, outcome: Outcome, latency_ms: float) -> Reply:
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
        headers |= _REPEATED
    if outcome.is_degraded:
        headers["X-Router-Degraded"] = "redis"
    return Reply(200, orjson.dumps(body), headers=headers)


def _accepted(job_id: str, outcome: Outcome, parts: Services) -> Reply:
    try:
        job = outcome.job or parts.ledger.job(job_id)
        body: dict[str, Any] = job_body(job, parts) if job else lost_sight_body(job_id)
    except RedisError:
        body = lost_sight_body(job_id)
    headers = {"Location": body["links"]["self"], "Retry-After": poll_after(body), "X-Cache": outcome.cache}
    if outcome.is_repeat:
        headers |= _REPEATED
    return Reply(202, orjson.dumps(body), headers=headers)
