"""Queries that the event loop is answering, and what each of them waits for."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from storage.job import Draft
from webapp.ask import Ask
from webapp.draft import CACHE_HEADERS


@dataclass(slots=True, eq=False)
class Errand:
    """One query on its way. Times are `time.monotonic`'s, but `started`, which is `time.perf_counter`'s."""

    connection: Any
    started: float
    ask: Ask
    key: str
    draft: Draft | None = None
    leader: str | None = None
    changes: int = 0
    is_entered: bool = False
    is_done: bool = False
    is_over: bool = False
    until: float = 0.0
    look_at: float = 0.0

    @property
    def cache(self) -> str:
        return "COALESCED" if self.leader else CACHE_HEADERS[self.ask.cache_mode]


@dataclass(slots=True)
class Waits:
    """Errands that wait for a job, by the job's id."""

    by_job: dict[str, set[Errand]] = field(default_factory=lambda: defaultdict(set))
    count: int = 0

    def add(self, job_id: str, errand: Errand) -> None:
        self.by_job[job_id].add(errand)
        self.count += 1

    def remove(self, job_id: str, errand: Errand) -> None:
        waiting = self.by_job.get(job_id)
        if waiting and errand in waiting:
            waiting.remove(errand)
            self.count -= 1
            if not waiting:
                del self.by_job[job_id]
