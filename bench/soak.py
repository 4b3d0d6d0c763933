"""The service at 70 % of what it can do for half an hour, with faults, while everything that might grow is watched.

`python -m bench.soak --minutes 30`: nine hits to a miss; every fifth call to Groq fails for a while and falls back to
Together AI, a worker is killed, Redis drops every connection. Exits with 1 where something grew or was not answered.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from bench import load, machine
from bench.cell import warm_up
from bench.load import Call, Outcome
from bench.open_loop import hold, open_loop
from bench.product import TIER, Product, environment, product
from bench.provider import FakeProvider, start_provider
from bench.target import Running
from embedded.supervisor import Supervisor
from storage.name import DONE, USAGE

LOADS = ("hits", "misses")
SHARE = 0.7  # of the capacity
HITS_A_MISS = 9
KEEP_S = 60  # so that answers and jobs come and go many times within the run
SETTINGS = {
    "CACHE_TTL_SECONDS": "86400",  # of the pool that is asked again and again; misses ask for KEEP_S
    "JOB_TTL_SECONDS": str(KEEP_S),
    "IDEMPOTENCY_TTL_SECONDS": str(KEEP_S),
    "DEAD_LETTER_TTL_SECONDS": str(KEEP_S),
    "MAX_COMPLETION_ENTRIES": "1000",
    "LOG_LEVEL": "WARNING",
}
SAMPLE_S = 10
FAULT_EVERY_S = 60
GROWTH = 1.10  # of the last quarter's median over the second's that is still called flat
SMALL = {
    "memory_mb": 8.0,
    "files": 16,
    "redis_keys": 500,
    "redis_mb": 4.0,
    "redis_clients": 16,
    "usage": 2000,
    "done": 500,
}
"""Growth below this is no growth, whatever its share."""


@dataclass
class Sample:
    """Everything that might grow, at one moment. Memory in MB."""

    at_s: float
    figures: dict[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        result = _run(Path(folder), asked.database, asked.minutes * 60)
    grown = {name: change for name, change in result["growth"].items() if not change["is_flat"]}
    if asked.file:
        asked.file.write_text(json.dumps(result, indent=1))
    sys.stdout.write(_table(result))
    failed = sum(_failed(result[kind]) for kind in LOADS)
    sys.stdout.write(f"\n{'Flat.' if not grown else 'GREW: ' + ', '.join(grown)} {failed} requests failed.\n")
    return 1 if grown or failed else 0


def _run(folder: Path, database: str, seconds: float) -> dict[str, Any]:
    with Supervisor(folder / "provider", environment()) as supervisor:
        provider, own = start_provider(supervisor), folder / "target"
        own.mkdir()
        with product(own, provider.url, settings=SETTINGS, database=database) as service:
            return _soak(service, provider, seconds)


def _soak(service: Product, provider: FakeProvider, seconds: float) -> dict[str, Any]:
    call = Call(service.port, "/api/v1/query", '{"query":"@QUESTION@"}', {"Authorization": f"Bearer {service.key}"})
    short = Call(call.port, call.path, f'{{"query":"@QUESTION@","cache":{{"ttl":{KEEP_S}}}}}', call.headers)
    running, seed = Running(call, lambda: service.roots, 2, service), load.new_seed()
    warm_up(running, provider, seed, 3)
    rate = _capacity(call, short, seed) * SHARE
    misses, hits = rate / (HITS_A_MISS + 1), rate * HITS_A_MISS / (HITS_A_MISS + 1)
    _say(f"70 % of capacity: {hits:.0f} hits/s and {misses:.0f} misses/s for {seconds / 60:g} minutes")
    samples: list[Sample] = []
    faults: list[str] = []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        loads = (pool.submit(_ask_again, call, hits, seconds, seed), pool.submit(_ask_anew, short, misses, seconds))
        for sample in _samples(service, loads):
            samples.append(sample)
            if len(faults) < int(sample.at_s / FAULT_EVERY_S):
                faults.append(_fault(len(faults), service, provider))
            _say(" ".join(f"{name} {figure:.0f}" for name, figure in sample.figures.items()))
        answered = [asdict(each.result()) for each in loads]
    return {
        "machine": machine.describe(),
        "minutes": seconds / 60,
        "rate": {"hits": hits, "misses": misses},
        "hits": answered[0],
        "misses": answered[1],
        "faults": faults,
        "growth": growth(samples),
        "samples": [asdict(sample) for sample in samples],
    }


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """For each figure its median in the second and in the last quarter, and whether that is flat."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    found: dict[str, dict[str, Any]] = {}
    for name in samples[-1].figures:
        before = statistics.median(sample.figures.get(name, 0.0) for sample in early)
        after = statistics.median(sample.figures.get(name, 0.0) for sample in late)
        small = SMALL[name.partition(" ")[0]]
        found[name] = {"before": before, "after": after, "is_flat": after <= before * GROWTH or after - before <= small}
    return found


