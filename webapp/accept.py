"""The story of a request: look in the cache, join or become a job, ring the queue, wait for the end."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from kombu.exceptions import OperationalError
from redis import RedisError

from routing.classifier import classify
from routing.fingerprint import fingerprint
from routing.query import Query
from storage.answer import Answer, owned
from storage.job import PRIORITIES, Acceptance, Draft, Job
from webapp.problem import Problem
from webapp.service import Services

log = logging.getLogger(__name__)

SHARED = "shared"  # whose the cached answers are where tenants share them
CACHE_HEADERS = {"default": "MISS", "bypass": "BYPASS", "refresh": "REFRESH", "only": "MISS"}


@dataclass(frozen=True, slots=True)
class Ask:
    """One validated request. `id` names the query from now on; durations in seconds."""

    id: str
    query: Query
    tenant: str
    request_id: str
    wait_s: float
    deadline_s: float
    priority: str
    cache_mode: str
    ttl_s: int
    is_text_recorded: bool = False

    @property
    def may_read_cache(self) -> bool:
        return self.cache_mode in ("default", "only")

    @property
    def may_write_cache(self) -> bool:
        return self.cache_mode in ("default", "refresh")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the caller gets: an answer now, or a job to poll (`job`, where it was just seen). `cache` is X-Cache."""

    cache: str
    answer: Answer | None = None
    job: Job | None = None
    is_degraded: bool = False


def accept(ask: Ask, parts: Services) -> Outcome:
    """Answer the query now, or take it in as a job. Raises Problem where neither can be."""
    tenant = SHARED if parts.settings.share_cache else ask.tenant
    key = owned(tenant, fingerprint(ask.query, tenant=tenant, policy=parts.policy))
    try:
        if found := _find(ask, key, parts):
            return Outcome("HIT", answer=Answer.decode(found))
    except RedisError as error:
        return _answer_inline(_draft(ask, key, parts), ask, parts, error)
    if ask.cache_mode == "only":
        raise Problem("not_cached", "The answer is not in the cache, and cache.mode is `only`.")
    draft = _draft(ask, key, parts)
    try:
        accepted = parts.ledger.accept(draft)
    except RedisError as error:
        # Redis may have taken the job in all the same, only too late to say so.
        if parts.withdrawals.withdraw(draft.id):
            return _answer_inline(draft, ask, parts, error)
        return _wait(ask, CACHE_HEADERS[ask.cache_mode], parts)
    return _follow_up(ask, draft, accepted, parts)


def _find(ask: Ask, key: str, parts: Services) -> bytes | None:
    """The cached answer; its use is recorded with the look-up, or right after it where the cache is apart."""
    if not ask.may_read_cache:
        return None
    caller = orjson.dumps(_caller(ask) | {"cache": "HIT"})
    if parts.cache is None:
        return parts.ledger.find(key, caller)
    found = parts.cache.get(key)
    if found:
        try:
            parts.ledger.record_hit(caller, found)
        except RedisError as error:
            log.warning("hit.unrecorded", extra={"query_id": ask.id, "error": type(error).__name__})
    return found


def _caller(ask: Ask) -> dict[str, Any]:
    text = {"text": ask.query.text} if ask.is_text_recorded else {}
    return {
        "id": ask.id,
        "tenant": ask.tenant,
        "request_id": ask.request_id,
        "priority": ask.priority,
        **text,
    }


def _draft(ask: Ask, key: str, parts: Services) -> Draft:
    judged = classify(ask.query.text, parts.thresholds)
    tier = ask.query.tier or judged.tier
    if not parts.tiers[tier].targets:
        detail = "No provider is configured: set GROQ_API_KEY or TOGETHER_API_KEY, or LOCAL_MODEL=on."
        raise Problem("no_provider", detail)
    routing = {"score": judged.score, "words": judged.words, "signals": [s.name for s in judged.signals]}
    payload = {
        "query": asdict(ask.query),
        "tenant": ask.tenant,
        "request_id": ask.request_id,
        "routing": routing,
        "cache": {"fingerprint": key, "ttl_ms": ask.ttl_s * 1000} if ask.may_write_cache else None,
    }
    caller = {
        "cache": CACHE_HEADERS[ask.cache_mode],
        "tier": tier,
        "score": judged.score,
        "words": judged.words,
    }
    return Draft(
        id=ask.id,
        tier=tier,
        priority=PRIORITIES[ask.priority],
        fingerprint=key,
        coalesce=ask.cache_mode == "default",
        deadline_ms=int(ask.deadline_s * 1000),
        payload=orjson.dumps(payload),
        caller=orjson.dumps(_caller(ask) | caller),
    )


def _follow_up(ask: Ask, draft: Draft, accepted: Acceptance, parts: Services) -> Outcome:
    match accepted.kind:
        case "hit":
            return Outcome("HIT", answer=Answer.decode(accepted.answer or b""))
        case "full" | "backlog":
            raise _refusal(draft, accepted, parts)
        case "follower":
            return _wait(ask, "COALESCED", parts, leader=accepted.job_id)
        case _:
            return _ring(ask, draft, parts)


def _ring(ask: Ask, draft: Draft, parts: Services) -> Outcome:
    try:
        parts.dispatcher.ring(draft.id, draft.tier, draft.priority)
    except OperationalError as error:
        if parts.inline.has_room() and parts.withdrawals.withdraw(draft.id):
            return _answer_inline(draft, ask, parts, error)
        # The job stands, and the reaper rings for it.
    return _wait(ask, CACHE_HEADERS[ask.cache_mode], parts)


def _wait(ask: Ask, cache: str, parts: Services, leader: str | None = None) -> Outcome:
    if ask.wait_s <= 0:
        return Outcome(cache)
    try:
        job = parts.waiter.wait(ask.id, ask.wait_s, leader)
    except RedisError:
        return Outcome(cache)
    if job is None:
        detail = "The query was accepted, but Redis has lost it since. Ask again."
        raise Problem("redis_unavailable", detail, retry_after=1)
    if job.answer and job.status == "completed":
        return Outcome(cache, answer=Answer.decode(job.answer))
    if job.error and not job.is_open:
        raise Problem(**job.error)
    return Outcome(cache, job=job)


def _refusal(draft: Draft, accepted: Acceptance, parts: Services) -> Problem:
    if accepted.kind == "backlog":
        detail = f"{accepted.depth} events wait to be recorded. Is the recorder running, and its database reachable?"
        return Problem("recording_backlog", detail, retry_after=5)
    try:
        rate = parts.ledger.drain_rate(draft.tier)
    except RedisError:
        rate = None
    retry_after = min(60.0, max(1.0, 1 / rate)) if rate else 5.0
    detail = f"{accepted.depth} queries of the tier `{draft.tier}` are waiting already."
    return Problem("queue_full", detail, retry_after=round(retry_after, 1))


def _answer_inline(draft: Draft, ask: Ask, parts: Services, error: Exception) -> Outcome:
    if ask.cache_mode == "only":
        raise Problem("redis_unavailable", "The cache cannot be reached, and cache.mode is `only`.", retry_after=1)
    log.warning("query.degraded", extra={"error": type(error).__name__})
    # Nobody can poll for this answer, so it may take as long as a request may wait, and no longer.
    limit_s = min(
        ask.deadline_s, parts.settings.max_wait_seconds, max(ask.wait_s, parts.settings.sync_wait_seconds or 1)
    )
    return Outcome("BYPASS", answer=parts.inline.answer(draft, limit_s), is_degraded=True)
