"""The estimate of a prompt's tokens is rather too high than too low."""

import pytest

from routing.estimate import TEMPLATE_TOKENS, estimate_prompt_tokens
from routing.query import Query


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("What is machine learning?", 9),
        ("Что такое кэш", 12),
        ("什么是机器学习", 11),
        ("🦜🦜", 4),
        ("half \ud83d", 2),
    ],
)
def test_it_counts_by_the_letters_of_each_script(text: str, tokens: int) -> None:
    assert estimate_prompt_tokens(Query(text)) == TEMPLATE_TOKENS + tokens


def test_the_system_text_counts_too() -> None:
    assert estimate_prompt_tokens(Query("abc", system="def")) == TEMPLATE_TOKENS + 2
