"""Usage-stream entries turned into rows: what happened becomes queries, attempts and events.

Ids follow from what happened (`<query>.completed`, `<job>.attempt.2`), so an entry delivered twice makes the same rows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from storage.histogram import bucket_of

SCHEMA_VERSION = 1
ANALYTICS_TOPIC = "router.query-analytics"
USAGE_TOPIC = "router.usage-log"
TOPICS = (ANALYTICS_TOPIC, USAGE_TOPIC)
ALERTS = ("breaker_opened", "breaker_closed", "key_rejected", "key_restored", "model_gone")
LONGEST_KEY = 64  # of an event, as the table and the topic have it

Row = dict[str, Any]


@dataclass(slots=True)
class Rows:
    """Rows to write together. `opened` never replaces what is there, `ended` always does.

    Without `keeps_answers` the text of answers is left out, also where an entry brings it: a cached answer may be older
    than the choice not to record it.
    """

    opened: list[Row] = field(default_factory=list)
    ended: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    keeps_answers: bool = False

    def add(self, entry: Mapping[str, bytes]) -> None:
        """Expand one stream entry. Raises KeyError or ValueError on an entry that is none of ours."""
        _EXPANDERS[entry["kind"].decode()](entry, self)

    def answer_text(self, facts: Row) -> str | None:
        return facts.get("answer_text") if self.keeps_answers else None


def rows_of(entries: Iterable[Mapping[str, bytes]], *, keeps_answers: bool = False) -> Rows:
    rows = Rows(keeps_answers=keeps_answers)
    for entry in entries:
        rows.add(entry)
    return rows


def _expand_accepted(entry: Mapping[str, bytes], rows: Rows) -> None:
    caller, job_id, at = orjson.loads(entry["caller"]), entry["job"].decode(), _time(entry["at"])
    query = _query(caller, job_id, at) | _text(entry)
    rows.opened.append(query | {"status": "queued"})
    facts = {k: query[k] for k in ("tier", "score", "words", "cache", "priority")}
    rows.events.append(_event("query.accepted", query, job_id, at, facts))


def _expand_hit(entry: Mapping[str, bytes], rows: Rows) -> None:
    caller, answer, at = orjson.loads(entry["caller"]), orjson.loads(entry["answer"]), _time(entry["at"])
    routing, provider, model = _routing(answer), answer["provider"], answer["model"]
    query = _query({**caller, **routing}, caller["id"], at)
    query["cache"], query["status"], query["ended_at"] = "HIT", "completed", at
    query["provider"], query["model"], query["baseline_usd"] = provider, model, answer["baseline_usd"]
    query["answer_text"] = rows.answer_text(answer)
    rows.ended.append(query)
    facts = {**routing, "provider": provider, "model": model, "cost_usd": 0.0}
    rows.events.append(_event("query.cache_hit", query, caller["id"], at, facts))
    rows.events.append(_usage_event(query, caller["id"], at))


def _expand_ended(entry: Mapping[str, bytes], rows: Rows) -> None:
    job_id, at, facts = entry["job"].decode(), _time(entry["at"]), orjson.loads(entry["facts"])
    tries = [{**a, "number": n} for n, a in enumerate(orjson.loads(entry["attempts"]), 1)]
    status = entry["status"].decode()
    if status == "cancelled":
        facts["error_code"] = "cancelled"  # and not how its last call ended
    callers = orjson.loads(entry["callers"])
    payer, life = entry.get("payer", entry["job"]).decode(), int(entry.get("replays", 0))
    for asked in callers:
        query = _ended_query(asked, job_id, at, status, facts, tries) | _text(entry)
        if query["id"] == payer:
            query |= _bill(facts, tries)
        query["queued_ms"] = max(0, int(entry["started_at"]) - asked["at"])
        query["answer_text"] = rows.answer_text(facts)
        rows.ended.append(query)
        rows.events.append(_event(f"query.{status}", query, job_id, at, _ended_facts(query, facts), life=life))
        if status == "completed":
            rows.events.append(_usage_event(query, job_id, at))
    tenant = callers[0]["caller"]["tenant"] if callers else ""
    for attempt in tries:
        rows.attempts.append(_attempt(attempt, job_id, tenant, facts["tier"]))
        rows.events.append(_attempt_event(attempt, job_id, tenant, at))


def _expand_left(entry: Mapping[str, bytes], rows: Rows) -> None:
    """A caller that cancelled while the job went on for others."""
    asked, job_id, at = orjson.loads(entry["caller"]), entry["job"].decode(), _time(entry["at"])
    query = _ended_query(asked, job_id, at, "cancelled", {"error_code": "cancelled"}, []) | _text(entry)
    rows.ended.append(query)
    rows.events.append(_event("query.cancelled", query, job_id, at, _ended_facts(query, {"error_code": "cancelled"})))


def _expand_replayed(entry: Mapping[str, bytes], rows: Rows) -> None:
    job_id, at, life = entry["job"].decode(), _time(entry["at"]), int(entry["replays"])
    tenant = entry["tenant"].decode()
    facts = {"job_id": job_id, "tenant": tenant, "tier": entry["tier"].decode(), "replays": life}
    event = _envelope(f"{job_id}.replayed.{life}", "query.replayed", ANALYTICS_TOPIC, job_id, at, facts)
    rows.events.append(event)


def _expand_alert(entry: Mapping[str, bytes], rows: Rows) -> None:
    """What happened to a lane. It is nobody's query, so it has no job and no tenant."""
    kind, target, key_id = (entry[name].decode() for name in ("alert", "target", "key_id"))
    if kind not in ALERTS:
        raise ValueError(f"no such alert: {kind}")
    provider, _, model = target.partition(":")
    facts = {"provider": provider, "model": model, "key_id": key_id, **orjson.loads(entry["facts"])}
    key = target[:LONGEST_KEY]
    event_id = f"{key}#{key_id}.{kind}.{int(entry['at'])}"
    rows.events.append(_envelope(event_id, f"provider.{kind}", ANALYTICS_TOPIC, key, _time(entry["at"]), facts))


