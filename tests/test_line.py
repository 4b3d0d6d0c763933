"""The waiting lines: who is next, where one stands, and how fast they move."""

from dataclasses import replace
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from storage.job import BATCH, INTERACTIVE
from storage.ledger import Ledger
from storage.line import Lines
from tests.conftest import LIMITS, Clock
from tests.ledger_case import DONE_WELL, claimed, draft


def enter(ledger: Ledger, *job_ids: str, **changes: object) -> None:
    for job_id in job_ids:
        assert ledger.accept(draft(job_id, fingerprint=job_id, **changes)).kind == "leader"


def served(ledger: Ledger, count: int) -> list[str]:
    """The next jobs in the order in which workers get them."""
    claims = [ledger.claim("simple", uuid4().hex, "worker") for _ in range(count)]
    return [claim.job_id for claim in claims if claim]


def test_a_tenant_with_many_jobs_waits_behind_itself(ledger: Ledger) -> None:
    enter(ledger, *(f"a{n}" for n in range(5)), tenant="a")
    enter(ledger, "b0", "b1", tenant="b")

    assert served(ledger, 7) == ["a0", "b0", "a1", "b1", "a2", "a3", "a4"]


def test_a_tenant_gains_nothing_by_having_been_away(ledger: Ledger) -> None:
    enter(ledger, *(f"a{n}" for n in range(6)), tenant="a")
    assert served(ledger, 3) == ["a0", "a1", "a2"]
    enter(ledger, "b0", "b1", "b2", tenant="b")

    assert sorted(served(ledger, 4)) == ["a3", "a4", "b0", "b1"]


def test_one_tenants_jobs_are_served_in_the_order_they_came(ledger: Ledger) -> None:
    enter(ledger, "z", "a", "m")

    assert served(ledger, 3) == ["z", "a", "m"]


def test_batch_waits_for_interactive_but_gets_its_share(ledger: Ledger) -> None:
    enter(ledger, *(f"b{n}" for n in range(5)), priority=BATCH)
    enter(ledger, *(f"i{n:02}" for n in range(40)))

    order = served(ledger, 40)
    assert [place for place, job_id in enumerate(order, 1) if job_id.startswith("b")] == [10, 20, 30, 40]


def test_batch_is_served_at_once_where_nobody_else_waits(ledger: Ledger) -> None:
    enter(ledger, "b0", "b1", priority=BATCH)

    assert served(ledger, 2) == ["b0", "b1"]


def test_a_job_that_lost_its_worker_is_next(ledger: Ledger, clock: Clock) -> None:
    enter(ledger, "a0", "a1", "a2")
    served(ledger, 1)
    clock.advance(16)
    ledger.reap("reaper:1")

    assert served(ledger, 3) == ["a0", "a1", "a2"]


def test_a_tenant_may_fill_its_part_of_the_queue_only(redis: Redis, clock: Clock) -> None:
    ledger = Ledger(redis, replace(LIMITS, max_tenant_queue_depth=2), now_ms=clock)
    enter(ledger, "a0", tenant="a")
    enter(ledger, "a1", tenant="a", priority=BATCH)

    refused = ledger.accept(draft("a2", fingerprint="a2", tenant="a"))
    assert (refused.kind, refused.number) == ("tenant_full", 2)
    enter(ledger, "b0", tenant="b")
    served(ledger, 1)
    enter(ledger, "a3", tenant="a")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([INTERACTIVE, BATCH])), min_size=1, max_size=40))
def test_whoever_waits_is_served_and_nothing_is_left_behind(redis: Redis, jobs: list[tuple[str, int]]) -> None:
    redis.flushall()
    ledger, lines = Ledger(redis, LIMITS), Lines(redis)
    for number, (tenant, priority) in enumerate(jobs):
        enter(ledger, f"j{number}", tenant=tenant, priority=priority)

    assert sum(lines.waiting(tenant, ["simple"])["simple"] for tenant in "abc") == len(jobs)
    order = served(ledger, len(jobs) + 1)

    assert sorted(order) == sorted(f"j{n}" for n in range(len(jobs)))
    left = {name for name in redis.hkeys("aqr:share:simple") if name.startswith((b"count:", b"last:"))}
    assert left == set()
    assert lines.depths(["simple"])["simple"] == {"queued": 0, "running": len(jobs)}


def test_it_places_batch_jobs_behind_interactive_ones(ledger: Ledger, clock: Clock) -> None:
    ledger.accept(draft("b1", priority=BATCH, fingerprint="f1"))
    clock.advance(1)
    ledger.accept(draft("i1", fingerprint="f2"))

    positions = [Lines(ledger.client).position(ledger.job(job_id)) for job_id in ("i1", "b1")]  # type: ignore[arg-type]
    assert positions == [1, 2]


def test_it_measures_how_fast_a_tier_drains(redis: Redis) -> None:
    ledger = Ledger(redis, LIMITS)
    assert Lines(ledger.client).drain_rate("simple") is None
    for n in range(5):
        ledger.accept(draft(f"j{n}", fingerprint=f"f{n}"))
        claimed(ledger, f"j{n}", f"t{n}")
        ledger.finish(f"j{n}", f"t{n}", replace(DONE_WELL, cache=None))

    rate = Lines(ledger.client).drain_rate("simple")
    assert rate is not None
    assert rate > 1


def test_the_drain_rate_is_not_measured_for_everybody(redis: Redis, clock: Clock) -> None:
    lines = Lines(redis, lambda: clock() / 1000)
    assert not lines.knows_drain_rate("simple")
    assert lines.drain_rate_lately("simple") is None

    redis.lpush("aqr:drain:simple", *range(1, 9))
    assert lines.knows_drain_rate("simple")
    assert lines.drain_rate_lately("simple") is None

    clock.advance(1)
    assert not lines.knows_drain_rate("simple")
    assert lines.drain_rate_lately("simple") is not None
