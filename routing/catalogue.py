"""The models we know: context window, price, and what replaces one that its provider retires."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files

from routing.query import Target, Usage
from routing.tier import Tier


@dataclass(frozen=True, slots=True)
class Model:
    """One row of `catalogue.json`. Prices are USD per 1M tokens as published on `price_checked_on`."""

    provider: str
    name: str
    context_window: int
    input_price: float
    output_price: float
    price_checked_on: date
    is_reasoning: bool = False
    retires_on: date | None = None
    successor: str | None = None

    def is_retired(self, today: date) -> bool:
        return self.retires_on is not None and self.retires_on <= today

    def cost_usd(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.input_price + usage.completion_tokens * self.output_price) / 1_000_000


class Catalogue:
    """Look-up of models by target."""

    def __init__(self, models: Iterator[Model] | list[Model]) -> None:
        self._models = {Target(model.provider, model.name): model for model in models}

    def get(self, target: Target) -> Model | None:
        return self._models.get(target)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def successor(self, target: Target) -> Target | None:
        """The catalogue's named replacement at the same provider, or None."""
        model = self.get(target)
        return Target(target.provider, model.successor) if model and model.successor else None

    def in_service(self, target: Target, today: date) -> Target:
        """`target`, or the first of its successors that is not retired on `today`.

        A retired model without a living successor is returned as it is: its provider has the last word.
        """
        seen = {target}
        current = target
        while (model := self.get(current)) and model.is_retired(today):
            following = self.successor(current)
            if following is None or following in seen:
                return target
            seen.add(following)
            current = following
        return current

    def cost_usd(self, target: Target, usage: Usage | None, tier: Tier) -> float:
        """Tokens times the catalogue's price; the tier's flat price where either is unknown."""
        model = self.get(target)
        if model is None or usage is None:
            return tier.flat_price_usd
        return model.cost_usd(usage)


@cache
def load_catalogue() -> Catalogue:
    """The catalogue that ships with the product (`routing/catalogue.json`)."""
    rows = json.loads(files("routing").joinpath("catalogue.json").read_text("utf-8"))["models"]
    return Catalogue([_model(row) for row in rows])


def _model(row: dict[str, object]) -> Model:
    dates = {
        field: date.fromisoformat(str(row[field])) if row.get(field) else None
        for field in ("retires_on", "price_checked_on")
    }
    return Model(**{**row, **dates})  # type: ignore[arg-type]
