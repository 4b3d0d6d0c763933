"""How complex a query is: a score from a table of signals, and the tier that score and length ask for."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from routing.lexicon import Hits, find_indicators
from routing.word import Sentence, Span, Word, count_words, find_sentences, find_words

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
    reading = _read(text)
    found = ((name, points, list(find(reading))) for name, points, find in SIGNALS)
    signals = tuple(_signal(name, points, groups) for name, points, groups in found if groups)
    score = sum(signal.points for signal in signals)
    return Classification(_tier(words, score, thresholds), score, words, signals)


def _tier(words: int, score: int, thresholds: Thresholds) -> str:
    if words > thresholds.medium_max_words or score >= COMPLEX_SCORE:
        return "complex"
    return "medium" if words > thresholds.simple_max_words or score > 0 else "simple"


def _signal(name: str, points: int, groups: list[list[Span]]) -> Signal:
    spans = sorted({span for group in groups for span in group})
    return Signal(name, points * len(groups), tuple(spans))


@dataclass(frozen=True, slots=True)
class _Reading:
    """A query taken apart once, for all finders. `prose` is `text` with its code blanked out."""

    text: str
    prose: str
    hits: Hits
    sentences: list[Sentence]


_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_QUOTATION = re.compile(
    r'"[^"\n]{1,80}"|“[^“”\n]{1,80}”|„[^„“”\n]{1,80}[“”]|«[^«»\n]{1,80}»|「[^「」\n]{1,80}」|『[^『』\n]{1,80}』'
    r"|(?<!\w)'[^'\n]{1,80}'(?!\w)|(?<!\w)‘[^‘’\n]{1,80}’(?!\w)"
)


def _read(text: str) -> _Reading:
    prose = _CODE.sub(_blank, text) if "`" in text else text
    spoken = prose if _QUOTATION.fullmatch(prose.strip()) else _QUOTATION.sub(_blank, prose)
    words = find_words(spoken)
    return _Reading(text, prose, find_indicators(spoken, words), find_sentences(prose, words))


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


# A finder yields groups of spans; each group earns the signal's points once.
Groups = Iterable[list[Span]]


def _indicators(table: str) -> Callable[[_Reading], Groups]:
    return lambda reading: reading.hits[table].values()


def _any_of(table: str) -> Callable[[_Reading], Groups]:
    return lambda reading: _one_group(span for spans in reading.hits[table].values() for span in spans)


def _one_group(spans: Iterable[Span], at_least: int = 1) -> list[list[Span]]:
    group = list(spans)
    return [group] if len(group) >= at_least else []


def _several_questions(reading: _Reading) -> Groups:
    return _one_group(((s.start, s.end) for s in reading.sentences if s.is_question), 2)


def _several_sentences(reading: _Reading) -> Groups:
    return _one_group(((s.start, s.end) for s in reading.sentences), 2)


_LIST_LINE = re.compile(r"^[ \t]*((?:[-*•‣◦▪]|\(?\d{1,3}[.)]|\(?[A-Za-z][.)])[ \t]+)\S", re.MULTILINE)
_INLINE_ITEM = re.compile(r"(?<!\S)\(?(?:\d{1,2}|[a-hA-H]|i{1,3}|iv)\)(?=\s)")
_COMMA = re.compile(r",(?=\s)|[，、،]")
_LAST_ITEM = re.compile(r"\b(?:and|or|und|oder|et|ou|y|o|e|и|или)\b|&|[和与及或と]")
_LONGEST_ITEM = 40


def _enumeration(reading: _Reading) -> Groups:
    lines = [match.span(1) for match in _LIST_LINE.finditer(reading.prose)]
    inline = [match.span() for match in _INLINE_ITEM.finditer(reading.prose)] if ")" in reading.prose else []
    ordinals = [spans[0] for spans in reading.hits["ordinal"].values()]
    found = [span for markers in (lines, inline, ordinals) if len(markers) > 1 for span in markers]
    return _one_group([*found, *_series(reading.prose)])


def _series(prose: str) -> Iterator[Span]:
    """Runs of commas with little between them: "a, b, c, d" or "a, b, and c"."""
    run: list[int] = []
    for comma in (*(match.start() for match in _COMMA.finditer(prose)), len(prose) + _LONGEST_ITEM):
        if run and (comma - run[-1] > _LONGEST_ITEM or _has_end(prose, run[-1], comma)):
            end = min(run[-1] + _LONGEST_ITEM, len(prose))
            if len(run) > 2 or (len(run) == 2 and _LAST_ITEM.search(prose, run[-1], end)):
                yield run[0], run[-1] + 1
            run = []
        run.append(comma)


def _has_end(prose: str, start: int, end: int) -> bool:
    return not _CLAUSE_ENDS.isdisjoint(prose[start:end])


_CLAUSE_ENDS = frozenset("?!;。？！\n")


def _several_constraints(reading: _Reading) -> Groups:
    spans = sorted(span for spans in reading.hits["constraint"].values() for span in spans)
    joined = sum(reading.prose[a[1] : b[0]].count(" ") <= 2 for a, b in pairwise(spans))
    return _one_group(spans) if len(spans) - joined > 1 else []


_OPENERS = frozenset(
    "what who whom whose which where when why how is are was were am do does did can could would will should may "
    "have has had isn aren don doesn didn won shouldn".split()
)
_CLAUSE_WORDS = frozenset("what why how whether".split())
_RELATIVE_WORDS = frozenset("where when who which if".split())
_ASKING_WORDS = frozenset("know decide determine tell explain explaining happens happen understand see of about on say depends find".split())
_COORDINATING = frozenset("and or".split())
# "Can you tell me what …?" is one question, politely.
_POLITE = re.compile(
    r"\W*(?:(?:can|could|would|will) (?:you|someone|anyone|u)(?: please)? (?:tell|show|explain to|help) (?:me|us)|do you know|does anyone know)\W*",
    re.IGNORECASE,
)


def _nested_questions(reading: _Reading) -> Groups:
    return _one_group(span for sentence in reading.sentences for span in _clauses(reading.prose, sentence))


def _clauses(prose: str, sentence: Sentence) -> Iterator[Span]:
    words = sentence.words
    if not words or not (sentence.is_question or words[0][0] in _OPENERS):
        return
    polite = _POLITE.match(prose, sentence.start)
    after = polite.end() if polite else words[0][2]
    for before, word in pairwise(words):
        if word[1] > after and _opens_clause(before, word):
            yield word[1], sentence.end
            return


def _opens_clause(before: Word, word: Word) -> bool:
    if before[0] in _COORDINATING or before[0] in _CLAUSE_WORDS:
        return False
    return word[0] in _CLAUSE_WORDS or (word[0] in _RELATIVE_WORDS and before[0] in _ASKING_WORDS)


_THAN = re.compile(
    r"\b(?!other|another|either|rather)(?:better|worse|(?:more|less) \w+|\w{2,}er) than\b"
    r"(?!\s+(?:\d|one|two|three|four|five|six|seven|eight|nine|ten|that|this)\b)",
    re.IGNORECASE,
)
_CHOOSERS = frozenset("which what who".split())
_COMPARATIVES = frozenset(
    "better worse faster slower cheaper easier harder bigger smaller larger stronger weaker safer healthier older newer higher "
    "lower simpler longer shorter greater richer smarter warmer colder heavier lighter more less best worst prefer preferable".split()
)


def _comparison(reading: _Reading) -> Groups:
    listed = (span for spans in reading.hits["comparison"].values() for span in spans)
    than = (match.span() for match in _THAN.finditer(reading.prose)) if " than" in reading.prose else ()
    choices = (span for sentence in reading.sentences for span in _choices(sentence.words))
    return _one_group([*listed, *than, *choices])


def _choices(words: list[Word]) -> Iterator[Span]:
    """ "Which is faster, A or B?": a chooser, then a comparative, then "or"."""
    stages = [_CHOOSERS, _COMPARATIVES, {"or"}]
    start = 0
    for word, first, last in words:
        if word in stages[0]:
            start = start or first + 1
            stages = stages[1:]
        if not stages:
            yield start - 1, last
            return


_CODE_HINT = re.compile(r"[={}<>|]|\w\(\)|\.\w+\(|^import|^from|Traceback", re.MULTILINE)
_CODE_LIKE = re.compile(
    r"\bdef \w+\(|\bfunction\s*\w*\(|\bclass \w+[({]|\bclass \w+:$|#include\s*<|^import \w+;?$|^from \w+ import|\b(?:const|let|var) \w+ =|"
    r"\bSELECT\b.{1,200}?\bFROM\b|[{}][ \t]*$|\);[ \t]*$|\w\.\w+\(|\b\w+\(\)|=>|(?<![=!<>])[=!]==?(?!=)(?<!\w)(?<==)(?<===)|&&|\|\||\+=|"
    r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?>|Traceback \(most recent|^\s*>>> ",
    re.MULTILINE,
)


def _code(reading: _Reading) -> Groups:
    quoted = (match.span() for match in _CODE.finditer(reading.text)) if "`" in reading.text else ()
    looks = (match.span() for match in _CODE_LIKE.finditer(reading.prose)) if _CODE_HINT.search(reading.prose) else ()
    return _one_group([*quoted, *looks])


_MATHEMATICS = re.compile(
    r"\\(?:[dt]?frac|sum|int|prod|lim|sqrt|infty|partial|nabla|cdot|times|leq?|geq?|neq|alpha|beta|theta|mathbb|begin)\b"
    r"|\$[^$\n]*[\\^_=][^$\n]*\$"
    r"|[∫∬∮∑∏√∂∇∞∈∉⊂⊆∪∩∀∃≤≥≠≈≡±]"
    r"|(?<![\w^])[A-Za-z0-9)]\^[({]?-?\w"
    r"|(?:(?<![\w?&.])[A-Za-z]|\d[A-Za-z]?|\)) {0,3}= {0,3}(?:[-(]?\d|[-(]?[A-Za-z]{1,2}\b)"
    r"|\d {0,2}[-*×÷/+] {0,2}\(?\d+\.?\d* {0,2}[*×÷+] {0,2}\(?\d"
)
_MATHEMATICS_HINT = re.compile(r"[\\^=∫∬∮∑∏√∂∇∞∈∉⊂⊆∪∩∀∃≤≥≠≈≡±×÷*+]")


def _mathematics(reading: _Reading) -> Groups:
    named = (span for spans in reading.hits["mathematics"].values() for span in spans)
    hinted = _MATHEMATICS_HINT.search(reading.prose)
    written = (match.span() for match in _MATHEMATICS.finditer(reading.prose)) if hinted else ()
    return _one_group([*named, *written])


SIGNALS: tuple[tuple[str, int, Callable[[_Reading], Groups]], ...] = (
    ("high_complexity_indicator", 2, _indicators("high")),
    ("medium_complexity_indicator", 1, _indicators("medium")),
    ("several_questions", 1, _several_questions),
    ("several_sentences", 1, _several_sentences),
    ("enumeration", 1, _enumeration),
    ("complex_conjunction", 1, _any_of("conjunction")),
    ("nested_question", 1, _nested_questions),
    ("several_constraints", 1, _several_constraints),
    ("comparison", 1, _comparison),
    ("code", 1, _code),
    ("mathematics", 1, _mathematics),
)
