"""gunicorn's settings: our worker, its bounds, and a shutdown that tells those who wait."""

import ctypes
import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
from typing import Any

from gunicorn.glogging import Logger
from pythonjsonlogger.orjson import OrjsonFormatter

from config import load_settings


class JsonLogger(Logger):
    """gunicorn's own few lines in the form of all the others. Requests are logged by the application."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(
                OrjsonFormatter(
                    "%(levelname)s %(name)s %(message)s",
                    rename_fields={"levelname": "level", "name": "logger"},
                    static_fields={"process": "web"},
                    timestamp=True,
                )
            )


SPARE_FILES = 256  # of a process: for Redis, SQL and providers


def _most_connections(wanted: int) -> int:
    """As many as this process may have files open. One that has run out could neither accept nor reach Redis."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted + SPARE_FILES
    if resource.RLIM_INFINITY != soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(min(wanted, soft - SPARE_FILES), SPARE_FILES // 4)


_settings = load_settings()

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
worker_class = "webapp.server.RouterWorker"
workers = _settings.web_processes
threads = _settings.web_threads
worker_connections = _most_connections(4096)
backlog = 2048

timeout = 60
graceful_timeout = 75  # more than the longest wait for an answer (MAX_WAIT_SECONDS)
keepalive = 75  # more than a load balancer's idle time, or it meets connections that we just closed
max_requests = 0  # recycling a process would cut the waits in it
preload_app = False  # Kafka, SQL and stream clients must not be forked

# The heartbeat file: on a disk its update can stall.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108
# On by default since 25.1; two services of one user would share its path.
control_socket_disable = True

logger_class = JsonLogger
accesslog = None

_PR_SET_PDEATHSIG = 1
_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
_has_own_folder = _METRICS_DIR not in os.environ

# prometheus_client looks for the folder when it is imported, which loading the worker's class does.
if _has_own_folder:
    os.environ[_METRICS_DIR] = tempfile.mkdtemp(prefix="router-metrics-")


def when_ready(server: Any) -> None:
    """Before the first fork: what is loaded by now is shared, as long as no process's collector writes to it."""
    gc.collect()
    gc.freeze()


def post_worker_init(worker: Any) -> None:
    """On SIGTERM say so first: waits end early and /readyz turns 503, then gunicorn drains the process."""
    from webapp import draining

    gunicorn_handler = signal.getsignal(signal.SIGTERM)

    def drain(signum: int, frame: Any) -> None:
        draining.start()
        if callable(gunicorn_handler):
            gunicorn_handler(signum, frame)

    signal.signal(signal.SIGTERM, drain)
    signal.siginterrupt(signal.SIGTERM, False)
    if sys.platform == "linux":
        # A master that is killed: without this its workers would hold the port until their last wait is over.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def child_exit(server: Any, worker: Any) -> None:
    """Drop the live gauges of a process that is gone."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    if _has_own_folder:
        shutil.rmtree(os.environ[_METRICS_DIR], ignore_errors=True)
