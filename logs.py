"""JSON logs: one object a line, with the request and the job it belongs to."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.orjson import OrjsonFormatter

_context: ContextVar[dict[str, Any]] = ContextVar("log_context", default={})  # noqa: B039 - never mutated


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Put these fields on every line logged inside the block."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def bind_log_context(**fields: Any) -> None:
    """Put these fields on every following line of this thread's current work."""
    _context.set({**_context.get(), **fields})


def clear_log_context() -> None:
    _context.set({})


class _ContextFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _context.get().items():
            setattr(record, name, value)
        return True


def configure_logging(level: str, process: str) -> None:
    """Send all logs of this process to standard error as JSON lines. Calling it again replaces the set-up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_ContextFilter())
    handler.setFormatter(
        OrjsonFormatter(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields={"process": process},
            timestamp=True,
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kafka-python reports every refused reconnect as an error; the relay says the same once, in our words.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    logging.getLogger("celery").setLevel(max(logging.WARNING, logging.getLevelName(level)))
