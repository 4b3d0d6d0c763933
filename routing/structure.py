"""What shows complexity by the shape of a text: its sentences, lists, constraints, comparisons, code, formulas."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from routing.lexicon import Hits, find_indicators
from routing.word import Sentence, Span, Word, count_words, find_sentences, find_words, word_set

Group = tuple[Span, ...]  # spans that earn a signal's points together, once


@dataclass(frozen=True, slots=True)
class Reading:
    """A query taken apart once, for all finders. `prose` is `text` with its code blanked out."""

    text: str
    prose: str
    hits: Hits
    sentences: list[Sentence]

    def spans(self, table: str) -> list[Span]:
        """All spans of one lexicon table, in order."""
        return sorted(span for spans in self.hits[table].values() for span in spans)


_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_QUOTATION = re.compile(
    r'"[^"\n]{1,80}"|“[^“”\n]{1,80}”|„[^„“”\n]{1,80}[“”]|«[^«»\n]{1,80}»|「[^「」\n]{1,80}」|『[^『』\n]{1,80}』'
    r"|(?<!\w)'[^'\n]{1,80}'(?!\w)|(?<!\w)‘[^‘’\n]{1,80}’(?!\w)"
)


_QUOTATION_MARKS = "\"'“„«「『‘"


def read(text: str) -> Reading:
    prose = _CODE.sub(_blank, text) if "`" in text else text
    spoken = _without_quotations(prose)
    words = find_words(spoken)
    return Reading(text, prose, find_indicators(spoken, words), find_sentences(prose, words))


def _without_quotations(prose: str) -> str:
    """What is quoted is mentioned, not asked for; unless all is."""
    if not any(mark in prose for mark in _QUOTATION_MARKS) or _QUOTATION.fullmatch(prose.strip()):
        return prose
    return _QUOTATION.sub(_blank, prose)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def one_group(spans: Iterable[Span], at_least: int = 1) -> list[Group]:
    group = tuple(spans)
    return [group] if len(group) >= at_least else []


def find_several_questions(reading: Reading) -> list[Group]:
    return one_group(((s.start, s.end) for s in reading.sentences if s.is_question), 2)


def find_several_sentences(reading: Reading) -> list[Group]:
    """Sentences of one word ("Thanks!", "Why?") do not count."""
    if len(reading.sentences) < 2:
        return []
    long = (s for s in reading.sentences if len(s.words) > 1 or count_words(reading.prose[s.start : s.end]) > 1)
    return one_group(((s.start, s.end) for s in long), 2)


_LIST_LINE = re.compile(r"^[ \t]*((?:[-*•‣◦▪]|\(?\d{1,3}[.)]|\(?[A-Za-z][.)])[ \t]+)\S", re.MULTILINE)
_INLINE_ITEM = re.compile(r"(?<!\S)\(?(?:\d{1,2}|[a-hA-H]|i{1,3}|iv)\)(?=\s)")
_COMMA = re.compile(r",(?=\s)|[，、،]")
_LAST_ITEM = re.compile(r"(?<!\.)\b(?:and|or|und|oder|et|ou|y|o|e|и|или)\b(?!\.)|&|[和与及或と]")
_LONGEST_ITEM = 40


def find_enumeration(reading: Reading) -> list[Group]:
    lines = [match.span(1) for match in _LIST_LINE.finditer(reading.prose)] if "\n" in reading.prose else []
    inline = [match.span() for match in _INLINE_ITEM.finditer(reading.prose)] if ")" in reading.prose else []
    ordinals = [spans[0] for spans in reading.hits["ordinal"].values()]
    found = [span for markers in (lines, inline, ordinals) if len(markers) > 1 for span in markers]
    return one_group([*found, *_series(reading.prose)])


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


def find_several_constraints(reading: Reading) -> list[Group]:
    spans = reading.spans("constraint")
    joined = sum(reading.prose[a[1] : b[0]].count(" ") <= 2 for a, b in pairwise(spans))
    return one_group(spans) if len(spans) - joined > 1 else []


_OPENERS = word_set(
    "what who whom whose which where when why how is are was were am do does did can could would will should may "
    "have has had isn aren don doesn didn won shouldn"
)
_CLAUSE_WORDS = word_set("what why how whether")
_RELATIVE_WORDS = word_set("where when who which if")
_ASKING_WORDS = word_set(
    "know decide determine tell explain explaining happens happen understand see of about on say depends find"
)
_NO_CLAUSE_AFTER = _CLAUSE_WORDS | word_set("and or do does did")
# "Can you tell me what …?" is one question, politely.
_POLITE = re.compile(
    r"(?:(?:can|could|would|will) (?:you|someone|anyone)(?: please)? (?:(?:tell|show) (?:me|us)|explain)"
    r"|do you know|does anyone know)\W*",
    re.IGNORECASE,
)


def find_nested_questions(reading: Reading) -> list[Group]:
    return one_group(span for sentence in reading.sentences for span in _clauses(reading.prose, sentence))


def _clauses(prose: str, sentence: Sentence) -> Iterator[Span]:
    words = sentence.words
    if not words or words[0][0] not in _OPENERS:
        return
    polite = _POLITE.match(prose, sentence.start)
    after = polite.end() if polite else words[0][2]
    for before, word in pairwise(words):
        if word[1] > after and prose[before[2] : word[1]] == " " and _opens_clause(before[0], word[0]):
            yield word[1], sentence.end
            return


def _opens_clause(before: str, word: str) -> bool:
    if before in _NO_CLAUSE_AFTER:
        return False
    return word in _CLAUSE_WORDS or (word in _RELATIVE_WORDS and before in _ASKING_WORDS)


_THAN = re.compile(
    r" than\b(?!\s+(?:\d|one|two|three|four|five|six|seven|eight|nine|ten|that|this|expected|usual|normal|ever)\b)"
)
_NO_COMPARATIVES = word_set("other another either rather")
_COMPARATIVES = word_set(
    "better worse faster slower cheaper easier harder bigger smaller larger stronger weaker safer healthier "
    "older newer higher lower simpler longer shorter greater richer smarter warmer colder heavier lighter "
    "more less prefer preferable"
)
_CHOICE = (frozenset(("which", "what", "who")), _COMPARATIVES, frozenset(("or",)))


def find_comparison(reading: Reading) -> list[Group]:
    than = _comparatives(reading.prose) if " than" in reading.prose else ()
    choices = (span for sentence in reading.sentences for span in _choices(sentence.words))
    return one_group([*reading.spans("comparison"), *than, *choices])


def _comparatives(prose: str) -> Iterator[Span]:
    """ "better than", "faster than", "more robust than"; amounts ("more than two") are no comparison."""
    for match in _THAN.finditer(prose):
        before = prose[max(0, match.start() - _LONGEST_ITEM) : match.start()].lower().split()
        if _ends_in_comparative(before):
            yield match.start() - len(before[-1]), match.end()


def _ends_in_comparative(words: list[str]) -> bool:
    if not words or words[-1] in _NO_COMPARATIVES:
        return False
    return words[-1] == "worse" or words[-1].endswith("er") or words[-2:-1] in (["more"], ["less"])


def _choices(words: list[Word]) -> Iterator[Span]:
    """A chooser, then a comparative, then "or": "Which is faster, A or B?"."""
    stage = start = 0
    for word, first, last in words:
        if word in _CHOICE[stage]:
            start = start if stage else first
            stage += 1
        if stage == len(_CHOICE):
            yield start, last
            return


_CODE_HINTS = ("=", "{", "}", "<", ">", "|", "(", "&&", "import", "SELECT")
_CODE_LIKE = re.compile(
    r"\bdef \w+\(|\bfunction\s*\w*\(|\bclass \w+(?:[({]|:$)|\b(?:const|let|var) \w+ =|#include\s*<"
    r"|^import \w+;?$|^from \w+ import|\bSELECT\b.{1,200}?\bFROM\b|^[ \t]*>>> |Traceback \(most recent"
    r"|\{[ \t]*$|^[ \t]*\}|\);[ \t]*$|\w\.\w+\(|\b\w+\(\)|=>|(?<![=!<>])[=!]==?(?!=)|&&|\|\||\+="
    r"|</?[a-z][a-z0-9]*(?:\s[^<>]*)?>",
    re.MULTILINE,
)


def find_code(reading: Reading) -> list[Group]:
    quoted = (match.span() for match in _CODE.finditer(reading.text)) if "`" in reading.text else ()
    is_hinted = any(hint in reading.prose for hint in _CODE_HINTS)
    looks = (match.span() for match in _CODE_LIKE.finditer(reading.prose)) if is_hinted else ()
    return one_group([*quoted, *looks])


_MATHEMATICS = re.compile(
    r"\\(?:[dt]?frac|sum|int|prod|lim|sqrt|infty|partial|nabla|cdot|times|leq?|geq?|neq|alpha|beta|theta|mathbb|begin)\b"
    r"|\$[^$\n\\^_=]*[\\^_=][^$\n]*\$"
    r"|[∫∬∮∑∏√∂∇∞∈∉⊂⊆∪∩∀∃≤≥≠≈≡±]"
    r"|(?<![\w^])[A-Za-z0-9)]\^[({]?-?\w"
    r"|(?:(?<![\w?&.])[A-Za-z]|\d[A-Za-z]?|\)) {0,3}= {0,3}(?:[-(]?\d+|[-(]?[A-Za-z]{1,2}\b)"
    r"|\d {0,2}[-*×÷/+] {0,2}\(?\d{1,9}(?:\.\d{1,9})? {0,2}[*×÷+] {0,2}\(?\d"
)
_MATHEMATICS_HINT = re.compile(r"[$\\^=∫∬∮∑∏√∂∇∞∈∉⊂⊆∪∩∀∃≤≥≠≈≡±×÷*+]")


def find_mathematics(reading: Reading) -> list[Group]:
    hinted = _MATHEMATICS_HINT.search(reading.prose)
    written = (match.span() for match in _MATHEMATICS.finditer(reading.prose)) if hinted else ()
    return one_group([*reading.spans("mathematics"), *written])
