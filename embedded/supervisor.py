"""A set of running processes: start, wait for, restart, kill and stop them by name. It handles no signals."""

import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Self

from embedded.process import Process, as_shell
from embedded.procfile import ROOT

_POLL_S = 0.05
_WATCH_S = 0.2


class ProcessFailed(Exception):
    """A process ended, or stayed silent, where it should have become ready; the text shows its log's end."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        super().__init__(f"{name} {reason}\n--- the end of {log} ---\n{_tail(log)}")
        self.name = name


class Supervisor:
    """Runs commands in the repository's folder with `env` with their output in `data_dir`/logs/<name>.log.

    With `restart_dead` a process that ends by itself is started again after 1, 2, 4 … 30 s and `say` gets a
    line. As a context manager it leaves no process.
    """

    def __init__(
        self,
        data_dir: Path,
        env: Mapping[str, str],
        *,
        restart_dead: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._logs = data_dir / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._env = env
        self._restart_dead = restart_dead
        self._say = say
        self._processes: dict[str, Process] = {}
        self._lock = RLock()
        self._closing = Event()
        # The kernel ties a child to the thread that started it, so one long-lived thread starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")
        self._watcher = Thread(target=self._watch, name="watcher", daemon=True)
        if restart_dead:
            self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: str | Sequence[str],
        wait_until: Callable[[], bool] | None = None,
        limit_s: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start one simple command (a string may use variables) and wait until `wait_until` holds.

        `env` is added to the supervisor's. Raises ProcessFailed when the process ends before that or after
        `limit_s`, ValueError when `name` runs already.
        """
        if self.is_alive(name):
            raise ValueError(f"{name} runs already")
        process = Process(
            name, as_shell(command), self.log(name), {**self._env, **(env or {})}, ROOT, self._restart_dead
        )
        with self._lock:
            self._processes[name] = process
            self._spawn(process)
        if wait_until:
            self.wait(wait_until, limit_s, name)

    def run(self, name: str, command: str | Sequence[str], limit_s: float = 60) -> None:
        """Run `command` to its end. Raises ProcessFailed where it takes longer than `limit_s` or fails."""
        process = Process(name, as_shell(command), self.log(name), self._env, ROOT)
        with self._lock:
            self._processes[name] = process
            self._spawn(process)
        try:
            if not _holds(lambda: not process.is_alive(), limit_s):
                raise ProcessFailed(name, f"did not finish in {limit_s:g} s", process.log)
        finally:
            self._end([process], limit_s=0)
            del self._processes[name]
        if process.exit_code != 0:
            raise ProcessFailed(name, f"ended with code {process.exit_code}", process.log)

    def wait(self, until: Callable[[], bool], limit_s: float, *names: str) -> None:
        """Wait until `until` holds. Raises ProcessFailed when one of `names` ends or after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while not until():
            for name in names:
                if not self.is_alive(name):
                    raise ProcessFailed(name, f"ended with code {self._processes[name].exit_code}", self.log(name))
            if time.monotonic() > deadline:
                name = names[0]
                raise ProcessFailed(name, f"was not ready after {limit_s:g} s", self.log(name))
            time.sleep(_POLL_S)

    def stop(self, *names: str, limit_s: float = 10) -> None:
        """Stop these together: SIGTERM to their groups, SIGKILL to what is left after `limit_s`.

        Without names: all of them, the last started first, and the supervisor is closed.
        """
        if names:
            self._end([self._processes[name] for name in names if name in self._processes], limit_s)
            return
        for process in reversed(list(self._processes.values())):
            self._end([process], limit_s)
        self._close()

    def kill(self, *names: str) -> None:
        """SIGKILL to the groups, now, and not started again. Without names: all of them."""
        processes = [self._processes[name] for name in names] if names else list(self._processes.values())
        self._end(processes, limit_s=0)

    def restart(self, name: str, limit_s: float = 10) -> None:
        """Stop it if it runs, then start the same command again; its log goes on."""
        process = self._processes[name]
        self._end([process], limit_s)
        with self._lock:
            process.restarts = self._restart_dead
            self._spawn(process)

    def is_alive(self, name: str) -> bool:
        return name in self._processes and self._processes[name].is_alive()

    def pid(self, name: str) -> int | None:
        """The process started by the command, None where it does not run."""
        return self._processes[name].pid if self.is_alive(name) else None

    def pids(self, name: str) -> list[int]:
        """Every process of `name`'s group, the one started by the command first."""
        return self._processes[name].pids() if name in self._processes else []

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _spawn(self, process: Process) -> None:
        self._starter.submit(process.spawn).result()

    def _end(self, processes: Iterable[Process], limit_s: float) -> None:
        processes = list(processes)
        with self._lock:
            for process in processes:
                process.restarts = False
        if limit_s > 0:
            for process in processes:
                process.send(signal.SIGTERM)
            _holds(lambda: not any(process.pids() for process in processes), limit_s)
        for process in processes:
            process.send(signal.SIGKILL)
        _holds(lambda: not any(process.pids() for process in processes), limit_s=5)

    def _close(self) -> None:
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._starter.shutdown()

    def _watch(self) -> None:
        while not self._closing.wait(_WATCH_S):
            with self._lock:
                for process in list(self._processes.values()):
                    if process.restarts and not process.is_alive():
                        self._revive(process, time.monotonic())

    def _revive(self, process: Process, now: float) -> None:
        if process.retry_at is None:
            process.send(signal.SIGKILL)  # children that outlived it may still hold its port
            delay = process.next_delay(now)
            process.retry_at = now + delay
            self._say(
                f"{process.name} ended with code {process.exit_code}; starting it again in {delay:g} s ({process.log})"
            )
        elif now >= process.retry_at:
            self._spawn(process)


def _holds(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _tail(log: Path, lines: int = 20) -> str:
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:]) or "(empty)"
