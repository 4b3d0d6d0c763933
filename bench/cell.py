"""What is measured: ordinary cells, run on every target, as rows; and how one of them becomes a row of figures."""

import time
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from bench import load
from bench.load import Outcome
from bench.machine import Usage, own_cpu_s, usage
from bench.open_loop import hold, open_loop
from bench.provider import FakeProvider
from bench.target import Running

SERVERS = ("redis", "kafka", "postgres")
"""Groups that the product needs and is not; their CPU is shown beside it."""

NOISY_CORES = 0.2
_REST_CORES, _REST_S, _REST_LIMIT_S = 0.2, 0.5, 20  # little enough for so long; and how long that is waited for
_SLOW_MS = 100  # wrk would count the silence before its first answers

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A load: `hit` or `miss`, from so many connections, on a provider that answers after `latency_ms`.

    `settings` is the product's row of SETTINGS; `targets` names those that run it, None for all.
    """

    name: str
    kind: str
    connections: int
    latency_ms: float = 0
    settings: str = "default"
    targets: tuple[str, ...] | None = None
    needs_warmth: ClassVar[bool] = True

    def is_for(self, target: str) -> bool:
        return self.targets is None or target in self.targets


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds: a fast cell, its warm-up, a cell on a slow provider."""

    seconds: float = 4
    warm_s: float = 1
    slow_s: float = 6


GATEWAYS = ("product", "floor", "litellm", "portkey", "tensorzero")
CELLS = (
    Cell("hit@1", "hit", 1, targets=GATEWAYS),
    Cell("hit@32", "hit", 32, targets=GATEWAYS),
    Cell("hit@200", "hit", 200, targets=GATEWAYS),
    Cell("miss0@1", "miss", 1),
    Cell("miss0@32", "miss", 32),
    Cell("miss0@200", "miss", 200, settings="wide"),
    Cell("miss1000@1", "miss", 1, latency_ms=1000),
    Cell("miss1000@32", "miss", 32, latency_ms=1000),
    Cell("miss1000@200", "miss", 200, latency_ms=1000, settings="wide"),
    Cell("miss1000@1000", "miss", 1000, latency_ms=1000, settings="crowded", targets=("direct", "product")),
)
QUICK = ("hit@1", "hit@32", "miss0@1", "miss0@32")


def warm_up(running: Running, provider: FakeProvider, seed: str, seconds: float) -> None:
    """Every worker has served, every question of the pool is cached. Raises RuntimeError where nothing is answered."""
    provider.control(latency_ms=0)
    load.closed_loop(running.call, 8, seconds, seed=load.new_seed())
    filled = open_loop(running.call, load.POOL / 2, 2, load.all_tokens(seed), connections=8)
    if not filled.answered:
        raise RuntimeError(f"no good answer while warming up: {filled.sample or filled}")


def run(cell: Cell, running: Running, provider: FakeProvider, pace: Pace, seed: str) -> Row:
    """Warm up, then load for the cell's time. `seed` names the pool of questions that are cached."""
    provider.control(latency_ms=cell.latency_ms)
    pool = load.POOL if cell.kind == "hit" else 0
    if cell.latency_ms >= _SLOW_MS:
        with Watch(running, provider) as watch:
            warm_s = pace.warm_s + cell.latency_ms / 1000
            tokens = load.unique_tokens(load.new_seed())
            outcome = hold(running.call, cell.connections, pace.slow_s, tokens, warm_s=warm_s)
    else:
        load.closed_loop(running.call, cell.connections, pace.warm_s, seed=seed if pool else load.new_seed(), pool=pool)
        with Watch(running, provider) as watch:
            own = seed if pool else load.new_seed()
            outcome = load.closed_loop(running.call, cell.connections, pace.seconds, seed=own, pool=pool)
    return watch.row(outcome)


class Watch:
    """Counts, around a load, CPU of every process, calls of the provider and noise. As a context manager.

    It begins and ends when the target is at rest, so that what is done later (records, events) is counted with what
    caused it; `rests=False` where it never is.
    """

    def __init__(self, running: Running, provider: FakeProvider, *, rests: bool = True) -> None:
        self._running, self._provider, self._rests = running, provider, rests

    def __enter__(self) -> "Watch":
        self._wait_for_rest()
        self._provider.control(latency_ms=self._provider.control().latency_ms)  # zeroes its counts
        self._before, self._own_s = self._usage(), own_cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        loaded = self._usage().since(self._before)
        self.noise = loaded.noise(own_cpu_s() - self._own_s)
        self._wait_for_rest()
        self._used = self._usage().since(self._before)
        self.calls = self._provider.control().calls

    def row(self, outcome: Outcome) -> Row:
        """The outcome with CPU in ms a request, by group of processes, and noise in cores."""
        asked = max(1, outcome.asked)
        cpu_ms = {name: 1000 * self._used.groups[name] / asked for name in self._running.roots()}
        return {
            **asdict(outcome),
            "per_second": outcome.per_second,
            "offered_per_second": (outcome.answered + outcome.accepted + outcome.refused) / outcome.seconds,
            "failed": outcome.failed,
            "cpu_ms": sum(used for name, used in cpu_ms.items() if name not in SERVERS),
            "cpu_ms_by_group": cpu_ms,
            "calls_per_request": self.calls / asked,
            "noise_cores": self.noise,
        }

    def _wait_for_rest(self) -> None:
        deadline = time.monotonic() + _REST_LIMIT_S
        while self._rests and time.monotonic() < deadline:
            before = self._usage()
            time.sleep(_REST_S)
            if sum(self._usage().since(before).groups.values()) <= _REST_CORES * _REST_S:
                return

    def _usage(self) -> Usage:
        return usage({**self._running.roots(), "provider": self._provider.pid})
