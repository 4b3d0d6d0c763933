"""Read models for GET /api/v1/metrics, from the roll-ups: a few hundred rows, however many queries there were."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from storage.histogram import percentile
from storage.record import count_unpublished
from storage.rollup import PICO_USD, Tally, total

SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
SUMS = ("cost", "baseline", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Total:
    """The queries that one tier answered, or did not, in one way. Money in USD."""

    tier: str
    cache: str
    status: str
    n: int
    cost: float
    baseline: float
    prompt: int
    completion: int


def measure(connection: Connection, since: datetime, tenant: str | None = None) -> dict[str, Any]:
    """Everything the database knows of the queries accepted since that minute, of one tenant or of all.

    Money in USD, latencies in ms. The outbox is everybody's, so one tenant is told nothing of it.
    """
    tally = total(connection, since, tenant)
    totals = list(_totals(tally))
    return {
        "queries": _by_status(totals),
        "cache": _cache(totals),
        "tiers": _tiers(totals, _latencies(tally)),
        "providers": _providers(tally),
        "cost": _cost(totals),
        "unpublished_events": count_unpublished(connection) if tenant is None else None,
    }


def _entries(tally: Tally, name: str) -> Iterator[tuple[list[str], int]]:
    """The counts of this name, each with what it is grouped by."""
    for key, number in sorted(tally.items()):
        kind, *group = key.split("/")
        if kind == name:
            yield group, number


def _totals(tally: Tally) -> Iterator[Total]:
    for (tier, cache, status), n in _entries(tally, "queries"):
        group = f"{tier}/{cache}/{status}"
        cost, baseline, prompt, completion = (tally[f"{name}/{group}"] for name in SUMS)
        yield Total(tier, cache, status, n, cost / PICO_USD, baseline / PICO_USD, prompt, completion)


def _by_status(totals: Iterable[Total]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for row in totals:
        counts["total"] += row.n
        counts["open" if row.status in ("queued", "running") else row.status] += row.n
    return {"total": 0, "completed": 0, "failed": 0, "open": 0} | counts


def _cache(totals: Iterable[Total]) -> dict[str, Any]:
    counts: dict[str, int] = defaultdict(int)
    for row in totals:
        counts[row.cache] += row.n
    asked = sum(counts.values()) - counts["BYPASS"] - counts["REFRESH"]
    return {
        "hits": counts["HIT"],
        "misses": counts["MISS"],
        "coalesced": counts["COALESCED"],
        "bypassed": counts["BYPASS"] + counts["REFRESH"],
        "hit_rate": round(counts["HIT"] / asked, 4) if asked else None,
    }


def _tiers(totals: list[Total], latencies: dict[str, dict[int, int]]) -> dict[str, Any]:
    names = sorted({row.tier for row in totals})
    return {name: _tier([r for r in totals if r.tier == name], latencies[name]) for name in names}


def _tier(rows: list[Total], latencies: dict[int, int]) -> dict[str, Any]:
    return {
        "queries": sum(row.n for row in rows),
        "hits": sum(row.n for row in rows if row.cache == "HIT"),
        "completed": sum(row.n for row in rows if row.status == "completed"),
        "prompt_tokens": sum(row.prompt for row in rows),
        "completion_tokens": sum(row.completion for row in rows),
        "cost_usd": _money(sum(row.cost for row in rows)),
        "latency_ms": {name: percentile(latencies, share) for name, share in SHARES.items()},
    }


def _latencies(tally: Tally) -> dict[str, dict[int, int]]:
    """Per tier, how many answers that were not hits fell into each bucket."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for (tier, bucket), count in _entries(tally, "latency"):
        found[tier][int(bucket)] = count
    return found


def _providers(tally: Tally) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (provider, outcome), count in _entries(tally, "attempts"):
        entry = found.setdefault(provider, {"attempts": 0, "outcomes": {}, "cost_usd": 0.0, "mean_latency_ms": None})
        entry["attempts"] += count
        entry["outcomes"][outcome] = count
        entry["cost_usd"] = _money(entry["cost_usd"] + tally[f"spent/{provider}/{outcome}"] / PICO_USD)
        timed = tally[f"timed/{provider}/{outcome}"]
        if outcome == "ok" and timed:
            entry["mean_latency_ms"] = round(tally[f"micros/{provider}/{outcome}"] / timed / 1000, 1)
    return found


def _cost(totals: list[Total]) -> dict[str, Any]:
    spent = sum(row.cost for row in totals)
    baseline = sum(row.baseline for row in totals)
    return {
        "spent_usd": _money(spent),
        "baseline_usd": _money(baseline),
        "saved_usd": _money(baseline - spent),
        "saved_share": round(1 - spent / baseline, 4) if baseline else None,
    }


def _money(usd: float) -> float:
    return round(usd, 8)
