"""Who may ask: the caller behind an API key, and what each route demands of it."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from flask import Flask, current_app, g, request
from redis import RedisError

from config import LOOPBACK, Settings
from logs import bind_log_context
from storage.api_key import OPERATOR_TENANT, SCOPES, ApiKey, KeyLimits, KeyStore, is_secret_of, split_key
from webapp.key_cache import KeyCache, KeysUnavailable
from webapp.problem import Problem
from webapp.refusal import over_rate
from webapp.service import Services, services

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """What a route demands: any one of these scopes, or nothing at all."""

    scopes: frozenset[str] = frozenset()
    is_for_operators: bool = False

    @property
    def is_open(self) -> bool:
        return not self.scopes


def _any_of(*scopes: str, is_for_operators: bool = False) -> Access:
    return Access(frozenset(scopes), is_for_operators)


PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip")
COUNTED_LATER = ("api.ask_query",)  # with the look into the cache, in one round trip
OPEN = Access()
# Every route, as Flask writes it; a row that ends in * is for all routes that begin so. The first row that fits counts.
ACCESS: tuple[tuple[str, Access], ...] = (
    ("/", OPEN),
    ("/docs*", OPEN),
    ("/openapi.json", OPEN),
    ("/livez", OPEN),
    ("/readyz", OPEN),
    ("/health", OPEN),
    ("/metrics", _any_of("read", is_for_operators=True)),
    ("/api/v1/query", _any_of("query")),
    ("/api/v1/classify", _any_of("query", "read")),
    ("/api/v1/jobs/<string:id>", _any_of("query", "read")),
    ("/api/v1/jobs/<string:id>/events", _any_of("query", "read")),
    ("/api/v1/jobs/<string:id>/cancel", _any_of("query")),
    ("/api/v1/metrics", _any_of("read")),
    ("/api/v1/keys*", _any_of("admin")),
    ("/api/v1/dead-letters*", _any_of("admin")),
    ("/api/v1/replays", _any_of("admin")),
)


@lru_cache
def access_of(rule: str) -> Access | None:
    """What the table says of a route; None where nothing, which is for nobody while keys are required."""
    for pattern, access in ACCESS:
        if rule == pattern or (pattern.endswith("*") and rule.startswith(pattern[:-1])):
            return access
    return None


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is made. No `tiers` means all. An operator sees all tenants."""

    tenant: str
    key_id: str
    scopes: frozenset[str]
    tiers: frozenset[str] = frozenset()
    limits: KeyLimits = KeyLimits()
    is_operator: bool = False
    expires_at: datetime | None = None

    def may_use(self, tier: str) -> bool:
        return not self.tiers or tier in self.tiers

    def may_see(self, tenant: str) -> bool:
        """Whether what belongs to the tenant exists for this caller."""
        return self.is_operator or tenant == self.tenant

    @property
    def rate(self) -> tuple[str, int] | None:
        """The key's id and its requests per minute, where it has such a limit."""
        limit = self.limits.requests_per_minute
        return (self.key_id, limit) if limit else None

    @property
    def visible_tenant(self) -> str | None:
        """The only tenant whose things this caller sees; None = all of them."""
        return None if self.is_operator else self.tenant


# Whoever reaches a server that asks for no key.
ANYONE = Caller("default", key_id="", scopes=frozenset(SCOPES), is_operator=True)


@dataclass(frozen=True, slots=True)
class Door:
    """What it takes to know a caller."""

    store: KeyStore
    cache: KeyCache
    requires_key: bool


def guard(app: Flask, parts: Services) -> None:
    """Let nobody past who does not belong. To be called before anything that reads a request's body."""
    settings = parts.settings
    store = KeyStore(parts.keys_engine)
    cache = KeyCache(store.find, settings.auth_cache_seconds)
    app.extensions["door"] = Door(store, cache, settings.requires_key)
    app.before_request(_check_caller)
    _warn_if_open(settings)


def door() -> Door:
    """The door of the current request's app."""
    found: Door = current_app.extensions["door"]
    return found


def caller() -> Caller:
    """Who makes the current request."""
    found: Caller = g.caller
    return found


def _warn_if_open(settings: Settings) -> None:
    if not settings.requires_key and settings.host not in LOOPBACK:
        advice = "everyone who reaches this address may ask, at your cost, and manage keys: AUTH=on unless you mean it"
        log.warning("auth.off", extra={"host": settings.host, "advice": advice})


def _check_caller() -> None:
    if request.url_rule is None:  # the router says 404, 405 or redirects, all of which the open document tells too
        return
    access = access_of(request.url_rule.rule)
    if access is not None and access.is_open:
        return
    if not door().requires_key:
        _refuse_strangers()
        g.caller = ANYONE
        return
    g.caller = _identify()
    bind_log_context(tenant=g.caller.tenant, key_id=g.caller.key_id)
    _check_scope(access, g.caller)
    if request.endpoint not in COUNTED_LATER:
        _count_request(g.caller)


def _check_scope(access: Access | None, who: Caller) -> None:
    if access is None or not access.scopes & who.scopes:
        needed = " or ".join(f"`{scope}`" for scope in sorted(access.scopes)) if access else "that no key has"
        raise Problem("forbidden", f"This needs a key with the scope {needed}.")
    if access.is_for_operators and not who.is_operator:
        raise Problem("forbidden", "This is for operators.")


def _count_request(who: Caller) -> None:
    """Raises Problem where the key has had its requests of the minute. Without Redis nobody counts."""
    if rate := who.rate:
        with suppress(RedisError):
            if wait_ms := services().ledger.count_request(rate):
                raise over_rate(wait_ms)


def _refuse_strangers() -> None:
    """With AUTH=auto only this machine is trusted: not whoever comes through a proxy on it, or a page that names it."""
    if services().settings.auth != "auto":
        return
    name = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
    if name.strip("[]") not in LOOPBACK or any(header in request.headers for header in PROXY_HEADERS):
        detail = "AUTH=auto asks for no key on this machine alone, and this came from elsewhere: set AUTH=on."
        raise Problem("forbidden", detail)


def _identify() -> Caller:
    """The caller by its key. Raises Problem, the same for every key that does not count."""
    parts = split_key(_given())
    if parts is None:
        raise _refused("malformed")
    key_id, secret = parts
    try:
        key = door().cache.find(key_id)
    except KeysUnavailable:
        detail = "Keys live in the database, which is away, and this one has not been seen lately."
        raise Problem("database_unavailable", detail, retry_after=5) from None
    if not is_secret_of(key, secret) or key is None:
        raise _refused("wrong", key_id)
    if (state := key.state(door().store.now())) != "live":
        raise _refused(state, key_id)
    return _caller_of(key)


def _given() -> str:
    """The key as sent. `X-Api-Key` comes first: a proxy in between may have its own use for `Authorization`."""
    if key := request.headers.get("X-Api-Key"):
        return key
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip(" ") if scheme.lower() == "bearer" else ""


def _refused(reason: str, key_id: str | None = None) -> Problem:
    """Only the log says why: an answer that did would help those who guess."""
    log.info("auth.refused", extra={"reason": reason, "key_id": key_id})
    detail = "Send a valid API key: `Authorization: Bearer <key>`, or `X-Api-Key: <key>`."
    return Problem("unauthorized", detail)


def _caller_of(key: ApiKey) -> Caller:
    return Caller(
        tenant=key.tenant,
        key_id=key.id,
        scopes=key.scopes,
        tiers=key.tiers,
        limits=key.limits,
        is_operator=key.tenant == OPERATOR_TENANT,
        expires_at=key.expires_at,
    )
