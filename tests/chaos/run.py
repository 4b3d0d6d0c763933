"""One scenario from start to verdict: start everything, load, fault, recovery, dust, figures."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from tests.chaos.books import Books, read_books
from tests.chaos.load import JOB_DEADLINE_S, Load
from tests.chaos.mix import WORDS, Question
from tests.chaos.scenario import Scenario
from tests.chaos.verdict import Figures, count, judge, recovery
from tests.chaos.world import World, running
from tests.integration.stack import eventually

BEFORE = 0.25  # share of the load's time before the fault begins
SETTLE_S = JOB_DEADLINE_S + 80  # deadline, lease, and the half minute after which a dead recorder's entries move on


@dataclass(frozen=True)
class Options:
    """What the command line says of every scenario. `say` gets one line a step."""

    seed: int = 1
    seconds: float = 15.0
    database: str = "sqlite"
    broker: str = "tansu"
    say: Callable[[str], None] = lambda line: None


def run(scenario: Scenario, options: Options) -> Figures:
    """The figures of one scenario. Raises CannotRun where the machine lacks something it needs."""
    options.say("starting")
    plan = scenario.plan(options.database, options.broker)
    with running(plan, scenario.latency_s) as world:
        world.load = Load(world.address, f"{options.seed}:{scenario.name}", tiers=scenario.tiers)
        options.say("load")
        world.load.start()
        try:
            fault_s, fault_ended = _strike(world, scenario, options)
        finally:
            world.load.stop()
        options.say("settling")
        return _settle(world, scenario, fault_s, fault_ended)


def _strike(world: World, scenario: Scenario, options: Options) -> tuple[float, float]:
    """Load with the fault in its midst; how long the fault lasted, and when it ended."""
    ends = time.monotonic() + options.seconds
    time.sleep(options.seconds * BEFORE)
    began = time.monotonic()
    with scenario.fault(world):
        options.say("fault")
        time.sleep(options.seconds * scenario.lasts)
    fault_ended = time.monotonic()
    options.say("recovery")
    least = fault_ended + options.seconds * 0.3
    time.sleep(max(ends, least) - fault_ended)
    return fault_ended - began, fault_ended


def _settle(world: World, scenario: Scenario, fault_s: float, fault_ended: float) -> Figures:
    until = time.monotonic() + SETTLE_S + fault_s
    _prod(world, scenario, fault_ended)
    while not (_is_quiet(world)) and time.monotonic() < until:
        time.sleep(0.5)
    if scenario.forgets_on_tansu and world.plan.broker == "tansu":
        _republish(world)
    ailing = world.ailing()
    with suppress(AssertionError):
        eventually(lambda: not world.ailing(), max(30.0, until - time.monotonic()))
        ailing = []
    books = read_books(world.env["DATABASE_URL"], world.env["KAFKA_BOOTSTRAP_SERVERS"])
    figures = count(
        world.load,
        books,
        fault_s=fault_s + scenario.clock_s,
        provider_calls=sum(fake.calls[name] for name, fake in world.providers.items()),
        uncounted=world.metrics().get("unrecorded_hits") or 0,
    )
    figures.scenario, figures.restarts = scenario.name, len(world.restarts)
    figures.add_bugs(world.bugs())
    figures.recovery_s = recovery(world.load.seen, fault_ended, scenario.tiers)
    figures.violations = judge(figures, may_cut=scenario.may_cut, may_refuse=scenario.may_refuse, ailing=ailing)
    return figures


def _prod(world: World, scenario: Scenario, fault_ended: float) -> None:
    """Where a tier has not answered normally since the fault, ask on for a while: recovery may take its time."""
    until = time.monotonic() + SETTLE_S / 2
    number = 0
    while recovery(world.load.seen, fault_ended, scenario.tiers) is None and time.monotonic() < until:
        number += 1
        for tier in scenario.tiers:
            world.load.ask(Question("sync", WORDS[tier].format(f"recovery{number}")))
        time.sleep(0.5)


def _is_quiet(world: World) -> bool:
    """Whether every promise was kept, every answer is in SQL, and no event waits for Kafka."""
    open_promises = [p for p in world.load.promises if p.status is None]
    if not all([world.load.poll(promise) for promise in open_promises]):
        return False
    try:
        books = read_books(world.env["DATABASE_URL"])
    except SQLAlchemyError:
        return False
    return _is_complete(world, books) and not any(row.published_at is None for row in books.events)


def _is_complete(world: World, books: Books) -> bool:
    recorded = {row.id for row in books.queries}
    answered = {s.body["id"] for s in world.load.seen if s.is_answered}
    metrics = world.metrics()
    waiting = (metrics.get("recorder") or {}).get("waiting_events")
    if waiting != 0 or books.open_ids or books.missing_events():
        return False
    return len(answered - recorded) <= (metrics.get("unrecorded_hits") or 0)


def _republish(world: World) -> None:
    """What an operator does for a broker that keeps its topics in memory, once it has lost them."""
    command = [sys.executable, "-m", "tasks.republish"]
    subprocess.run(command, env=world.env, check=True, capture_output=True, timeout=60)
    eventually(lambda: world.metrics().get("unpublished_events") == 0, 60)
