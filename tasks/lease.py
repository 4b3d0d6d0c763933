"""Keeping the leases of the jobs that this process is working on."""

import logging
import threading

from storage.job import Claim
from storage.ledger import Ledger

log = logging.getLogger(__name__)


class LeaseKeeper:
    """The claims of one process. `renew` is to be called at least three times a lease."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tokens: dict[str, str] = {}
        self._lock = threading.Lock()

    def hold(self, claim: Claim) -> None:
        with self._lock:
            self._tokens[claim.job_id] = claim.token

    def drop(self, job_id: str) -> None:
        with self._lock:
            self._tokens.pop(job_id, None)

    def is_held(self, job_id: str) -> bool:
        """False once the job was taken over or cancelled: what its run still does is in vain."""
        return job_id in self._tokens

    def renew(self) -> None:
        """Extend every lease; forget those that are lost. Redis errors pass through, and the leases stay held."""
        with self._lock:
            held = list(self._tokens.items())
        for job_id, token in held:
            if not self._ledger.renew(job_id, token):
                log.warning("job.lease_lost", extra={"job_id": job_id})
                self.drop(job_id)
