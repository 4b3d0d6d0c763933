"""Queries on the event loop, step by step on a real Valkey: what happens between any two replies."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from redis import Redis, RedisError

from config import Settings
from storage.name import USAGE, job_key
from tests.event_loop import TurnedLoop
from tests.test_express import request
from webapp import create_app
from webapp.express import Errand, Express


@pytest.fixture
def app(redis: Redis, settings: Callable[..., Settings]) -> Flask:
    # `make_draft` needs a provider; nothing listens where it should be.
    return create_app(settings(groq_api_key="k", groq_base_url="http://127.0.0.1:9"))


class Turned:
    """Express on a loop that the test turns."""

    def __init__(self, app: Flask) -> None:
        self.loop = TurnedLoop()
        self.express = Express(app, self.loop)
        self.link, self.waits = self.express._link, self.express._waits
        self.turn(lambda: self.link.is_up and self.express._feed.is_up)
        for name in ("find", "accept", "record_hit"):  # Redis knows the scripts from now on
            script = app.extensions["services"].ledger._scripts[name]
            app.extensions["services"].ledger.client.script_load(script.script)

    def turn(self, until: Callable[[], object], *, does_work: bool = True) -> None:
        self.loop.turn(self.express.tend, until, does_work=does_work)

    def take(self, query: str = "What is AI?", **body: Any) -> Errand:
        errand = self.express.take(object(), request(query, **body))
        assert errand
        return errand

    @property
    def statuses(self) -> list[int]:
        return [int(reply.split()[1]) for reply in self.loop.replies]

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(reply.partition(b"\r\n\r\n")[2]) for reply in self.loop.replies]


@pytest.fixture
def turned(app: Flask) -> Iterator[Turned]:
    turned = Turned(app)
    yield turned
    turned.express._feed._link.close()
    turned.link.close()
    turned.loop.poller.close()


def rung(redis: Redis) -> int:
    return redis.llen("simple")


def test_a_query_whose_caller_leaves_while_it_is_taken_in_is_rung_for(turned: Turned, redis: Redis) -> None:
    errand = turned.take()
    turned.turn(lambda: errand.draft)  # not in the cache: asked to be taken in
    turned.express.abandon(errand)
    turned.turn(lambda: not turned.link.is_busy)

    assert (redis.xlen(USAGE), rung(redis)) == (1, 1)
    assert (turned.loop.replies, turned.waits.count, dict(turned.waits.by_job)) == ([], 0, {})


def test_who_does_not_wait_gets_a_job_only_once_it_was_rung_for(turned: Turned, redis: Redis) -> None:
    """Else it might be taken back, to be answered here, after its 202 was on its way."""
    errand = turned.take(wait_seconds=0)
    turned.turn(lambda: redis.exists(job_key(errand.ask.id)))
    turned.turn(lambda: turned.loop.kept, does_work=False)
    assert rung(redis) == 1
    turned.turn(lambda: turned.loop.replies)

    assert turned.statuses == [202]


def test_a_message_that_was_lost_leaves_one_reply_and_no_job_that_nobody_has_heard_of(
    turned: Turned, redis: Redis
) -> None:
    errand = turned.take(wait_seconds=0)
    turned.turn(lambda: errand.draft)
    turned.express._entered(errand, [b"leader", errand.ask.id.encode(), 1])
    turned.link._drop(RedisError("lost"))
    turned.turn(lambda: turned.loop.replies)
    turned.turn(lambda: not turned.loop.kept)

    assert len(turned.loop.replies) == 1
    assert turned.statuses[0] != 202 or redis.exists(job_key(errand.ask.id))


def test_however_a_query_ends_nothing_of_it_stays(turned: Turned, redis: Redis) -> None:
    only = turned.take(cache={"mode": "only"})
    now = turned.take("Now", wait_seconds=0)
    late = turned.take("Late", wait_seconds=0.1)
    joined = [turned.take("Late", wait_seconds=0.1) for _ in range(3)]
    gone = turned.take("Gone")
    turned.turn(lambda: gone.is_entered)
    turned.express.abandon(gone)
    turned.express.abandon(gone)
    lost = turned.take("Lost")
    turned.turn(lambda: lost.is_entered)
    redis.delete(job_key(lost.ask.id))
    turned.turn(lambda: len(turned.loop.replies) == 7)

    assert all(errand.is_over for errand in [only, now, late, *joined, gone, lost])
    assert sorted(turned.statuses) == [202] * 5 + [404, 503]
    assert (turned.waits.count, dict(turned.waits.by_job)) == (0, {})


def test_two_looks_at_an_ended_job_make_one_reply(turned: Turned, redis: Redis) -> None:
    errand = turned.take()
    turned.turn(lambda: errand.is_entered)
    redis.hset(job_key(errand.ask.id), mapping={"status": "cancelled", "ended_at": 1})
    turned.express._job_ended(errand.ask.id)
    turned.express._job_ended(errand.ask.id)
    turned.turn(lambda: turned.loop.kept, does_work=False)
    turned.turn(lambda: not turned.link.is_busy, does_work=False)

    assert len(turned.loop.kept) == 1
    turned.turn(lambda: turned.loop.replies)
    assert turned.statuses == [409]


def test_a_query_that_redis_could_not_look_up_is_begun_again_under_its_id(turned: Turned, redis: Redis) -> None:
    redis.script_flush()
    errand = turned.take(wait_seconds=0)
    turned.turn(lambda: turned.loop.replies)

    assert turned.statuses == [202]
    assert errand.ask.id.encode() in turned.loop.replies[0]
    assert redis.exists(job_key(errand.ask.id))


def test_a_bug_while_a_request_is_read_leaves_it_to_the_application(turned: Turned, app: Flask) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    turned.express._door = Broken()  # type: ignore[assignment]
    assert turned.express.take(object(), request()) is None
