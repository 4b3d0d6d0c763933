"""Who may do what: what each route demands of its caller."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from flask import Flask, current_app, g, request
from redis import RedisError

from config import LOOPBACK, Settings
from logs import bind_log_context
from storage.api_key import KeyStore
from webapp.caller import ANYONE, Caller, KeyRefused, identify, refuse_strangers
from webapp.key_cache import KeyCache
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
        refuse_strangers(request.host, request.headers, services().settings)
        g.caller = ANYONE
        return
    try:
        g.caller = identify(request.headers, door().cache.find, door().store.now())
    except KeyRefused as refusal:
        log.info("auth.refused", extra={"reason": refusal.reason, "key_id": refusal.key_id})
        raise
    bind_log_context(tenant=g.caller.tenant, key_id=g.caller.key_id)
    check_scope(access, g.caller)
    if request.endpoint not in COUNTED_LATER:
        _count_request(g.caller)


def check_scope(access: Access | None, who: Caller) -> None:
    """Raises Problem where the caller may not do what the route is for."""
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
