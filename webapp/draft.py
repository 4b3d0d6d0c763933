"""A query on its way to become a job: what its worker, its record and its account need to know."""

from typing import Any

import orjson

from routing.catalogue import load_catalogue
from routing.classifier import classify
from routing.estimate import estimate_prompt_tokens
from routing.query import Usage
from routing.tier import Tier
from storage.job import PRIORITIES, Draft
from storage.quota import Quota
from webapp.ask import Ask
from webapp.problem import Problem
from webapp.service import Services

CACHE_HEADERS = {"default": "MISS", "bypass": "BYPASS", "refresh": "REFRESH", "only": "MISS"}


def caller_facts(ask: Ask) -> dict[str, Any]:
    return {
        "id": ask.id,
        "tenant": ask.caller.tenant,
        "key": ask.caller.key_id,
        "request_id": ask.request_id,
        "priority": ask.priority,
    }


def make_draft(ask: Ask, key: str, parts: Services) -> Draft:
    judged = classify(ask.query.text, parts.thresholds)
    tier = ask.query.tier or judged.tier
    if not parts.tiers[tier].targets:
        detail = "No provider is configured: set GROQ_API_KEY or TOGETHER_API_KEY, or LOCAL_MODEL=on."
        raise Problem("no_provider", detail)
    routing = {"score": judged.score, "words": judged.words, "signals": [s.name for s in judged.signals]}
    payload = {
        "query": ask.query,
        "tenant": ask.caller.tenant,
        "request_id": ask.request_id,
        "priority": ask.priority,
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
        tenant=ask.caller.tenant,
        tier=tier,
        priority=PRIORITIES[ask.priority],
        fingerprint=key,
        coalesce=ask.cache_mode == "default",
        deadline_ms=int(ask.deadline_s * 1000),
        payload=orjson.dumps(payload),
        caller=orjson.dumps(caller_facts(ask) | caller),
        start_by_ms=None if ask.start_within_s is None else int(ask.start_within_s * 1000),
        text=ask.query.text if ask.is_text_recorded else "",
        quota=_quota(ask, parts.tiers[tier]) if ask.caller.key_id else None,
    )


def _quota(ask: Ask, tier: Tier) -> Quota:
    """The key's limits, and what the job may cost at most: every target fails only after it was paid."""
    most = Usage(estimate_prompt_tokens(ask.query), min(ask.query.max_tokens or tier.max_tokens, tier.max_tokens))
    hold_usd = sum(load_catalogue().cost_usd(target, most, tier) for target in tier.targets)
    return Quota(ask.caller.key_id, ask.caller.limits, hold_usd, most.total_tokens * len(tier.targets))
