"""How complex a query is: a score from a table of signals, and the tier that score and length ask for."""

from collections.abc import Callable
from dataclasses import dataclass

from routing import structure
from routing.structure import Group, Reading
from routing.word import Span, count_words

# More says nothing more about complexity: this is already far beyond every tier's length, and it bounds the work.
EXAMINED_CHARS = 20_000
COMPLEX_SCORE = 3


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The most words of a simple and of a medium query."""

    simple_max_words: int = 10
    medium_max_words: int = 50


DEFAULT_THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Signal:
    """One reason for a score; `spans` are [start, end) character offsets into the query as given."""

    name: str
    points: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Classification:
    """A tier and what made it. `words` counts those in the first `EXAMINED_CHARS` characters."""

    tier: str
    score: int
    words: int
    signals: tuple[Signal, ...]


def classify(text: str, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> Classification:
    """Judge a query in time linear in its length; never raises, whatever the text."""
    text = text[:EXAMINED_CHARS]
    words = count_words(text)
    reading = structure.read(text)
    found = ((name, points, find(reading)) for name, points, find in SIGNALS)
    signals = tuple(_signal(name, points, groups) for name, points, groups in found if groups)
    score = sum(signal.points for signal in signals)
    return Classification(_tier(words, score, thresholds), score, words, signals)


def _tier(words: int, score: int, thresholds: Thresholds) -> str:
    if words > thresholds.medium_max_words or score >= COMPLEX_SCORE:
        return "complex"
    return "medium" if words > thresholds.simple_max_words or score > 0 else "simple"


def _signal(name: str, points: int, groups: list[Group]) -> Signal:
    spans = sorted({span for group in groups for span in group})
    return Signal(name, points * len(groups), tuple(spans))


def _indicators(table: str) -> Callable[[Reading], list[Group]]:
    """Every indicator of the table that occurs is a group of its own."""
    return lambda reading: [tuple(spans) for spans in reading.hits[table].values()]


def _any_of(table: str) -> Callable[[Reading], list[Group]]:
    return lambda reading: structure.one_group(reading.spans(table))


SIGNALS: tuple[tuple[str, int, Callable[[Reading], list[Group]]], ...] = (
    ("high_complexity_indicator", 2, _indicators("high")),
    ("medium_complexity_indicator", 1, _indicators("medium")),
    ("several_questions", 1, structure.find_several_questions),
    ("several_sentences", 1, structure.find_several_sentences),
    ("enumeration", 1, structure.find_enumeration),
    ("complex_conjunction", 1, _any_of("conjunction")),
    ("nested_question", 1, structure.find_nested_questions),
    ("several_constraints", 1, structure.find_several_constraints),
    ("comparison", 1, structure.find_comparison),
    ("code", 1, structure.find_code),
    ("mathematics", 1, structure.find_mathematics),
)
