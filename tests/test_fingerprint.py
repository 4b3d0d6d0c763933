import time
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from routing.fingerprint import fingerprint, normalise
from routing.query import Query

QUERY = Query("What is AI?")
TEXTS = st.text() | st.text(st.sampled_from("aAbIT5²½① ㎡ｱ１`\t\n\r\u200b\ufeff\u0301\u0323\xa0\u2028İ｀\u1fef\ud800"))
PLAIN_WORDS = st.lists(st.text("abcXYZ059²?", min_size=1), min_size=1)
SPACES = st.sampled_from([" ", "  ", "\n", "\r\n", " \n ", "\xa0", "\u200b ", "\ufeff \u2060"])


def of(query: Query, tenant: str = "acme", policy: str = "1") -> str:
    return fingerprint(query, tenant=tenant, policy=policy)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is AI?", "what is AI?"),
        ("What's new", "what's new"),
        ("What is  AI?", " What is AI?\n"),
        ("What\r\nis\rAI?", "What is AI?"),
        ("What\xa0is AI?", "What is AI?"),
        ("Wh\u200bat is\ufeff AI?", "What is AI?"),
        ("cafe\u0301", "café"),
        ("ＡＩ １", "AI 1"),
        ("ﬁne", "fine"),
        ("x = `a`\r\n", "\n \nx = `a`"),
    ],
)
def test_texts_with_the_same_answer_are_one(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5²", "52"),
        ("H₂O", "H2O"),
        ("1½", "11⁄2"),
        ("5㎡", "5m2"),
        ("5①", "51"),
        ("What is ℝ?", "What is R?"),
        ("US", "us"),
        ("IT jobs", "It jobs"),
        ("What is aids", "What is AIDS"),
        ("Polish May", "Polish may"),
        ("Na+ ions", "NA+ ions"),
        ("C", "c"),
        ("a b", "ab"),
        ("What is AI?", "What is AI"),
        ("use `a  b`", "use `a b`"),
        ("if x:\n  y\n  z", "if x:\n  y z"),
        ("if x:\n\ty", "if x: y"),
        ("Print `x`", "print `x`"),
    ],
)
def test_texts_that_may_differ_in_their_answer_stay_apart(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_code_is_kept_to_the_letter() -> None:
    text = "Fix:\n  if  x:\n\n\tｙ = ５\u200b  "
    assert normalise("\n \n" + text + "\n\n") == text


@given(TEXTS)
@example("\n  x")
@example("\u200b\n  x")
@example("｀a  b")
@example("e\u200b\u0301")
@example("a\u0301" * 100)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(PLAIN_WORDS, st.data())
def test_white_space_and_invisible_characters_do_not_matter(words: list[str], data: st.DataObject) -> None:
    spaced = "".join(word + data.draw(SPACES) for word in words)
    assume("\n " not in spaced.replace("\n \n", ""))
    assert normalise(data.draw(SPACES).strip("\n") + spaced) == normalise(" ".join(words))


@given(st.text("abcdef", min_size=1), st.integers(0))
def test_a_capital_inside_matters(word: str, position: int) -> None:
    position %= len(word)
    changed = word[:position] + word[position].upper() + word[position + 1 :]
    assert normalise(f"is {word}") != normalise(f"is {changed}")


@given(st.text("0123456789²³¹⁴₁₂½①⑴⒈㎡㎥", max_size=6), st.text("0123456789", max_size=6))
def test_signs_that_hold_digits_never_become_digits(signs: str, digits: str) -> None:
    assume(signs != digits)
    assert normalise(signs) != normalise(digits)


@given(st.text("０１２３４５６７８９"))
def test_wide_digits_are_digits(text: str) -> None:
    assert normalise(text) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize(
    "other",
    [
        replace(QUERY, text="What is ML?"),
        replace(QUERY, tier="simple"),
        replace(QUERY, system=""),
        replace(QUERY, system="Be brief."),
        replace(QUERY, max_tokens=1),
        replace(QUERY, temperature=0.0),
        replace(QUERY, temperature=1.0),
    ],
)
def test_everything_that_may_change_the_answer_changes_the_fingerprint(other: Query) -> None:
    assert of(other) != of(QUERY)


def test_tenants_and_policies_are_apart() -> None:
    assert (
        len({of(QUERY, "a", "b"), of(QUERY, "b", "a"), of(QUERY, "a", "a"), of(QUERY, "ab", ""), of(QUERY, "", "ab")})
        == 5
    )


def test_it_is_a_hex_sha256_of_the_normalised_text() -> None:
    assert of(Query(" what is  AI? ")) == of(QUERY)
    assert len(bytes.fromhex(of(QUERY))) == 32


def test_a_temperature_counts_by_value() -> None:
    assert (
        of(replace(QUERY, temperature=0)) == of(replace(QUERY, temperature=0.0)) == of(replace(QUERY, temperature=-0.0))
    )


def test_the_system_text_counts_as_written() -> None:
    assert of(replace(QUERY, system="Be  brief.")) != of(replace(QUERY, system="Be brief."))


FIELDS = st.tuples(*[st.text('a,"[]\\ n', max_size=3)] * 4)


@given(FIELDS, FIELDS)
def test_no_two_lists_of_fields_run_together(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    def printed(fields: tuple[str, ...]) -> str:
        tenant, policy, tier, system = fields
        return of(Query("x", tier=tier, system=system), tenant, policy)

    assert (printed(one) == printed(other)) == (one == other)


@given(TEXTS, TEXTS)
def test_any_text_has_a_fingerprint(text: str, system: str) -> None:
    assert len(of(Query(text, system=system), tenant=text)) == 64


def test_an_emoji_is_not_the_two_surrogates_that_spell_it() -> None:
    assert of(Query("😀")) != of(Query("\ud83d\ude00"))


@pytest.mark.parametrize(
    "text", ["\u0301\u0323" * 50_000, "\n" * 100_000 + "x", " \n" * 50_000, "²a" * 50_000, "`\n" * 50_000]
)
def test_hostile_text_is_normalised_without_a_blow_up(text: str) -> None:
    started = time.perf_counter()
    normalise(text)
    # Takes some 10 ms; ordering 100,000 marks would take seconds.
    assert time.perf_counter() - started < 2
