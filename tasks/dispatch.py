"""Ringing the doorbell: a message on a tier's queue for every job that waits in it."""

from celery import Celery

from tasks.app import ANSWER_QUERY


class Dispatcher:
    """Publishes messages. One says that a job waits; the ledger says which is next. A lost message is rung again by the
    reaper, one too many finds nobody waiting.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    def ring(self, job_id: str, tier: str, priority: int, run: int = 0) -> None:
        """Raises kombu's OperationalError where the broker cannot be reached."""
        self._app.send_task(
            ANSWER_QUERY,
            args=[job_id, tier],
            task_id=f"{job_id}:{run + 1}",
            queue=tier,
            priority=priority,
            ignore_result=True,
        )