_EXPANDERS = {
    "accepted": _expand_accepted,
    "hit": _expand_hit,
    "ended": _expand_ended,
    "left": _expand_left,
    "replayed": _expand_replayed,
    "alert": _expand_alert,
}


def _text(entry: Mapping[str, bytes]) -> Row:
    """The query's text, where it is recorded: once an entry, however many callers have asked the same."""
    return {"query_text": entry["text"].decode() if entry.get("text") else None}


def _query(caller: Row, job_id: str, at: datetime) -> Row:
    """What is known of a query when it comes in; a follower's own id differs from the job it joined."""
    return {
        "id": caller["id"],
        "job_id": job_id,
        "tenant": caller["tenant"],
        "request_id": caller["request_id"],
        "cache": caller["cache"] if caller["id"] == job_id else "COALESCED",
        "tier": caller["tier"],
        "priority": caller["priority"],
        "score": caller["score"],
        "words": caller["words"],
        "provider": None,
        "model": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "cost_usd": 0.0,
        "baseline_usd": 0.0,
        "latency_ms": None,
        "latency_bucket": None,
        "queued_ms": None,
        "provider_ms": None,
        "attempts": 0,
        "error_code": None,
        "is_degraded": caller.get("degraded", False),
        "api_key": caller.get("key") or None,
        "query_text": caller.get("text"),
        "answer_text": None,
        "created_at": at,
        "ended_at": None,
    }


def _ended_query(asked: Row, job_id: str, at: datetime, status: str, facts: Row, tries: list[Row]) -> Row:
    query = _query(asked["caller"], job_id, _time(asked["at"]))
    latency_ms = max(0.0, (at - query["created_at"]).total_seconds() * 1000)
    query |= {"status": status, "ended_at": at, "error_code": facts.get("error_code"), "attempts": len(tries)}
    query |= {"latency_ms": latency_ms, "latency_bucket": bucket_of(latency_ms)}
    query |= {k: facts.get(k) for k in ("provider", "model", "provider_ms")}
    query["baseline_usd"] = facts.get("baseline_usd", 0.0)
    return query


