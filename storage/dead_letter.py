"""Dead letters: jobs that ended without an answer through no fault of their callers, kept to be replayed."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge

from storage.job import Job
from storage.ledger import Ledger
from storage.name import DEAD_TENANTS, dead_key

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
        self._client = ledger.client

    def count(self) -> int:
        return sum(int(self._client.zcard(dead_key(tenant))) for tenant in self._tenants(None))

    def get(self, job_id: str, tenant: str | None = None) -> Job | None:
        """One dead letter; None where there is none of that id (for that tenant)."""
        job = self._ledger.job(job_id)
        if job is None or not Filter(tenant=tenant).fits(job):
            return None
        is_listed = self._client.zscore(dead_key(job.tenant), job_id) is not None
        return job if is_listed and not job.is_open else None

    def find(self, wanted: Filter, at_most: int) -> list[Job]:
        lists = [self._newest_first(tenant, wanted.before) for tenant in self._tenants(wanted.tenant)]
        found = []
        for _, job_id in merge(*lists, reverse=True):
            job = self._ledger.job(job_id)
            if job and not job.is_open and wanted.fits(job):  # it may have been replayed since it was listed
                found.append(job)
            if len(found) >= at_most:
                break
        return found

    def drop(self, job: Job) -> bool:
        """Forget one; whether it was there. The job itself can be read until its time is up."""
        return bool(self._client.zrem(dead_key(job.tenant), job.id))

    def _tenants(self, wanted: str | None) -> list[str]:
        """A tenant's letters are its own list, with a bound of its own: none can push another's out."""
        if wanted is not None:
            return [wanted]
        return [tenant.decode() for tenant in self._client.smembers(DEAD_TENANTS)]

    def _newest_first(self, tenant: str, before: int | None) -> Iterator[tuple[float, str]]:
        """When each ended (Unix ms), and its id."""
        start, newest = 0, "+inf" if before is None else f"({before}"
        while page := self._client.zrevrangebyscore(
            dead_key(tenant), newest, "-inf", start=start, num=PAGE, withscores=True
        ):
            yield from ((float(ended_at), job_id.decode()) for job_id, ended_at in page)
            start += len(page)
