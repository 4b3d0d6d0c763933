"""Read models for GET /api/v1/metrics: plain GROUP BYs over the analytics tables."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, Table, func, select

from storage.histogram import percentile
from storage.record import count_unpublished
from storage.table import attempts, queries

Scope = tuple[ColumnElement[bool], ...]
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def measure(connection: Connection, since: datetime, tenant: str | None = None) -> dict[str, Any]:
    """Everything the database knows of the queries accepted since then, of one tenant or of all.

    Money in USD, latencies in ms. The outbox is everybody's, so one tenant is told nothing of it.
    """
    queried, tried = (
        _scope(queries, queries.c.created_at, since, tenant),
        _scope(attempts, attempts.c.started_at, since, tenant),
    )
    totals = _totals(connection, queried)
    return {
        "queries": _by_status(totals),
        "cache": _cache(totals),
        "tiers": _tiers(totals, _latencies(connection, queried)),
        "providers": _providers(connection, tried),
        "cost": _cost(totals),
        "unpublished_events": count_unpublished(connection) if tenant is None else None,
    }


def _scope(table: Table, moment: Column[datetime], since: datetime, tenant: str | None) -> Scope:
    return (moment >= since,) if tenant is None else (table.c.tenant == tenant, moment >= since)


def _totals(connection: Connection, scope: Scope) -> list[Row[Any]]:
    q = queries.c
    grouped = select(
        q.tier,
        q.cache,
        q.status,
        func.count().label("n"),
        func.sum(q.cost_usd).label("cost"),
        func.sum(q.baseline_usd).label("baseline"),
        func.coalesce(func.sum(q.prompt_tokens), 0).label("prompt"),
        func.coalesce(func.sum(q.completion_tokens), 0).label("completion"),
    )
    return list(connection.execute(grouped.where(*scope).group_by(q.tier, q.cache, q.status)))


def _by_status(totals: Iterable[Row[Any]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for row in totals:
        counts["total"] += row.n
        counts["open" if row.status in ("queued", "running") else row.status] += row.n
    return {"total": 0, "completed": 0, "failed": 0, "open": 0} | counts


def _cache(totals: Iterable[Row[Any]]) -> dict[str, Any]:
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


def _tiers(totals: list[Row[Any]], latencies: dict[str, dict[int, int]]) -> dict[str, Any]:
    names = sorted({row.tier for row in totals})
    return {name: _tier([r for r in totals if r.tier == name], latencies[name]) for name in names}


def _tier(rows: list[Row[Any]], latencies: dict[int, int]) -> dict[str, Any]:
    return {
        "queries": sum(row.n for row in rows),
        "hits": sum(row.n for row in rows if row.cache == "HIT"),
        "completed": sum(row.n for row in rows if row.status == "completed"),
        "prompt_tokens": sum(row.prompt for row in rows),
        "completion_tokens": sum(row.completion for row in rows),
        "cost_usd": _money(sum(row.cost for row in rows)),
        "latency_ms": {name: percentile(latencies, share) for name, share in SHARES.items()},
    }


def _latencies(connection: Connection, scope: Scope) -> dict[str, dict[int, int]]:
    """Per tier, how many answers that were not hits fell into each bucket."""
    q = queries.c
    answered = (*scope, q.status == "completed", q.latency_bucket.is_not(None))
    grouped = select(q.tier, q.latency_bucket, func.count()).where(*answered).group_by(q.tier, q.latency_bucket)
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for tier, bucket, count in connection.execute(grouped):
        found[tier][bucket] = count
    return found


def _providers(connection: Connection, scope: Scope) -> dict[str, Any]:
    a = attempts.c
    grouped = select(
        a.provider,
        a.outcome,
        func.count().label("n"),
        func.sum(a.cost_usd).label("cost"),
        func.avg(a.latency_ms),
    ).where(*scope, a.provider.is_not(None))
    found: dict[str, Any] = {}
    for provider, outcome, count, cost, mean_ms in connection.execute(grouped.group_by(a.provider, a.outcome)):
        entry = found.setdefault(provider, {"attempts": 0, "outcomes": {}, "cost_usd": 0.0, "mean_latency_ms": None})
        entry["attempts"] += count
        entry["outcomes"][outcome] = count
        entry["cost_usd"] = _money(entry["cost_usd"] + cost)
        if outcome == "ok":
            entry["mean_latency_ms"] = round(mean_ms, 1)
    return found


def _cost(totals: list[Row[Any]]) -> dict[str, Any]:
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
