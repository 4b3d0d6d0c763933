"""Things that go wrong with servers and processes: each a context manager that starts the fault and ends it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import psutil
import psycopg2

from embedded.procfile import read_procfile
from embedded.supervisor import Supervisor
from tests import system_servers
from tests.chaos.mix import TIERS, Question
from tests.chaos.world import World
from tests.integration.stack import eventually

# What a fault does to a running world, from `with` to the end of its block. Scenarios say how long that is.
Fault = Callable[[World], AbstractContextManager[Any]]


def fault(act: Callable[..., Iterator[None]]) -> Callable[..., Any]:
    """Makes `act(world, …)` a maker of faults: `freeze("valkey")` is one."""
    managed = contextmanager(act)
    return lambda *given: lambda world: managed(world, *given)


@fault
def nothing(_world: World) -> Iterator[None]:
    yield


@fault
def kill(world: World, *names: str) -> Iterator[None]:
    """kill -9 to every process of these groups; the supervisor starts them again."""
    pids = {pid for name in names for pid in world.service.pids(name)}
    assert pids, f"{names} do not run"
    _signal(pids, signal.SIGKILL)
    eventually(lambda: not any(psutil.pid_exists(pid) and _runs(pid) for pid in pids))
    yield


@fault
def kill_web_workers(world: World) -> Iterator[None]:
    """kill -9 to gunicorn's workers, whose master lives."""
    _master, *workers = world.service.pids("web")
    assert workers, "no web worker runs"
    _signal(workers, signal.SIGKILL)
    yield


@fault
def kill_with_message_in_socket(world: World) -> Iterator[None]:
    """Freeze the idle complex worker, let the broker hand it a message, and kill it: Redis then knows of none."""
    pids = world.service.pids("worker-complex")
    _signal(pids, signal.SIGSTOP)
    asked = world.load.ask(Question("async", "Provide a comprehensive analysis of sockets", {"wait_seconds": 0}))
    assert asked.status == 202, asked
    eventually(lambda: not world.redis.llen("complex"))
    _signal(pids, signal.SIGKILL)
    yield


@fault
def restart_server(world: World, name: str, signum: int) -> Iterator[None]:
    """End a server with a signal; start it again when the block ends."""
    pid = world.servers.pid(name)
    assert pid is not None, f"{name} does not run"
    os.kill(pid, signum)
    eventually(lambda: not world.servers.is_alive(name))
    yield
    world.servers.restart(name)


@fault
def freeze(world: World, name: str) -> Iterator[None]:
    """SIGSTOP a server and all its children: connections stay open, and nothing answers."""
    pids = _family(world.servers, name)
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


@fault
def stutter(world: World, name: str, times: int = 12) -> Iterator[None]:
    """A server that stops and goes on, again and again: replies come when their callers have just given up."""
    pids = _family(world.servers, name)
    for _ in range(times):
        _signal(pids, signal.SIGSTOP)
        time.sleep(0.4)
        _signal(pids, signal.SIGCONT)
        time.sleep(0.3)
    yield


@fault
def cut_broker_connections(world: World) -> Iterator[None]:
    """CLIENT KILL of every connection, again and again."""
    for _ in range(4):
        assert world.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") > 0
        time.sleep(0.5)
    yield


@fault
def flush_cache(world: World) -> Iterator[None]:
    """FLUSHALL of the answers' own Redis."""
    assert world.cache_redis.dbsize() > 0, "nothing was cached"
    world.cache_redis.flushall()
    yield


@fault
def fill_redis(world: World) -> Iterator[None]:
    """Redis may not grow any more: with `noeviction` it refuses every write that needs memory."""
    world.redis.config_set("maxmemory", "1mb")
    yield
    world.redis.config_set("maxmemory", "0")


@fault
def stop_postgres(world: World) -> Iterator[None]:
    system_servers.stop_postgres(world.servers)
    yield
    world.servers.restart("postgres")


@fault
def lock_tables(world: World) -> Iterator[None]:
    """Somebody holds all tables locked, as a careless migration would."""
    with _connection(world) as connection:
        connection.cursor().execute("LOCK TABLE queries, attempts, events IN ACCESS EXCLUSIVE MODE")
        yield


@fault
def take_postgres_connections(world: World) -> Iterator[None]:
    """Every connection that PostgreSQL allows is held by somebody else."""
    held = [_connection(world)]
    try:
        _take_all(world, held)
        drop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ai-query-router'"
        held[0].cursor().execute(drop)
        time.sleep(0.2)
        _take_all(world, held)
        yield
    finally:
        for connection in held:
            connection.close()


@fault
def fill_disk(world: World) -> Iterator[None]:
    """Not a byte is left on the database's disk."""
    ballast = world.folder / "disk" / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    assert ballast.stat().st_size > 1 << 20
    yield
    ballast.unlink()


@fault
def late_kafka(world: World) -> Iterator[None]:
    """Kafka was not there when everything else started."""
    yield
    world.start_kafka()


@fault
def jump_clock(world: World, seconds: int) -> Iterator[None]:
    """The time of day of the processes that can jump is so far ahead, then right again."""
    world.jump(seconds)
    assert abs(world.skew_s() - seconds) < 30, "the clock did not jump"
    yield
    world.jump(0)


@fault
def roll(world: World) -> Iterator[None]:
    """Every process in turn is replaced, as an orchestrator does it.

    A web server leaves the balancer, drains, starts and comes back; a worker's successor starts before it drains.
    """
    for number, port in enumerate(world.ports, 1):
        world.out.add(port)
        time.sleep(0.5)  # requests that were just sent there arrive
        world.service.restart("web" if number == 1 else f"web-{number}", limit_s=60)
        eventually(lambda port=port: world.is_ready(port), 60)
        world.out.discard(port)
    for tier in TIERS:
        world.service.start(f"next-{tier}", read_procfile()[f"worker-{tier}"])
        eventually(lambda tier=tier: world.workers(tier) == 2, 60)
        world.service.stop(f"worker-{tier}", limit_s=60)
    world.service.restart("recorder", limit_s=60)
    yield


def _take_all(world: World, held: list[Any]) -> None:
    with suppress(psycopg2.OperationalError):
        while len(held) < 1_000:
            held.append(_connection(world))


def _connection(world: World) -> Any:
    return psycopg2.connect(world.env["DATABASE_URL"], connect_timeout=5)


def _family(supervisor: Supervisor, name: str) -> list[int]:
    """The process and all its children; PostgreSQL's lead groups of their own."""
    pid = supervisor.pid(name)
    assert pid is not None, f"{name} does not run"
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _signal(pids: Any, signum: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
