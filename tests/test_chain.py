"""The walk along a tier's targets, over real HTTP to the scripted providers."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from routing.catalogue import Catalogue, load_catalogue
from routing.errors import AllTargetsFailed, NoTargets, QueryRejected, TargetTimedOut
from routing.query import Query, Target
from tests.chain_rig import GROQ, GROQ_SUCCESSOR, LOCAL, SIMPLE, STARTED_AT, TOGETHER, Rig
from tests.fake_provider import KEYS, FakeProvider, Fault


@pytest.fixture
def rig() -> Iterator[Rig]:
    with FakeProvider() as fake:
        yield Rig(fake)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.__dict__["event"] for record in caplog.records if "event" in record.__dict__]


def test_the_first_target_answers_and_no_other_is_called(rig: Rig) -> None:
    outcome = rig.ask()

    assert outcome.completion.text == "answer to: hello"
    assert outcome.target == GROQ
    assert (rig.fake.calls["groq"], rig.fake.calls["together"]) == (1, 0)


def test_an_answered_attempt_says_when_how_long_and_what_it_cost(rig: Rig) -> None:
    rig.fake.set_latency(0.05)

    (attempt,) = rig.ask().attempts

    assert (attempt.number, attempt.provider, attempt.model) == (1, "groq", GROQ.model)
    assert (attempt.outcome, attempt.status, attempt.detail) == ("ok", 200, None)
    assert attempt.started_at == STARTED_AT
    assert 50 <= attempt.latency_ms < 1000
    assert attempt.usage is not None
    assert attempt.cost_usd == pytest.approx((1 * 0.05 + 3 * 0.08) / 1e6)


def test_it_falls_back_when_the_first_provider_is_overloaded(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(503))

    outcome = rig.ask()

    assert outcome.target == TOGETHER
    assert [(a.number, a.provider, a.outcome, a.status, a.cost_usd > 0) for a in outcome.attempts] == [
        (1, "groq", "overloaded", 503, False),
        (2, "together", "ok", 200, True),
    ]


@pytest.mark.parametrize(
    "fault",
    [
        *("429", "498", "401", "413", "reset", "cut", "cut_chunk", "garbage", "endless", "bomb", "bad_json"),
        *(
            "deep_json",
            "not_an_object",
            "html",
            "no_choices",
            "empty",
            "null",
            "content_filter",
            "refusal",
            "odd_finish",
        ),
    ],
)
def test_it_falls_back_from_whatever_another_target_may_do_better(rig: Rig, fault: str) -> None:
    rig.fake.fail_next("groq", Fault.parse(fault))

    assert rig.ask().target == TOGETHER


@pytest.mark.parametrize("status", [400, 422])
def test_it_stops_at_a_query_that_every_target_would_refuse(rig: Rig, status: int) -> None:
    rig.fake.fail_next("groq", Fault.status(status))

    error = rig.fails()

    assert type(error.last) is QueryRejected
    assert [attempt.outcome for attempt in error.attempts] == ["query_rejected"]
    assert rig.fake.calls["together"] == 0


def test_when_all_fail_every_attempt_is_listed(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault.status(500))
    rig.fake.fail_next("together", Fault.status(429))
    rig.fake.fail_next("local", Fault("html"))

    error = rig.fails()

    assert [(a.number, a.outcome) for a in error.attempts] == [
        (1, "overloaded"),
        (2, "throttled"),
        (3, "reply_unusable"),
    ]
    assert error.last.target == LOCAL
    assert error.last.retry_after == pytest.approx(5, abs=0.5)  # when the throttled target may be asked again
    assert sum(attempt.cost_usd for attempt in error.attempts) == 0


def test_a_model_that_is_gone_is_replaced_by_its_successor_at_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.fake.retire(GROQ.model)

    with caplog.at_level(logging.INFO):
        outcome = rig.ask()

    assert outcome.target == GROQ_SUCCESSOR
    assert [attempt.outcome for attempt in outcome.attempts] == ["model_gone", "ok"]
    assert rig.admission.reports[GROQ].outcome == "model_gone"
    assert events(caplog) == ["provider.called", "model.replaced", "provider.called"]


def test_a_model_that_all_know_to_be_gone_is_not_called(rig: Rig) -> None:
    rig.admission.gone_targets = {GROQ}

    outcome = rig.ask()

    assert [attempt.model for attempt in outcome.attempts] == [GROQ_SUCCESSOR.model]


def test_a_model_that_is_gone_without_a_successor_is_the_last_resort(rig: Rig) -> None:
    rig.admission.gone_targets = {GROQ, GROQ_SUCCESSOR}

    rig.fake.fail_next("local", Fault.status(500))
    rig.fake.fail_next("together", Fault.status(500))

    assert [attempt.provider for attempt in rig.ask().attempts] == ["together", "local", "groq"]


def test_successors_that_point_at_each_other_end(rig: Rig) -> None:
    models = {Target(model.provider, model.name): model for model in load_catalogue()}
    looped = replace(models[GROQ_SUCCESSOR], successor=GROQ.model)
    rig.fake.retire(GROQ.model, GROQ_SUCCESSOR.model)
    chain = rig.chain("groq", catalogue=Catalogue([*models.values(), looped]))

    with pytest.raises(AllTargetsFailed) as caught:
        chain.answer(Query("hello"), SIMPLE, deadline=time.monotonic() + 5)

    assert [attempt.model for attempt in caught.value.attempts] == [GROQ.model, GROQ_SUCCESSOR.model]


def test_no_target_is_called_twice_in_one_walk(rig: Rig) -> None:
    tier = replace(SIMPLE, targets=(GROQ, GROQ_SUCCESSOR, GROQ, TOGETHER))
    rig.fake.retire(GROQ.model, GROQ_SUCCESSOR.model)

    outcome = rig.ask(tier=tier)

    assert [attempt.model for attempt in outcome.attempts] == [
        GROQ.model,
        GROQ_SUCCESSOR.model,
        TOGETHER.model,
    ]


def test_one_call_gets_no_more_than_its_tiers_time(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault("slow_body", every=0.02))
    started = time.monotonic()

    outcome = rig.ask(tier=replace(SIMPLE, timeout_s=0.3))

    assert [attempt.outcome for attempt in outcome.attempts] == ["timed_out", "ok"]
    assert 0.3 <= time.monotonic() - started < 5


def test_it_stops_when_the_deadline_has_passed(rig: Rig) -> None:
    rig.fake.fail_next("groq", Fault("silence"))
    started = time.monotonic()

    error = rig.fails(seconds=0.3)

    assert [attempt.outcome for attempt in error.attempts] == ["timed_out"]
    assert type(error.last) is TargetTimedOut
    assert rig.fake.calls["together"] == 0
    assert time.monotonic() - started < 5


def test_it_calls_nobody_when_there_is_no_time_at_all(rig: Rig) -> None:
    error = rig.fails(seconds=-1)

    assert type(error.last) is TargetTimedOut
    assert (error.attempts, rig.fake.calls.total()) == ((), 0)


def test_targets_without_a_configured_provider_are_passed_over(rig: Rig) -> None:
    assert rig.ask("local").target == LOCAL


def test_without_any_configured_target_it_says_so(rig: Rig) -> None:
    with pytest.raises(NoTargets):
        rig.ask("local", tier=replace(SIMPLE, targets=(GROQ, TOGETHER)))


def test_each_call_is_logged_in_the_words_of_the_specification(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.fake.fail_next("groq", Fault.status(500))
    rig.fake.fail_next("together", Fault.status(500))

    with caplog.at_level(logging.INFO, logger="providers.caller"):
        rig.ask()

    assert [record.getMessage() for record in caplog.records if record.levelno == logging.INFO] == [
        f"Calling Groq with model: {GROQ.model}",
        f"Calling Together AI with model: {TOGETHER.model}",
        f"Calling local model with model: {LOCAL.model}",
    ]


def test_a_fall_back_is_logged_with_from_to_and_reason(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.fake.fail_next("groq", Fault.status(503))

    rig.ask()

    (record,) = caplog.records
    fields = record.__dict__
    assert (record.levelno, fields["event"], fields["reason"], fields["status"]) == (
        logging.WARNING,
        "provider.fell_back",
        "overloaded",
        503,
    )
    assert (fields["provider"], fields["model"]) == ("groq", GROQ.model)
    assert (fields["to_provider"], fields["to_model"]) == ("together", TOGETHER.model)


def test_a_rejected_key_is_logged_as_an_error(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.fake.fail_next("groq", Fault.status(401))

    rig.ask()

    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.__dict__["event"] == "provider.key_rejected"


def test_logs_hold_neither_the_query_nor_a_key(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.fake.fail_next("groq", Fault.status(401))
    rig.fake.fail_next("together", Fault.status(429))

    with caplog.at_level(logging.DEBUG):
        rig.chain().answer(Query("a secret question"), SIMPLE, deadline=time.monotonic() + 5)

    logged = " ".join(str(record.__dict__) for record in caplog.records)
    assert "provider.called" in logged
    assert "secret question" not in logged
    assert not any(key in logged for key in KEYS.values() if key)
