"""A short selection of the chaos suite; `make chaos` runs all of it."""

import os

import pytest

from tests.chaos.run import Options, run
from tests.chaos.scenario import SCENARIOS, Scenario
from tests.chaos.world import CannotRun

SELECTED = ("kill-web", "kill-worker-simple", "broker-kill", "redis-full")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in SELECTED], ids=lambda s: s.name)
def test_nothing_is_lost_mixed_up_or_charged_twice_when(scenario: Scenario) -> None:
    try:
        figures = run(scenario, Options(seconds=8))
    except CannotRun as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))

    assert figures.violations == [], figures.examples


def test_every_scenario_has_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert set(SELECTED) <= set(names)
