"""Fuzzing of the API from its own OpenAPI document: `python -m tests.fuzz --minutes 10 --seed 1`.

A whole service is started, with providers that answer well: no status but those in the document may come back, and no
5xx but 504, the honest answer to a deadline that nobody could keep.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import requests

from tests.chaos.world import Plan, World, running

CONFIGURATION = Path(__file__).with_name("fuzz.toml")
DEAD_LETTERS = 20  # something to list, to read and to replay
LEEWAY_S = 300  # for what schemathesis does when its time is up


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="folder for a report of every request (HAR)")
    asked = parser.parse_args(arguments)
    with running(Plan(), latency_s=0) as world:
        for number in range(DEAD_LETTERS):
            requests.post(
                f"{world.address()}/api/v1/query", json={"query": f"[[fault=content_filter]] {number}"}, timeout=60
            )
        # The document is read over HTTP, so what is fuzzed is what callers get.
        done = subprocess.run(_command(world, asked), cwd=world.folder, timeout=asked.minutes * 60 + LEEWAY_S)
        ailing = world.ailing()
    if ailing:
        sys.stderr.write(f"not well afterwards: {', '.join(ailing)}\n")
    return 1 if ailing else done.returncode


def _command(world: World, asked: argparse.Namespace) -> list[str]:
    seconds = max(1, int(asked.minutes * 60))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "--no-color"]
    command += ["run", f"{world.address()}/openapi.json", "--max-time", str(seconds), "--seed", str(asked.seed)]
    return command + (["--report", "har", "--report-dir", str(asked.report.resolve())] if asked.report else [])


if __name__ == "__main__":
    sys.exit(main())
