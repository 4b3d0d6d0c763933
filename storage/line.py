"""The waiting lines as they are seen: depths, places, and how fast they drain. `lua/line.lua` moves them."""

import time
from collections.abc import Callable, Iterable

from storage.connection import RedisClient, server_ms
from storage.job import BATCH, PRIORITIES, Job
from storage.name import PREFIX, queued_key, running_key, share_key

LATELY_S = 1.0
DRAIN_WINDOW = 64  # ends that `ending.lua` keeps to measure how fast a tier drains


class Lines:
    """Reads only. Redis errors pass through."""

    def __init__(self, client: RedisClient, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._client, self._monotonic = client, monotonic
        self._rates: dict[str, tuple[float, float | None]] = {}

    def position(self, job: Job) -> int | None:
        """Place in its tier's queue, 1 = next; None where it is not queued. Batch counts behind interactive ones."""
        job_id = job.leader or job.id
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zrank(queued_key(job.tier), job_id)
            pipe.zrank(queued_key(job.tier, BATCH), job_id)
            pipe.zcard(queued_key(job.tier))
            prompt, batch, ahead = pipe.execute()
        if prompt is not None:
            return int(prompt) + 1
        return None if batch is None else int(batch + ahead) + 1

    def depths(self, tiers: Iterable[str]) -> dict[str, dict[str, int]]:
        """Jobs queued and running per tier."""
        names = list(tiers)
        with self._client.pipeline(transaction=False) as pipe:
            for tier in names:
                pipe.zcard(queued_key(tier)).zcard(queued_key(tier, BATCH)).zcard(running_key(tier))
            counts = iter(pipe.execute())
        return {tier: {"queued": next(counts) + next(counts), "running": next(counts)} for tier in names}

    def waiting(self, tenant: str, tiers: Iterable[str]) -> dict[str, int]:
        """Jobs of one tenant that are queued, per tier."""
        names = list(tiers)
        fields = [f"count:{priority}:{tenant}" for priority in PRIORITIES.values()]
        with self._client.pipeline(transaction=False) as pipe:
            for tier in names:
                pipe.hmget(share_key(tier), fields)
            counts = pipe.execute()
        return {tier: sum(int(n or 0) for n in found) for tier, found in zip(names, counts, strict=True)}

    def knows_drain_rate(self, tier: str) -> bool:
        """Whether `drain_rate_lately` answers without asking Redis."""
        known = self._rates.get(tier)
        return known is not None and self._monotonic() - known[0] < LATELY_S

    def drain_rate_lately(self, tier: str) -> float | None:
        """`drain_rate`, as it was at most LATELY_S ago: whoever turns many away need not measure it for each."""
        if not self.knows_drain_rate(tier):
            self._rates[tier] = (self._monotonic(), self.drain_rate(tier))
        return self._rates[tier][1]

    def drain_rate(self, tier: str) -> float | None:
        """Jobs a second that the tier lately ended; None where too few have ended to tell."""
        ends = self._client.lrange(PREFIX + "drain:" + tier, 0, DRAIN_WINDOW - 1)
        if len(ends) < 2:
            return None
        elapsed_ms = server_ms(self._client) - int(ends[-1])
        return len(ends) * 1000 / max(elapsed_ms, 1)
