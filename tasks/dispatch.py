"""Ringing the doorbell: publishing a job's id on its tier's queue."""

from celery import Celery

from tasks.app import ANSWER_QUERY


class Dispatcher:
    """Publishes job ids. The message is a hint: a lost one is rung again by the reaper, a second one finds no claim."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def ring(self, job_id: str, tier: str, priority: int, run: int = 0) -> None:
        """Raises kombu's OperationalError where the broker cannot be reached."""
        self._app.send_task(
            ANSWER_QUERY,
            args=[job_id],
            task_id=f"{job_id}:{run + 1}",
            queue=tier,
            priority=priority,
            ignore_result=True,
        )
