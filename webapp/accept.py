"""The story of a request: look in the cache, join or become a job, ring the queue, wait for the end."""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace

import orjson
from redis import RedisError

from routing.fingerprint import fingerprint
from storage.answer import SHARED, Answer, owned
from storage.api_key import KeyLimits
from storage.job import Acceptance, Draft, Job
from webapp.ask import NO_KEYS_NOW, Ask
from webapp.draft import CACHE_HEADERS, caller_facts, make_draft
from webapp.inline import NotTaken
from webapp.problem import Problem
from webapp.refusal import over_rate, refused
from webapp.service import Services

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the caller gets: an answer now, or a job to poll (`job`, where it was just seen). `cache` is X-Cache."""

    cache: str
    answer: Answer | None = None
    job: Job | None = None
    is_paid: bool = False
    is_degraded: bool = False
    is_repeat: bool = False


def answer_key_of(ask: Ask, parts: Services) -> str:
    """Under which its answer is cached, and its flight known."""
    tenant = SHARED if parts.settings.share_cache else ask.caller.tenant
    return owned(tenant, fingerprint(ask.query, tenant=tenant, policy=parts.policy))


def hit_facts(ask: Ask) -> bytes:
    """What the record of a hit needs to know of its caller; JSON."""
    text = {"text": ask.query.text} if ask.is_text_recorded else {}
    return orjson.dumps(caller_facts(ask) | {"cache": "HIT"} | text)


def accept(ask: Ask, parts: Services) -> Outcome:
    """Answer the query now, or take it in as a job. Raises Problem where neither can be."""
    if ask.is_idempotent and (outcome := _repeat(ask, parts)):
        return outcome
    key = answer_key_of(ask, parts)
    try:
        if found := _find(ask, key, parts):
            if ask.is_idempotent:
                parts.ledger.keep_hit(make_draft(ask, key, parts), found)
            return Outcome("HIT", answer=Answer.decode(found))
    except RedisError as error:
        return answer_inline(make_draft(ask, key, parts), ask, parts, error)
    return _enter(ask, draft_of_miss(ask, key, parts), parts)


def draft_of_miss(ask: Ask, key: str, parts: Services) -> Draft:
    """What becomes of a query that is not in the cache. Raises Problem where that is nothing."""
    if ask.cache_mode == "only":
        raise Problem("not_cached", "The answer is not in the cache, and cache.mode is `only`.")
    return make_draft(ask, key, parts)


def _enter(ask: Ask, draft: Draft, parts: Services) -> Outcome:
    try:
        accepted = parts.ledger.accept(draft)
    except RedisError as error:
        return after_lost_entry(ask, draft, parts, error)
    return _follow_up(ask, draft, accepted, parts)


def after_lost_entry(ask: Ask, draft: Draft, parts: Services, error: Exception) -> Outcome:
    """Redis has not said whether it took the job in: it may have, only too late to say so."""
    if ask.is_idempotent:  # then it stands: who asks again with the key finds it
        raise Problem("redis_unavailable", NO_KEYS_NOW, retry_after=1) from None
    if parts.withdrawals.withdraw(draft.id):
        return _answer_taken_back(draft, ask, parts, error)
    return _wait(ask, CACHE_HEADERS[ask.cache_mode], parts)


def _repeat(ask: Ask, parts: Services) -> Outcome | None:
    """The job that this Idempotency-Key already stands for."""
    try:
        job = parts.ledger.job(ask.id)
        wait_ms = parts.ledger.count_request(rate) if job and (rate := ask.caller.rate) else None
    except RedisError:
        raise Problem("redis_unavailable", NO_KEYS_NOW, retry_after=1) from None
    if job is None:
        return None
    if wait_ms:
        raise over_rate(wait_ms)
    cache = "HIT" if job.is_hit else "COALESCED" if job.leader else "MISS"
    return replace(_wait(ask, cache, parts, job.leader), is_repeat=True)


def _find(ask: Ask, key: str, parts: Services) -> bytes | None:
    """The cached answer. The request is counted and a hit recorded with the look-up, or right after it where the
    cache is apart.
    """
    rate, caller = ask.caller.rate, hit_facts(ask)
    if parts.cache is None and ask.may_read_cache:
        found = parts.ledger.find(key, caller, rate)
        if isinstance(found, int):
            raise over_rate(found)
        return found
    if rate and (wait_ms := parts.ledger.count_request(rate)):
        raise over_rate(wait_ms)
    kept = parts.cache.get(key) if parts.cache and ask.may_read_cache else None
    if kept:
        try:
            parts.ledger.record_hit(caller, kept)
        except RedisError as error:
            log.warning("hit.unrecorded", extra={"query_id": ask.id, "error": type(error).__name__})
    return kept


def _follow_up(ask: Ask, draft: Draft, accepted: Acceptance, parts: Services) -> Outcome:
    match accepted.kind:
        case "hit":
            found = accepted.answer or b""
            if ask.is_idempotent:
                with suppress(RedisError):  # then it is looked up again
                    parts.ledger.keep_hit(draft, found)
            return Outcome("HIT", answer=Answer.decode(found))
        case "follower":
            return _wait(ask, "COALESCED", parts, leader=accepted.job_id)
        case "leader":
            return _ring(ask, draft, parts, accepted.needs_message)
        case _:
            raise refused(draft, accepted, parts)


def _ring(ask: Ask, draft: Draft, parts: Services, needs_message: bool) -> Outcome:
    if needs_message:
        try:
            parts.dispatcher.ring(draft.id, draft.tier, draft.priority)
        except RedisError as error:
            return after_lost_message(ask, draft, parts, error)
    return _wait(ask, CACHE_HEADERS[ask.cache_mode], parts)


def after_lost_message(ask: Ask, draft: Draft, parts: Services, error: Exception) -> Outcome:
    """The job was taken in, but nobody may have been told so. It is answered here only if it is surely taken back:
    its message may yet arrive, and a worker would answer it, too.
    """
    is_taken_back = False
    if _why_not_inline(ask) is None and parts.inline.has_room():
        with suppress(RedisError):
            is_taken_back = parts.ledger.withdraw(draft.id)
    if is_taken_back:
        return _answer_taken_back(draft, ask, parts, error)
    # The job stands, and the reaper rings for it.
    return _wait(ask, CACHE_HEADERS[ask.cache_mode], parts)


def _wait(ask: Ask, cache: str, parts: Services, leader: str | None = None) -> Outcome:
    if ask.wait_s <= 0:
        return Outcome(cache)
    try:
        job = parts.waiter.wait(ask.id, ask.wait_s, leader)
    except RedisError:
        return Outcome(cache)
    return outcome_of(job, ask, cache)


def outcome_of(job: Job | None, ask: Ask, cache: str) -> Outcome:
    """What a job comes to for one of its callers, as it is now. Raises Problem where it ended without an answer."""
    if job is None:
        detail = "The query was accepted, but Redis has lost it since. Ask again."
        raise Problem("redis_unavailable", detail, retry_after=1)
    if job.answer and job.status == "completed":
        return Outcome(cache, answer=Answer.decode(job.answer), is_paid=job.payer == job.id)
    if job.status == "cancelled":
        raise Problem("cancelled", "The query was cancelled.")
    if job.error and not job.is_open:
        raise Problem(**job.error)
    return Outcome(cache, job=job)


def _answer_taken_back(draft: Draft, ask: Ask, parts: Services, error: Exception) -> Outcome:
    """Answer here what Redis may have announced as accepted; where that cannot be, it has to end in the record."""
    try:
        return answer_inline(draft, ask, parts, error)
    except NotTaken as refusal:
        parts.inline.record_refusal(draft, refusal)
        raise


def _why_not_inline(ask: Ask) -> str | None:
    """What cannot be promised without Redis."""
    if ask.cache_mode == "only":
        return "The cache cannot be reached, and cache.mode is `only`."
    if ask.is_idempotent:
        return NO_KEYS_NOW
    if ask.caller.limits != KeyLimits():
        return "The limits of this API key are kept in Redis, which is away."
    return None


def answer_inline(draft: Draft, ask: Ask, parts: Services, error: Exception) -> Outcome:
    """Answer in this process, without Redis. Raises Problem where that cannot be, or no provider answers."""
    if refusal := _why_not_inline(ask):
        raise NotTaken("redis_unavailable", refusal, retry_after=1)
    log.warning("query.degraded", extra={"error": type(error).__name__})
    # Nobody can poll for this answer, so it may take as long as a request may wait, and no longer.
    limit_s = min(
        ask.deadline_s, parts.settings.max_wait_seconds, max(ask.wait_s, parts.settings.sync_wait_seconds or 1)
    )
    return Outcome("BYPASS", answer=parts.inline.answer(draft, limit_s), is_paid=True, is_degraded=True)
