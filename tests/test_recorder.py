"""The recorder: what is in the stream ends in SQL, once, whatever fails meanwhile."""

import threading
import time
from collections.abc import Callable

import pytest
from redis import Redis
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from config import Settings
from storage.database import build_engine
from storage.event import rows_of
from storage.name import USAGE
from storage.record import Outgoing, count_unpublished, unpublished, write
from storage.table import events, queries
from storage.usage import POISON, UsageStream
from tasks.recorder import Recorder, RecorderProcess
from tests.conftest import migrate
from tests.usage_entries import AT, accepted, ended, hit


def opened(redis: Redis, name: str = "r1") -> UsageStream:
    stream = UsageStream(redis, name)
    stream.open()
    return stream


def ids(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(select(queries.c.id).order_by(queries.c.id)).scalars())


def waiting_events(engine: Engine) -> int:
    with engine.connect() as connection:
        return count_unpublished(connection)


def test_it_moves_entries_into_sql(redis: Redis, engine: Engine) -> None:
    for entry in (accepted("q1"), accepted("q2"), ended("q1")):
        redis.xadd(USAGE, entry)
    recorder = Recorder(opened(redis), engine)

    assert recorder.run() == 3
    assert ids(engine) == ["q1", "q2"]
    assert redis.xlen(USAGE) == 0
    assert recorder.database_state == "ok"


def test_it_sets_an_unreadable_entry_aside_and_records_the_rest(redis: Redis, engine: Engine) -> None:
    for entry in (accepted("q1"), {"kind": b"nonsense"}, accepted("q2")):
        redis.xadd(USAGE, entry)
    Recorder(opened(redis), engine).run()

    assert ids(engine) == ["q1", "q2"]
    assert redis.xlen(USAGE) == 0
    [(_, poison)] = redis.xrange(POISON)
    assert (poison[b"kind"], poison[b"reason"]) == (b"nonsense", b"KeyError")


def test_it_keeps_entries_while_the_database_cannot_take_them(redis: Redis, database_url: str) -> None:
    engine = build_engine(database_url)
    redis.xadd(USAGE, accepted("q1"))
    recorder = Recorder(opened(redis), engine)
    with pytest.raises(SQLAlchemyError):  # no tables yet
        recorder.run()
    assert redis.xlen(USAGE) == 1

    migrate(engine)
    assert recorder.run() == 1
    assert ids(engine) == ["q1"]
    assert redis.xlen(USAGE) == 0


@pytest.mark.parametrize("faulty", [{"prompt_tokens": 2**70, "completion_tokens": 1}, {"prompt_tokens": "many"}])
def test_it_sets_an_entry_aside_that_no_table_can_hold(redis: Redis, engine: Engine, faulty: dict[str, object]) -> None:
    redis.xadd(USAGE, ended("q1", facts={"usage": {**faulty, "total_tokens": 1}}))
    redis.xadd(USAGE, ended("q2"))
    Recorder(opened(redis), engine).run()

    assert "q2" in ids(engine)
    assert redis.xlen(USAGE) == 0


def test_it_keeps_the_newest_of_more_poison_than_it_may(redis: Redis, engine: Engine) -> None:
    stream = UsageStream(redis, "r1", max_poison=3)
    stream.open()
    for n in range(5):
        redis.xadd(USAGE, {"kind": f"nonsense {n}"})
    Recorder(stream, engine).run()

    assert [entry[b"kind"] for _, entry in redis.xrange(POISON)] == [f"nonsense {n}".encode() for n in (2, 3, 4)]


def test_it_takes_over_what_a_dead_recorder_had_read(
    redis: Redis, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.usage.ABANDONED_AFTER_MS", 0)
    redis.xadd(USAGE, accepted("q1"))
    assert len(opened(redis, "dead").read(10, 10)) == 1

    assert Recorder(opened(redis, "heir"), engine).run() == 1
    assert ids(engine) == ["q1"]


def test_two_recorders_share_the_work(redis: Redis, engine: Engine) -> None:
    first, second = Recorder(opened(redis, "r1"), engine), Recorder(opened(redis, "r2"), engine)
    for n in range(1_200):
        redis.xadd(USAGE, ended(f"q{n:04}"))
    done = 0
    while done < 1_200:
        done += first.run() + second.run()

    assert len(ids(engine)) == 1_200
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(events)).scalar_one() == 3_600


