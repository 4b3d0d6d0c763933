"""Measures the service beside its rivals and prints a table; `table FILE` and `plot FILE OUT.svg` show a run again."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import table
from bench.cell import CELLS, QUICK, Cell, Pace
from bench.comparison import Comparison, Plan
from bench.special import SPECIALS, Special
from bench.target import TARGETS
from embedded.procfile import ROOT

LATEST = ROOT / "bench" / "results" / "latest.json"
_FULL_REPETITIONS = 3
_SLOW = 1.5  # a cell on a slow provider takes so many times as long


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["table"], ["plot"]):
        return _show(given)
    asked = _parser().parse_args(given)
    comparison = Comparison(
        Plan(
            targets=_targets(asked.targets),
            cells=choose(asked.only, asked.full),
            pace=Pace(asked.seconds, asked.warm_seconds, _SLOW * asked.seconds),
            repetitions=asked.reps or (_FULL_REPETITIONS if asked.full else 1),
            database=asked.database,
            file=asked.file,
        )
    )
    comparison.run()
    sys.stdout.write(table.render(comparison.result))
    return 0


def choose(only: str, is_full: bool) -> list[Cell | Special]:
    """The cells of these names, or names before the @; all or the quick ones where none is named. Exits on others."""
    every: list[Cell | Special] = [*CELLS, *SPECIALS]
    wanted = _split(only) or ([cell.name for cell in every] if is_full else list(QUICK))
    known = {name for cell in every for name in (cell.name, cell.name.partition("@")[0])}
    if unknown := set(wanted) - known:
        sys.exit(f"No such cell: {', '.join(sorted(unknown))}. There are {', '.join(sorted(known))}.")
    return [cell for cell in every if {cell.name, cell.name.partition("@")[0]} & set(wanted)]


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
    parser.add_argument("--seconds", type=float, default=4, help="of load in a cell; more on a slow provider")
    parser.add_argument("--warm-seconds", type=float, default=1, help="of load before that")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite", help="the product's")
    parser.add_argument("--file", type=Path, default=LATEST, help="where the figures go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