def _capacity(call: Call, short: Call, seed: str) -> float:
    """Requests a second of the mix, from what hits and misses come to alone, the load's own work included."""
    hits = hold(call, 32, 5, load.pooled_tokens(seed), warm_s=2).per_second
    misses = hold(short, 32, 5, load.unique_tokens(load.new_seed()), warm_s=2).per_second
    return (HITS_A_MISS + 1) / (HITS_A_MISS / hits + 1 / misses)


def _ask_again(call: Call, rate: float, seconds: float, seed: str) -> Outcome:
    return open_loop(call, rate, seconds, load.pooled_tokens(seed), connections=64)


def _ask_anew(call: Call, rate: float, seconds: float) -> Outcome:
    return open_loop(call, rate, seconds, load.unique_tokens(load.new_seed()), connections=256)


def _samples(service: Product, loads: Sequence[Future[Outcome]]) -> Iterator[Sample]:
    began = time.monotonic()
    client = Redis.from_url(service.env["REDIS_URL"], socket_timeout=10)
    while not all(each.done() for each in loads):
        time.sleep(SAMPLE_S)
        yield Sample(time.monotonic() - began, _figures(service, client))


def _figures(service: Product, client: Any) -> dict[str, float]:
    info = client.info()
    own = {name: pid for name, pid in service.roots.items() if name not in ("redis", "kafka")}
    return {
        **{f"memory_mb {name}": megabytes for name, megabytes in machine.memory_mb(own).items()},
        **{f"files {name}": float(count) for name, count in machine.open_files(own).items()},
        "redis_keys": float(client.dbsize()),
        "redis_mb": info["used_memory"] / 2**20,
        "redis_clients": float(info["connected_clients"]),
        "usage": float(client.xlen(USAGE)),
        "done": float(client.xlen(DONE)),
    }


def _fault(number: int, service: Product, provider: FakeProvider) -> str:
    """One of three in turn, as a line for the log."""
    kind = number % 3
    if kind == 0:
        provider.control(fail_every=5, fails_as_groq=True)
        said = "Groq fails every fifth call"
    elif kind == 1:
        provider.control(fail_every=0)
        os.kill(service.supervisor.pid(f"worker-{TIER}") or 0, signal.SIGKILL)
        service.supervisor.restart(f"worker-{TIER}")
        said = "the provider is well again; the tier's worker was killed"
    else:
        Redis.from_url(service.env["REDIS_URL"]).execute_command("CLIENT", "KILL", "TYPE", "normal")
        said = "Redis dropped every connection"
    _say(f"Fault: {said}")
    return said


def _table(result: dict[str, Any]) -> str:
    lines = ["| watched | second quarter | last quarter | flat |", "|---|--:|--:|---|"]
    for name, change in result["growth"].items():
        lines.append(
            f"| {name} | {change['before']:.1f} | {change['after']:.1f} | {'yes' if change['is_flat'] else 'NO'} |"
        )
    lines += [
        "",
        "| load | a second | answered | 202 | 429 | 503 | failed | p50 ms | p99 ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in LOADS:
        seen = result[kind]
        lines.append(
            f"| {kind} | {result['rate'][kind]:.0f} | {seen['answered']} | {seen['accepted']} | {seen['refused']} "
            f"| {seen['unavailable']} | {_failed(seen)} | {seen['p50_ms']:.1f} | {seen['p99_ms']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _failed(seen: dict[str, Any]) -> int:
    """Requests without an answer, but for those that were told when to come back: Redis is away for a moment."""
    return Outcome(**seen).failed - int(seen["unavailable"])


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--file", type=Path, help="where the figures go, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
