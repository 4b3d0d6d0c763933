"""Entry of the recorder: usage stream → SQL in batches, and the outbox → Kafka on a thread beside it."""

import gc
import logging
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from redis import RedisError
from redis.exceptions import ResponseError
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from config import Settings, load_settings
from logs import configure_logging
from storage.connection import blocking_client, patient_client
from storage.database import build_engine, ping
from storage.event import rows_of
from storage.presence import Presence
from storage.record import Outgoing, write
from storage.usage import Entry, UsageStream
from tasks.build import build_ledger
from tasks.dispatch import Dispatcher
from tasks.periodic import Periodic
from tasks.purge import PERIOD_S, Purge, periods_of
from tasks.reaper import Reaper
from tasks.relay import BATCH as RELAY_BATCH
from tasks.relay import Relay, connect

log = logging.getLogger(__name__)

BATCH = 1_000
BLOCK_MS = 500
GATHER_S = 0.2  # from one small batch to the next: what a batch costs by itself is then shared by many entries
PAUSE_S = 1.0
RELAY_S = 0.25
TAKE_OVER_EVERY = 20  # rounds between looks for entries that a dead recorder left behind
REPORT_S = 3.0
AWAY = (RedisError, SQLAlchemyError)

# An entry that is at fault is set aside. Every other error of the database is the database's: the entry waits.
ENTRY_FAULTS = (KeyError, ValueError, TypeError, OverflowError, DataError, IntegrityError)


class Recorder:
    """Moves entries from the stream into SQL. An entry leaves the stream only when its rows are committed.

    `offer` is told the events that were just committed, in their order.
    """

    def __init__(
        self,
        stream: UsageStream,
        engine: Engine,
        *,
        keeps_answers: bool = False,
        offer: Callable[[list[Outgoing]], None] = lambda events: None,
    ) -> None:
        self._stream, self._engine, self._keeps_answers, self._offer = stream, engine, keeps_answers, offer
        self.database_state = "starting"
        self._rounds = 0
        self._unrecorded: list[Entry] = []

    def run(self) -> int:
        """Record one batch; how many entries left the stream. Redis and SQL errors pass through.

        After an error the same batch is tried again.
        """
        self._unrecorded = self._unrecorded or self._next()
        entries = self._unrecorded
        if not entries:
            return 0
        self._record(entries)
        self._unrecorded = []
        return len(entries)

    def _next(self) -> list[Entry]:
        self._rounds += 1
        if self._rounds % TAKE_OVER_EVERY == 1 and (left := self._stream.take_over(BATCH)):
            log.info("recorder.took_over", extra={"entries": len(left)})
            return left
        return self._stream.read(BATCH, BLOCK_MS)

    def _record(self, entries: list[Entry]) -> None:
        """Record them together; where one of them is at fault, each half by itself, until that one is alone."""
        fault = self._fault_of(entries)
        if not fault:
            self._stream.acknowledge(entries)
        elif len(entries) > 1:
            middle = len(entries) // 2
            self._record(entries[:middle])
            self._record(entries[middle:])
        else:
            [entry] = entries
            log.error("recorder.entry_set_aside", extra={"entry": entry.id.decode(), "error": fault})
            self._stream.set_aside(entry, fault)

    def _fault_of(self, entries: list[Entry]) -> str | None:
        """Put the batch into SQL, or name the fault where one of its entries has one. Raises where SQL is away."""
        try:
            rows = rows_of((entry.fields for entry in entries), keeps_answers=self._keeps_answers)
            self._offer(write(self._engine, rows))
        except ENTRY_FAULTS as error:
            return type(error).__name__
        except DBAPIError as error:
            # SQLite's driver refuses a value in this way, and nothing else.
            if isinstance(error.orig, sqlite3.ProgrammingError):
                return type(error).__name__
            raise
        except StatementError as error:  # it never reached the database: a value that no column takes
            return type(error.orig or error).__name__
        self.database_state = "ok"
        return None


class RecorderProcess:
    """Recorder, relay, purge and their reports, until told to stop."""

    def __init__(self, settings: Settings) -> None:
        client = patient_client(settings.ledger_url)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        reader = blocking_client(settings.ledger_url, BLOCK_MS / 1000)
        self._stream = UsageStream(reader, self._name, settings.max_poison_entries)
        self._presence = Presence(client)
        self._engine = build_engine(settings.sql_url)
        servers = settings.kafka_bootstrap_servers
        self._relay = Relay(self._engine, self._presence, partial(connect, servers)) if servers else None
        self._recorder = Recorder(
            self._stream,
            self._engine,
            keeps_answers=settings.record_answer_text,
            offer=self._relay.offer if self._relay else lambda events: None,
        )
        self._stopped = threading.Event()
        self._purge = Purge(self._engine, client, periods_of(settings), self._stopped)
        # A reaper here too: while a tier has no worker its jobs still end at their deadlines.
        self._reaper = Reaper(build_ledger(settings, client), Dispatcher(client), self._presence)
        self._loops = [
            Periodic("report", REPORT_S, self._report, AWAY),
            Periodic("purge", PERIOD_S, self._purge.run, AWAY),
            Periodic("reaper", settings.reaper_seconds, self._reaper.run),
        ]
        if self._relay:
            self._loops.append(Periodic("relay", RELAY_S, self._relay_all, AWAY))

    def stop(self, *_: object) -> None:
        self._stopped.set()

    def run(self) -> None:
        gc.freeze()  # what is there by now stays; to go through it again and again would be an eighth of the CPU
        for loop in self._loops:
            loop.start()
        log.info("recorder.started", extra={"kafka": bool(self._relay)})
        self._record_often()
        for loop in self._loops:
            loop.stop(timeout_s=20)
        if self._relay:
            self._relay.stop()
        self._purge.resign()
        with suppress(RedisError):
            self._reaper.resign()
        log.info("recorder.stopped")

    def _record_often(self) -> None:
        is_open = False
        while not self._stopped.is_set():
            try:
                if not is_open:
                    ping(self._engine)
                    self._recorder.database_state = "ok"
                    self._stream.open()
                    is_open = True
                self._record_batch()
            except ResponseError:
                is_open = False  # NOGROUP: Redis was emptied
                self._stopped.wait(PAUSE_S)
            except RedisError as error:
                self._wait("redis", error)
            except SQLAlchemyError as error:
                self._recorder.database_state = "down"
                self._wait("database", error)

    def _record_batch(self) -> None:
        """Record what there is; where it was little, let some gather. After a pause the first one does not wait."""
        due = time.monotonic() + GATHER_S
        if 0 < self._recorder.run() < BATCH:
            self._stopped.wait(due - time.monotonic())

    def _relay_all(self) -> None:
        """Publish until little waits, or the broker does not answer."""
        while self._relay and self._relay.run() >= RELAY_BATCH and not self._stopped.is_set():
            pass

    def _report(self) -> None:
        self._presence.report_recorder(self._name, self.state())

    def state(self) -> dict[str, object]:
        """What GET /health says of this process."""
        return {
            "database": self._recorder.database_state,
            "kafka": self._relay.state if self._relay else "off",
            "waiting_events": self._stream.waiting(),
        }

    def _wait(self, part: str, error: Exception) -> None:
        log.warning("recorder.waiting", extra={"part": part, "error": type(error).__name__})
        self._stopped.wait(PAUSE_S)


def main() -> None:
    settings = load_settings()
    configure_logging(settings.log_level, "recorder")
    process = RecorderProcess(settings)
    signal.signal(signal.SIGTERM, process.stop)
    signal.signal(signal.SIGINT, process.stop)
    process.run()


if __name__ == "__main__":
    main()
