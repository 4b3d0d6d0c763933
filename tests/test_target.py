"""Which model answers: retired ones are replaced, configured ones only, and the doctor says so."""

import logging
from datetime import date

import pytest

from config import Settings
from routing.catalogue import load_catalogue
from routing.query import Target
from tasks.doctor import advise, ask_provider, price
from tasks.target import report_targets, resolve_tiers
from tests.fake_provider import KEYS, FakeProvider

TODAY = date(2026, 11, 23)


def test_a_retired_model_is_replaced_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tiers = resolve_tiers(Settings(groq_api_key="k"), load_catalogue(), TODAY)

    assert tiers["simple"].targets == (Target("groq", "openai/gpt-oss-20b"),)
    [line] = [r for r in caplog.records if r.tier == "simple"]  # type: ignore[attr-defined]
    assert (line.message, line.model, line.successor) == (  # type: ignore[attr-defined]
        "model.retired",
        "llama-3.1-8b-instant",
        "openai/gpt-oss-20b",
    )


def test_a_model_is_used_until_the_day_it_retires() -> None:
    tiers = resolve_tiers(Settings(groq_api_key="k"), load_catalogue(), date(2026, 8, 15))

    assert tiers["simple"].targets[0].model == "llama-3.1-8b-instant"


def test_an_operator_may_insist_on_a_retired_model() -> None:
    settings = Settings(groq_api_key="k", retired_models="try")

    assert resolve_tiers(settings, load_catalogue(), TODAY)["simple"].targets[0].model == "llama-3.1-8b-instant"


def test_only_configured_providers_are_targets_and_in_the_order_of_the_fallback() -> None:
    settings = Settings(groq_api_key="k", together_api_key="k", local_model="on", groq_simple_model="my/model")
    targets = resolve_tiers(settings, load_catalogue(), TODAY)["simple"].targets

    assert [str(t) for t in targets] == ["groq:my/model", "together:Qwen/Qwen3.5-9B", "local:smollm2-135m-instruct"]
    assert resolve_tiers(Settings(local_model="off"), load_catalogue(), TODAY)["simple"].targets == ()


def test_the_doctor_says_what_is_the_matter_with_each_target() -> None:
    settings = Settings(groq_api_key="k", groq_complex_model="my/model", local_model="off")
    reports = {(r.tier, r.provider): r for r in report_targets(settings, load_catalogue(), TODAY)}

    assert "openai/gpt-oss-20b answers instead" in advise(reports["simple", "groq"])
    assert "TOGETHER_API_KEY" in advise(reports["simple", "together"])
    assert "LOCAL_MODEL=on" in advise(reports["simple", "local"])
    assert "unknown to the catalogue" in advise(reports["complex", "groq"])
    assert (price(reports["simple", "groq"]), price(reports["complex", "groq"])) == ("$0.075/$0.3", "flat")


@pytest.mark.parametrize(
    ("changes", "says", "lists"),
    [
        ({}, "", True),
        ({"groq_api_key": "gsk_wrong"}, "refuses the key (HTTP 401)", False),
        ({"groq_api_key": f"{KEYS['groq']},gsk_wrong"}, "refuses key 2 of 2 (HTTP 401)", True),
        ({"groq_base_url": "http://127.0.0.1:1/v1"}, "does not answer at GROQ_BASE_URL (ConnectionError)", False),
    ],
)
def test_the_doctor_asks_the_provider_with_every_key(changes: dict[str, str], says: str, lists: bool) -> None:
    with FakeProvider() as fake:
        given = {"groq_api_key": KEYS["groq"], "groq_base_url": fake.base_url("groq"), **changes}
        trouble, listed = ask_provider(Settings(**given), "groq")  # type: ignore[arg-type]

    assert trouble == says
    assert ("openai/gpt-oss-120b" in listed) is lists


def test_the_doctor_says_what_the_provider_said() -> None:
    report = next(iter(report_targets(Settings(groq_api_key="k"), load_catalogue(), TODAY)))

    assert "groq refuses the key" in advise(report, "refuses the key (HTTP 401)")
    assert "groq does not list openai/gpt-oss-20b" in advise(report, "", {"other"})
    assert "does not list" not in advise(report, "", {"openai/gpt-oss-20b"})
