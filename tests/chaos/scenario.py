"""The scenarios, as one table: a name, what goes wrong under load, and what the run needs."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.chaos import fault, weather
from tests.chaos.fault import Fault
from tests.chaos.mix import TIERS
from tests.chaos.world import Plan
from tests.fake_provider import Fault as ProviderFault


@dataclass(frozen=True)
class Scenario:
    """One row. `lasts` is the share of the load's time between the fault's beginning and its end; 0 = a moment.

    `clock_s`: how far the clock that dates the records jumps, and so how wrong a time between two of them may be.
    `may_cut`: whether clients may meet closed connections; `may_refuse`: whether they may get a documented problem.
    `forgets_on_tansu`: the embedded broker loses its topics in it, so that the operator has to republish.
    """

    name: str
    does: str
    fault: Fault = field(default_factory=fault.nothing)
    lasts: float = 0.4
    needs: Plan = field(default_factory=Plan)
    latency_s: float = 0.15
    clock_s: float = 0
    tiers: Mapping[str, int] = field(default_factory=lambda: TIERS)
    may_cut: bool = False
    may_refuse: bool = True
    forgets_on_tansu: bool = False

    def plan(self, database: str, broker: str) -> Plan:
        """What it needs, on the database and the broker asked for, where it does not insist on its own."""
        database = "sqlite" if self.needs.disk_mb else "postgresql" if self.needs.database == "postgresql" else database
        return replace(self.needs, database=database, broker=broker)


_POSTGRES = Plan(database="postgresql")
_FEW_SLOTS = Plan(env={f"{tier}_WORKER_THREADS": "2" for tier in ("SIMPLE", "MEDIUM", "COMPLEX")})


def _kill(name: str, **more: bool) -> Scenario:
    return Scenario(f"kill-{name}", f"kill -9 {name}", fault.kill(name), lasts=0, latency_s=0.5, **more)


def _groq(name: str, does: str, what: ProviderFault, share: float = 1.0) -> Scenario:
    return Scenario(f"provider-{name}", f"Groq: {does}", weather.storm(what, share))


def _status(status: int, does: str) -> Scenario:
    return _groq(str(status), f"{status} {does}", ProviderFault.status(status))


SCENARIOS = (
    Scenario("none", "nothing: the load alone", lasts=0, may_refuse=False),
    _kill("web", may_cut=True),
    Scenario("kill-web-workers", "kill -9 gunicorn's workers", fault.kill_web_workers(), lasts=0, may_cut=True),
    _kill("worker-simple"),
    _kill("worker-medium"),
    _kill("worker-complex"),
    _kill("recorder"),
    Scenario(
        "message-in-socket",
        "SIGSTOP an idle worker, hand it a message, kill -9",
        fault.kill_with_message_in_socket(),
        lasts=0,
        tiers={"simple": 6, "medium": 4},
    ),
    Scenario(
        "broker-restart",
        "SIGTERM and start the broker, jobs queued and in flight",
        fault.restart_server("valkey", signal.SIGTERM),
        lasts=0.1,
        needs=_FEW_SLOTS,
        latency_s=0.5,
    ),
    Scenario(
        "broker-kill",
        "kill -9 and start the broker, jobs queued and in flight",
        fault.restart_server("valkey", signal.SIGKILL),
        lasts=0.3,
        needs=_FEW_SLOTS,
        latency_s=0.5,
    ),
    Scenario("broker-frozen", "SIGSTOP the broker", fault.freeze("valkey"), lasts=0.2),
    Scenario("broker-stutter", "the broker stops and goes on, 12 times", fault.stutter("valkey"), lasts=0),
    Scenario("broker-cut", "CLIENT KILL of all broker connections", fault.cut_broker_connections(), lasts=0),
    Scenario("cache-flushed", "FLUSHALL of the cache", fault.flush_cache(), lasts=0, needs=Plan(has_cache_apart=True)),
    Scenario("redis-full", "Redis out of memory, then not", fault.fill_redis()),
    Scenario("postgres-stopped", "PostgreSQL stopped, then started", fault.stop_postgres(), needs=_POSTGRES),
    Scenario("postgres-locked", "all tables of PostgreSQL locked", fault.lock_tables(), needs=_POSTGRES),
    Scenario("postgres-frozen", "SIGSTOP PostgreSQL", fault.freeze("postgres"), needs=_POSTGRES),
    Scenario("postgres-full", "PostgreSQL out of connections", fault.take_postgres_connections(), needs=_POSTGRES),
    Scenario("kafka-late", "Kafka absent at the start", fault.late_kafka(), needs=Plan(is_kafka_late=True)),
    Scenario(
        "kafka-restart",
        "kill -9 Kafka, later start it",
        fault.restart_server("kafka", signal.SIGKILL),
        forgets_on_tansu=True,
    ),
    Scenario("kafka-frozen", "SIGSTOP Kafka", fault.freeze("kafka")),
    Scenario("disk-full", "the disk of SQLite is full, then not", fault.fill_disk(), needs=Plan(disk_mb=24)),
    _groq("429", "429 without Retry-After", ProviderFault.status(429)),
    _groq("429-retry-after", "429 with Retry-After: 2", ProviderFault.status(429, retry_after=2)),
    _status(500, "internal error"),
    _status(503, "unavailable"),
    _status(498, "capacity exceeded"),
    _status(402, "no credit"),
    _status(403, "forbidden"),
    _status(404, "model gone"),
    Scenario("provider-refused", "Groq: connection refused", weather.refuse_connections()),
    Scenario(
        "provider-tls",
        "Groq: a certificate nobody trusts, all the time",
        weather.untrusted(),
        needs=Plan(is_groq_untrusted=True),
    ),
    _groq("silent", "silence after accept, 1 call in 5", ProviderFault("silence"), 0.2),
    _groq("trickle", "one byte a second, 1 call in 5", ProviderFault("slow_body"), 0.2),
    _groq("cut", "cut in mid-body", ProviderFault("cut")),
    _groq("bad-json", "invalid JSON", ProviderFault("bad_json")),
    _groq("html", "wrong content type", ProviderFault("html")),
    Scenario(
        "providers-down",
        "Groq and Together: 503, then well again",
        weather.storm(ProviderFault.status(503), 1.0, "groq", "together"),
    ),
    Scenario(
        "clock-service",
        "the clock of web, workers and recorder jumps by an hour and back",
        fault.jump_clock(3600),
        needs=Plan(jumping="service"),
    ),
    Scenario(
        "clock-redis",
        "the clock of Redis jumps by ten minutes and back",
        fault.jump_clock(600),
        needs=Plan(jumping="ledger"),
        clock_s=600,
    ),
    Scenario("two-recorders", "two recorders, kill -9 one", fault.kill("recorder"), lasts=0, needs=Plan(recorders=2)),
    Scenario(
        "rolling-restart",
        "every process replaced in turn, with SIGTERM",
        fault.roll(),
        lasts=0,
        needs=Plan(web_replicas=2),
        may_refuse=False,
    ),
)
