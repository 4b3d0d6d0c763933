"""The board of held targets: what one worker finds out, all know, for a while, and never at the price of an answer."""

from redis import Redis

from routing.query import Target
from storage.board import SharedBoard
from storage.connection import hot_client

SMALL, LARGE = Target("groq", "openai/gpt-oss-20b"), Target("groq", "openai/gpt-oss-120b")


def test_what_one_worker_holds_all_know(redis: Redis) -> None:
    SharedBoard(redis).hold(SMALL, "paused", 30)

    assert SharedBoard(redis).states([SMALL, LARGE]) == {SMALL: "paused"}


def test_a_hold_ends_by_itself(redis: Redis) -> None:
    SharedBoard(redis).hold(SMALL, "paused", 0.25)

    assert 0 < redis.pttl(f"aqr:hold:{SMALL}") <= 250


def test_without_redis_every_target_is_free() -> None:
    board = SharedBoard(hot_client("redis://127.0.0.1:1/0"))
    board.hold(SMALL, "paused", 30)

    assert board.states([SMALL]) == {}
    assert board.states([]) == {}
