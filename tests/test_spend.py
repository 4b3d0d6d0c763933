"""The limits of an API key: held before the call, settled after it, and never overrun together."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from storage.api_key import KeyLimits
from storage.job import Acceptance
from storage.ledger import Ending, Ledger
from storage.quota import Quota, spending
from tests.conftest import LIMITS, Clock
from tests.ledger_case import DONE_WELL, claimed, draft

FAILED = Ending("failed", {"tier": "simple"}, error={"code": "x"})


def ask(ledger: Ledger, job_id: str, limits: KeyLimits, *, usd: float = 0.1, tokens: int = 100) -> Acceptance:
    quota = Quota("k1", limits, usd, tokens)
    return ledger.accept(draft(job_id, fingerprint=job_id, key="k1", quota=quota))


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        (KeyLimits(budget_usd_per_day=0.25), "budget_day"),
        (KeyLimits(budget_usd_per_month=0.25), "budget_month"),
        (KeyLimits(tokens_per_day=250), "tokens_day"),
        (KeyLimits(max_open_jobs=2), "open_jobs"),
    ],
)
def test_open_jobs_count_before_they_have_cost_anything(ledger: Ledger, limits: KeyLimits, refusal: str) -> None:
    assert [ask(ledger, f"j{n}", limits).kind for n in range(4)] == ["leader", "leader", refusal, refusal]


@pytest.mark.parametrize("limits", [KeyLimits(budget_usd_per_day=0.1), KeyLimits(max_open_jobs=1)])
def test_what_was_held_comes_free_when_the_job_ends(ledger: Ledger, limits: KeyLimits) -> None:
    ask(ledger, "j1", limits)
    refused = ask(ledger, "j2", limits)
    assert refused.number == 1_000  # soon: it is only held
    claimed(ledger)
    ledger.finish("j1", "token", FAILED)

    assert ask(ledger, "j3", limits).kind == "leader"


def test_what_was_spent_stays_spent_until_midnight(ledger: Ledger, clock: Clock, redis: Redis) -> None:
    limits = KeyLimits(budget_usd_per_day=0.15)
    ask(ledger, "j1", limits)
    claimed(ledger)
    ledger.finish("j1", "token", Ending("completed", {}, answer=DONE_WELL.answer, charge_usd=0.07, charge_tokens=9))
    assert spending(redis, "k1").usd_today == pytest.approx(0.07)
    assert spending(redis, "k1").usd_held == 0

    refused = ask(ledger, "j2", limits)
    midnight = datetime.fromtimestamp(clock.ms / 1000, UTC).replace(hour=0, minute=0, second=0) + timedelta(days=1)
    assert (refused.kind, refused.number) == ("budget_day", int(midnight.timestamp() * 1000) - clock.ms)
    clock.advance(refused.number / 1000)
    assert ask(ledger, "j3", limits).kind == "leader"
    assert spending(redis, "k1").usd_this_month == pytest.approx(0.07)


def test_a_months_budget_is_renewed_with_the_month(ledger: Ledger, clock: Clock) -> None:
    limits = KeyLimits(budget_usd_per_month=0.1)
    ask(ledger, "j1", limits)
    claimed(ledger)
    ledger.finish("j1", "token", Ending("completed", {}, answer=DONE_WELL.answer, charge_usd=0.1))

    refused = ask(ledger, "j2", limits)
    assert refused.kind == "budget_month"
    then = datetime.fromtimestamp((clock.ms + refused.number) / 1000, UTC)
    assert (then.day, then.hour, then.minute) == (1, 0, 0)
    clock.advance(refused.number / 1000)
    assert ask(ledger, "j3", limits).kind == "leader"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1)))  # noqa: DTZ001
def test_months_are_those_of_the_calendar(redis: Redis, moment: datetime) -> None:
    redis.flushall()
    now = moment.replace(tzinfo=UTC)
    ledger = Ledger(redis, LIMITS, now_ms=lambda: int(now.timestamp() * 1000))

    ask(ledger, "j1", KeyLimits(budget_usd_per_month=1.0))

    assert int(redis.hget("aqr:spend:k1", "month")) == now.year * 12 + (now.month - 3) % 12 + (
        -12 if now.month < 3 else 0
    )


def test_a_caller_that_joins_holds_what_it_may_come_to_pay(ledger: Ledger, redis: Redis) -> None:
    """Should the leader leave: else many could be joined on one budget, and then be left with the bill."""
    quotas = {key: Quota(key, KeyLimits(budget_usd_per_day=1.5), 1.0, 100) for key in ("ann", "bob")}
    for number in range(2):
        fingerprint = f"f{number}"
        leader = draft(f"a{number}", fingerprint=fingerprint, key=f"rich{number}")
        assert ledger.accept(leader).kind == "leader"
    joined = [ledger.accept(draft(f"b{n}", fingerprint=f"f{n}", key="bob", quota=quotas["bob"])).kind for n in range(2)]

    assert joined == ["follower", "budget_day"]
    assert spending(redis, "bob").usd_held == pytest.approx(1.0)
    ledger.cancel(ledger.job("b0"), {"tier": "simple"})  # type: ignore[arg-type]
    assert spending(redis, "bob").usd_held == 0


def test_a_withdrawn_job_holds_nothing(ledger: Ledger, redis: Redis) -> None:
    limits = KeyLimits(max_open_jobs=1, budget_usd_per_day=0.1)
    ask(ledger, "j1", limits)
    ledger.withdraw("j1")

    assert spending(redis, "k1").usd_held == 0
    assert ask(ledger, "j2", limits).kind == "leader"


def test_callers_at_the_same_time_cannot_overrun_a_budget(redis: Redis) -> None:
    ledger = Ledger(redis, LIMITS)
    limits = KeyLimits(budget_usd_per_day=1.0)

    def run(number: int) -> None:
        if ask(ledger, f"j{number:03}", limits).kind != "leader":
            return
        claim = ledger.claim("simple", f"t{number}", "worker")
        assert claim is not None
        ledger.finish(claim.job_id, f"t{number}", Ending("completed", {}, answer=DONE_WELL.answer, charge_usd=0.1))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(run, range(60)))

    spent = spending(redis, "k1")
    assert spent.usd_today <= 1.0
    assert spent.usd_held == 0


def test_requests_of_a_minute_are_a_sliding_window(ledger: Ledger, clock: Clock) -> None:
    clock.ms -= clock.ms % 60_000
    assert [ledger.count_request(("k1", 3)) for _ in range(4)] == [None, None, None, 60_000]

    clock.advance(60)
    wait = ledger.count_request(("k1", 3))
    assert wait == pytest.approx(20_000, abs=1)  # when a third of the last minute has passed out of the window
    clock.ms += wait
    assert ledger.count_request(("k1", 3)) is None
    clock.advance(120)
    assert [ledger.count_request(("k1", 3)) for _ in range(3)] == [None] * 3


def test_a_hit_counts_as_a_request(ledger: Ledger) -> None:
    rate = ("k1", 1)

    assert ledger.find("f1", b"{}", rate) is None
    assert isinstance(ledger.find("f1", b"{}", rate), int)


def test_a_replay_is_held_like_any_job(ledger: Ledger, redis: Redis) -> None:
    limits = KeyLimits(budget_usd_per_day=1.0)
    ask(ledger, "j1", limits, usd=0.6)
    claimed(ledger)
    ledger.finish("j1", "token", Ending("failed", {}, error={"code": "x"}, charge_usd=0.5, is_dead_letter=True))
    assert ledger.replay("j1", 60_000) is None  # 0.5 + 0.6 is more than it has

    redis.hset("aqr:spend:k1", "day_usd", 0)
    assert ledger.replay("j1", 60_000) == ("simple", 0)
    assert spending(redis, "k1").usd_held == pytest.approx(0.6)
    assert redis.zrange("aqr:open:k1", 0, -1) == [b"j1"]


def test_a_clock_that_was_far_ahead_stops_no_key(ledger: Ledger, clock: Clock, redis: Redis) -> None:
    limits = KeyLimits(budget_usd_per_day=1.0)
    clock.advance(400 * 86_400)
    ask(ledger, "j1", limits, usd=0.6)
    claimed(ledger)
    ledger.finish("j1", "token", Ending("completed", {}, answer=DONE_WELL.answer, charge_usd=0.6))
    clock.advance(-400 * 86_400)

    assert ask(ledger, "j2", limits, usd=0.6).kind == "budget_day"
    clock.advance(86_400)
    assert ask(ledger, "j3", limits, usd=0.6).kind == "leader"
