"""How many calls a minute: the operator's number, what headers say is left, and what throttling teaches."""

import pytest
from redis import Redis

from routing.lane import CallReport, Grant, RateLimits
from storage.admission import Admission, AdmissionLimits
from tests.conftest import Clock
from tests.test_admission import (
    FIRST,
    SECOND,
    Maker,
    admission,
    count_grants,
    failed,
    granted,
    make,
    ok,
    refused,
)

__all__ = ["admission", "make"]  # fixtures


# The operator's number


@pytest.mark.parametrize("per_minute", [30, 600, 3000])
def test_the_operators_number_is_kept_and_used(make: Maker, clock: Clock, per_minute: int) -> None:
    admission = make(AdmissionLimits({"groq": per_minute}))

    grants = count_grants(admission, clock, 60)

    assert 0.95 * per_minute <= grants <= per_minute


def test_calls_are_spread_because_some_providers_count_by_the_second(make: Maker, clock: Clock) -> None:
    admission = make(AdmissionLimits({"groq": 600}))

    assert max(count_grants(admission, clock, 1) for _ in range(10)) <= 10
    assert count_grants(make(AdmissionLimits({"groq": 60})), clock, 0.5, SECOND) == 1


def test_each_key_has_the_number_to_itself_and_other_providers_have_none(make: Maker, clock: Clock) -> None:
    admission = make(AdmissionLimits({"groq": 60}))
    granted(admission, FIRST)

    assert refused(admission, FIRST).reason == "busy"
    granted(admission, SECOND)


def test_an_operators_number_that_is_too_high_is_corrected(make: Maker, clock: Clock) -> None:
    admission = make(AdmissionLimits({"groq": 6000}))
    for _ in range(3):
        count_grants(admission, clock, 1)
        admission.settle(granted_soon(admission, clock), failed("throttled", retry_after_s=0.25))
        clock.advance(0.25)

    assert count_grants(admission, clock, 1) <= 95


def granted_soon(admission: Admission, clock: Clock) -> Grant:
    """Leave for one who asks until it comes."""
    while not isinstance(leave := admission.admit([FIRST], 100), Grant):
        clock.advance(0.001)
    return leave


# Learned from throttling


def throttled_at(admission: Admission, clock: Clock, served: int) -> None:
    """A second in which `served` calls are answered and a burst of 5 more is thrown out until it is over."""
    for _ in range(served):
        admission.settle(granted(admission), ok())
        clock.advance(0.6 / served)
    late = [granted(admission) for _ in range(5)]
    for grant in late:
        admission.settle(grant, failed("throttled", retry_after_s=0.4))
    clock.advance(0.4)


def test_the_rate_that_was_served_before_the_throttling_becomes_the_ceiling(admission: Admission, clock: Clock) -> None:
    throttled_at(admission, clock, 40)

    assert 37 <= count_grants(admission, clock, 1) <= 40
    assert admission.states([FIRST])[FIRST].requests_per_minute == pytest.approx(0.975 * 2400, rel=0.01)


def test_the_learned_ceiling_grows_slowly_back_while_it_keeps_calls_back(admission: Admission, clock: Clock) -> None:
    throttled_at(admission, clock, 40)
    admission.settle(granted(admission), ok())
    clock.advance(600)
    idle = admission.states([FIRST])[FIRST].requests_per_minute
    seconds = [count_grants(admission, clock, 1) for _ in range(30)]

    assert idle == pytest.approx(0.975 * 2400, rel=0.01)
    assert max(seconds[:4]) <= 42
    assert seconds[-1] >= 60


def test_a_straggler_of_the_burst_lowers_the_ceiling_no_further(admission: Admission, clock: Clock) -> None:
    straggler = granted(admission)
    throttled_at(admission, clock, 40)
    granted(admission)
    before = admission.states([FIRST])[FIRST].requests_per_minute
    admission.settle(straggler, failed("throttled", retry_after_s=0.01))
    clock.advance(0.1)
    granted(admission)

    assert before == pytest.approx(0.975 * 2460, rel=0.01)
    assert admission.states([FIRST])[FIRST].requests_per_minute == before


