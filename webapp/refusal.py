"""Why a query is not taken in, and when it is worth asking again."""

import math
import random
from collections.abc import Callable

from redis import RedisError

from storage.job import Acceptance, Draft
from webapp.problem import Problem
from webapp.service import Services

LEAST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
UNKNOWN_WAIT_S = 5.0
JITTER = (0.5, 1.5)  # so that those refused together do not all come back together

# Refusal → (problem, what there is to say). The number is a count for the first, ms for the limits of a key.
_BOUNDS = {
    "full": ("queue_full", "{number} queries of the tier `{tier}` are waiting already."),
    "tenant_full": ("tenant_queue_full", "{number} of your queries of the tier `{tier}` are waiting already."),
    "crowded": ("too_many_callers", "{number} callers are waiting for the answer to this query already."),
    "open_jobs": ("too_many_open_jobs", "This API key has as many open jobs as it may have."),
}
_LIMITS = {
    "tokens_day": ("token_limit_reached", "This API key may use no more tokens today (UTC)."),
    "budget_day": ("budget_spent", "The budget of this API key does not cover this query today (UTC)."),
    "budget_month": ("budget_spent", "The budget of this API key does not cover this query this month (UTC)."),
}


def refused(
    draft: Draft, accepted: Acceptance, parts: Services, uniform: Callable[[float, float], float] = random.uniform
) -> Problem:
    """The problem that answers a refusal of the ledger. `uniform` is chance."""
    if accepted.kind == "withdrawn":
        return Problem("redis_unavailable", "Redis was too late for this query; ask again.", retry_after=1)
    if accepted.kind == "backlog":
        detail = f"{accepted.number} events wait to be recorded. Is the recorder running, and its database reachable?"
        return Problem("recording_backlog", detail, retry_after=5)
    if accepted.kind in _LIMITS:
        code, detail = _LIMITS[accepted.kind]
        return Problem(code, detail, retry_after=_seconds(accepted.number))
    code, detail = _BOUNDS[accepted.kind]
    wait_s = _time_for_one(draft.tier, parts) * uniform(*JITTER)
    return Problem(code, detail.format(number=accepted.number, tier=draft.tier), retry_after=round(wait_s, 1))


def is_quick(draft: Draft, accepted: Acceptance, parts: Services) -> bool:
    """Whether `refused` says it without asking Redis."""
    return accepted.kind not in _BOUNDS or parts.lines.knows_drain_rate(draft.tier)


def over_rate(wait_ms: int) -> Problem:
    detail = "This API key has had its requests of this minute."
    return Problem("rate_limited", detail, retry_after=_seconds(wait_ms))


def _time_for_one(tier: str, parts: Services) -> float:
    """Seconds in which the tier, by its measured drain rate, ends one job."""
    try:
        rate = parts.lines.drain_rate_lately(tier)
    except RedisError:
        rate = None
    return min(MOST_WAIT_S, max(LEAST_WAIT_S, 1 / rate)) if rate else UNKNOWN_WAIT_S


def _seconds(ms: int) -> int:
    return max(1, math.ceil(ms / 1000))
