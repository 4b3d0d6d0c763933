"""Dead letters: jobs that ended without an answer through no fault of their callers, kept to be replayed."""

from collections.abc import Iterator
from dataclasses import dataclass

from storage.job import Job
from storage.ledger import Ledger
from storage.name import DEAD

PAGE = 100


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters: of one tenant, tier or error code; None = of any. `before` is Unix ms of their end."""

    tenant: str | None = None
    tier: str | None = None
    code: str | None = None
    before: int | None = None

    def fits(self, job: Job) -> bool:
        asked = ((self.tenant, job.tenant), (self.tier, job.tier), (self.code, (job.error or {}).get("code")))
        return all(wanted is None or wanted == found for wanted, found in asked)


class DeadLetters:
    """Newest first. Redis errors pass through."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def count(self) -> int:
        return int(self._ledger.client.zcard(DEAD))

    def get(self, job_id: str, tenant: str | None = None) -> Job | None:
        """One dead letter; None where there is none of that id (for that tenant)."""
        if self._ledger.client.zscore(DEAD, job_id) is None:
            return None
        job = self._ledger.job(job_id)
        return job if job and Filter(tenant=tenant).fits(job) else None

    def find(self, wanted: Filter, at_most: int) -> list[Job]:
        found = []
        for job in self._newest_first(wanted.before):
            if wanted.fits(job):
                found.append(job)
            if len(found) >= at_most:
                break
        return found

    def drop(self, job_id: str) -> bool:
        """Forget one; whether it was there. The job itself can be read until its time is up."""
        return bool(self._ledger.client.zrem(DEAD, job_id))

    def _newest_first(self, before: int | None) -> Iterator[Job]:
        start, newest = 0, "+inf" if before is None else f"({before}"
        while ids := self._ledger.client.zrevrangebyscore(DEAD, newest, "-inf", start=start, num=PAGE):
            for job_id in ids:
                if job := self._ledger.job(job_id.decode()):
                    yield job
            start += len(ids)
