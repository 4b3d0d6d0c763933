"""How jobs end without an answer: what the caller is told, what is recorded, and whether it may be replayed."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from routing.errors import AllTargetsFailed, CallAborted, NoTargets, RouterError
from storage.ledger import Ending

log = logging.getLogger(__name__)

CALLERS_FAULTS = {"provider_query_rejected", "provider_prompt_too_long"}
"""Codes of failures that a replay would only repeat: these are no dead letters."""


def late_ending(tier: str, routing: Mapping[str, Any], tries: Sequence[dict[str, Any]] = ()) -> Ending:
    """The ending of a job whose deadline passed before it had an answer."""
    detail = "The deadline passed before the query could be answered. Allow more time, or add workers for this tier."
    return _ending("expired", "expired", detail, facts_of(tier, routing, "expired", tries), tries=tries)


def dead_ending(tier: str, runs: int, routing: Mapping[str, Any]) -> Ending:
    """The ending of a job that took its worker down, or lost it, every time."""
    detail = f"The worker was lost {runs} times while it ran this query, so it is not tried again."
    return _ending("dead", "dead", detail, facts_of(tier, routing, "dead"), is_dead_letter=True)


def cancelled_ending(tier: str, routing: Mapping[str, Any]) -> Ending:
    """The ending of a cancelled job whose worker is gone, too."""
    return Ending("cancelled", facts_of(tier, routing, "cancelled"))


def failed_ending(error: RouterError, tier: str, routing: Mapping[str, Any]) -> Ending:
    """The ending of a job that no target answered.

    A run is aborted where its job was taken over or cancelled, and then the ledger has the last word; or where the
    ledger holds it for overdue.
    """
    tries = [a.as_dict() for a in error.attempts] if isinstance(error, AllTargetsFailed) else []
    code, retry_after = error.code, None
    if isinstance(error, AllTargetsFailed):
        if isinstance(error.last, CallAborted):
            return late_ending(tier, routing, tries)
        code, retry_after = f"provider_{error.last.code}", error.last.retry_after
    if isinstance(error, NoTargets):
        log.error("job.no_provider")
    facts = facts_of(tier, routing, code, tries)
    is_dead = code not in CALLERS_FAULTS
    return _ending("failed", code, str(error), facts, tries=tries, retry_after=retry_after, is_dead_letter=is_dead)


def facts_of(
    tier: str, routing: Mapping[str, Any], code: str, tries: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What the record needs of a query that got no answer."""
    return {
        "tier": tier,
        "score": routing["score"],
        "words": routing["words"],
        "error_code": code,
        "provider_ms": sum(attempt["latency_ms"] for attempt in tries) if tries else None,
    }


def charges(tries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the attempts put on the key's account: also what may have been billed, or a budget could be overrun."""
    return {
        "charge_usd": sum(a["cost_usd"] + a.get("possible_cost_usd", 0.0) for a in tries),
        "charge_tokens": sum((a["usage"] or {}).get("total_tokens", 0) + a.get("possible_tokens", 0) for a in tries),
    }


def _ending(
    status: str,
    code: str,
    detail: str,
    facts: dict[str, Any],
    *,
    tries: Sequence[dict[str, Any]] = (),
    retry_after: float | None = None,
    is_dead_letter: bool = False,
) -> Ending:
    error = {"code": code, "detail": detail, "retry_after": retry_after}
    return Ending(status, facts, tries, error=error, is_dead_letter=is_dead_letter, **charges(tries))
