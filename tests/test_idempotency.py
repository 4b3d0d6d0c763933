"""Idempotency keys: the same key and body stand for the same query."""

import pytest
from redis import Redis

from storage.idempotency import Conflict, Idempotency


@pytest.fixture
def idempotency(redis: Redis) -> Idempotency:
    return Idempotency(redis, ttl_s=60)


def test_a_key_stands_for_the_query_it_first_came_with(idempotency: Idempotency) -> None:
    assert idempotency.remember("t", "key", b"body", "q1") == "q1"
    assert idempotency.remember("t", "key", b"body", "q2") == "q1"


def test_a_key_with_another_body_is_a_conflict(idempotency: Idempotency) -> None:
    idempotency.remember("t", "key", b"body", "q1")

    with pytest.raises(Conflict):
        idempotency.remember("t", "key", b"other", "q2")


def test_tenants_do_not_share_keys(idempotency: Idempotency) -> None:
    idempotency.remember("a", "key", b"body", "q1")

    assert idempotency.remember("b", "key", b"other", "q2") == "q2"


def test_a_key_is_forgotten_in_time_and_never_kept_in_the_clear(idempotency: Idempotency, redis: Redis) -> None:
    idempotency.remember("t", "my-secret-key", b"body", "q1")

    [name] = redis.keys("aqr:idempotency:*")
    assert 0 < redis.ttl(name) <= 60
    assert b"my-secret-key" not in name + redis.get(name)
