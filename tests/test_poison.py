"""Entries set aside can be seen, recorded after all, and dropped; their texts are never shown."""

import os
import subprocess
import sys
from pathlib import Path

from redis import Redis

from storage.name import USAGE
from storage.poison import PAGE, Poison
from storage.usage import POISON, UsageStream
from tests.usage_entries import accepted

ROOT = Path(__file__).parent.parent


def set_aside(redis: Redis, *query_ids: str) -> None:
    stream = UsageStream(redis, "r1")
    stream.open()
    for query_id in query_ids:
        redis.xadd(USAGE, accepted(query_id, text="the question"))
    for entry in stream.read(1_000, 10):
        stream.set_aside(entry, "DataError")


def run(redis_url: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "REDIS_URL": redis_url, "ENV_FILE": os.devnull}
    command = [sys.executable, "-m", "tasks.poison", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_it_lists_what_was_set_aside_and_why_but_no_text(redis: Redis, redis_url: str) -> None:
    set_aside(redis, "q1", "q2")

    said = run(redis_url, "list").stdout
    assert [line.split()[-1] for line in said.splitlines()] == ["q1", "q2", "2"]
    assert "DataError  accepted" in said
    assert "the question" not in said


def test_it_gives_an_entry_to_the_recorder_once_more(redis: Redis, redis_url: str) -> None:
    set_aside(redis, "q1", "q2")
    [first, _] = Poison(redis).entries()

    assert "replay: 1" in run(redis_url, "replay", first.id.decode()).stdout
    [(_, again)] = redis.xrange(USAGE)
    assert again == {name.encode(): value for name, value in accepted("q1", text="the question").items()}
    assert redis.xlen(POISON) == 1


def test_it_drops_all_of_them_however_many(redis: Redis, redis_url: str) -> None:
    set_aside(redis, *(f"q{n}" for n in range(PAGE + 1)))

    assert f"drop: {PAGE + 1}" in run(redis_url, "drop", "all").stdout
    assert (redis.xlen(POISON), redis.xlen(USAGE)) == (0, 0)


def test_it_does_nothing_without_being_told_to_which(redis: Redis, redis_url: str) -> None:
    set_aside(redis, "q1")

    assert run(redis_url, "drop").returncode == 2
    assert redis.xlen(POISON) == 1
