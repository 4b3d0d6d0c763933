"""The chaos suite: `python -m tests.chaos --only kill-web,redis-full --seed 1`. Exits with 1 where a promise breaks."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos import table
from tests.chaos.run import Options, run
from tests.chaos.scenario import SCENARIOS, Scenario
from tests.chaos.verdict import Figures
from tests.chaos.world import CannotRun

SHOWN_EXAMPLES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    if asked.list:
        _print("\n".join(f"{scenario.name:20} {scenario.does}" for scenario in SCENARIOS))
        return 0
    chosen = _choose(asked.only)
    _print(table.head())
    results = [_run_one(scenario, number, len(chosen), asked) for number, scenario in enumerate(chosen, 1)]
    done = [figures for figures in results if figures]
    if asked.json:
        asked.json.write_text(json.dumps([asdict(figures) for figures in done], indent=1))
    failed = [figures.scenario for figures in done if figures.violations]
    _note(f"{len(done) - len(failed)} of {len(done)} hold, {len(chosen) - len(done)} not run; seed {asked.seed}")
    missing = len(done) < len(chosen) and bool(os.environ.get("CI"))  # CI must have what every scenario needs
    return 1 if failed or missing else 0


def _run_one(scenario: Scenario, number: int, of: int, asked: argparse.Namespace) -> Figures | None:
    started = time.monotonic()
    say = _say(f"[{number}/{of}] {scenario.name}")
    try:
        figures = run(scenario, Options(asked.seed, asked.seconds, asked.database, asked.broker, say))
    except CannotRun as reason:
        say(f"not run: {reason}")
        _print(table.skipped(scenario, str(reason)))
        return None
    except Exception as error:  # noqa: BLE001 - the other scenarios still have something to say
        figures = Figures(scenario=scenario.name, violations=[f"{type(error).__name__}: {str(error)[:500]}"])
    say(f"{'; '.join(figures.violations) or 'ok'} ({time.monotonic() - started:.0f} s)")
    for example in figures.examples[:SHOWN_EXAMPLES]:
        say(f"  {example}")
    _print(table.row(scenario, figures))
    return figures


def _choose(only: str) -> list[Scenario]:
    names = [name for name in only.replace(" ", "").split(",") if name]
    unknown = set(names) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        sys.exit(f"No such scenario: {', '.join(sorted(unknown))} (--list shows all)")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", default="", help="names of scenarios, with commas between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15, help="load in each scenario")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--broker", choices=["tansu", "apache"], default="tansu")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    return parser


def _say(prefix: str) -> Callable[[str], None]:
    return lambda line: _note(f"{prefix}: {line}")


def _note(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
