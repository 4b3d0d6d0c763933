"""What is measured of the product alone: hits while misses wait, memory, more workers, growth."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from bench import load, prefill
from bench.cell import Cell, Pace, Row, Watch, run
from bench.load import Call, Outcome
from bench.machine import memory_mb
from bench.open_loop import hold, open_loop
from bench.product import Product
from bench.provider import FakeProvider
from bench.target import Running

WAITING = 200
WORKERS_BUSY = 128  # connections, so that three workers of 32 threads have more than they can take
_SETTLE_S = 5

Rows = Iterator[tuple[str, Row]]


@dataclass(frozen=True)
class Scene:
    """What a special cell works with; `seed` names the pool of questions that are cached."""

    running: Running
    service: Product
    provider: FakeProvider
    pace: Pace
    seed: str


@dataclass(frozen=True)
class Special:
    """Yields rows, each with the name of its cell, on a service that is warm, or fresh where it needs no warmth."""

    name: str
    settings: str
    run: Callable[[Scene], Rows]
    needs_warmth: bool = True

    def is_for(self, target: str) -> bool:
        return target == "product"


def hits_while_waiting(scene: Scene) -> Rows:
    """500 hits a second, in an open loop, while 200 synchronous misses wait on a slow provider."""
    seconds = scene.pace.slow_s
    with _waiting(scene, WAITING, latency_ms=2000, seconds=seconds + 5) as waiting:
        open_loop(scene.running.call, 100, 1, load.pooled_tokens(scene.seed))
        with Watch(scene.running, scene.provider, rests=False) as watch:
            outcome = open_loop(scene.running.call, 500, seconds, load.pooled_tokens(scene.seed))
        row = watch.row(outcome)
        held = waiting.result()
    yield "hit_open500_while_waiting", row | {"held": held.answered, "held_failed": held.failed}


def memory(scene: Scene) -> Rows:
    """Proportional set size of the whole stack: idle, then with 200 synchronous misses in flight."""
    time.sleep(_SETTLE_S)
    idle = memory_mb(scene.running.roots())
    yield "memory_idle", {"memory_mb": sum(idle.values()), "memory_mb_by_group": idle}
    with _waiting(scene, WAITING, latency_ms=1000, seconds=scene.pace.slow_s) as waiting:
        time.sleep(scene.pace.slow_s / 2)
        busy = memory_mb(scene.running.roots())
        held = waiting.result()
    figures = {"memory_mb": sum(busy.values()), "memory_mb_by_group": busy, "held": held.answered}
    yield "memory@200", figures | {"failed": held.failed}


def workers(scene: Scene) -> Rows:
    """Misses a second, at the provider, with one, two and three worker processes of the tier; provider at 1 s."""
    rates: list[float] = []
    for number in (1, 2, 3):
        if number > 1:
            scene.service.add_worker()
        seconds = scene.pace.slow_s
        with _waiting(scene, WORKERS_BUSY, latency_ms=1000, seconds=seconds + _SETTLE_S) as waiting:
            time.sleep(_SETTLE_S - 1)  # each thread is in its rhythm then
            with Watch(scene.running, scene.provider, rests=False) as watch:
                began = time.monotonic()
                time.sleep(seconds)
                took_s = time.monotonic() - began
            failed = waiting.result().failed
        rates.append(watch.calls / took_s)
        gain = {"gain": (rates[-1] - rates[-2]) / rates[0]} if number > 1 else {}
        yield f"workers={number}", {"per_second": rates[-1], "failed": failed, "noise_cores": watch.noise, **gain}


def growth_of_answers(scene: Scene) -> Rows:
    """What a hit costs with a thousand, a hundred thousand and a million cached answers."""
    for power in (3, 5, 6):
        prefill.answers(scene.service, 10**power)
        yield f"hit@32, 10^{power} answers", _measure(scene, "hit", 32)


def growth_of_jobs(scene: Scene) -> Rows:
    """What a miss costs with ten, ten thousand and a hundred thousand jobs queued in its tier."""
    scene.service.supervisor.stop("recorder")  # it would be busy with the prefilled jobs for minutes
    for power in (1, 4, 5):
        prefill.jobs(scene.service, 10**power)
        yield f"miss0@8, 10^{power} jobs", _measure(scene, "miss", 8)


SPECIALS = (
    Special("memory", "memory", memory, needs_warmth=False),
    Special("hit_open500_while_waiting", "wide", hits_while_waiting),
    Special("workers", "workers", workers),
    Special("growth", "growth", growth_of_answers),
    Special("growth", "deep", growth_of_jobs),
)


def _measure(scene: Scene, kind: str, connections: int) -> Row:
    return run(Cell("growth", kind, connections), scene.running, scene.provider, scene.pace, scene.seed)


@contextmanager
def _waiting(scene: Scene, connections: int, latency_ms: float, seconds: float) -> Iterator[Future[Outcome]]:
    """Misses that wait, held by a process of their own; the block begins when the provider has its first wave."""
    scene.provider.control(latency_ms=latency_ms)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        held = pool.submit(hold_misses, scene.running.call, connections, seconds, load.new_seed())
        while not held.done() and scene.provider.control().calls < min(connections, 32):
            time.sleep(0.2)
        yield held


def hold_misses(call: Call, connections: int, seconds: float, seed: str) -> Outcome:
    return hold(call, connections, seconds, load.unique_tokens(seed), warm_s=1)
