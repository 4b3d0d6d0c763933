"""A run as Markdown: the machine, the goals beside what was measured, every cell of every target."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.cell import NOISY_CORES, SERVERS, Row
from bench.goal import Figure, Goal, verdicts

_LATENCIES = ("p50_ms", "p95_ms", "p99_ms")


def render(result: dict[str, Any]) -> str:
    """`result` as `bench/results/*.json` holds it."""
    rows = result["rows"]
    parts = [_machine(result), _goals(rows), _cells(rows), _memory(rows), _left_out(result), _noise(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: float | None) -> str:
    """Three digits that count, no more: 0.123, 1.23, 12.3, 123, 12,345."""
    if value is None:
        return "–"
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def median(rows: Sequence[Row], metric: str) -> float | None:
    """Over the repetitions that have it."""
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return statistics.median(values) if values else None


def ratio(rows: Sequence[Row], cell: str, target: str, metric: str = "per_second") -> float | None:
    """The product's figure over the target's, within each repetition; the median of those."""
    ours, theirs = Figure(cell, metric), Figure(cell, metric, target)
    return Goal("", ours, 0, True, theirs).measured(rows)


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    programs = ", ".join(line.partition(" Copyright")[0] for line in machine["programs"].values() if line)
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    used = "\n".join(f"- `{name}`: {note}" for name, note in result["targets"].items())
    return (
        f"{machine['cpus']} × {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}, Python "
        f"{machine['python']}, {programs}; {packages}. Commit {machine['commit']}, {result['started']}, "
        f"{result['database']}. Medians of {result['repetitions']}, ratios within a repetition.\n\n{used}"
    )


def _goals(rows: Sequence[Row]) -> str:
    found = verdicts(rows)
    known = [verdict for verdict in found if verdict["met"] is not None]
    lines = ["| goal | wanted | measured | met |", "|---|--:|--:|---|"]
    for verdict in known:
        measured, met = number(verdict["measured"]) + verdict["unit"], "yes" if verdict["met"] else "**no**"
        lines.append(f"| {verdict['goal']} | {verdict['wanted']} | {measured} | {met} |")
    rest = f"\n\n{len(found) - len(known)} of {len(found)} goals need cells or targets that were not run."
    return "\n".join(lines) + (rest if len(known) < len(found) else "")


def _cells(rows: Sequence[Row]) -> str:
    lines = [
        "| cell | target | answers/s | product × | p50 ms | p95 ms | p99 ms | 202 | 429 | failed | calls/request | "
        "CPU ms/request | of which | noise |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    measured = [row for row in rows if "per_second" in row]
    for cell in dict.fromkeys(row["cell"] for row in measured):
        for target in dict.fromkeys(row["target"] for row in measured if row["cell"] == cell):
            lines.append(_line(cell, target, measured))
    return "\n".join(lines) if measured else ""


def _line(cell: str, target: str, rows: Sequence[Row]) -> str:
    own = [row for row in rows if (row["cell"], row["target"]) == (cell, target)]
    times = "" if target == "product" else number(ratio(rows, cell, target))
    latencies = [number(median(own, metric)) for metric in _LATENCIES]
    counts = [
        number(median(own, metric)) for metric in ("accepted", "refused", "failed", "calls_per_request", "cpu_ms")
    ]
    figures = [cell, target, number(median(own, "per_second")), times, *latencies, *counts]
    return f"| {' | '.join([*figures, _groups(own), number(median(own, 'noise_cores'))])} |"


def _groups(rows: Sequence[Row]) -> str:
    """CPU in ms a request by group of processes, the largest first; servers in brackets."""
    found = [row["cpu_ms_by_group"] for row in rows if "cpu_ms_by_group" in row]
    names = {name for groups in found for name in groups}
    shares = {name: statistics.median(groups.get(name, 0.0) for groups in found) for name in names}
    largest = sorted(shares.items(), key=lambda item: -item[1])
    if len(shares) < 2:
        return ""
    return ", ".join(
        f"({name} {number(ms)})" if name in SERVERS else f"{name} {number(ms)}" for name, ms in largest if ms >= 0.005
    )


def _memory(rows: Sequence[Row]) -> str:
    lines = ["| memory (PSS) | MB | of which |", "|---|--:|---|"]
    for cell in dict.fromkeys(row["cell"] for row in rows if "memory_mb" in row):
        own = [row for row in rows if row["cell"] == cell]
        groups = ", ".join(f"{name} {mb:.0f}" for name, mb in own[-1]["memory_mb_by_group"].items())
        lines.append(f"| {cell} | {number(median(own, 'memory_mb'))} | {groups} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _left_out(result: dict[str, Any]) -> str:
    return "\n".join(f"Not measured: {name}: {reason}" for name, reason in result["left_out"].items())


def _noise(rows: Sequence[Row]) -> str:
    noisy = [row for row in rows if row.get("noise_cores", 0.0) > NOISY_CORES]
    if not noisy:
        return ""
    most = max(row["noise_cores"] for row in noisy)
    return (
        f"**Noisy machine**: in {len(noisy)} of {len(rows)} rows other processes and the hypervisor took more than "
        f"{NOISY_CORES:.0%} of a core, at most {most:.0%}. Throughput and latencies of those are too bad; CPU less so."
    )
