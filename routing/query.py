"""The values that travel through the router: a query, its targets, attempts and completion."""

from dataclasses import dataclass, replace
from typing import Any, Literal

Billing = Literal["billed", "free", "unknown"]
"""Whether a call was charged: as its usage says, not at all, or nobody told us."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question as the caller asked it, with everything that may change the answer."""

    text: str
    tier: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A model at a provider; written `groq:openai/gpt-oss-20b`."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens a provider says it billed."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """A provider's answer. `usage` is None where the provider did not say."""

    text: str
    model: str
    finish_reason: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to one target and how it ended.

    `started_at` is Unix time in ms, `latency_ms` wall time of the call, `outcome` "ok" or an error code of
    `routing.errors`, `status` the HTTP status where there was one, `cost_usd` what the call cost and
    `possible_cost_usd` what one of unknown billing may have cost at most; `possible_tokens` is what it may have used
    at most where it may be billed and named no usage. `detail` is what happened in our words, `said` the provider's
    own message, for the caller only.
    """

    provider: str
    model: str
    started_at: int
    latency_ms: float
    outcome: str
    status: int | None = None
    detail: str | None = None
    said: str | None = None
    usage: Usage | None = None
    cost_usd: float = 0.0
    number: int = 0
    billing: Billing = "free"
    possible_cost_usd: float = 0.0
    possible_tokens: int = 0

    @property
    def told(self) -> str:
        """What happened and what was said, for a person."""
        return ": ".join(filter(None, (self.detail or self.outcome, self.said)))

    def numbered(self, number: int) -> "Attempt":
        return replace(self, number=number)

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "provider": self.provider,
            "model": self.model,
            "started_at": self.started_at,
            "latency_ms": self.latency_ms,
            "outcome": self.outcome,
            "status": self.status,
            "detail": self.detail,
            "said": self.said,
            "usage": self.usage.as_dict() if self.usage else None,
            "cost_usd": self.cost_usd,
            "billing": self.billing,
            "possible_cost_usd": self.possible_cost_usd,
            "possible_tokens": self.possible_tokens,
        }
