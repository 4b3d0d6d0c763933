from dataclasses import fields

import pytest

from routing.classifier import DEFAULT_THRESHOLDS, classify
from routing.query import Target
from routing.tier import TIER_NAMES, TIERS, Tier, with_targets

PROVIDERS = ("groq", "together", "local")


def test_the_tiers_are_in_order_of_complexity() -> None:
    assert TIER_NAMES == ("simple", "medium", "complex")


def test_each_row_is_found_under_its_name() -> None:
    assert all(name == tier.name for name, tier in TIERS.items())


def test_each_tier_has_a_queue_of_its_own_named_like_it() -> None:
    assert [tier.queue for tier in TIERS.values()] == list(TIER_NAMES)


@pytest.mark.parametrize("tier", TIERS.values(), ids=TIER_NAMES)
def test_each_tier_tries_groq_then_together_then_the_local_model(tier: Tier) -> None:
    assert tuple(target.provider for target in tier.targets) == PROVIDERS


@pytest.mark.parametrize("field", ["timeout_s", "max_tokens", "flat_price_usd"])
def test_a_more_complex_tier_may_take_and_cost_more(field: str) -> None:
    assert field in {f.name for f in fields(Tier)}
    amounts = [getattr(tier, field) for tier in TIERS.values()]
    assert amounts[0] > 0
    assert amounts == sorted(set(amounts))


def test_the_flat_prices_are_the_published_ones() -> None:
    assert [tier.flat_price_usd for tier in TIERS.values()] == [0.001, 0.005, 0.02]


@pytest.mark.parametrize("text", ["What is AI?", "Explain binary search", "Compare and analyze sorting"])
def test_every_tier_that_the_classifier_gives_is_in_the_table(text: str) -> None:
    assert classify(text).tier in TIERS


def test_the_classifier_gives_every_tier_of_the_table() -> None:
    lengths = (1, DEFAULT_THRESHOLDS.simple_max_words + 1, DEFAULT_THRESHOLDS.medium_max_words + 1)
    assert tuple(classify("blue " * words).tier for words in lengths) == TIER_NAMES


def test_targets_are_replaced_and_left_out_without_touching_the_table() -> None:
    def choose(tier: Tier, target: Target) -> Target | None:
        return Target("groq", f"{tier.name}-model") if target.provider == "groq" else None

    chosen = with_targets(choose)
    assert {name: tier.targets for name, tier in chosen.items()} == {
        name: (Target("groq", f"{name}-model"),) for name in TIER_NAMES
    }
    assert all(len(tier.targets) == len(PROVIDERS) for tier in TIERS.values())


def test_all_else_of_a_row_stays_when_its_targets_are_replaced() -> None:
    assert with_targets(lambda tier, target: target) == TIERS
