"""One supervised command: its process group, its log, and when to start it again."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_LONGEST_DELAY_S = 30.0
_STEADY_S = 60.0


@dataclass
class Process:
    """A command that runs as the leader of its own process group, with its output in `log`.

    `restarts` says whether a supervisor may start it again when it ends by itself.
    """

    name: str
    command: str
    log: Path
    env: Mapping[str, str]
    folder: Path
    restarts: bool = False
    retry_at: float | None = field(default=None, init=False)
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started_at: float = field(default=0.0, init=False)
    _delay_s: float = field(default=1.0, init=False)

    def spawn(self) -> None:
        """Start it; the first start empties the log, later ones append."""
        with self.log.open("ab" if self._popen else "wb") as output:
            self._popen = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self.command}"],
                cwd=self.folder,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_dies_with(os.getpid()),
            )
        self._started_at = time.monotonic()
        self.retry_at = None

    @property
    def pid(self) -> int | None:
        """The leader's process id, None before the first start."""
        return self._popen.pid if self._popen else None

    @property
    def exit_code(self) -> int | None:
        """As of subprocess: negative for a signal; None while it runs."""
        return self._popen.poll() if self._popen else None

    def is_alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def pids(self) -> list[int]:
        """Every process of the group, the leader first."""
        if self.pid is None:
            return []
        others = [pid for pid in _group(self.pid) if pid != self.pid]
        return ([self.pid] if self.is_alive() else []) + sorted(others)

    def send(self, signum: int) -> None:
        """Signal the whole group; nothing happens where nobody is left."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signum)

    def next_delay(self, now: float) -> float:
        """Seconds to wait before the next start: 1, 2, 4 … 30, and 1 again after a steady minute."""
        if now - self._started_at > _STEADY_S:
            self._delay_s = 1.0
        delay, self._delay_s = self._delay_s, min(self._delay_s * 2, _LONGEST_DELAY_S)
        return delay


def as_shell(command: str | Sequence[str]) -> str:
    """One simple command for `sh -c "exec …"`; a string may use variables, a list is quoted."""
    return command if isinstance(command, str) else shlex.join(command)


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What the child runs first, on Linux: have the kernel kill it when the thread that started it ends.

    Elsewhere a launcher that is killed with -9 leaves its servers behind.
    """
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return tie


def _group(leader: int) -> list[int]:
    if Path("/proc/self/stat").exists():
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if _group_in_proc(pid) == leader]
    listed = subprocess.run(["ps", "-A", "-o", "pid=,pgid="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return [int(pid) for pid, group in rows if int(group) == leader]


def _group_in_proc(pid: int) -> int | None:
    """The process group, None for a process that is gone or a zombie."""
    try:
        # The second field, the name, may hold blanks and brackets; the fields after it do not.
        state, _, group = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(group)
