import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.word import count_words, find_sentences, find_words, fold


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" \n\t ", 0),
        ("What is AI?", 3),
        ("don't", 1),
        ("don’t", 1),
        ("state-of-the-art", 1),
        ("C++ and C#", 3),
        ("- * — … !", 0),
        ("a - b", 2),
        ("3.14", 1),
        ("👍 👩\u200d💻 🇩🇪", 0),
        ("good 👍 job", 2),
        ("\u0301\u0302", 0),
        ("cafe\u0301 noir", 2),
        ("\0 \ud800", 0),
        ("हिन्दी भाषा", 2),
        ("한국어 공부", 2),
        ("Привет, мир", 2),
        ("机器学习", 2),
        ("机器学习吗", 3),
        ("什么是AI？", 3),
        ("Pythonで書く", 3),
        ("红、蓝", 2),
        ("A、B", 2),
        ("人々", 1),
        ("\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", 2),
        ("\u0e01\u0e31\u0e49\u0e01\u0e31\u0e49\u0e01\u0e31\u0e49\u0e01\u0e31\u0e49\u0e01", 1),
        ("ភាសាខ្មែរ", 1),
    ],
)
def test_it_counts_the_words_of_any_script(text: str, words: int) -> None:
    assert count_words(text) == words


@given(st.lists(st.sampled_from(["blue", "机器学习", "don't", "—", "👍", "ก", "3.5"])))
def test_counts_of_spaced_parts_add_up(parts: list[str]) -> None:
    assert count_words(" ".join(parts)) == sum(map(count_words, parts))


@given(st.text())
def test_it_counts_no_more_words_than_letters_and_digits(text: str) -> None:
    assert 0 <= count_words(text) <= sum(map(str.isalnum, text))


@given(st.text())
def test_words_lie_where_they_say(text: str) -> None:
    for word, start, end in find_words(text):
        assert fold(text[start:end]) == word


def test_hyphens_and_apostrophes_separate_words_for_the_lexicon() -> None:
    assert [word for word, _, _ in find_words("In-depth l'analyse")] == ["in", "depth", "l", "analyse"]


@pytest.mark.parametrize("written", ["Erklär", "ERKLÄR", "erkla\u0308r", "erklar", "ｅｒｋｌａｒ"])
def test_folding_takes_case_accents_and_width(written: str) -> None:
    assert fold(written) == "erklar"


def test_folding_keeps_hangul_whole() -> None:
    assert fold("비교") == "비교"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two", ["One.", "Two"]),
        ('He said "no." She left.', ['He said "no.', "She left."]),
        ("See Dr. Who, e.g. on TV.", ["See Dr. Who, e.g. on TV."]),
        ("J. R. R. Tolkien wrote", ["J. R. R. Tolkien wrote"]),
        ("It was 1990. Then 3.14 came", ["It was 1990.", "Then 3.14 came"]),
        ("1. Wash 2. Dry", ["1. Wash 2. Dry"]),
        ("What?! Really", ["What?!", "Really"]),
        ("好。好", ["好。", "好"]),
        ("... !!! ???", []),
    ],
)
def test_it_splits_sentences(text: str, sentences: list[str]) -> None:
    assert [text[s.start : s.end] for s in find_sentences(text, [])] == sentences


def test_each_word_belongs_to_its_sentence() -> None:
    text = "Red is it. Is it blue?"
    first, second = find_sentences(text, find_words(text))
    assert [word for word, _, _ in first.words] == ["red", "is", "it"]
    assert [word for word, _, _ in second.words] == ["is", "it", "blue"]
    assert (first.is_question, second.is_question) == (False, True)
