"""What the launcher and the tests need to know about a server they start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from embedded.supervisor import Supervisor


@dataclass(frozen=True)
class Server:
    """`env` is how the service finds it (`REDIS_URL=…`), `answers` whether it serves now."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    answers: Callable[[], bool]

    def start(self, supervisor: Supervisor, limit_s: float = 60) -> None:
        """Start it and wait until it answers; raises as `Supervisor.start`."""
        supervisor.start(self.name, self.command, self.answers, limit_s)
