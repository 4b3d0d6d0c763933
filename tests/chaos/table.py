"""The printed table: one Markdown row a scenario, as soon as it has run."""

from collections.abc import Callable

from tests.chaos.scenario import Scenario
from tests.chaos.verdict import Figures


def _refused(figures: Figures) -> str:
    return ", ".join(f"{number}x {what}" for what, number in sorted(figures.refused.items())) or "0"


def _recovery(figures: Figures) -> str:
    return "never" if figures.recovery_s is None else f"{figures.recovery_s:.1f}"


_COLUMNS: tuple[tuple[str, Callable[[Figures], object]], ...] = (
    ("asked", lambda f: f.asked),
    ("answered", lambda f: f.answered),
    ("of these degraded", lambda f: f.degraded),
    ("promised", lambda f: f.promised),
    ("refused", _refused),
    ("cut", lambda f: f.cut),
    ("jobs", lambda f: f.jobs),
    ("ended", lambda f: f.ended),
    ("lost", lambda f: f.lost),
    ("mixed up", lambda f: f.mixed_up),
    ("charged twice", lambda f: f.charged_twice),
    ("extra calls", lambda f: f.extra_calls),
    ("missing in SQL", lambda f: f.missing_in_sql),
    ("in Kafka", lambda f: f.missing_in_kafka),
    ("repeats in Kafka", lambda f: f.repeated_in_kafka),
    ("hanging", lambda f: f.hanging),
    ("longest s", lambda f: f"{f.longest_s:.1f}"),
    ("recovery s", _recovery),
    ("restarts", lambda f: f.restarts),
    ("verdict", lambda f: "; ".join(f.violations) or "ok"),
)


def head() -> str:
    names = ["what happens", *(name for name, _ in _COLUMNS)]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def row(scenario: Scenario, figures: Figures) -> str:
    return f"| {scenario.does} | {' | '.join(str(show(figures)) for _, show in _COLUMNS)} |"


def skipped(scenario: Scenario, why: str) -> str:
    return f"| {scenario.does} | not run: {why} |{' |' * (len(_COLUMNS) - 1)}"
