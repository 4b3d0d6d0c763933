"""Bringing back jobs whose worker died or whose message was lost, and ending those that cannot be saved."""

import logging
from uuid import uuid4

from redis import RedisError

from storage.job import Verdict
from storage.ledger import Ledger
from storage.presence import Presence
from tasks.dispatch import Dispatcher
from tasks.ending import cancelled_ending, dead_ending, late_ending

log = logging.getLogger(__name__)

LEADER_TTL_MS = 10_000
BATCH = 200


class Reaper:
    """Every worker has one; the one that leads works. A reaper that dies halfway is followed by another."""

    def __init__(self, ledger: Ledger, dispatcher: Dispatcher, presence: Presence) -> None:
        self._ledger, self._dispatcher, self._presence = ledger, dispatcher, presence
        self._token = f"reaper:{uuid4().hex}"

    def run(self) -> None:
        """Look after everything that is due, if this reaper leads."""
        if not self._presence.lead("reaper", self._token, LEADER_TTL_MS):
            return
        while True:
            verdicts = self._ledger.reap(self._token, at_most=BATCH)
            for verdict in verdicts:
                self._act(verdict)
            if len(verdicts) < BATCH:
                return

    def resign(self) -> None:
        """Let another reaper lead at once."""
        self._presence.resign("reaper", self._token)

    def _act(self, verdict: Verdict) -> None:
        if verdict.kind == "ring":
            self._ring(verdict)
        elif verdict.kind in ("expired", "dead", "cancelled"):
            self._end(verdict)

    def _ring(self, verdict: Verdict) -> None:
        log.warning("job.requeued", extra={"job_id": verdict.job_id, "tier": verdict.tier, "run": verdict.run})
        try:
            self._dispatcher.ring(verdict.job_id, verdict.tier, verdict.priority, verdict.run)
        except RedisError:
            # The job stays due: the next round rings again.
            log.warning("job.ring_failed", extra={"job_id": verdict.job_id})

    def _end(self, verdict: Verdict) -> None:
        job = self._ledger.job(verdict.job_id)
        if job is None:
            return
        routing = job.payload["routing"]
        endings = {
            "expired": late_ending(verdict.tier, routing),
            "dead": dead_ending(verdict.tier, verdict.run, routing),
            "cancelled": cancelled_ending(verdict.tier, routing),
        }
        if self._ledger.finish(verdict.job_id, self._token, endings[verdict.kind]):
            extra = {"job_id": verdict.job_id, "tier": verdict.tier, "runs": verdict.run}
            log.error("job.%s", verdict.kind, extra=extra)
