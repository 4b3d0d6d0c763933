"""A lane: one model reached with one key. Providers count their limits per lane, and so do we."""

from dataclasses import dataclass
from typing import Literal

from routing.query import Target


@dataclass(frozen=True, slots=True)
class Lane:
    """`key_id` stands for the key: the first 8 hex digits of its SHA-256, or "-" where there is none."""

    target: Target
    key_id: str

    def __str__(self) -> str:
        return f"{self.target}#{self.key_id}"


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to make one call on a lane, given back under its ticket. `is_probe`: the one try of a half-open breaker."""

    lane: Lane
    ticket: str
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """No lane is free now: ask again in so many seconds.

    `busy`: limits are used up; `paused`: a provider asked for it; `broken`: open breakers, dead keys or models.
    """

    seconds: float
    reason: Literal["busy", "paused", "broken"]


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a reply's headers say of a lane's allowance; resets in seconds from the reply. None where unsaid."""

    requests_limit: float | None = None
    requests_remaining: float | None = None
    requests_reset_s: float | None = None
    tokens_limit: float | None = None
    tokens_remaining: float | None = None
    tokens_reset_s: float | None = None


@dataclass(frozen=True, slots=True)
class CallReport:
    """How a granted call ended. `outcome` is "ok" or an error's `standing`, `tokens` what it used."""

    outcome: str
    latency_ms: float
    tokens: int | None = None
    retry_after_s: float | None = None
    limits: RateLimits | None = None
