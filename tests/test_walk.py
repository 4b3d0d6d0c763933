"""The walk and the admission: waits are no attempts, every grant is given back, and a signal ends it all."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from providers.abort import AbortSignal
from providers.admission import sleep_s
from providers.key import key_id
from routing.errors import AllTargetsFailed, CallAborted, TargetOverloaded, TargetThrottled
from routing.estimate import estimate_prompt_tokens
from routing.lane import RateLimits, Wait
from routing.query import Query, Target, Usage
from tests.chain_rig import GROQ, LOCAL, SIMPLE, TOGETHER, Rig, wait_until
from tests.fake_provider import KEYS, FakeProvider, Fault

FIRST, SECOND = str(KEYS["groq"]), "gsk_second_key"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with FakeProvider() as fake:
        fake.accept_key("groq", SECOND)
        yield Rig(fake)
        fake.set_latency(0)


def ended_by(rig: Rig, signal: AbortSignal, when: Callable[[], object]) -> tuple[AllTargetsFailed, float]:
    """The error of a walk whose signal is set as soon as `when` holds, and how many seconds that took."""
    with ThreadPoolExecutor() as pool:
        walk = pool.submit(rig.fails, seconds=20, signal=signal)
        wait_until(when)
        at = time.monotonic()
        signal.abort()
        return walk.result(), time.monotonic() - at


# Admission


def test_it_asks_with_all_lanes_and_what_the_call_may_take(rig: Rig) -> None:
    rig.keys["groq"] = (FIRST, SECOND)
    rig.ask()

    ((lanes, tokens),) = rig.admission.asked
    assert [str(lane) for lane in lanes] == [
        f"{GROQ}#{key_id(FIRST)}",
        f"{GROQ}#{key_id(SECOND)}",
        f"{TOGETHER}#{key_id(str(KEYS['together']))}",
        f"{LOCAL}#-",
    ]
    assert tokens == estimate_prompt_tokens(Query("hello")) + SIMPLE.max_tokens


def test_it_calls_the_lane_that_was_granted(rig: Rig) -> None:
    rig.admission.closed = {GROQ: Wait(9, "busy")}

    outcome = rig.ask()

    assert (outcome.target, len(outcome.attempts), rig.fake.calls["groq"]) == (TOGETHER, 1, 0)


def test_every_grant_is_given_back_with_how_the_call_ended(rig: Rig) -> None:
    rig.fake.set_headers({"x-ratelimit-remaining": "8"})
    limits = {"x-ratelimit-remaining-tokens": "0"}
    rig.fake.fail_next("groq", Fault.status(429, retry_after=30, headers=limits))

    rig.ask()

    assert rig.admission.is_settled
    throttled, answered = rig.admission.reports[GROQ], rig.admission.reports[TOGETHER]
    assert (throttled.outcome, throttled.retry_after_s, throttled.tokens) == ("throttled", 30, None)
    assert throttled.limits == RateLimits(tokens_remaining=0)
    assert (answered.outcome, answered.tokens, answered.limits) == ("ok", 4, RateLimits(requests_remaining=8))
    assert answered.latency_ms > 0


def test_a_bug_does_not_keep_the_grant(rig: Rig) -> None:
    query = Query("hello", temperature=object())  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        rig.chain().answer(query, SIMPLE, deadline=time.monotonic() + 5)

    assert rig.admission.is_settled
    assert rig.admission.reports[GROQ].outcome == "provider_error"


# Waiting


def test_waiting_is_no_attempt(rig: Rig) -> None:
    rig.admission.waits = deque([Wait(0.05, "busy"), Wait(0.05, "paused"), Wait(0.05, "broken")])
    started = time.monotonic()

    outcome = rig.ask()

    assert len(outcome.attempts) == 1
    assert len(rig.admission.asked) == 4
    assert 0.15 <= time.monotonic() - started < 2


@pytest.mark.parametrize("reason", ["busy", "paused"])
def test_a_wait_past_the_deadline_ends_the_walk_at_once_and_says_when_to_come_back(rig: Rig, reason: str) -> None:
    rig.admission.waits = deque([Wait(30, reason)])  # type: ignore[arg-type]
    started = time.monotonic()

    error = rig.fails()

    assert time.monotonic() - started < 2
    assert type(error.last) is TargetThrottled
    assert (error.attempts, error.last.retry_after, rig.fake.calls.total()) == ((), 30, 0)


def test_nobody_waits_for_targets_that_are_out_of_order(rig: Rig) -> None:
    rig.admission.waits = deque([Wait(10, "broken")])
    started = time.monotonic()

    error = rig.fails(seconds=60)

    assert time.monotonic() - started < 2
    assert (type(error.last), error.last.retry_after) == (TargetOverloaded, 10)


def test_when_the_others_are_not_free_the_last_error_says_when_they_are(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(503))
    rig.admission.closed = {TOGETHER: Wait(30, "paused"), LOCAL: Wait(20, "paused")}

    error = rig.fails()

    assert (type(error.last), error.last.retry_after) == (TargetOverloaded, 20)
    assert [attempt.outcome for attempt in error.attempts] == ["overloaded"]


def test_a_throttled_lane_is_called_again_after_its_pause(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(429, retry_after=1))
    started = time.monotonic()

    outcome = rig.ask("groq")

    assert [attempt.outcome for attempt in outcome.attempts] == ["throttled", "ok"]
    assert 1 <= time.monotonic() - started < 4


def test_a_throttled_lane_whose_pause_is_longer_than_the_deadline_ends_the_walk(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(429, retry_after=17))

    error = rig.fails("groq")

    assert type(error.last) is TargetThrottled
    assert error.last.retry_after == pytest.approx(17, abs=0.5)
    assert rig.fake.calls["groq"] == 1


def test_those_who_wait_do_not_ask_all_at_once() -> None:
    slept = [sleep_s(1) for _ in range(50)]

    assert all(1 <= seconds <= 1.25 for seconds in slept)
    assert len(set(slept)) > 40
    assert 5 <= sleep_s(3600) <= 5.5
    assert sleep_s(0) == 0.01


# Keys


def test_one_dead_key_does_not_stop_its_provider(rig: Rig) -> None:
    rig.keys["groq"] = ("gsk_revoked", FIRST)

    outcome = rig.ask()

    assert [(a.provider, a.outcome) for a in outcome.attempts] == [("groq", "key_rejected"), ("groq", "ok")]
    assert rig.fake.keys_used == ["gsk_revoked", FIRST]


def test_a_throttled_key_gives_way_to_the_next(rig: Rig) -> None:
    rig.keys["groq"] = (FIRST, SECOND)
    rig.fake.fail_next("groq", Fault.status(429, retry_after=30))

    assert rig.ask().target == GROQ
    assert rig.fake.keys_used == [FIRST, SECOND]


def test_the_keys_share_the_load(rig: Rig) -> None:
    rig.keys["groq"] = (FIRST, SECOND)
    chain = rig.chain()

    for _ in range(4):
        chain.answer(Query("hello"), SIMPLE, deadline=time.monotonic() + 5)

    assert rig.fake.keys_used == [FIRST, SECOND, FIRST, SECOND]


# Aborting


def test_a_signal_closes_the_connection_of_the_call_in_flight(rig: Rig) -> None:
    rig.fake.set_latency(20)

    error, seconds = ended_by(rig, AbortSignal(), lambda: rig.fake.calls["groq"])

    assert seconds < 1
    wait_until(lambda: rig.fake.hung_up == 1, seconds=1)
    assert type(error.last) is CallAborted
    assert [(a.number, a.provider, a.outcome, a.billing) for a in error.attempts] == [(1, "groq", "aborted", "unknown")]
    assert rig.fake.calls["together"] == 0
    assert rig.admission.reports[GROQ].outcome == "aborted"


def test_a_signal_ends_a_wait(rig: Rig) -> None:
    rig.admission.waits = deque([Wait(10, "busy")])

    error, seconds = ended_by(rig, AbortSignal(), lambda: rig.admission.asked)

    assert seconds < 1
    assert (type(error.last), error.attempts, rig.fake.calls.total()) == (CallAborted, (), 0)


def test_a_signal_between_two_calls_ends_the_walk(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(500))
    signal = AbortSignal()
    settle = rig.admission.settle
    rig.admission.settle = lambda grant, report: (settle(grant, report), signal.abort())[0]  # type: ignore[method-assign]

    error = rig.fails(signal=signal)

    assert type(error.last) is CallAborted
    assert [attempt.outcome for attempt in error.attempts] == ["overloaded"]
    assert rig.fake.calls["together"] == 0


def test_nothing_is_asked_for_when_the_signal_is_set_already(rig: Rig) -> None:
    signal = AbortSignal()
    signal.abort()

    error = rig.fails(signal=signal)

    assert (type(error.last), error.attempts, rig.admission.asked) == (CallAborted, (), [])


# What it cost


@pytest.mark.parametrize("fault", ["content_filter", "empty", "refusal"])
def test_a_failed_attempt_that_names_its_usage_costs_what_it_says(rig: Rig, fault: str) -> None:
    rig.fake.fail_next("groq", Fault(fault))

    failed, answered = rig.ask().attempts

    assert (failed.billing, failed.usage, failed.possible_cost_usd) == ("billed", Usage(1, 2), 0)
    assert failed.cost_usd == pytest.approx((1 * 0.05 + 2 * 0.08) / 1e6)
    assert (answered.billing, answered.possible_cost_usd) == ("billed", 0)
    assert rig.admission.reports[GROQ].tokens == 3


@pytest.mark.parametrize("fault", ["silence", "cut", "reset", "endless", "bad_json"])
def test_an_attempt_nobody_can_tell_the_cost_of_says_what_it_may_be_at_most(rig: Rig, fault: str) -> None:
    rig.fake.fail_next("groq", Fault(fault))

    failed = rig.ask(tier=replace(SIMPLE, timeout_s=0.3)).attempts[0]

    most = Usage(estimate_prompt_tokens(Query("hello")), SIMPLE.max_tokens)
    assert (failed.billing, failed.cost_usd) == ("unknown", 0)
    assert failed.possible_cost_usd == pytest.approx((most.prompt_tokens * 0.05 + most.completion_tokens * 0.08) / 1e6)
    assert failed.as_dict()["billing"] == "unknown"
    assert failed.as_dict()["possible_cost_usd"] == failed.possible_cost_usd


def test_where_no_price_is_known_it_may_be_the_tiers_flat_price(rig: Rig) -> None:
    tier = replace(SIMPLE, targets=(Target("groq", "unheard-of"), LOCAL))
    rig.fake.fail_next("groq", Fault("cut"))

    assert rig.ask(tier=tier).attempts[0].possible_cost_usd == SIMPLE.flat_price_usd


def test_an_error_status_costs_nothing(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(503))

    failed = rig.ask().attempts[0]

    assert (failed.billing, failed.cost_usd, failed.possible_cost_usd) == ("free", 0, 0)
