"""The identity of a query: equal fingerprints may share one answer."""

import hashlib
import json
import re
import unicodedata
from itertools import groupby
from typing import Literal

from routing.query import Query

# Part of every fingerprint: raise it when `normalise` changes, so that old answers are not found by new rules.
_SCHEME = 1

_INVISIBLE = str.maketrans("", "", "\u200b\u2060\ufeff")
_CODE = re.compile(r"`|\n(?: {2}|\t)")
# NFKC would read "5²" as "52", "1½" as "11⁄2", "②" as "2" and "ℝ" (the reals) as "R" (the language).
_KEPT_TAGS = ("<super>", "<sub>", "<fraction>", "<circle>", "<font>")
_WIDTH_TAGS = ("<wide>", "<narrow>")
_FIRST_WORD = re.compile(r"[^\W\d_]{2,}(?=[\s,.?!:;'’]|\Z)")
_MARKS_IN_A_ROW = 64  # more than any script uses; ordering a longer run takes quadratic time


def normalise(text: str) -> str:
    """`text` without the differences that cannot change its answer; a normalised text is its own normal form.

    Line endings, runs of white space, invisible characters, compatible forms of one character, and the
    capital of the first word go. A text with code keeps all but its line endings and outer blank lines.
    """
    text = _strip_blank_lines(text.replace("\r\n", "\n").replace("\r", "\n"))
    if _CODE.search(text):
        return _compose("NFC", text)
    text = " ".join(_compose_safely(text.translate(_INVISIBLE)).split())
    return _lower_first_word(text)


def fingerprint(query: Query, *, tenant: str, policy: str) -> str:
    """Hex SHA-256 of everything that may change the answer.

    `policy` is the caller's version of thresholds and targets. The system text counts as it is: programs
    write it, so it does not vary by accident, and in instructions case and layout may matter.
    """
    temperature = None if query.temperature is None else float(query.temperature) + 0.0
    parts = [
        _SCHEME,
        tenant,
        policy,
        normalise(query.text),
        query.tier,
        query.system,
        query.max_tokens,
        temperature,
    ]
    # ensure_ascii would write an emoji and the two lone surrogates that spell it alike.
    encoded = json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.sha256(encoded).hexdigest()


def _strip_blank_lines(text: str) -> str:
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    return "\n".join(lines[filled[0] : filled[-1] + 1]) if filled else ""


def _compose_safely(text: str) -> str:
    """NFKC, except for the characters that it would make into others."""
    if text.isascii():
        return text
    kept = "".join(c for c in set(text) if _is_kept(c))
    if not kept:
        return _compose("NFKC", text)
    parts = re.split(f"([{re.escape(kept)}])", text)
    return "".join(part if part in kept else _compose("NFKC", part) for part in parts)


def _is_kept(character: str) -> bool:
    tag = unicodedata.decomposition(character).partition(" ")[0]
    if not tag.startswith("<") or tag in _WIDTH_TAGS:
        return False
    return tag in _KEPT_TAGS or any(map(str.isdigit, unicodedata.normalize("NFKC", character)))


def _compose(form: Literal["NFC", "NFKC"], text: str) -> str:
    if text.isascii() or _has_stacked_marks(text):
        return text
    return unicodedata.normalize(form, text)


def _has_stacked_marks(text: str) -> bool:
    runs = groupby(text, key=lambda character: unicodedata.combining(character) > 0)
    return any(is_marks and sum(1 for _ in run) > _MARKS_IN_A_ROW for is_marks, run in runs)


def _lower_first_word(text: str) -> str:
    match = _FIRST_WORD.match(text)
    if match and text[0].isupper() and match[0][1:].islower():
        return text[0].lower() + text[1:]
    return text
