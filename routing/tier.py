"""The tiers, as one table: what a complexity means in queue, targets, time, tokens and price."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from routing.query import Target


@dataclass(frozen=True, slots=True)
class Tier:
    """One row. `timeout_s` bounds a single call, `flat_price_usd` is charged where tokens or price are unknown."""

    name: str
    queue: str
    targets: tuple[Target, ...]
    timeout_s: float
    max_tokens: int
    flat_price_usd: float
    reasoning_effort: str


def _targets(groq: str, together: str) -> tuple[Target, ...]:
    return (Target("groq", groq), Target("together", together), Target("local", "smollm2-135m-instruct"))


TIERS: Mapping[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier(
            name="simple",
            queue="simple",
            targets=_targets("llama-3.1-8b-instant", "meta-llama/Llama-3.2-3B-Instruct-Turbo"),
            timeout_s=20,
            max_tokens=512,
            flat_price_usd=0.001,
            reasoning_effort="low",
        ),
        Tier(
            name="medium",
            queue="medium",
            targets=_targets("llama-3.3-70b-versatile", "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo"),
            timeout_s=30,
            max_tokens=1024,
            flat_price_usd=0.005,
            reasoning_effort="low",
        ),
        Tier(
            name="complex",
            queue="complex",
            targets=_targets("openai/gpt-oss-120b", "meta-llama/Meta-Llama-3.1-70B-Instruct-Turbo"),
            timeout_s=60,
            max_tokens=4096,
            flat_price_usd=0.02,
            reasoning_effort="medium",
        ),
    )
}

TIER_NAMES = tuple(TIERS)


def with_targets(choose: Callable[[Tier, Target], Target | None]) -> dict[str, Tier]:
    """The table with each target replaced by what `choose` says; a target it answers None for is left out."""
    return {
        name: replace(tier, targets=tuple(t for t in (choose(tier, target) for target in tier.targets) if t))
        for name, tier in TIERS.items()
    }
