"""What a request asks for: its body, its headers and its caller, as one value."""

import re
import secrets
from dataclasses import dataclass

import orjson
from redis import RedisError

from clock import now_ms
from config import Settings
from routing.classifier import classify
from routing.query import Query
from routing.tier import TIER_NAMES
from storage.idempotency import Conflict
from webapp.caller import Caller, Headers
from webapp.problem import Problem, invalid
from webapp.schema import CachePolicy, QueryBody
from webapp.service import Services

NO_KEYS_NOW = "Idempotency keys are kept in Redis, which is away; nothing was done."
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})\s*(?:$|[,;])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ask:
    """One validated request. `id` names the query from now on; durations in seconds.

    `is_idempotent`: it came with a key, so `id` may have been asked before.
    """

    id: str
    query: Query
    caller: Caller
    request_id: str
    wait_s: float
    deadline_s: float
    priority: str
    cache_mode: str
    ttl_s: int
    start_within_s: float | None = None
    is_text_recorded: bool = False
    is_idempotent: bool = False

    @property
    def may_read_cache(self) -> bool:
        return self.cache_mode in ("default", "only")

    @property
    def may_write_cache(self) -> bool:
        return self.cache_mode in ("default", "refresh")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What comes around a body. `headers` are asked for by their names in lower case."""

    headers: Headers
    caller: Caller
    request_id: str


def read_ask(body: QueryBody, envelope: Envelope, parts: Services) -> Ask:
    """What a request asks for. Raises Problem where it cannot be asked."""
    settings = parts.settings
    check_length(body.query, settings)
    check_length(body.system or "", settings, "system")
    _check_most("deadline_seconds", body.deadline_seconds, settings.max_deadline_seconds)
    _check_most("start_within_seconds", body.start_within_seconds, settings.max_deadline_seconds)
    _check_most("wait_seconds", body.wait_seconds, settings.max_wait_seconds, "; poll the job for longer")
    cache, query_id, key = body.cache or CachePolicy(), new_id(), _idempotency_key(envelope.headers)
    tier = _tier(body, envelope.caller, parts)
    return Ask(
        id=_first_id(key, body, query_id, envelope.caller.tenant, parts) if key else query_id,
        query=Query(body.query, tier, body.system, body.max_tokens, body.temperature),
        caller=envelope.caller,
        request_id=envelope.request_id,
        wait_s=_wait_seconds(body.wait_seconds, envelope.headers, settings),
        deadline_s=body.deadline_seconds or settings.job_deadline_seconds,
        start_within_s=body.start_within_seconds,
        priority=body.priority,
        cache_mode=cache.mode,
        ttl_s=cache.ttl or settings.cache_ttl_seconds,
        is_text_recorded=settings.record_query_text,
        is_idempotent=key is not None,
    )


def _tier(body: QueryBody, who: Caller, parts: Services) -> str | None:
    """The tier asked for; where a key may not use all of them, the nearest one to the classifier's choice."""
    if body.tier:
        if not who.may_use(body.tier):
            raise Problem("tier_not_allowed", f"This API key may use: {', '.join(sorted(who.tiers))}.")
        return body.tier
    if not who.tiers:
        return None
    chosen = TIER_NAMES.index(classify(body.query, parts.thresholds).tier)
    if who.may_use(TIER_NAMES[chosen]):
        return None
    return min(who.tiers, key=lambda tier: (abs(TIER_NAMES.index(tier) - chosen), TIER_NAMES.index(tier)))


def _idempotency_key(headers: Headers) -> str | None:
    key = headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise invalid("Idempotency-Key", "1 to 255 visible ASCII characters")
    return key


def _first_id(key: str, body: QueryBody, query_id: str, tenant: str, parts: Services) -> str:
    """The query's id: the one of this key's first use, where there was one."""
    form = orjson.dumps(body.model_dump(), option=orjson.OPT_SORT_KEYS)
    try:
        return parts.idempotency.remember(tenant, key, form, query_id)
    except Conflict:
        raise Problem("idempotency_conflict", "This Idempotency-Key came with another body before.") from None
    except RedisError:
        raise Problem("redis_unavailable", NO_KEYS_NOW, retry_after=1) from None


def _check_most(field: str, value: float | None, most: float, advice: str = "") -> None:
    if value is not None and value > most:
        raise invalid(field, f"at most {most:g}{advice}")


def new_id() -> str:
    """An id that sorts by time, so that the tables' indexes grow at one end."""
    return f"{now_ms():012x}{secrets.token_hex(10)}"


def _wait_seconds(asked: float | None, headers: Headers, settings: Settings) -> float:
    """The body's word first, then the Prefer header (RFC 7240), then the default."""
    if asked is not None:
        return asked
    prefer = headers.get("prefer") or ""
    if found := _PREFER_WAIT.search(prefer):
        return min(float(found[1]), settings.max_wait_seconds)
    return 0 if "respond-async" in prefer.lower() else settings.sync_wait_seconds


def check_length(text: str, settings: Settings, field: str = "query") -> None:
    most = settings.max_query_chars
    if len(text) > most:
        message = f"has {len(text)} characters; at most {most} are allowed"
        raise Problem("query_too_long", f"{field} {message}.", errors=[(field, message)])