def _bill(facts: Row, tries: list[Row]) -> Row:
    """What a job took, failed calls included. It is paid for once, by one of its callers; the others pay nothing."""
    usage = facts.get("usage") or {}
    spent = sum(attempt.get("cost_usd", 0.0) for attempt in tries)
    return {"cost_usd": spent, **{k: usage.get(k) for k in ("prompt_tokens", "completion_tokens")}}


def _ended_facts(query: Row, facts: Row) -> Row:
    names = (
        "tier",
        "cache",
        "provider",
        "model",
        "latency_ms",
        "queued_ms",
        "provider_ms",
        "cost_usd",
        "attempts",
    )
    return {name: query[name] for name in names} | {"error_code": facts.get("error_code")}


def _routing(answer: Row) -> Row:
    return {name: answer[name] for name in ("tier", "score", "words")}


def _usage_event(query: Row, job_id: str, at: datetime) -> Row:
    facts = {
        "tier": query["tier"],
        "model": query["model"],
        "provider": query["provider"],
        "prompt_tokens": query["prompt_tokens"] or 0,
        "completion_tokens": query["completion_tokens"] or 0,
        "cost_usd": query["cost_usd"],
        "cached": query["cache"] == "HIT",
    }
    return _event("usage.recorded", query, job_id, at, facts, topic=USAGE_TOPIC)


def _event(
    kind: str, query: Row, job_id: str, at: datetime, facts: Row, *, topic: str = ANALYTICS_TOPIC, life: int = 0
) -> Row:
    """`life` counts the replays of a dead letter: each may end in its own way."""
    who = {
        "query_id": query["id"],
        "job_id": job_id,
        "tenant": query["tenant"],
        "request_id": query["request_id"],
    }
    who.update(facts)
    if query["query_text"] is not None:
        who["query_text"] = query["query_text"]
    name = f"{query['id']}.{kind.split('.')[1]}" + (f".{life}" if life else "")
    return _envelope(name, kind, topic, job_id, at, who)


def _attempt_event(attempt: Row, job_id: str, tenant: str, at: datetime) -> Row:
    facts = {"job_id": job_id, "tenant": tenant} | {k: v for k, v in attempt.items() if k != "said"}
    name = "provider.attempt"
    return _envelope(f"{job_id}.attempt.{attempt['number']}", name, ANALYTICS_TOPIC, job_id, at, facts)


def _envelope(event_id: str, kind: str, topic: str, key: str, at: datetime, facts: Row) -> Row:
    payload = {
        "schema_version": SCHEMA_VERSION,
        "event_id": event_id,
        "type": kind,
        "occurred_at": _spelled(at),
        **facts,
    }
    return {
        "event_id": event_id,
        "type": kind,
        "topic": topic,
        "key": key,
        "tenant": facts.get("tenant") or None,
        "payload": payload,
        "occurred_at": at,
        "published_at": None,
    }


def _attempt(attempt: Row, job_id: str, tenant: str, tier: str) -> Row:
    usage = attempt.get("usage") or {}
    return {
        "job_id": job_id,
        "number": attempt["number"],
        "tenant": tenant,
        "tier": tier,
        "provider": attempt.get("provider"),
        "model": attempt.get("model"),
        "outcome": attempt["outcome"],
        "http_status": attempt.get("status"),
        "detail": attempt.get("detail"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cost_usd": attempt.get("cost_usd", 0.0),
        "possible_cost_usd": attempt.get("possible_cost_usd", 0.0),
        "billing": attempt.get("billing"),
        "latency_ms": attempt.get("latency_ms"),
        "started_at": _time(attempt["started_at"]),
    }


# Many entries are of the same moment, and all that is made of one entry is.
@lru_cache(256)
def _time(ms: bytes | int) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)


@lru_cache(256)
def _spelled(at: datetime) -> str:
    return at.isoformat()
