"""The story of a worker: claim a job, walk its tier's targets, finish it once."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from redis import RedisError

from clock import now_ms
from logs import log_context
from providers.chain import Chain, Outcome
from routing.catalogue import Catalogue
from routing.errors import AllTargetsFailed, NoTargets, RouterError
from routing.query import Query
from routing.tier import Tier
from storage.answer import Answer, AnswerCache
from storage.job import Claim
from storage.ledger import Ending, Ledger

log = logging.getLogger(__name__)

FINISH_RETRY_S = 1.0
BASELINE_TIER = "complex"  # savings are measured against sending every query to its first target


class Leases(Protocol):
    """Keeps claims alive while their work goes on."""

    def hold(self, claim: Claim) -> None: ...

    def drop(self, claim: Claim) -> None: ...

    def is_held(self, claim: Claim) -> bool: ...


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers jobs by id. `cache` is the answers' Redis where that is not the ledger's own; `records_text` lets the
    text of answers travel to the record.

    `now_ms` is Unix time in ms, `sleep` waits between tries to finish while Redis is away.
    """

    ledger: Ledger
    chain: Chain
    tiers: Mapping[str, Tier]
    catalogue: Catalogue
    leases: Leases
    worker: str
    cache: AnswerCache | None = None
    records_text: bool = False
    now_ms: Callable[[], int] = now_ms
    sleep: Callable[[float], None] = time.sleep

    def answer(self, job_id: str) -> str:
        """Run one job; returns how it ended, or why it was left alone. Safe to call twice for the same job."""
        claim = self.ledger.claim(job_id, uuid4().hex, self.worker)
        if isinstance(claim, str):
            log.info("job.skipped", extra={"job_id": job_id, "status": claim})
            return claim
        self.leases.hold(claim)
        try:
            with log_context(job_id=job_id, request_id=claim.payload["request_id"], tier=claim.tier):
                ending = self.run(claim)
                return self._finish(claim, ending)
        finally:
            self.leases.drop(claim)

    def run(self, claim: Claim) -> Ending:
        """Walk the targets for a claimed job. No lock, session or script is held meanwhile."""
        if claim.remaining_ms <= 0:
            return late_ending(claim.tier, claim.payload["routing"])
        query, tier = Query(**claim.payload["query"]), self.tiers[claim.tier]
        deadline = time.monotonic() + claim.remaining_ms / 1000
        wanted = lambda: self.leases.is_held(claim)  # noqa: E731
        try:
            outcome = self.chain.answer(query, tier, deadline=deadline, is_wanted=wanted)
        except RouterError as error:
            return _failed(error, tier.name, claim.payload["routing"])
        return self._completed(outcome, tier, claim.payload)

    def _completed(self, outcome: Outcome, tier: Tier, payload: dict[str, Any]) -> Ending:
        completion, routing = outcome.completion, payload["routing"]
        answer = Answer.from_completion(
            completion,
            tier=tier.name,
            target=outcome.target,
            cost_usd=self.catalogue.cost_usd(outcome.target, completion.usage, tier),
            baseline_usd=self._baseline_usd(outcome),
            score=routing["score"],
            words=routing["words"],
            signals=tuple(routing["signals"]),
            stored_at=self.now_ms(),
        )
        attempts = [attempt.as_dict() for attempt in outcome.attempts]
        provider_ms = sum(attempt.latency_ms for attempt in outcome.attempts)
        text = {"answer_text": answer.response} if self.records_text else {}
        return Ending(
            status="completed",
            answer=answer.encode(text),
            facts={**answer.facts, "provider_ms": provider_ms, **text},
            attempts=attempts,
            cache=_cache_entry(outcome, tier, payload["cache"]),
        )

    def _baseline_usd(self, outcome: Outcome) -> float:
        tier = self.tiers[BASELINE_TIER]
        target = tier.targets[0] if tier.targets else outcome.target
        return self.catalogue.cost_usd(target, outcome.completion.usage, tier)

    def _finish(self, claim: Claim, ending: Ending) -> str:
        """Write the ending down; while Redis is away, keep it and try again until nobody can want it any more."""
        give_up = time.monotonic() + max(claim.remaining_ms, self.ledger.limits.lease_ms * 2) / 1000
        while True:
            try:
                return self._finish_once(claim, ending)
            except RedisError as error:
                if time.monotonic() > give_up:
                    log.exception("job.unfinished")
                    return "unfinished"
                log.warning("job.finish_delayed", extra={"error": type(error).__name__})
                self.sleep(FINISH_RETRY_S)

    def _finish_once(self, claim: Claim, ending: Ending) -> str:
        if self.cache and ending.cache:
            self.cache.put(ending.cache[0], ending.answer, ending.cache[1])
        if not self.ledger.finish(claim.job_id, claim.token, ending):
            log.warning("job.overtaken", extra={"run": claim.run})
            return "overtaken"
        tried = [f"{a['provider']}:{a['model']} {a['outcome']}" for a in ending.attempts]
        fields = {"status": ending.status, "run": claim.run, "attempts": tried}
        fields["error_code"] = ending.error["code"] if ending.error else None
        log.log(logging.WARNING if ending.error else logging.INFO, "job.ended", extra=fields)
        return ending.status


def _cache_entry(outcome: Outcome, tier: Tier, cache: Mapping[str, Any] | None) -> tuple[str, int] | None:
    """Where to keep the answer, if it may be kept. One cut at the cap of a fallback is not: the first target may say
    more. Cut at the first target's cap, the same query would be cut there again.
    """
    finish = outcome.completion.finish_reason
    is_best = finish == "stop" or (finish == "length" and outcome.target == tier.targets[0])
    return (cache["fingerprint"], cache["ttl_ms"]) if cache and is_best else None


def late_ending(tier: str, routing: Mapping[str, Any]) -> Ending:
    """The ending of a job whose deadline passed before any worker could take it."""
    detail = "The deadline passed before the query could be answered. Allow more time, or add workers for this tier."
    return _ending("expired", "expired", detail, tier, routing)


def dead_ending(tier: str, runs: int, routing: Mapping[str, Any]) -> Ending:
    """The ending of a job that took its worker down, or lost it, every time."""
    detail = f"The worker was lost {runs} times while it ran this query, so it is not tried again."
    return _ending("dead", "dead", detail, tier, routing)


def _failed(error: RouterError, tier: str, routing: Mapping[str, Any]) -> Ending:
    tries = [a.as_dict() for a in error.attempts] if isinstance(error, AllTargetsFailed) else []
    code, retry_after = error.code, None
    if isinstance(error, AllTargetsFailed):
        code, retry_after = f"provider_{error.last.code}", error.last.retry_after
    if isinstance(error, NoTargets):
        log.error("job.no_provider")
    return _ending("failed", code, str(error), tier, routing, attempts=tries, retry_after=retry_after)


def _ending(
    status: str,
    code: str,
    detail: str,
    tier: str,
    routing: Mapping[str, Any],
    *,
    attempts: list[dict[str, Any]] | None = None,
    retry_after: float | None = None,
) -> Ending:
    tries = attempts or []
    facts = {
        "tier": tier,
        "score": routing["score"],
        "words": routing["words"],
        "error_code": code,
        "provider_ms": sum(attempt["latency_ms"] for attempt in tries) if tries else None,
    }
    error = {"code": code, "detail": detail, "retry_after": retry_after}
    return Ending(status=status, facts=facts, attempts=tries, error=error)
