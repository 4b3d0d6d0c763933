"""Answers kept in a web process's memory, and the records of hits that were answered from it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import RedisError

from routing.query import Completion, Target
from storage.answer import Answer
from tests.conftest import Clock
from webapp import recent
from webapp.hit_log import HitLog
from webapp.recent import RecentAnswers


def stored(text: str = "an answer") -> bytes:
    said = Completion(text, "m", "stop", None)
    facts = {"cost_usd": 0.0, "baseline_usd": 0.0, "score": 0, "words": 1, "signals": (), "stored_at": 1}
    return Answer.from_completion(said, tier="simple", target=Target("groq", "m"), **facts).encode()


@pytest.fixture
def seconds() -> Clock:
    return Clock()


@pytest.fixture
def answers(seconds: Clock) -> RecentAnswers:
    return RecentAnswers(2.0, lambda: seconds() / 1000)


def keep(answers: RecentAnswers, key: str, text: str = "an answer") -> None:
    answers.keep(key, stored(text), answers.changes)


def test_it_answers_again_for_two_seconds_and_no_longer(answers: RecentAnswers, seconds: Clock) -> None:
    keep(answers, "k")
    seconds.advance(1.9)
    assert (found := answers.get("k"))
    assert found.answer.response == "an answer"
    assert found.facts == stored().split(b"\n")[0] + b"\n"

    seconds.advance(0.2)
    assert answers.get("k") is None


def test_what_has_changed_is_forgotten_at_once(answers: RecentAnswers) -> None:
    keep(answers, "k")
    keep(answers, "other")
    answers.evict("k")

    assert answers.get("k") is None
    assert answers.get("other")


def test_an_answer_that_was_looked_up_before_a_change_is_not_kept_after_it(answers: RecentAnswers) -> None:
    before = answers.changes
    answers.evict("k")

    assert answers.keep("k", stored("the old one"), before).response == "the old one"
    assert answers.get("k") is None


def test_without_an_age_nothing_is_kept() -> None:
    answers = RecentAnswers(0)
    keep(answers, "k")
    assert answers.get("k") is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3_000)), max_size=60))
def test_it_never_holds_more_than_it_may(steps: list[tuple[int, int]]) -> None:
    most, recent.MAX_BYTES = recent.MAX_BYTES, 20_000
    try:
        answers = RecentAnswers(60)
        for number, length in steps:
            keep(answers, str(number), "x" * length)
            held = [found.size for key in map(str, range(10)) if (found := answers.get(key))]
            assert sum(held) == answers._bytes <= recent.MAX_BYTES
    finally:
        recent.MAX_BYTES = most


class Link:
    """Keeps what is asked; `reply` answers all of it."""

    def __init__(self) -> None:
        self.asked: list[Callable[[Any], None]] = []
        self.flushes = 0

    def ask(self, command: Any, on_reply: Callable[[Any], None]) -> None:
        self.asked.append(on_reply)

    def flush(self) -> None:
        self.flushes += 1

    def reply(self, reply: Any) -> None:
        asked, self.asked = self.asked, []
        for on_reply in asked:
            on_reply(reply)


class Books:
    """A ledger that keeps hits, unless it `is_away`."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.is_away = False

    def record_hit_command(self, caller: bytes, answer: bytes) -> tuple[str, bytes, bytes]:
        return ("RECORD", caller, answer)

    def record_hit(self, caller: bytes, answer: bytes) -> None:
        if self.is_away:
            raise RedisError("away")
        self.kept.append(caller)


class Inline:
    """A loop whose other threads are done before they begin."""

    def apart(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        then(work())


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def hits(link: Link, books: Books, monkeypatch: pytest.MonkeyPatch) -> HitLog:
    monkeypatch.setattr("webapp.hit_log.RETRY_S", 0)
    return HitLog(books, link, Inline())  # type: ignore[arg-type]


def test_a_hit_is_on_its_way_before_it_is_answered(hits: HitLog, link: Link) -> None:
    hits.record(b"one", b"facts\n")
    assert link.flushes == 1


def test_hits_that_redis_has_not_confirmed_are_recorded_when_it_is_back(hits: HitLog, link: Link, books: Books) -> None:
    books.is_away = True
    for caller in (b"one", b"two"):
        hits.record(caller, b"facts\n")
    link.reply(RedisError("reset"))
    hits.tend()
    assert not hits.has_room  # nobody is answered on credit meanwhile

    books.is_away = False
    hits.tend()
    assert books.kept == [b"one", b"two"]
    assert hits.has_room


def test_a_script_that_redis_did_not_know_keeps_nobody_waiting(link: Link, books: Books) -> None:
    hits = HitLog(books, link, Inline())  # type: ignore[arg-type]
    for caller in (b"one", b"two"):  # both were under way when Redis said so
        hits.record(caller, b"facts\n")
        link.reply(RedisError("NOSCRIPT"))
        hits.tend()
    assert books.kept == [b"one", b"two"]
    assert hits.has_room


def test_confirmed_hits_are_not_recorded_again(hits: HitLog, link: Link, books: Books) -> None:
    hits.record(b"one", b"facts\n")
    link.reply(None)
    hits.tend()
    hits.close()
    assert books.kept == []


def test_at_its_end_the_process_records_what_is_in_doubt(hits: HitLog, books: Books) -> None:
    hits.record(b"one", b"facts\n")
    hits.close()
    assert books.kept == [b"one"]
