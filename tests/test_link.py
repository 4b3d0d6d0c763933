"""Pipelined connections to Redis, and the stream that is followed on one: what comes in never ends the loop."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from embedded.port import free_port
from storage.connection import blocking_client, hot_client
from tests.event_loop import TurnedLoop
from webapp import link as link_module
from webapp.feed import Feed
from webapp.link import RedisLink


class Pair:
    """What redis-py would have connected; the other end is the test's."""

    def __init__(self) -> None:
        self._sock, self.other = socket.socketpair()

    def disconnect(self) -> None:
        self._sock.close()


@pytest.fixture
def loop() -> Iterator[TurnedLoop]:
    loop = TurnedLoop()
    yield loop
    loop.poller.close()


def tend(link: Any) -> None:
    link.flush()
    link.tend()


def adopted(loop: TurnedLoop, pair: Pair) -> RedisLink:
    link = RedisLink(hot_client("redis://127.0.0.1:1"), loop, 0.25)
    link._adopt(pair)
    return link


def test_replies_come_in_the_order_of_the_questions(redis: Redis, redis_url: str, loop: TurnedLoop) -> None:
    link, got = RedisLink(hot_client(redis_url), loop, 5), []
    loop.turn(lambda: tend(link), lambda: link.is_up)
    for number in range(1_000):
        link.ask(("ECHO", f"{number}"), got.append)
    link.ask(("NOPE",), got.append)
    loop.turn(lambda: tend(link), lambda: len(got) == 1_001)

    assert got[:-1] == [b"%d" % number for number in range(1_000)]
    assert isinstance(got[-1], RedisError)
    link.close()


def test_it_connects_anew_as_often_as_need_be(
    redis: Redis, redis_url: str, loop: TurnedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py's pool counts the connections it ever made, and stops at `max_connections`."""
    monkeypatch.setattr(link_module, "RECONNECT_S", 0)
    away = RedisLink(hot_client(f"redis://127.0.0.1:{free_port()}"), loop, 0.25)
    attempts = away._pool.max_connections + 1
    for _ in range(attempts):
        away.tend()
        loop.do_kept()
    assert not away.is_up

    back = hot_client(redis_url).connection_pool.connection_kwargs
    away._pool.connection_kwargs = back
    loop.turn(lambda: tend(away), lambda: away.is_up)
    away.close()


@pytest.mark.parametrize("said", [b"?what\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+nobody asked\r\n", b""])
def test_what_is_not_redis_takes_the_connection_down_and_nothing_else(loop: TurnedLoop, said: bytes) -> None:
    pair = Pair()
    link = adopted(loop, pair)
    pair.other.sendall(said)
    pair.other.close()
    loop.turn(link.flush, lambda: not link.is_up)

    got: list[Any] = []
    link.ask(("PING",), got.append)
    link.flush()
    assert isinstance(got[0], RedisError)


def test_a_connection_that_is_lost_while_its_round_goes_on_is_not_read(loop: TurnedLoop) -> None:
    pair, got = Pair(), []
    link = adopted(loop, pair)
    link.ask(("PING",), got.append)
    pair.other.sendall(b"+PONG\r\n")
    pair.other.shutdown(socket.SHUT_RD)
    [(key, _)] = loop.poller.select(0)
    link.flush()  # by what came first in the round
    assert not link.is_up

    key.data(key.fileobj)
    link._adopt(Pair())  # and so it is with the one that takes its place
    key.data(key.fileobj)
    assert [type(reply) for reply in got] == [RedisConnectionError]
    assert link.is_up
    link.close()


def test_what_redis_pushes_answers_no_question(loop: TurnedLoop) -> None:
    pair, got = Pair(), []
    link = adopted(loop, pair)
    link.ask(("PING",), got.append)
    pair.other.sendall(b">2\r\n+moving\r\n:1\r\n+PONG\r\n")
    loop.turn(link.flush, lambda: got)

    assert (got, link.is_up) == ([b"PONG"], True)
    link.close()


def test_a_step_that_fails_keeps_no_other_from_its_reply(loop: TurnedLoop) -> None:
    pair, got = Pair(), []
    link = adopted(loop, pair)
    link.ask(("PING",), lambda _: 1 / 0)
    link.ask(("PING",), got.append)
    pair.other.sendall(b"+A\r\n+B\r\n")
    loop.turn(link.flush, lambda: got)

    assert got == [b"B"]
    link.close()


def test_a_late_reply_is_told_from_a_lost_connection(loop: TurnedLoop) -> None:
    """What was sent may be done yet where Redis is only slow."""
    pair, got = Pair(), []
    link = adopted(loop, pair)
    link.ask(("PING",), got.append)
    loop.turn(lambda: tend(link), lambda: got)

    assert isinstance(got[0], RedisTimeoutError)
    assert not link.is_up


def test_a_stream_that_redis_refuses_to_read_is_not_asked_for_again_at_once(
    redis: Redis, redis_url: str, loop: TurnedLoop
) -> None:
    redis.config_resetstat()
    redis.set("stream", "is none")
    feed = Feed(blocking_client, redis_url, "stream", loop, lambda _: None)
    loop.turn(lambda: tend(feed), lambda: feed._link.is_up)
    rounds = iter(range(100))
    loop.turn(lambda: tend(feed), lambda: next(rounds) == 99)

    assert not feed.is_up
    assert redis.info("commandstats")["cmdstat_xrevrange"]["calls"] < 10
    redis.delete("stream")
    loop.turn(lambda: tend(feed), lambda: feed.is_up)
    feed._link.close()


def test_a_feed_goes_on_where_its_connection_was_lost(redis: Redis, redis_url: str, loop: TurnedLoop) -> None:
    heard: list[Any] = []
    feed = Feed(blocking_client, redis_url, "stream", loop, heard.append)
    loop.turn(lambda: tend(feed), lambda: feed.is_up)
    redis.xadd("stream", {"job": "a"})
    loop.turn(lambda: tend(feed), lambda: heard)
    redis.client_kill_filter(_type="normal", skipme=True)
    redis.xadd("stream", {"job": "b"})
    loop.turn(lambda: tend(feed), lambda: len(heard) == 2)

    assert [told[b"job"] for told in heard] == [b"a", b"b"]
    feed._link.close()
