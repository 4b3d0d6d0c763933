"""The goals, as a table, and what a run says of each. Ratios and differences are taken within a repetition."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.cell import Row


@dataclass(frozen=True)
class Figure:
    """One figure of one cell of one target, as rows name it."""

    cell: str
    metric: str
    target: str = "product"

    def of(self, rows: Sequence[Row], repetition: int) -> float | None:
        wanted = (self.target, self.cell, repetition)
        found = (row.get(self.metric) for row in rows if (row["target"], row["cell"], row["repetition"]) == wanted)
        return next((float(value) for value in found if value is not None), None)


@dataclass(frozen=True)
class Goal:
    """`figure`, or its ratio to or difference from `beside`, is to be at least or at most `bound`."""

    text: str
    figure: Figure
    bound: float
    is_least: bool
    beside: Figure | None = None
    is_difference: bool = False
    unit: str = ""

    def measured(self, rows: Sequence[Row]) -> float | None:
        """The median over the repetitions that have all it needs; None where none has."""
        values = [self._in(rows, repetition) for repetition in sorted({row["repetition"] for row in rows})]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}{self.unit}"

    def _in(self, rows: Sequence[Row], repetition: int) -> float | None:
        ours = self.figure.of(rows, repetition)
        if self.beside is None or ours is None:
            return ours
        theirs = self.beside.of(rows, repetition)
        if self.is_difference:
            return None if theirs is None else ours - theirs
        return ours / theirs if theirs else None


def _times(cell: str, rival: str, bound: float) -> Goal:
    """Throughput of a cell as a multiple of a rival's."""
    ours, theirs = Figure(cell, "per_second"), Figure(cell, "per_second", rival)
    return Goal(f"{cell}: throughput beside {rival}", ours, bound, True, theirs, unit="×")


def _least(text: str, cell: str, metric: str, bound: float, unit: str = "") -> Goal:
    return Goal(f"{cell}: {text}", Figure(cell, metric), bound, True, unit=unit)


def _most(text: str, cell: str, metric: str, bound: float, unit: str = "") -> Goal:
    return Goal(f"{cell}: {text}", Figure(cell, metric), bound, False, unit=unit)


def _flat(what: str, few: str, many: str) -> Goal:
    text = f"growth: CPU of a {what}, {many} beside {few}"
    cell = {"hit": "hit@32", "miss": "miss0@8"}[what]
    return Goal(text, Figure(f"{cell}, {many}", "cpu_ms"), 1.1, False, Figure(f"{cell}, {few}", "cpu_ms"), unit="×")


_OPEN = "hit_open500_while_waiting"

GOALS: tuple[Goal, ...] = (
    _times("hit@1", "litellm", 13),
    _times("hit@32", "litellm", 15),
    _times("hit@200", "litellm", 10),
    _times("hit@32", "portkey", 3),
    _times("hit@1", "floor", 0.9),
    _times("hit@32", "floor", 0.9),
    _times("hit@200", "floor", 0.9),
    _times("hit@32", "tensorzero", 0.5),
    Goal(
        "hit@1: p50 beside tensorzero",
        Figure("hit@1", "p50_ms"),
        1.0,
        False,
        Figure("hit@1", "p50_ms", "tensorzero"),
        unit="×",
    ),
    _most("p50", _OPEN, "p50_ms", 2, " ms"),
    _most("p99", _OPEN, "p99_ms", 10, " ms"),
    _most("failed", _OPEN, "failed", 0),
    _most("waiting misses that failed", _OPEN, "held_failed", 0),
    _times("miss0@1", "litellm", 4),
    _times("miss0@32", "litellm", 4),
    Goal(
        "miss0@1: p50 over the provider's own",
        Figure("miss0@1", "p50_ms"),
        6,
        False,
        Figure("miss0@1", "p50_ms", "direct"),
        is_difference=True,
        unit=" ms",
    ),
    _most("CPU of all our processes a miss", "miss0@1", "cpu_ms", 5, " ms"),
    _most("CPU of all our processes a miss", "miss0@32", "cpu_ms", 5, " ms"),
    _least("answers", "miss1000@200", "per_second", 195, "/s"),
    _most("p99", "miss1000@200", "p99_ms", 1100, " ms"),
    _least("answered or refused cleanly", "miss1000@1000", "offered_per_second", 950, "/s"),
    _most("failed", "miss1000@1000", "failed", 0),
    _most("memory of the whole stack", "memory_idle", "memory_mb", 450, " MB"),
    _most("memory of the whole stack", "memory@200", "memory_mb", 600, " MB"),
    _least("what the second worker adds, of the first", "workers=2", "gain", 0.9),
    _least("what the third worker adds, of the first", "workers=3", "gain", 0.9),
    _flat("hit", "10^3 answers", "10^6 answers"),
    _flat("miss", "10^1 jobs", "10^5 jobs"),
)


def verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each goal with what was measured (None where the run had not all it needs) and whether it is met."""
    found = ((goal, goal.measured(rows)) for goal in GOALS)
    return [
        {
            "goal": goal.text,
            "wanted": goal.wanted,
            "measured": value,
            "unit": goal.unit,
            "met": None if value is None else goal.is_met(value),
        }
        for goal, value in found
    ]
