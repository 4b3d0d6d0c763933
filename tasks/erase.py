"""`make erase TENANT=x`: removes everything that is kept of one tenant, while the service runs."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator

from redis import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from config import load_settings
from storage.connection import RedisClient, patient_client
from storage.database import build_engine
from storage.erase import (
    KEYS,
    STREAMS,
    erase_entries,
    erase_jobs,
    erase_keys,
    erase_rows,
    key_ids,
    revoke_keys,
    rows_of_tenant,
    tell_erased,
)
from storage.name import DEAD_TENANTS

TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MOST_ROUNDS = 10
ROUND_PAUSE_S = 1.0  # a recorder writes what it had read within that time

REMAINS = """Not erased, because it is not in this service's hands:
  what Kafka holds, until its own retention; backups; what the providers and log collectors keep.
Not erased, because it is nobody's: answers that tenants share (SHARE_CACHE=true), until CACHE_TTL_SECONDS have passed;
  `make erase TENANT=shared` removes them all.
If queries of the tenant were being answered, or keys of its own still believed (AUTH_CACHE_SECONDS), run it once more.
"""


class Erase:
    """One tenant's erasure. Redis and SQLAlchemy errors pass through: it may be run again at any time."""

    def __init__(self, tenant: str, engine: Engine, ledger: RedisClient, cache: RedisClient) -> None:
        self._tenant, self._engine, self._ledger, self._cache = tenant, engine, ledger, cache
        self._key_ids = key_ids(engine, tenant)

    def run(self, say: Callable[[str, int], None], pause_s: float = ROUND_PAUSE_S) -> bool:
        """Go round until nothing more is found; False where something of the tenant keeps arriving."""
        for _ in range(MOST_ROUNDS):
            if not self._go_round(say):
                return True
            time.sleep(pause_s)
        return False

    def _go_round(self, say: Callable[[str, int], None]) -> int:
        total = 0
        for name, batches in self._steps():
            count = 0
            for batch in batches:
                count += batch
                if batch:
                    say(name, count)
            total += count
        tell_erased(self._ledger)
        return total

    def _steps(self) -> Iterator[tuple[str, Iterator[int]]]:
        """Rows last, after the entries that would become rows; and those of keys at the very end."""
        revoke_keys(self._engine, self._tenant)
        keys_table, *tables = rows_of_tenant(self._tenant)
        yield "jobs", erase_jobs(self._ledger, self._tenant)
        for keys in KEYS:
            client = self._cache if keys.is_cached else self._ledger
            for key_id in self._key_ids if "{key_id}" in keys.pattern else [""]:
                yield keys.name, erase_keys(client, keys.pattern.format(tenant=self._tenant, key_id=key_id))
        yield "list of dead letters", iter([int(self._ledger.srem(DEAD_TENANTS, self._tenant))])
        for name, stream in STREAMS:
            yield name, erase_entries(self._ledger, stream, self._tenant)
        for rows in (*tables, keys_table):
            yield rows.name, erase_rows(self._engine, rows)


def named(text: str) -> str:
    if not TENANT.fullmatch(text):
        raise argparse.ArgumentTypeError("a tenant's name has 1 to 64 letters, digits, `_`, `.` or `-`")
    return text


def is_sure(tenant: str) -> bool:
    sys.stdout.write(f"This removes everything kept of the tenant {tenant}. Type its name to go on: ")
    sys.stdout.flush()
    return sys.stdin.readline().strip() == tenant


def show(name: str, count: int) -> None:
    sys.stdout.write(f"  {name:<25} {count}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tenant", type=named)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    given = parser.parse_args()
    settings = load_settings()
    if not given.yes and not is_sure(given.tenant):
        sys.stdout.write("\nNothing was erased.\n")
        return 1
    ledger, cache = patient_client(settings.ledger_url), patient_client(settings.cache_url)
    try:
        is_done = Erase(given.tenant, build_engine(settings.sql_url), ledger, cache).run(show)
    except (RedisError, SQLAlchemyError) as error:
        sys.stderr.write(f"Stopped halfway ({type(error).__name__}): check REDIS_URL and DATABASE_URL, run it again.\n")
        return 1
    sys.stdout.write("Nothing of it is left.\n" if is_done else "Something of it keeps arriving: run it again.\n")
    sys.stdout.write(REMAINS)
    return 0 if is_done else 1


if __name__ == "__main__":
    sys.exit(main())
