"""What the clients ask: a seeded stream of questions, each with a token of its own that only its answer may repeat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

# How often each kind is asked. `crowd`: many clients the same at once; `hurried`: with a deadline of a few seconds.
KINDS: Mapping[str, int] = {"sync": 40, "async": 20, "repeat": 15, "crowd": 12, "batch": 8, "hurried": 5}
WORDS: Mapping[str, str] = {
    "simple": "What is {}?",
    "medium": "Explain {}",
    "complex": "Provide a comprehensive analysis of {}",
}
TIERS: Mapping[str, int] = {"simple": 5, "medium": 3, "complex": 2}
HURRIED_S = 4.0
CROWD_S = 0.4  # all who join the crowd within so long ask the same
REMEMBERED = 50


@dataclass(frozen=True, slots=True)
class Question:
    """One query of one client. `answer` is the only right one."""

    kind: str
    text: str
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        return f"answer to: {self.text}"

    @property
    def wait_s(self) -> float | None:
        """What the request itself says of how long it waits; None where the service's default holds."""
        found: float | None = self.body.get("wait_seconds")
        return found


class Mix:
    """The questions of one client, by the seed alone; only whom a `crowd` meets depends on the clock."""

    def __init__(self, seed: str, tiers: Mapping[str, int] = TIERS) -> None:
        self._random = Random(seed)
        self._tiers = tiers
        self._prefix = seed.replace(":", "")
        self._number = 0
        self._asked: list[Question] = []

    def next(self, elapsed_s: float) -> Question:
        """The next question; `elapsed_s` since the load began."""
        kind = self._pick(KINDS)
        if kind == "repeat" and self._asked:
            earlier = self._random.choice(self._asked[-REMEMBERED:])
            return Question("repeat", earlier.text)
        if kind == "crowd":
            return Question("crowd", WORDS["simple"].format(f"crowd{int(elapsed_s / CROWD_S)}"))
        question = self._new(kind)
        self._asked.append(question)
        return question

    def pause_s(self, mean: float) -> float:
        """How long the client rests before its next question."""
        return self._random.uniform(0, 2 * mean)

    def _new(self, kind: str) -> Question:
        self._number += 1
        text = WORDS[self._pick(self._tiers)].format(f"{self._prefix}n{self._number}")
        bodies: Mapping[str, Mapping[str, Any]] = {
            "async": {"wait_seconds": 0},
            "batch": {"wait_seconds": 0, "priority": "batch"},
            "hurried": {"deadline_seconds": HURRIED_S, "wait_seconds": HURRIED_S + 2},
        }
        return Question(kind, text, bodies.get(kind, {}))

    def _pick(self, weights: Mapping[str, int]) -> str:
        return self._random.choices(list(weights), list(weights.values()))[0]
