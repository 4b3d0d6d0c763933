"""Words and sentences: where a text's words lie, how many there are, and where its sentences end."""

import re
import unicodedata
from dataclasses import dataclass, field

Span = tuple[int, int]
Word = tuple[str, int, int]  # folded word, start, end; a bare tuple because there is one per word of every query

_HAN_KANA = (
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
_SOUTH_EAST_ASIAN = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"
_UNSPACED = _HAN_KANA + _SOUTH_EAST_ASIAN
_WIDE_PUNCTUATION = r"\u3001-\u3004\u3008-\u303f\uff01-\uff0f\uff1a-\uff20"

# Scripts written without spaces, and how many of their letters make about one word.
_LETTERS_PER_WORD = ((re.compile(f"[{_HAN_KANA}]+"), 2), (re.compile(f"[{_SOUTH_EAST_ASIAN}]+"), 5))
_SPACED = re.compile(rf"[^\W_{_UNSPACED}][^\s{_UNSPACED}{_WIDE_PUNCTUATION}]*")
_SPACED_ASCII = re.compile(r"[^\W_]\S*")

_MARKS = r"\u0300-\u036f"
_WORD = re.compile(rf"[^\W{_UNSPACED}]+(?:[{_MARKS}]+[^\W{_UNSPACED}]*)*")
_WORD_ASCII = re.compile(r"\w+")
_LONGEST_WORD = 40  # no indicator is longer, and decomposing a long run of marks takes quadratic time

_QUESTION_MARKS = frozenset("?？؟⁇⁈⁉՞፧\u037e")
_UNSPACED_ENDS = frozenset("。！？｡؟⁇⁈⁉՞፧।॥۔።\u037e")
_END = re.compile(r"[.!?。！？｡؟⁇⁈⁉՞፧।॥۔።\u037e]+")
_CLOSERS = "\"')]}»”’*_"
_HAS_LETTER = re.compile(r"[^\W_]")


def word_set(words: str) -> frozenset[str]:
    """A set of words written as one spaced string, for tables that should read as text."""
    return frozenset(words.split())


_ABBREVIATIONS = word_set(
    "dr mr mrs ms prof st sr jr vs etc approx nr fig eq dept est inc ltd co corp al cf ca resp ph e.g i.e "
    "jan feb mar apr jun jul aug sep sept oct nov dec bzw usw evtl ggf sog z.b u.a d.h p.ej ej sra ud т.е т.д т.п"
)


def count_words(text: str) -> int:
    """Words of any script: what stands between spaces, and about 2 Han or Kana or 5 Thai letters a word.

    Marks, punctuation and emoji are no words.
    """
    if text.isascii():
        return len(_SPACED_ASCII.findall(text))
    return len(_SPACED.findall(text)) + sum(
        -(-sum(map(str.isalnum, run)) // letters)
        for script, letters in _LETTERS_PER_WORD
        for run in script.findall(text)
    )


def find_words(text: str) -> list[Word]:
    """The folded words of scripts with spaces, in order; hyphens and apostrophes separate."""
    if text.isascii():
        return [(match[0], match.start(), match.end()) for match in _WORD_ASCII.finditer(text.lower())]
    return [(fold(match[0]), match.start(), match.end()) for match in _WORD.finditer(text)]


def fold(word: str) -> str:
    """A word without case, accents and compatibility forms, as indicators are looked up."""
    if word.isascii() or len(word) > _LONGEST_WORD:
        return word.lower()
    letters = unicodedata.normalize("NFKD", word.casefold())
    return unicodedata.normalize("NFC", "".join(c for c in letters if not unicodedata.combining(c)))


@dataclass(slots=True)
class Sentence:
    """One sentence: its span, its words, and whether it ends in a question mark."""

    start: int
    end: int
    is_question: bool
    words: list[Word] = field(default_factory=list)


def find_sentences(text: str, words: list[Word]) -> list[Sentence]:
    """The sentences of `text` that hold a letter or digit, with their share of `words`."""
    sentences: list[Sentence] = []
    start = 0
    for match in _END.finditer(text):
        if _is_end(text, match):
            _append(sentences, text, start, match.end())
            start = match.end()
    _append(sentences, text, start, len(text))
    _share(words, sentences)
    return sentences


def _append(sentences: list[Sentence], text: str, start: int, end: int) -> None:
    first = _HAS_LETTER.search(text, start, end)
    if first:
        stop = start + len(text[start:end].rstrip())
        sentences.append(Sentence(first.start(), stop, text[stop - 1] in _QUESTION_MARKS))


def _share(words: list[Word], sentences: list[Sentence]) -> None:
    remaining = iter(sentences)
    sentence = next(remaining, None)
    for word in words:
        while sentence and word[1] >= sentence.end:
            sentence = next(remaining, None)
        if sentence:
            sentence.words.append(word)


def _is_end(text: str, match: re.Match[str]) -> bool:
    mark, end = match[0], match.end()
    if not _UNSPACED_ENDS.isdisjoint(mark):
        return True
    if end < len(text) and not text[end].isspace() and text[end] not in _CLOSERS:
        return False
    if mark[0] == "." and set(mark) == {"."}:
        return len(mark) == 1 and not _is_abbreviated(text, match.start())
    return True


def _is_abbreviated(text: str, dot: int) -> bool:
    """Whether the dot belongs to "e.g.", "Dr.", "U.S.", an initial, or a list's "1."."""
    before = text[max(0, dot - 12) : dot]
    chunk = before.split()[-1].lstrip("(\"'“").lower() if before and not before[-1].isspace() else ""
    last = chunk.rpartition(".")[2]
    return chunk in _ABBREVIATIONS or (len(last) == 1 and last.isalpha()) or (len(chunk) <= 2 and chunk.isdigit())
