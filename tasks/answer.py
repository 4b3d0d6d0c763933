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
from providers.abort import AbortSignal
from providers.chain import Chain, Outcome
from routing.catalogue import Catalogue
from routing.errors import RouterError
from routing.query import Query
from routing.tier import Tier
from storage.answer import Answer, AnswerCache
from storage.job import Claim
from storage.ledger import Ending, Ledger
from tasks.ending import charges, failed_ending, late_ending

log = logging.getLogger(__name__)

RETRY_S = 1.0
BASELINE_TIER = "complex"  # savings are measured against sending every query to its first target


class Leases(Protocol):
    """Keeps claims alive while their work goes on."""

    def hold(self, claim: Claim) -> AbortSignal: ...

    def drop(self, claim: Claim) -> None: ...


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers the jobs of a tier, whose turn it is. `cache` is the answers' Redis where that is not the ledger's own;
    `records_text` lets the text of answers travel to the record.

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

    def answer(self, tier: str) -> str:
        """Run the tier's next job; returns its id and how it ended, or `none` where nobody waits."""
        claim = self._claim(tier)
        if claim is None:
            return "none"
        signal = self.leases.hold(claim)
        try:
            with log_context(job_id=claim.job_id, request_id=claim.payload["request_id"], tier=tier):
                return f"{claim.job_id} {self._finish(claim, self.run(claim, signal))}"
        finally:
            self.leases.drop(claim)

    def _claim(self, tier: str) -> Claim | None:
        """The next job. Where a reply was lost it is asked for again, under the same token."""
        token, give_up = uuid4().hex, time.monotonic() + self.ledger.limits.lease_ms / 1000
        while True:
            try:
                return self.ledger.claim(tier, token, self.worker)
            except RedisError:
                if time.monotonic() > give_up:
                    raise
                self.sleep(RETRY_S)

    def run(self, claim: Claim, signal: AbortSignal) -> Ending:
        """Walk the targets for a claimed job. No lock, session or script is held meanwhile."""
        routing = claim.payload["routing"]
        if claim.remaining_ms <= 0:
            return late_ending(claim.tier, routing)
        query, tier = Query(**claim.payload["query"]), self.tiers[claim.tier]
        deadline = time.monotonic() + claim.remaining_ms / 1000
        is_interactive = claim.payload["priority"] == "interactive"
        try:
            outcome = self.chain.answer(query, tier, deadline=deadline, signal=signal, is_interactive=is_interactive)
        except RouterError as error:
            return failed_ending(error, tier.name, routing)
        return self._completed(outcome, tier, claim.payload)

    def _completed(self, outcome: Outcome, tier: Tier, payload: dict[str, Any]) -> Ending:
        completion, routing = outcome.completion, payload["routing"]
        answer = Answer.from_completion(
            completion,
            tier=tier.name,
            target=outcome.target,
            cost_usd=sum(attempt.cost_usd for attempt in outcome.attempts),
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
            **charges(attempts),
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
                self.sleep(RETRY_S)

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
