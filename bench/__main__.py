"""Measures the service beside its rivals and prints a table; `table FILE` and `plot FILE OUT.svg` show a run again."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import load, machine, table
from bench.cell import CELLS, NOISY_CORES, QUICK, Cell, Pace, Row, run, warm_up
from bench.install import NotInstalled, install
from bench.product import environment
from bench.provider import start_provider
from bench.rival import RIVALS
from bench.special import SPECIALS, Scene, Special
from bench.target import NOTES, TARGETS, Ground, Running, start
from embedded.procfile import ROOT
from embedded.supervisor import ProcessFailed, Supervisor

LATEST = ROOT / "bench" / "results" / "latest.json"
_FULL_REPETITIONS = 3
_WARM_UP_S = 2


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["table"], ["plot"]):
        return _show(given)
    asked = _parser().parse_args(given)
    cells, specials = choose(asked.only, asked.full)
    pace = Pace(asked.seconds, asked.warm_seconds, 2 * asked.seconds)
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "database": asked.database,
        "repetitions": asked.reps or (_FULL_REPETITIONS if asked.full else 1),
        "targets": {name: NOTES[name] for name in _targets(asked.targets)},
        "left_out": {},
        "rows": [],
    }
    _install(result)
    for repetition in range(1, result["repetitions"] + 1):
        for name in [name for name in result["targets"] if name not in result["left_out"]]:
            _measure(name, repetition, cells, specials, pace, result)
            asked.file.parent.mkdir(parents=True, exist_ok=True)
            asked.file.write_text(json.dumps(result, indent=1))
    sys.stdout.write(table.render(result))
    return 0


def choose(only: str, is_full: bool) -> tuple[list[Cell], list[Special]]:
    """The cells of these names, or names before the @; all or the quick ones where none is named. Exits on others."""
    wanted = _split(only) or ([] if is_full else list(QUICK))
    cells = [cell for cell in CELLS if not wanted or {cell.name, cell.name.partition("@")[0]} & set(wanted)]
    specials = [special for special in SPECIALS if not wanted or special.name in wanted]
    known = {name for cell in CELLS for name in (cell.name, cell.name.partition("@")[0])}
    if unknown := set(wanted) - known - {special.name for special in SPECIALS}:
        sys.exit(f"No such cell: {', '.join(sorted(unknown))}. There are {', '.join(sorted(known))} and specials.")
    return cells, specials


def _measure(
    name: str, repetition: int, cells: list[Cell], specials: list[Special], pace: Pace, result: dict[str, Any]
) -> None:
    """Every chosen cell of one target, started anew for each row of settings; failures are said and left out."""

    def keep(cell: str, row: Row) -> None:
        result["rows"].append({"target": name, "cell": cell, "repetition": repetition, **row})
        _say(repetition, name, cell, row)

    for settings, visit in _visits(name, cells, specials):
        try:
            with _started(name, settings, result["database"]) as (running, ground):
                _visit(visit, running, ground, pace, keep)
        except (ProcessFailed, RuntimeError, OSError) as error:
            result["left_out"][f"{name} ({settings}, repetition {repetition})"] = str(error)[-500:]
            sys.stderr.write(f"{name} failed: {error}\n")


def _visits(name: str, cells: list[Cell], specials: list[Special]) -> Iterator[tuple[str, list[Cell | Special]]]:
    """What runs on one start of a target: for the product by settings, for all others everything at once."""
    own: list[Cell | Special] = [cell for cell in cells if cell.is_for(name)]
    if name != "product":
        if own:
            yield "default", own
        return
    own += specials
    for settings in dict.fromkeys(each.settings for each in own):
        yield settings, [each for each in own if each.settings == settings]


@contextmanager
def _started(name: str, settings: str, database: str) -> Iterator[tuple[Running, Ground]]:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        provider_home, own = Path(folder) / "provider", Path(folder) / "target"
        own.mkdir()
        with Supervisor(provider_home, environment()) as supervisor:
            ground = Ground(own, start_provider(supervisor), database)
            with start(name, ground, settings) as running:
                yield running, ground


def _visit(
    visit: list[Cell | Special], running: Running, ground: Ground, pace: Pace, keep: Callable[[str, Row], None]
) -> None:
    seed, is_warm = load.new_seed(), False
    time.sleep(running.settle_s)
    for each in visit:
        if not is_warm and (isinstance(each, Cell) or each.needs_warmth):
            warm_up(running, ground.provider, seed, _WARM_UP_S)
            is_warm = True
        if isinstance(each, Cell):
            keep(each.name, run(each, running, ground.provider, pace, seed))
        elif running.product:
            for cell, row in each.run(Scene(running, running.product, ground.provider, pace, seed)):
                keep(cell, row)


def _install(result: dict[str, Any]) -> None:
    for name in result["targets"].keys() & RIVALS.keys():
        try:
            install(RIVALS[name])
        except NotInstalled as missing:
            result["left_out"][name] = str(missing)
            sys.stderr.write(f"{name} is left out: {missing}\n")


def _say(repetition: int, target: str, cell: str, row: Row) -> None:
    names = ("per_second", "p50_ms", "p99_ms", "cpu_ms", "memory_mb", "calls_per_request", "gain")
    figures = "  ".join(f"{name} {table.number(row[name])}" for name in names if name in row)
    failed = f"  FAILED {row['failed']} {row.get('sample', '')[:200]}" if row.get("failed") else ""
    noisy = "  noisy" if row.get("noise_cores", 0.0) > NOISY_CORES else ""
    sys.stderr.write(f"[{repetition}] {target:<11} {cell:<26} {figures}{failed}{noisy}\n")
    sys.stderr.flush()


def _show(given: list[str]) -> int:
    result = json.loads(Path(given[1]).read_text())
    if given[0] == "plot":
        from bench.plot import plot  # matplotlib is there for this alone

        plot(result, Path(given[2]))
    else:
        sys.stdout.write(table.render(result))
    return 0


def _targets(named: str) -> list[str]:
    wanted = _split(named) or list(TARGETS)
    if unknown := set(wanted) - set(TARGETS):
        sys.exit(f"No such target: {', '.join(sorted(unknown))}. There are {', '.join(TARGETS)}.")
    return [name for name in TARGETS if name in wanted]


def _split(names: str) -> list[str]:
    return [name for name in names.replace(" ", "").split(",") if name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every cell, three repetitions")
    parser.add_argument("--only", default="", help="cells, with commas between: hit,miss0@32,growth")
    parser.add_argument("--targets", default="", help=f"of {','.join(TARGETS)}")
    parser.add_argument("--reps", type=int, help="repetitions")
    parser.add_argument("--seconds", type=float, default=4, help="of load in a cell; twice that on a slow provider")
    parser.add_argument("--warm-seconds", type=float, default=1, help="of load before that")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite", help="the product's")
    parser.add_argument("--file", type=Path, default=LATEST, help="where the figures go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
