"""What a process remembers of keys: for how long, how many, and what it makes of a database that is away."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from storage.api_key import ApiKey, KeyLimits
from tests.conftest import Clock
from webapp import key_cache
from webapp.key_cache import MAX_AWAY_S, MAX_KEYS, OVERLAP_S, KeyCache, KeysUnavailable

FRESH_S = 30


def key(key_id: str = "abcdefghijkl") -> ApiKey:
    scopes = frozenset({"query"})
    return ApiKey(key_id, "acme", "n", "0" * 64, scopes, frozenset(), KeyLimits(), datetime.now(UTC), None, None)


class Shelf:
    """A load function over a dictionary, which counts, can be away, and can be held."""

    def __init__(self) -> None:
        self.keys = {"abcdefghijkl": key()}
        self.asked: list[str] = []
        self.is_away = False
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, key_id: str) -> ApiKey | None:
        self.asked.append(key_id)
        assert self.gate.wait(10)
        if self.is_away:
            raise OperationalError("SELECT", {}, Exception())
        return self.keys.get(key_id)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def cache(shelf: Shelf, clock: Clock) -> KeyCache:
    return KeyCache(shelf, FRESH_S, monotonic=lambda: clock.ms / 1000)


def in_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_it_asks_once_as_long_as_the_key_is_fresh(cache: KeyCache, shelf: Shelf, clock: Clock) -> None:
    for _ in range(3):
        assert cache.find("abcdefghijkl") == shelf.keys["abcdefghijkl"]
        clock.advance(9)
    assert len(shelf.asked) == 1

    clock.advance(9)
    cache.find("abcdefghijkl")
    assert len(shelf.asked) == 2


def test_it_remembers_for_a_while_who_is_unknown(cache: KeyCache, shelf: Shelf, clock: Clock) -> None:
    assert [cache.find("nobody") for _ in range(5)] == [None] * 5
    assert len(shelf.asked) == 1

    clock.advance(key_cache.UNKNOWN_S)
    shelf.keys["nobody"] = key("nobody")
    assert cache.find("nobody")


def test_a_key_that_was_deleted_is_unknown(cache: KeyCache, shelf: Shelf, clock: Clock) -> None:
    assert cache.find("abcdefghijkl")
    shelf.keys.clear()
    clock.advance(FRESH_S)

    assert cache.find("abcdefghijkl") is None


def test_guesses_neither_grow_without_end_nor_push_out_what_is_known(cache: KeyCache, shelf: Shelf) -> None:
    cache.find("abcdefghijkl")
    for guess in range(MAX_KEYS + 100):
        cache.find(str(guess))
    assert len(cache._unknown) == MAX_KEYS

    shelf.asked.clear()
    assert cache.find("abcdefghijkl")
    assert shelf.asked == []


def test_it_remembers_a_bounded_number_of_keys_and_forgets_the_least_used(cache: KeyCache, shelf: Shelf) -> None:
    shelf.keys |= {str(n): key(str(n)) for n in range(MAX_KEYS)}
    for n in range(MAX_KEYS):
        cache.find(str(n))
    cache.find("0")
    cache.find("abcdefghijkl")
    assert len(cache._known) == MAX_KEYS

    shelf.asked.clear()
    cache.find("0")
    assert shelf.asked == []
    cache.find("1")
    assert shelf.asked == ["1"]


def test_a_key_that_is_forgotten_is_asked_for_anew(cache: KeyCache, shelf: Shelf) -> None:
    cache.find("abcdefghijkl")
    cache.forget("abcdefghijkl")
    cache.find("abcdefghijkl")

    assert len(shelf.asked) == 2


def test_while_the_database_is_away_a_known_key_counts_for_a_quarter_of_an_hour(
    cache: KeyCache, shelf: Shelf, clock: Clock
) -> None:
    cache.find("abcdefghijkl")
    shelf.is_away = True
    clock.advance(MAX_AWAY_S)
    assert cache.find("abcdefghijkl")

    clock.advance(1)
    with pytest.raises(KeysUnavailable):
        cache.find("abcdefghijkl")
    shelf.is_away = False
    clock.advance(key_cache.ASK_AGAIN_S)
    assert cache.find("abcdefghijkl")


def test_a_database_that_is_away_is_left_alone_for_a_while(cache: KeyCache, shelf: Shelf, clock: Clock) -> None:
    shelf.is_away = True
    for guess in range(20):
        with pytest.raises(KeysUnavailable):
            cache.find(str(guess))
    assert len(shelf.asked) == 1

    clock.advance(key_cache.ASK_AGAIN_S)
    shelf.is_away = False
    assert cache.find("abcdefghijkl")


def test_while_one_asks_anew_the_others_need_not_wait(cache: KeyCache, shelf: Shelf, clock: Clock) -> None:
    cache.find("abcdefghijkl")
    clock.advance(FRESH_S)
    shelf.gate.clear()
    asking = in_thread(lambda: cache.find("abcdefghijkl"))
    try:
        while len(shelf.asked) < 2:
            asking.join(0.001)
        assert cache.find("abcdefghijkl")
        assert len(shelf.asked) == 2
    finally:
        shelf.gate.set()
        asking.join()


def test_a_key_not_used_for_long_is_not_believed_while_another_asks(
    cache: KeyCache, shelf: Shelf, clock: Clock
) -> None:
    cache.find("abcdefghijkl")
    clock.advance(FRESH_S + OVERLAP_S)
    shelf.keys.clear()
    shelf.gate.clear()
    found: list[ApiKey | None] = []
    asking = [in_thread(lambda: found.append(cache.find("abcdefghijkl"))) for _ in range(2)]
    while len(shelf.asked) < 3:
        asking[0].join(0.001)
    shelf.gate.set()
    for thread in asking:
        thread.join()

    assert found == [None, None]


def test_guesses_take_only_some_of_the_connections_and_known_keys_get_through(
    cache: KeyCache, shelf: Shelf, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "WAIT_FOR_TURN_S", 0.01)
    cache.find("abcdefghijkl")
    shelf.gate.clear()
    guessing = [in_thread(lambda n=n: cache.find(f"guess{n}")) for n in range(key_cache.MAX_UNKNOWN_QUESTIONS)]
    try:
        while len(shelf.asked) < 1 + key_cache.MAX_UNKNOWN_QUESTIONS:
            guessing[0].join(0.001)
        with pytest.raises(KeysUnavailable):
            cache.find("one-more")
        assert cache.find("abcdefghijkl")
        clock.advance(FRESH_S)
        refreshing = in_thread(lambda: cache.find("abcdefghijkl"))
        while shelf.asked[-1] != "abcdefghijkl":
            refreshing.join(0.001)
    finally:
        shelf.gate.set()
        for thread in (*guessing, refreshing):
            thread.join()
