"""API keys: who may ask, for which tenant, and how much. At rest there is only the hash of a key's secret."""

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, select, update

from clock import now_ms
from routing.tier import TIER_NAMES
from storage.answer import SHARED
from storage.table import api_keys

SCOPES = ("query", "read", "admin")
OPERATOR_TENANT = "*"  # no tenant can be named so: `TENANT_NAME`
TENANT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_NAME_CHARS = 64
# The largest value of each limit: what the column holds, and a float keeps exactly.
LARGEST: Mapping[str, int] = {
    "requests_per_minute": 1_000_000,
    "max_open_jobs": 1_000_000,
    "tokens_per_day": 10**15,
    "budget_usd_per_day": 10**9,
    "budget_usd_per_month": 10**9,
}

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_ID = re.compile(r"[a-z2-7]{12}")
_KEY = re.compile(r"aqr_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")
_NO_SECRET = "0" * 64  # the hash that an unknown key is compared with


class KeyEnded(Exception):
    """The key has been revoked or has expired, and so cannot be rotated."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may do; None where there is no limit. USD, and days and months of UTC."""

    requests_per_minute: int | None = None
    max_open_jobs: int | None = None
    tokens_per_day: int | None = None
    budget_usd_per_day: float | None = None
    budget_usd_per_month: float | None = None


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What is decided when a key is made. No `tiers` means all. Raises ValueError that names what does not fit."""

    tenant: str
    name: str
    scopes: frozenset[str]
    tiers: frozenset[str] = frozenset()
    limits: KeyLimits = KeyLimits()
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.tenant != OPERATOR_TENANT and not re.fullmatch(TENANT_NAME, self.tenant):
            raise ValueError("tenant must be up to 64 letters, digits and ._- and begin with a letter or a digit")
        if self.tenant == SHARED:
            raise ValueError(f"no tenant may be called {SHARED}: answers that tenants share are kept under that name")
        # Names are printed to terminals.
        if not (0 < len(self.name) <= MAX_NAME_CHARS and self.name.isprintable()):
            raise ValueError(f"name must have 1 to {MAX_NAME_CHARS} characters, all of them printable")
        if not self.scopes or self.scopes - set(SCOPES):
            raise ValueError(f"scopes must be one or more of {', '.join(SCOPES)}")
        if self.tiers - set(TIER_NAMES):
            raise ValueError(f"tiers must be among {', '.join(TIER_NAMES)}")
        for limit, most in LARGEST.items():
            value = getattr(self.limits, limit)
            if value is not None and not 0 < value <= most:
                raise ValueError(f"{limit} must be more than 0 and at most {most}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is stored."""

    id: str
    tenant: str
    name: str
    secret_sha256: str = field(repr=False)
    scopes: frozenset[str]
    tiers: frozenset[str]
    limits: KeyLimits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @property
    def is_operator(self) -> bool:
        return self.tenant == OPERATOR_TENANT

    def state(self, now: datetime) -> str:
        """`live`, `expired` or `revoked`."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= now else "live"


def split_key(text: str) -> tuple[str, str] | None:
    """Id and secret of `aqr_<id>_<secret>`; None for anything else. The id has no underscore, the secret may."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


def is_secret_of(key: ApiKey | None, secret: str) -> bool:
    """Whether the secret is the key's, in the same time for every secret."""
    given = sha256(secret.encode()).hexdigest()
    return hmac.compare_digest(given, key.secret_sha256 if key else _NO_SECRET)


class KeyStore:
    """The table of keys. `tenant=None` means any tenant. SQLAlchemy errors pass through."""

    def __init__(self, engine: Engine, now_ms: Callable[[], int] = now_ms) -> None:
        self._engine, self._now_ms = engine, now_ms

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now_ms() / 1000, UTC)

    def create(self, facts: KeyFacts) -> tuple[ApiKey, str]:
        """A new key, and its text, which nobody can learn again."""
        with self._engine.begin() as connection:
            return _insert(connection, facts, self.now())

    def find(self, key_id: str, tenant: str | None = None) -> ApiKey | None:
        if not _ID.fullmatch(key_id):
            return None
        with self._engine.connect() as connection:
            return _read(connection, _chosen(tenant).where(api_keys.c.id == key_id))

    def list(self, tenant: str | None = None, *, after: str = "", at_most: int = 1000) -> list[ApiKey]:
        """Keys in the order of their ids, those that have ended too; `after` is the last id of the page before."""
        page = _chosen(tenant).where(api_keys.c.id > after).order_by(api_keys.c.id).limit(at_most)
        with self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(page)]

    def revoke(self, key_id: str, tenant: str | None = None) -> bool:
        """End the key for good. Returns whether there is such a key; one that was revoked stays as it was."""
        if self.find(key_id, tenant) is None:
            return False
        ended = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            connection.execute(ended.values(revoked_at=self.now()))
        return True

    def rotate(self, key_id: str, grace_s: float = 0, tenant: str | None = None) -> tuple[ApiKey, str] | None:
        """A new key with the same facts; the old one expires in `grace_s` seconds. None where there is no such key.

        Raises KeyEnded.
        """
        if not _ID.fullmatch(key_id):
            return None
        now = self.now()
        with self._engine.begin() as connection:
            old = _read(connection, _chosen(tenant).where(api_keys.c.id == key_id).with_for_update())
            if old is None:
                return None
            if old.state(now) != "live" or not _shorten(connection, old, now + timedelta(seconds=grace_s)):
                raise KeyEnded(key_id)
            return _insert(connection, _facts(old), now)


def _shorten(connection: Connection, key: ApiKey, until: datetime) -> bool:
    """Let the key expire at `until` or earlier; False where somebody has changed it meanwhile."""
    unchanged = (
        api_keys.c.id == key.id,
        api_keys.c.revoked_at.is_(None),
        api_keys.c.expires_at.is_not_distinct_from(key.expires_at),
    )
    expires_at = min(until, key.expires_at) if key.expires_at else until
    return connection.execute(update(api_keys).where(*unchanged).values(expires_at=expires_at)).rowcount == 1


def _facts(key: ApiKey) -> KeyFacts:
    return KeyFacts(**{each.name: getattr(key, each.name) for each in fields(KeyFacts)})


def _insert(connection: Connection, facts: KeyFacts, now: datetime) -> tuple[ApiKey, str]:
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    row = {
        "id": key_id,
        "tenant": facts.tenant,
        "name": facts.name,
        "secret_sha256": sha256(secret.encode()).hexdigest(),
        "scopes": sorted(facts.scopes),
        "tiers": sorted(facts.tiers),
        **asdict(facts.limits),
        "created_at": now,
        "expires_at": facts.expires_at,
        "revoked_at": None,
    }
    connection.execute(api_keys.insert(), row)
    made = _read(connection, select(api_keys).where(api_keys.c.id == key_id))
    assert made  # noqa: S101 - the row above
    return made, f"aqr_{key_id}_{secret}"


def _chosen(tenant: str | None) -> Select[Any]:
    every = select(api_keys)
    return every if tenant is None else every.where(api_keys.c.tenant == tenant)


def _read(connection: Connection, wanted: Select[Any]) -> ApiKey | None:
    row = connection.execute(wanted).one_or_none()
    return _key(row) if row else None


def _key(row: Row[Any]) -> ApiKey:
    stored = dict(row._mapping)
    limits = KeyLimits(**{each.name: stored.pop(each.name) for each in fields(KeyLimits)})
    return ApiKey(
        **stored | {"scopes": frozenset(stored["scopes"]), "tiers": frozenset(stored["tiers"]), "limits": limits}
    )
