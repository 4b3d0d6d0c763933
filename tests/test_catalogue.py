from datetime import date, timedelta

import pytest

from routing.catalogue import Catalogue, Model, load_catalogue
from routing.query import Target, Usage
from routing.tier import TIERS, Tier

TODAY = date(2026, 11, 22)
YESTERDAY, TOMORROW = TODAY - timedelta(days=1), TODAY + timedelta(days=1)
SHIPPED = list(load_catalogue())


def model(name: str, retires_on: date | None = None, successor: str | None = None, provider: str = "groq") -> Model:
    return Model(
        provider=provider,
        name=name,
        context_window=8192,
        input_price=0.5,
        output_price=2.0,
        price_checked_on=TODAY,
        retires_on=retires_on,
        successor=successor,
    )


def target_of(shipped: Model) -> Target:
    return Target(shipped.provider, shipped.name)


def in_service(*models: Model) -> str:
    return Catalogue(list(models)).in_service(Target("groq", "a"), TODAY).model


def test_a_living_model_serves_itself() -> None:
    assert in_service(model("a", successor="b"), model("b")) == "a"


def test_a_retired_model_is_followed_through_all_its_successors() -> None:
    assert in_service(model("a", YESTERDAY, "b"), model("b", YESTERDAY, "c"), model("c")) == "c"


@pytest.mark.parametrize(("retires_on", "serves"), [(YESTERDAY, "b"), (TODAY, "b"), (TOMORROW, "a"), (None, "a")])
def test_a_model_retires_on_its_day(retires_on: date | None, serves: str) -> None:
    assert in_service(model("a", retires_on, "b"), model("b")) == serves


def test_a_successor_that_the_catalogue_does_not_know_serves() -> None:
    assert in_service(model("a", YESTERDAY, "new")) == "new"


def test_a_retired_model_without_a_successor_is_kept() -> None:
    assert in_service(model("a", YESTERDAY)) == "a"


def test_a_chain_that_ends_in_a_dead_model_changes_nothing() -> None:
    assert in_service(model("a", YESTERDAY, "b"), model("b", YESTERDAY)) == "a"


def test_a_circle_of_successors_changes_nothing() -> None:
    assert in_service(model("a", YESTERDAY, "b"), model("b", YESTERDAY, "c"), model("c", YESTERDAY, "b")) == "a"


def test_an_unknown_model_is_kept() -> None:
    assert in_service(model("b")) == "a"


def test_a_successor_is_sought_at_the_same_provider() -> None:
    catalogue = Catalogue([model("a", YESTERDAY, "b", "together"), model("b"), model("b", provider="together")])
    assert catalogue.successor(Target("together", "a")) == Target("together", "b")
    assert catalogue.successor(Target("groq", "a")) is None


def test_the_cost_is_tokens_times_prices_per_million() -> None:
    cost = Catalogue([model("a")]).cost_usd(Target("groq", "a"), Usage(1_000_000, 500_000), TIERS["simple"])
    assert cost == pytest.approx(0.5 + 1.0)


@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
@pytest.mark.parametrize(("name", "usage"), [("unknown", Usage(1, 1)), ("a", None)])
def test_an_unknown_price_or_amount_costs_the_flat_price(tier: Tier, name: str, usage: Usage | None) -> None:
    assert Catalogue([model("a")]).cost_usd(Target("groq", name), usage, tier) == tier.flat_price_usd


def test_the_local_model_costs_nothing() -> None:
    local = TIERS["simple"].targets[-1]
    assert load_catalogue().cost_usd(local, Usage(100, 100), TIERS["simple"]) == 0


@pytest.mark.parametrize("target", {t for tier in TIERS.values() for t in tier.targets}, ids=str)
def test_every_model_of_the_tiers_is_in_the_catalogue(target: Target) -> None:
    assert load_catalogue().get(target) is not None


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: str(target_of(shipped)))
def test_every_shipped_successor_is_in_the_catalogue(shipped: Model) -> None:
    successor = load_catalogue().successor(target_of(shipped))
    assert successor is None or load_catalogue().get(successor) is not None


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: str(target_of(shipped)))
def test_every_shipped_model_has_a_window_and_sane_prices(shipped: Model) -> None:
    assert shipped.context_window >= 2048
    assert 0 <= shipped.input_price <= shipped.output_price < 100


@pytest.mark.parametrize(
    "retired", [m for m in SHIPPED if m.retires_on is not None], ids=lambda retired: str(target_of(retired))
)
def test_every_shipped_model_that_retires_leads_to_one_that_does_not(retired: Model) -> None:
    serving = load_catalogue().get(load_catalogue().in_service(target_of(retired), date.max))
    assert serving is not None
    assert serving.retires_on is None


def test_no_shipped_model_is_listed_twice() -> None:
    rows = [target_of(shipped) for shipped in SHIPPED]
    assert len(rows) == len(set(rows)) > 0


def test_the_catalogue_is_read_once() -> None:
    assert load_catalogue() is load_catalogue()
