"""GET /api/v1/metrics' numbers against a history that is known, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from storage.event import rows_of
from storage.histogram import bucket_of, percentile
from storage.metric import measure
from storage.record import write
from tests.usage_entries import AT, accepted, ended, hit

SINCE = datetime.fromtimestamp(AT / 1000, UTC) - timedelta(hours=1)


def test_it_adds_up_what_was_asked(engine: Engine) -> None:
    history = [accepted(f"q{n}") for n in range(4)] + [accepted("q4", job="q0")]
    nothing = {"baseline_usd": 0.0, "usage": None}
    history += [
        ended("q0", callers=["q0", "q4"]),
        ended("q1"),
        ended("q2", status="failed", facts=nothing, attempts=[]),
    ]
    write(engine, rows_of([*history, hit("h1"), hit("h2")]))

    with engine.connect() as connection:
        found = measure(connection, SINCE)

    assert found["queries"] == {"total": 7, "completed": 5, "failed": 1, "open": 1}
    assert found["cache"] == {"hits": 2, "misses": 4, "coalesced": 1, "bypassed": 0, "hit_rate": round(2 / 7, 4)}
    medium = found["tiers"]["medium"]
    assert (medium["queries"], medium["hits"], medium["completed"]) == (7, 2, 5)
    assert (medium["prompt_tokens"], medium["completion_tokens"]) == (20, 40)
    assert medium["latency_ms"]["p50"] == pytest.approx(1000, rel=0.06)
    assert found["cost"]["spent_usd"] == pytest.approx(0.004)
    assert found["cost"]["saved_usd"] == pytest.approx(0.05 - 0.004)
    assert found["providers"]["groq"]["outcomes"] == {"ok": 2}
    assert found["unpublished_events"] > 0


def test_it_leaves_out_what_is_older_than_the_window(engine: Engine) -> None:
    write(engine, rows_of([accepted("old", at=AT - 7_200_000), accepted("new")]))

    with engine.connect() as connection:
        assert measure(connection, SINCE)["queries"]["total"] == 1


def test_it_measures_nothing_in_an_empty_database(engine: Engine) -> None:
    with engine.connect() as connection:
        found = measure(connection, SINCE)

    assert found["queries"]["total"] == 0
    assert found["cache"]["hit_rate"] is None
    assert found["cost"]["saved_share"] is None


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_at_most_a_bucket_too_high(latencies: list[float], share: float) -> None:
    counts: dict[int, int] = {}
    for latency in latencies:
        counts[bucket_of(latency)] = counts.get(bucket_of(latency), 0) + 1
    exact = next(x for n, x in enumerate(sorted(latencies), 1) if n >= share * len(latencies))

    found = percentile(counts, share)
    assert found is not None
    assert exact - 0.01 <= found <= exact * 1.051 + 0.01
