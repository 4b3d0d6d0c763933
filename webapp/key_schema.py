"""The HTTP contract of keys as Pydantic models."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from storage.api_key import LARGEST, MAX_NAME_CHARS, SCOPES, TENANT_NAME
from webapp.schema import TierName

Scope = Literal["query", "read", "admin"]
assert Scope.__args__ == SCOPES  # type: ignore[attr-defined]  # noqa: S101 - two spellings of one list

LONGEST_LIFE_S = 10 * 366 * 86_400
LONGEST_GRACE_S = 30 * 86_400


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    return text


def _once_each(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("must not name one twice")
    return values


Tenant = Annotated[str, Field(pattern=f"^{TENANT_NAME}$", examples=["acme"])]
_Limit = Annotated[int | None, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LimitsBody(_Strict):
    """What the key may do; null = no limit. Days and months are those of UTC."""

    requests_per_minute: _Limit = Field(None, le=LARGEST["requests_per_minute"])
    max_open_jobs: _Limit = Field(None, le=LARGEST["max_open_jobs"])
    tokens_per_day: _Limit = Field(None, le=LARGEST["tokens_per_day"])
    budget_usd_per_day: float | None = Field(None, gt=0, le=LARGEST["budget_usd_per_day"])
    budget_usd_per_month: float | None = Field(None, gt=0, le=LARGEST["budget_usd_per_month"])


class KeyBody(_Strict):
    """A key to be made."""

    tenant: Tenant | None = Field(None, description="The caller's own where not given; only operators name another")
    name: Annotated[str, AfterValidator(_printable)] = Field(
        min_length=1, max_length=MAX_NAME_CHARS, examples=["nightly reports"], description="To tell keys apart"
    )
    scopes: Annotated[list[Scope], AfterValidator(_once_each)] = Field(
        ["query", "read"], min_length=1, max_length=len(SCOPES)
    )
    tiers: Annotated[list[TierName], AfterValidator(_once_each)] = Field(
        [], max_length=len(TierName.__args__), description="Tiers it may use; none named = all"
    )
    limits: LimitsBody = LimitsBody()
    expires_in_seconds: int | None = Field(None, ge=1, le=LONGEST_LIFE_S, description="null = never")


class RotateBody(_Strict):
    """How to replace a key."""

    grace_seconds: int = Field(0, ge=0, le=LONGEST_GRACE_S, description="How long the old key still counts")


class LimitsView(BaseModel):
    requests_per_minute: int | None
    max_open_jobs: int | None
    tokens_per_day: int | None
    budget_usd_per_day: float | None
    budget_usd_per_month: float | None


class KeyView(BaseModel):
    """A key, without its secret."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant: str = Field(description="`*` for a key of operators")
    name: str
    state: Literal["live", "expired", "revoked"]
    scopes: list[Scope]
    tiers: list[TierName] = Field(description="None = all")
    limits: LimitsView
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """A key just made."""

    key: str = Field(description="The key itself, shown this once")


class KeyListView(BaseModel):
    """Keys in the order of their ids."""

    object: Literal["list"] = "list"
    data: list[KeyView]
    next: str | None = Field(description="`after` of the next page; null on the last one")


class KeyPath(BaseModel):
    """`{id}` in a key's path."""

    id: str = Field(max_length=64)


class KeysQuery(_Strict):
    """Which keys to list."""

    model_config = ConfigDict(extra="forbid", strict=False)
    tenant: Tenant | None = Field(None, description="Only this tenant's")
    after: str = Field("", max_length=16, pattern="^[a-z2-7]*$", description="`next` of the page before")
    limit: int = Field(100, ge=1, le=1000)
