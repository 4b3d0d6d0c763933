"""Answers and jobs as the caller sees them."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Response

from storage.answer import Answer
from storage.job import Job
from webapp.problem import Problem
from webapp.schema import JobView
from webapp.service import Services

POLL_AFTER_S = (1, 30)  # least and most seconds that a poller is asked to wait


def answer_body(
    answer: Answer, *, query_id: str, query: str, latency_ms: float, is_cached: bool, cost_usd: float
) -> dict[str, Any]:
    """The 200 body. `cost_usd` is this caller's: an answer is paid for by one."""
    return {
        "id": query_id,
        "query": query,
        "response": answer.response,
        "model_used": answer.model_used,
        "provider": answer.target.provider,
        "complexity": answer.tier,
        "latency_ms": round(latency_ms, 2),
        "cached": is_cached,
        "cost_estimate": cost_usd,
        "usage": answer.usage.as_dict() if answer.usage else None,
        "routing": {"score": answer.score, "words": answer.words, "signals": list(answer.signals)},
        "finish_reason": answer.finish_reason,
    }


def job_body(job: Job, parts: Services) -> dict[str, Any]:
    """The job resource, with its place in the queue while it waits. Redis errors pass through."""
    position = parts.lines.position(job) if job.status == "queued" else None
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "tier": job.tier,
        "queue_position": position,
        "estimated_wait_seconds": _estimated_wait(job.tier, position, parts) if position else None,
        "created_at": iso(job.created_at),
        "expires_at": iso(job.deadline_at),
        "attempts": job.attempts,
        "timings": {
            "queued_ms": job.started_at - job.created_at if job.started_at else None,
            "provider_ms": sum(a.get("latency_ms", 0) for a in job.attempts) if job.attempts else None,
        },
        "result": _result(job),
        "error": Problem(**job.error).as_dict(job.id) if job.error else None,
        "links": _links(job.id),
    }


def _links(job_id: str) -> dict[str, str]:
    path = f"/api/v1/jobs/{job_id}"
    return {"self": path, "cancel": f"{path}/cancel", "events": f"{path}/events"}


def lost_sight_body(job_id: str) -> dict[str, Any]:
    """What can be said of an accepted job while Redis is away."""
    unknown = dict.fromkeys(JobView.model_fields)
    return unknown | {
        "id": job_id,
        "object": "job",
        "status": "queued",
        "attempts": [],
        "timings": {"queued_ms": None, "provider_ms": None},
        "links": _links(job_id),
    }


def poll_after(body: dict[str, Any]) -> str:
    """Seconds for Retry-After, from the estimate where there is one."""
    least, most = POLL_AFTER_S
    return str(min(most, max(least, math.ceil(body.get("estimated_wait_seconds") or least))))


def _estimated_wait(tier: str, position: int, parts: Services) -> float | None:
    """Seconds: nothing where a slot is free, else by how fast the tier lately drained; None where nobody can tell."""
    slots = sum(parts.presence.workers(tier).values())
    ahead = position - max(0, slots - parts.lines.depths([tier])[tier]["running"])
    if slots and ahead <= 0:
        return 0.0
    rate = parts.lines.drain_rate(tier)
    return round(ahead / rate, 2) if rate else None


def _result(job: Job) -> dict[str, Any] | None:
    if job.status != "completed" or not job.answer or job.ended_at is None:
        return None
    answer = Answer.decode(job.answer)
    return answer_body(
        answer,
        query_id=job.id,
        query=job.payload["query"]["text"],
        latency_ms=job.ended_at - job.created_at,
        is_cached=False,
        cost_usd=answer.cost_usd if job.payer == job.id else 0.0,
    )


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def json_response(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status=status, mimetype="application/json", headers=headers)
