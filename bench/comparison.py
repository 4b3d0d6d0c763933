"""One run: every chosen cell of every target, in turn within each repetition; kept in a file as it goes."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, machine, table
from bench.cell import NOISY_CORES, Cell, Pace, Row, run, warm_up
from bench.install import NotInstalled, install
from bench.product import environment
from bench.provider import start_provider
from bench.rival import RIVALS
from bench.special import Scene, Special
from bench.target import NOTES, Ground, Running, start
from embedded.supervisor import ProcessFailed, Supervisor

_WARM_UP_S = 2
_SHOWN = ("per_second", "p50_ms", "p99_ms", "cpu_ms", "memory_mb", "calls_per_request", "gain")


@dataclass(frozen=True)
class Plan:
    """What to measure, how long, how often, on which database of the product's, and where the figures go."""

    targets: Sequence[str]
    cells: Sequence[Cell | Special]
    pace: Pace
    repetitions: int
    database: str
    file: Path


class Comparison:
    """`result` is what its file holds, and what `bench.table` and `bench.plot` show."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows: list[Row] = []
        self._left_out: dict[str, str] = {}
        self.result: dict[str, Any] = {
            "machine": machine.describe(),
            "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "database": plan.database,
            "repetitions": plan.repetitions,
            "targets": {name: NOTES[name] for name in plan.targets},
            "left_out": self._left_out,
            "rows": self._rows,
        }

    def run(self) -> None:
        """A target or a start that fails is said and left out."""
        targets = [name for name in self._plan.targets if self._is_installed(name)]
        for repetition in range(1, self._plan.repetitions + 1):
            for target in targets:
                for settings, cells in visits(target, self._plan.cells):
                    try:
                        self._visit(target, settings, cells, repetition)
                    except (ProcessFailed, RuntimeError, OSError) as error:
                        self._left_out[f"{target} ({settings}, repetition {repetition})"] = str(error)[-500:]
                        sys.stderr.write(f"{target} failed: {error}\n")

    def _is_installed(self, target: str) -> bool:
        try:
            if target in RIVALS:
                install(RIVALS[target])
        except NotInstalled as missing:
            self._left_out[target] = str(missing)
            sys.stderr.write(f"{target} is left out: {missing}\n")
        return target not in self._left_out

    def _visit(self, target: str, settings: str, cells: Sequence[Cell | Special], repetition: int) -> None:
        with _started(target, settings, self._plan.database) as (running, ground):
            for cell, row in _measure(cells, running, ground, self._plan.pace):
                self._keep({"target": target, "cell": cell, "repetition": repetition, **row})

    def _keep(self, row: Row) -> None:
        self._rows.append(row)
        self._plan.file.parent.mkdir(parents=True, exist_ok=True)
        self._plan.file.write_text(json.dumps(self.result, indent=1))
        figures = "  ".join(f"{name} {table.number(row[name])}" for name in _SHOWN if name in row)
        failed = f"  FAILED {row['failed']}: {row.get('sample', '')[-200:]!r}" if row.get("failed") else ""
        noisy = "  noisy" if row.get("noise_cores", 0.0) > NOISY_CORES else ""
        sys.stderr.write(f"[{row['repetition']}] {row['target']:<10} {row['cell']:<26} {figures}{failed}{noisy}\n")
        sys.stderr.flush()


def visits(target: str, cells: Sequence[Cell | Special]) -> list[tuple[str, list[Cell | Special]]]:
    """What runs on one start of a target: for the product by settings, for all others everything at once."""
    own = [cell for cell in cells if cell.is_for(target)]
    if target != "product":
        return [("default", own)] if own else []
    rows = dict.fromkeys(cell.settings for cell in own)
    return [(settings, [cell for cell in own if cell.settings == settings]) for settings in rows]


def _measure(
    cells: Sequence[Cell | Special], running: Running, ground: Ground, pace: Pace
) -> Iterator[tuple[str, Row]]:
    seed, is_warm = load.new_seed(), False
    time.sleep(running.settle_s)
    for cell in cells:
        if not is_warm and cell.needs_warmth:
            warm_up(running, ground.provider, seed, _WARM_UP_S)
            is_warm = True
        if isinstance(cell, Cell):
            yield cell.name, run(cell, running, ground.provider, pace, seed)
        elif running.product:
            yield from cell.run(Scene(running, running.product, ground.provider, pace, seed))


@contextmanager
def _started(target: str, settings: str, database: str) -> Iterator[tuple[Running, Ground]]:
    """A target and its provider, each in a folder of its own that goes with them."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        own = Path(folder) / "target"
        own.mkdir()
        with Supervisor(Path(folder) / "provider", environment()) as supervisor:
            ground = Ground(own, start_provider(supervisor), database)
            with start(target, ground, settings) as running:
                yield running, ground
