"""Keeping the leases of the jobs that this process is working on, and passing on that one is no longer wanted."""

import logging
import threading

from providers.abort import AbortSignal
from storage.job import Claim
from storage.ledger import Ledger

log = logging.getLogger(__name__)


class LeaseKeeper:
    """The claims of one process, by token: a job taken away and claimed again is two of them.

    `renew` is to be called at least three times a lease.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._held: dict[str, tuple[Claim, AbortSignal]] = {}
        self._lock = threading.Lock()

    def hold(self, claim: Claim) -> AbortSignal:
        """Keep the claim; the signal is set once the job was taken over or cancelled, and its run is in vain."""
        signal = AbortSignal()
        with self._lock:
            self._held[claim.token] = claim, signal
        return signal

    def drop(self, claim: Claim) -> None:
        with self._lock:
            self._held.pop(claim.token, None)

    def renew(self) -> None:
        """Extend every lease; give up those that are lost. Redis errors pass through, and the leases stay held."""
        for claim, signal in self._all():
            if not signal.is_aborted and not self._ledger.renew(claim.job_id, claim.token):
                log.warning("job.unwanted", extra={"job_id": claim.job_id, "run": claim.run})
                signal.abort()

    def abort(self, job_id: str) -> None:
        """End the run of a job that was cancelled, if it is here."""
        for claim, signal in self._all():
            if claim.job_id == job_id:
                log.info("job.aborted", extra={"job_id": job_id, "run": claim.run})
                signal.abort()

    def _all(self) -> list[tuple[Claim, AbortSignal]]:
        with self._lock:
            return list(self._held.values())
