"""Usage-stream entries as the Lua scripts write them; test_ledger.py holds that they do."""

import json
from typing import Any

AT = 1_800_000_000_000
FACTS = {
    "tier": "medium",
    "provider": "groq",
    "model": "openai/gpt-oss-120b",
    "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
    "cost_usd": 0.002,
    "baseline_usd": 0.01,
    "score": 1,
    "words": 3,
    "provider_ms": 900.0,
}


def caller(query_id: str, **more: Any) -> dict[str, Any]:
    base = {"id": query_id, "tenant": "t", "request_id": f"r-{query_id}", "priority": "interactive", "cache": "MISS"}
    return {**base, "tier": "medium", "score": 1, "words": 3, **more}


def accepted(query_id: str, job: str | None = None, at: int = AT, text: str = "", **more: Any) -> dict[str, bytes]:
    who = json.dumps(caller(query_id, **more))
    return _encoded({"kind": "accepted", "at": str(at), "job": job or query_id, "caller": who, "text": text})


def ended(
    job: str,
    *,
    status: str = "completed",
    callers: list[str] | None = None,
    arrivals: dict[str, int] | None = None,
    attempts: list[dict[str, Any]] | None = None,
    facts: dict[str, Any] | None = None,
    at: int = AT + 1_000,
) -> dict[str, bytes]:
    who = [{"at": (arrivals or {}).get(c, AT), "caller": caller(c)} for c in callers or [job]]
    one = {
        "provider": "groq",
        "model": "openai/gpt-oss-120b",
        "outcome": "ok",
        "started_at": AT,
        "latency_ms": 900.0,
        "cost_usd": 0.002,
    }
    return _encoded(
        {
            "kind": "ended",
            "at": str(at),
            "job": job,
            "status": status,
            "facts": json.dumps({**FACTS, **(facts or {})}),
            "started_at": str(AT + 10),
            "callers": json.dumps(who),
            "attempts": json.dumps([one] if attempts is None else attempts),
        }
    )


def hit(query_id: str, at: int = AT, **facts: Any) -> dict[str, bytes]:
    who = {"id": query_id, "tenant": "t", "request_id": "r", "priority": "interactive", "cache": "HIT"}
    return _encoded({"kind": "hit", "at": str(at), "caller": json.dumps(who), "answer": json.dumps(FACTS | facts)})


def _encoded(fields: dict[str, str]) -> dict[str, bytes]:
    return {name: value.encode() for name, value in fields.items()}
