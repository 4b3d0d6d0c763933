"""Which model of which provider really answers each tier today, and what the operator should know about it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from config import Settings
from providers.key import key_id
from routing.catalogue import Catalogue
from routing.lane import Lane
from routing.query import Target
from routing.tier import TIERS, Tier, with_targets

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One configured target: what was asked for, what is used instead, and why."""

    tier: str
    provider: str
    configured_model: str
    model: str
    is_configured: bool
    is_known: bool
    retired_on: date | None
    input_price: float | None
    output_price: float | None
    price_checked_on: date | None

    @property
    def is_replaced(self) -> bool:
        return self.model != self.configured_model

    def as_dict(self) -> dict[str, Any]:
        return {
            "tier": self.tier,
            "provider": self.provider,
            "configured_model": self.configured_model,
            "model": self.model,
            "is_configured": self.is_configured,
            "is_known": self.is_known,
            "retired_on": self.retired_on.isoformat() if self.retired_on else None,
        }


def report_targets(settings: Settings, catalogue: Catalogue, today: date) -> list[TargetReport]:
    """Every target of every tier, in the order of the fallback."""
    return [
        _report(tier.name, settings.target(tier.name, target.provider), settings, catalogue, today)
        for tier in TIERS.values()
        for target in tier.targets
    ]


def resolve_tiers(settings: Settings, catalogue: Catalogue, today: date) -> dict[str, Tier]:
    """The tier table with the models in use: configured providers only, retired models replaced (and logged)."""

    def choose(tier: Tier, target: Target) -> Target | None:
        if not settings.is_configured(target.provider):
            return None
        report = _report(tier.name, settings.target(tier.name, target.provider), settings, catalogue, today)
        if report.is_replaced:
            log.warning(
                "model.retired",
                extra={"tier": tier.name, "model": report.configured_model, "successor": report.model},
            )
        return Target(report.provider, report.model)

    return with_targets(choose)


def _report(tier: str, wanted: Target, settings: Settings, catalogue: Catalogue, today: date) -> TargetReport:
    used = catalogue.in_service(wanted, today) if settings.retired_models == "replace" else wanted
    asked_for, model = catalogue.get(wanted), catalogue.get(used)
    return TargetReport(
        tier=tier,
        provider=wanted.provider,
        configured_model=wanted.model,
        model=used.model,
        is_configured=settings.is_configured(wanted.provider),
        is_known=asked_for is not None,
        retired_on=asked_for.retires_on if asked_for and asked_for.is_retired(today) else None,
        input_price=model.input_price if model else None,
        output_price=model.output_price if model else None,
        price_checked_on=model.price_checked_on if model else None,
    )


def lanes_of(settings: Settings, tiers: Mapping[str, Tier]) -> list[Lane]:
    """Every way in which a tier's targets can be called: one for each key."""
    targets = dict.fromkeys(target for tier in tiers.values() for target in tier.targets)
    return [Lane(target, key_id(key)) for target in targets for key in settings.keys(target.provider) or ("",)]
