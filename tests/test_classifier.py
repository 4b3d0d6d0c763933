import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.classifier import COMPLEX_SCORE, EXAMINED_CHARS, SIGNALS, Classification, Thresholds, classify
from routing.lexicon import TABLES, find_indicators
from routing.word import count_words, find_words
from tests.classifier_cases import CASES, HOSTILE, Case

TEXTS = (
    st.text()
    | st.text(st.sampled_from("ab AB.?!,;:\n\t`'\"$=^\\(){}<>-*12。？、分析ก\u0301\ud800\0"))
    | st.lists(st.sampled_from([case.text for case in CASES])).map(" ".join)
)


def signal_names(classification: Classification) -> set[str]:
    return {signal.name for signal in classification.signals}


def matched(text: str, name: str) -> list[str]:
    return [text[start:end] for s in classify(text).signals if s.name == name for start, end in s.spans]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text[:40])
def test_it_gives_the_labelled_tier_and_signals(case: Case) -> None:
    found = classify(case.text)
    assert (found.tier, signal_names(found)) == (case.tier, set(case.signals.split()))


def test_the_labelled_cases_show_every_signal() -> None:
    shown = {name for case in CASES for name in case.signals.split()}
    assert shown == {name for name, _, _ in SIGNALS}


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Give an in-depth analysis", "high_complexity_indicator", ["in-depth", "analysis"]),
        ("Write it. Please write a poem", "medium_complexity_indicator", ["Write", "write a"]),
        ("  ¿Por qué? ", "medium_complexity_indicator", ["Por qué"]),
        ("İİİ explain", "medium_complexity_indicator", ["explain"]),
        ("👍 请分析", "high_complexity_indicator", ["分析"]),
        ("It is so; however, it is not", "complex_conjunction", ["however"]),
        ("Is it? It is what?", "several_questions", ["Is it?", "It is what?"]),
        ("It is.  So it is ", "several_sentences", ["It is.", "So it is"]),
        ("1. a\n2. b", "enumeration", ["1. ", "2. "]),
        ("Do you see how it works?", "nested_question", ["how it works?"]),
        ("At least 3 words without verbs", "several_constraints", ["At least", "without"]),
        ("A is faster than B", "comparison", ["faster than"]),
        ("Run `ls -l` now", "code", ["`ls -l`"]),
        ("If 3x + 5 = 20", "mathematics", ["5 = 20"]),
    ],
)
def test_spans_point_at_what_was_matched(text: str, name: str, expected: list[str]) -> None:
    assert matched(text, name) == expected


def test_each_distinct_indicator_counts_once() -> None:
    assert classify("analyze").score == classify("Analyze analyse analysis Analyse").score == 2
    assert classify("explain, explained").score == 1
    assert classify("analyze, evaluate").score == 4


def test_one_indicator_in_two_languages_counts_once() -> None:
    assert classify("analyze 分析").score == 2


def test_a_structural_signal_counts_once_however_often_it_occurs() -> None:
    assert classify("Is it red? Is it blue? Is it green?").score == 2


def test_thresholds_are_honoured() -> None:
    strict = Thresholds(simple_max_words=1, medium_max_words=3)
    assert classify("red blue", strict).tier == "medium"
    assert classify("red blue red blue", strict).tier == "complex"
    assert classify("red blue red blue").tier == "simple"


def test_words_count_only_up_to_the_examined_part() -> None:
    assert classify("ab " * EXAMINED_CHARS).words == -(-EXAMINED_CHARS // 3)


def test_signals_beyond_the_examined_part_do_not_count() -> None:
    padding = "-" * EXAMINED_CHARS
    assert classify("analyze" + padding).score == 2
    assert classify(padding + "analyze").score == 0


@given(TEXTS)
def test_the_score_is_the_sum_of_the_signals_points(text: str) -> None:
    found = classify(text)
    assert found.score == sum(signal.points for signal in found.signals)
    assert all(signal.points > 0 and signal.spans for signal in found.signals)


@given(TEXTS, st.integers(1, 20), st.integers(1, 80))
def test_the_tier_follows_from_words_and_score(text: str, simple: int, more: int) -> None:
    found = classify(text, Thresholds(simple, simple + more))
    is_complex = found.words > simple + more or found.score >= COMPLEX_SCORE
    is_simple = found.words <= simple and found.score == 0
    assert found.tier == ("complex" if is_complex else "simple" if is_simple else "medium")


@given(TEXTS)
def test_spans_lie_in_order_inside_the_text(text: str) -> None:
    for signal in classify(text).signals:
        assert list(signal.spans) == sorted(set(signal.spans))
        assert all(0 <= start < end <= len(text) for start, end in signal.spans)


@given(TEXTS)
def test_the_words_are_those_of_the_counter(text: str) -> None:
    assert classify(text).words == count_words(text)


@pytest.mark.parametrize("unit", HOSTILE, ids=repr)
@pytest.mark.parametrize("prefix", ["", '"', "1+", "`"])
def test_hostile_text_is_classified_without_a_blow_up(unit: str, prefix: str) -> None:
    text = prefix + (unit * 100_000)[:100_000] + "x"
    started = time.perf_counter()
    found = classify(text)
    # Takes a few ms to 50 ms; what is quadratic in 20,000 characters would take seconds.
    assert time.perf_counter() - started < 2
    assert found.tier in ("simple", "medium", "complex")


def forms() -> list[tuple[str, str, str]]:
    return [
        (table, indicator, form)
        for table, rows in TABLES.items()
        for indicator, row in rows.items()
        for form in row.split("|")
        if form[0] != "!" and table != "mention"
    ]


@pytest.mark.parametrize(("table", "indicator", "form"), forms())
def test_every_form_of_the_lexicon_is_found(table: str, indicator: str, form: str) -> None:
    text = form.removeprefix("^").replace("*", "").replace("#", "3")
    assert indicator in find_indicators(text, find_words(text))[table]


def test_no_form_of_the_lexicon_is_written_twice() -> None:
    written = [(table, form) for table, _, form in forms()]
    assert len(written) == len(set(written))