def test_too_few_calls_teach_no_rate(admission: Admission, clock: Clock) -> None:
    throttled_at(admission, clock, 2)

    assert admission.states([FIRST])[FIRST].requests_per_minute is None


# What headers say


def tokens_left(left: float, reset_s: float = 10.0, limit: float = 6000) -> CallReport:
    limits = RateLimits(14_400, 14_000, 3600.0, limit, left, reset_s)
    return CallReport("ok", 100, 50, limits=limits)


def test_when_the_tokens_left_are_granted_it_waits_for_the_reset(admission: Admission, clock: Clock) -> None:
    admission.settle(granted(admission), tokens_left(1000))
    for _ in range(3):
        granted(admission, tokens=300)

    wait = refused(admission, tokens=300)
    assert wait.reason == "busy"
    assert wait.seconds == pytest.approx(10, abs=0.1)
    granted(admission, tokens=90)
    clock.advance(10.1)
    for _ in range(8):
        granted(admission, tokens=600)
    refused(admission, tokens=600)  # the 990 that were in flight at the reset may be counted after it


def test_when_the_requests_left_are_granted_it_waits_for_the_reset(admission: Admission, clock: Clock) -> None:
    report = CallReport("ok", 100, limits=RateLimits(requests_limit=100, requests_remaining=2, requests_reset_s=5.0))
    admission.settle(granted(admission), report)
    granted(admission)
    granted(admission)

    assert refused(admission).seconds == pytest.approx(5, abs=0.1)


def test_replies_that_overtake_each_other_do_not_make_more_of_what_is_left(admission: Admission) -> None:
    first, second, third = (granted(admission) for _ in range(3))
    admission.settle(third, tokens_left(300))
    admission.settle(first, tokens_left(500))
    admission.settle(second, tokens_left(400))

    for _ in range(3):
        granted(admission)
    refused(admission)


def test_what_is_in_flight_counts_until_its_reply_says_otherwise(admission: Admission) -> None:
    first, second = granted(admission, tokens=400), granted(admission, tokens=400)
    admission.settle(first, tokens_left(800))  # the second may be in it, or not
    granted(admission, tokens=400)
    refused(admission, tokens=400)
    admission.settle(second, tokens_left(800))

    granted(admission, tokens=400)


def test_a_bucket_is_recognised_and_not_waited_for_until_it_is_full(admission: Admission, clock: Clock) -> None:
    """Groq: 6000 tokens a minute refill at 100 a second, and "reset" is when all of them are back."""
    for used in (1000, 2000, 3500, 5900):
        admission.settle(granted(admission), tokens_left(6000 - used, reset_s=used / 100))

    assert refused(admission, tokens=600).seconds == pytest.approx(5, abs=0.1)
    clock.advance(5.1)
    granted(admission, tokens=600)


def test_a_window_is_not_taken_for_a_bucket(admission: Admission, clock: Clock) -> None:
    for used in (1000, 2000, 3500, 5900):
        admission.settle(granted(admission), tokens_left(6000 - used, reset_s=30 - used / 1000))

    assert refused(admission, tokens=600).seconds == pytest.approx(24, abs=0.2)


def test_a_prompt_above_the_whole_allowance_is_not_held_for_ever(admission: Admission, clock: Clock) -> None:
    admission.settle(granted(admission), tokens_left(6000))

    granted(admission, tokens=9000)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -5.0, 0.0])
def test_senseless_numbers_do_no_harm(admission: Admission, clock: Clock, redis: Redis, number: float) -> None:
    limits = RateLimits(number, number, number, number, number, number)
    admission.settle(granted(admission), CallReport("ok", number, None, number, limits))
    admission.settle(granted_soon(admission, clock), CallReport("throttled", number, None, number, limits))
    clock.advance(2)

    granted_soon(admission, clock)
    assert not [value for value in redis.hvals(f"aqr:lane:{FIRST}") if b"nan" in value or b"inf" in value]