def test_it_starts_again_on_a_redis_that_was_emptied(redis: Redis, engine: Engine) -> None:
    stream = opened(redis)
    redis.flushall()
    stream.open()
    redis.xadd(USAGE, accepted("q1"))

    assert Recorder(stream, engine).run() == 1


def test_the_process_purges_too_and_stops_at_once(
    redis: Redis, engine: Engine, settings: Callable[..., Settings]
) -> None:
    long_ago = AT - 10 * 365 * 86_400_000
    write(engine, rows_of([ended("q-old", at=long_ago, arrivals={"q-old": long_ago}), ended("q-new")]))
    process = RecorderProcess(settings(database_url=engine.url.render_as_string(hide_password=False)))
    running = threading.Thread(target=process.run)
    running.start()
    try:
        until = time.monotonic() + 20
        while ids(engine) != ["q-new"]:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        started = time.monotonic()
        process.stop()
        running.join(20)
    assert time.monotonic() - started < 5
    assert not running.is_alive()


def test_it_finds_the_poison_in_a_large_batch_and_records_all_the_others(redis: Redis, engine: Engine) -> None:
    for n in range(100):
        redis.xadd(USAGE, {"kind": b"nonsense"} if n in (17, 63, 64) else accepted(f"q{n:03}"))
    Recorder(opened(redis), engine).run()

    assert len(ids(engine)) == 97
    assert redis.xlen(POISON) == 3
    assert redis.xlen(USAGE) == 0


def test_a_value_that_no_database_takes_is_the_entrys_fault(redis: Redis, engine: Engine) -> None:
    redis.xadd(USAGE, ended("q1", facts={"usage": {"prompt_tokens": {"a": 1}, "completion_tokens": 1}}))
    redis.xadd(USAGE, ended("q2"))
    Recorder(opened(redis), engine).run()

    assert "q2" in ids(engine)
    assert (redis.xlen(USAGE), redis.xlen(POISON)) == (0, 1)


def test_it_offers_the_events_as_the_table_has_them_once_they_are_committed(redis: Redis, engine: Engine) -> None:
    offered: list[Outgoing] = []
    recorder = Recorder(opened(redis), engine, offer=offered.extend)
    for entry in (accepted("q1", text='a "quoted"\n\\ text, äöü'), ended("q1"), hit("q2")):
        redis.xadd(USAGE, entry)
    recorder.run()

    with engine.connect() as connection:
        waiting = unpublished(connection, 10)
    assert offered == waiting
    assert len(waiting) == 6


def test_it_offers_nothing_of_a_batch_that_had_been_recorded_in_part(redis: Redis, engine: Engine) -> None:
    write(engine, rows_of([accepted("q1")]))
    offered: list[Outgoing] = []
    for entry in (accepted("q1"), accepted("q2")):
        redis.xadd(USAGE, entry)
    Recorder(opened(redis), engine, offer=offered.extend).run()

    assert offered == []
    assert ids(engine) == ["q1", "q2"]


def test_the_process_publishes_what_it_records(
    redis: Redis, engine: Engine, kafka_servers: str, settings: Callable[..., Settings]
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    process = RecorderProcess(settings(database_url=url, kafka_bootstrap_servers=kafka_servers))
    running = threading.Thread(target=process.run)
    running.start()
    try:
        for n in range(30):
            redis.xadd(USAGE, hit(f"q{n:02}"))
        until = time.monotonic() + 30
        while redis.xlen(USAGE) or waiting_events(engine):
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.stop()
        running.join(20)
    assert len(ids(engine)) == 30
    assert process.state() == {"database": "ok", "kafka": "ok", "waiting_events": 0}
