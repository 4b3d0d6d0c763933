"""What one call leaves behind: what all workers learn of its lane, what its attempt quotes, and what budgets count."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from routing.errors import AllTargetsFailed
from routing.estimate import estimate_prompt_tokens
from routing.query import Attempt, Query, Target, Usage
from tests.chain_rig import GROQ, GROQ_SUCCESSOR, SIMPLE, TOGETHER, Rig
from tests.fake_provider import KEYS, FakeProvider, Fault

MOST_TOKENS = estimate_prompt_tokens(Query("hello")) + SIMPLE.max_tokens


@pytest.fixture
def rig() -> Iterator[Rig]:
    with FakeProvider() as fake:
        yield Rig(fake)


def first_attempt(rig: Rig, fault: Fault, provider: str = "groq") -> Attempt:
    """How the call of `provider` ended, whether another target answered or none was asked."""
    rig.fake.fail_next(provider, fault)
    try:
        return rig.ask(provider).attempts[0]
    except AllTargetsFailed as error:
        return error.attempts[0]


# What all workers learn


@pytest.mark.parametrize("fault", ["silence", "slow_headers", "slow_body"])
def test_a_callers_own_short_deadline_is_not_held_against_the_target(rig: Rig, fault: str) -> None:
    rig.fake.fail_next("groq", Fault(fault, every=0.02))

    error = rig.fails(seconds=0.3)

    assert [attempt.outcome for attempt in error.attempts] == ["timed_out"]
    assert rig.admission.reports[GROQ].outcome == "aborted"


def test_a_target_that_takes_longer_than_its_tier_allows_has_failed(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault("silence"))

    rig.ask(tier=replace(SIMPLE, timeout_s=0.3))

    assert rig.admission.reports[GROQ].outcome == "timed_out"


def test_a_target_that_says_it_timed_out_has_failed_however_little_time_was_left(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(408))

    rig.ask(seconds=2)

    assert rig.admission.reports[GROQ].outcome == "timed_out"


@pytest.mark.parametrize("fault", ["empty", "null", "empty_unbilled", "content_filter", "odd_finish", "refusal"])
def test_what_a_query_can_make_a_model_do_is_not_held_against_the_target(rig: Rig, fault: str) -> None:
    rig.fake.fail_next("groq", Fault(fault))

    outcome = rig.ask()

    assert (outcome.attempts[0].outcome, outcome.target) == ("reply_unusable", TOGETHER)
    assert rig.admission.reports[GROQ].outcome == "aborted"


@pytest.mark.parametrize(
    "fault", ["bad_json", "deep_json", "not_an_object", "html", "no_choices", "no_text", "endless", "bomb", "redirect"]
)
def test_a_reply_that_is_badly_made_is_held_against_the_target(rig: Rig, fault: str) -> None:
    rig.fake.fail_next("groq", Fault(fault))

    assert rig.ask().attempts[0].outcome == "reply_unusable"
    assert rig.admission.reports[GROQ].outcome == "reply_unusable"


@pytest.mark.parametrize("code", ["not_a_code_of_this_provider", "cut"])
def test_one_404_without_a_known_code_takes_no_model_from_the_others(rig: Rig, code: str) -> None:
    fault = Fault("cut_error", 404) if code == "cut" else Fault.status(404, code=code)
    rig.fake.fail_next("groq", fault)

    outcome = rig.ask()

    assert (outcome.attempts[0].outcome, outcome.target) == ("model_gone", GROQ_SUCCESSOR)
    assert rig.admission.reports[GROQ].outcome == "unreachable"


def test_a_missing_local_model_is_a_plain_failure_too(rig: Rig) -> None:
    rig.fake.retire("smollm2-135m-instruct")

    error = rig.fails("local")

    assert [attempt.outcome for attempt in error.attempts] == ["model_gone"]
    assert [report.outcome for report in rig.admission.reports.values()] == ["unreachable"]


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        (GROQ, 404, "model_not_found"),
        (GROQ, 400, "model_decommissioned"),
        (GROQ, 403, "model_permission_blocked_org"),
        (TOGETHER, 404, "model_not_available"),
    ],
)
def test_a_model_that_is_gone_by_name_is_gone_for_all(rig: Rig, target: Target, status: int, code: str) -> None:
    first_attempt(rig, Fault.status(status, code=code), target.provider)

    assert rig.admission.settled[0][1].outcome == "model_gone"
    assert rig.admission.settled[0][0].lane.target == target


def test_one_bare_403_tries_the_next_key_and_takes_no_key_from_the_others(rig: Rig) -> None:
    first, second = str(KEYS["groq"]), "gsk_second_key"
    rig.fake.accept_key("groq", second)
    rig.keys["groq"] = (first, second)
    rig.fake.fail_next("groq", Fault.status(403))

    outcome = rig.ask()

    assert [(a.provider, a.outcome) for a in outcome.attempts] == [("groq", "key_rejected"), ("groq", "ok")]
    assert rig.fake.keys_used == [first, second]
    assert [report.outcome for _, report in rig.admission.settled] == ["unreachable", "ok"]


@pytest.mark.parametrize(
    "fault", [Fault.status(401), Fault.status(402), Fault.status(403, code="organization_restricted")]
)
def test_a_key_that_is_refused_for_itself_is_refused_for_all(rig: Rig, fault: Fault) -> None:
    first_attempt(rig, fault)

    assert rig.admission.reports[GROQ].outcome == "key_rejected"


def test_togethers_403_is_about_the_prompt_and_no_failure_of_the_lane(rig: Rig) -> None:
    first_attempt(rig, Fault.status(403), "together")

    assert rig.admission.reports[TOGETHER].outcome == "prompt_too_long"


# What an attempt quotes


@pytest.mark.parametrize(
    ("provider", "fault"),
    [
        ("groq", Fault.status(400)),
        ("groq", Fault.status(422)),
        ("groq", Fault.status(400, code="context_length_exceeded")),
        ("groq", Fault.status(404)),
        ("together", Fault.status(413)),
        ("together", Fault.status(403)),
    ],
)
def test_an_attempt_quotes_what_is_about_the_query_or_its_model(rig: Rig, provider: str, fault: Fault) -> None:
    attempt = first_attempt(rig, replace(fault, message="It is too long."), provider)

    assert attempt.said == "It is too long."
    assert "It is too long." in attempt.told


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault.status(status) for status in (307, 401, 402, 403, 408, 429, 498, 500, 503)),
        Fault.status(400, code="organization_restricted"),
        Fault.status(413, code="rate_limit_exceeded"),
        Fault.status(413, code="other", type="rate_limit_exceeded"),
    ],
)
def test_no_attempt_quotes_what_may_name_the_operators_organisation(rig: Rig, fault: Fault) -> None:
    attempt = first_attempt(rig, replace(fault, message="Limit reached in organization org_01abc: Used 5990"))

    assert attempt.outcome != "ok"
    assert attempt.said is None
    assert "org_01abc" not in str(attempt.as_dict())


# What budgets count


@pytest.mark.parametrize("fault", ["silence", "cut", "bad_json", "empty_unbilled"])
def test_an_attempt_of_unknown_billing_says_how_many_tokens_it_may_have_used(rig: Rig, fault: str) -> None:
    rig.fake.fail_next("groq", Fault(fault))

    failed, answered = rig.ask(tier=replace(SIMPLE, timeout_s=0.3)).attempts

    assert (failed.billing, failed.possible_tokens) == ("unknown", MOST_TOKENS)
    assert failed.as_dict()["possible_tokens"] == MOST_TOKENS
    assert answered.possible_tokens == 0


def test_an_answer_that_names_no_usage_says_how_many_tokens_it_may_have_used(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault("no_usage"))

    (attempt,) = rig.ask().attempts

    assert (attempt.outcome, attempt.billing, attempt.usage) == ("ok", "billed", None)
    assert attempt.possible_tokens == MOST_TOKENS


@pytest.mark.parametrize(("fault", "usage"), [(Fault("refusal"), Usage(1, 2)), (Fault.status(503), None)])
def test_tokens_that_are_named_or_were_never_billed_are_not_guessed(
    rig: Rig, fault: Fault, usage: Usage | None
) -> None:
    attempt = first_attempt(rig, fault)

    assert (attempt.usage, attempt.possible_tokens) == (usage, 0)
