"""Who asks: the caller behind an API key, told by a request's headers alone."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from config import LOOPBACK, Settings
from storage.api_key import OPERATOR_TENANT, SCOPES, ApiKey, KeyLimits, is_secret_of, split_key
from webapp.key_cache import KeysUnavailable
from webapp.problem import Problem

PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class Headers(Protocol):
    """A request's headers; names are asked for in lower case."""

    def get(self, name: str, /) -> str | None: ...


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


class KeyRefused(Problem):
    """No valid key. Only the log may say why: an answer that did would help those who guess."""

    def __init__(self, reason: str, key_id: str | None = None) -> None:
        super().__init__("unauthorized", "Send a valid API key: `Authorization: Bearer <key>`, or `X-Api-Key: <key>`.")
        self.reason, self.key_id = reason, key_id


def identify(headers: Headers, find: Callable[[str], ApiKey | None], now: datetime) -> Caller:
    """The caller by its key. `find` may raise KeysUnavailable.

    Raises KeyRefused, which reads the same for every key that does not count, and Problem where nobody can tell.
    """
    parts = split_key(_given(headers))
    if parts is None:
        raise KeyRefused("malformed")
    key_id, secret = parts
    try:
        key = find(key_id)
    except KeysUnavailable:
        detail = "Keys live in the database, which is away, and this one has not been seen lately."
        raise Problem("database_unavailable", detail, retry_after=5) from None
    if not is_secret_of(key, secret) or key is None:
        raise KeyRefused("wrong", key_id)
    if (state := key.state(now)) != "live":
        raise KeyRefused(state, key_id)
    return _caller_of(key)


def refuse_strangers(host: str, headers: Headers, settings: Settings) -> None:
    """With AUTH=auto only this machine is trusted: not whoever comes through a proxy on it, or a page that names it."""
    if settings.auth != "auto":
        return
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.strip("[]") not in LOOPBACK or any(headers.get(header) is not None for header in PROXY_HEADERS):
        detail = "AUTH=auto asks for no key on this machine alone, and this came from elsewhere: set AUTH=on."
        raise Problem("forbidden", detail)


def _given(headers: Headers) -> str:
    """The key as sent. `X-Api-Key` comes first: a proxy in between may have its own use for `Authorization`."""
    if key := headers.get("x-api-key"):
        return key
    scheme, _, key = (headers.get("authorization") or "").partition(" ")
    return key.strip(" ") if scheme.lower() == "bearer" else ""


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
