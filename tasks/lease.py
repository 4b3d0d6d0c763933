"""Keeping the leases of the jobs that this process is working on."""

import logging
import threading

from storage.job import Claim
from storage.ledger import Ledger

log = logging.getLogger(__name__)


class LeaseKeeper:
    """The claims of one process, by token: a job taken away and claimed again is two of them.

    `renew` is to be called at least three times a lease.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()

    def hold(self, claim: Claim) -> None:
        with self._lock:
            self._held[claim.token] = claim

    def drop(self, claim: Claim) -> None:
        with self._lock:
            self._held.pop(claim.token, None)

    def is_held(self, claim: Claim) -> bool:
        """False once the job was taken over or cancelled: what its run still does is in vain."""
        return claim.token in self._held

    def renew(self) -> None:
        """Extend every lease; forget those that are lost. Redis errors pass through, and the leases stay held."""
        with self._lock:
            held = list(self._held.values())
        for claim in held:
            if not self._ledger.renew(claim.job_id, claim.token):
                log.warning("job.lease_lost", extra={"job_id": claim.job_id, "run": claim.run})
                self.drop(claim)
