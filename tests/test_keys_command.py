"""`python -m tasks.keys`, run as a user runs it, on both databases."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from storage.api_key import KeyStore, is_secret_of, split_key
from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_command(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DATABASE_URL": database_url, "ENV_FILE": os.devnull}
    command = [sys.executable, "-m", "tasks.keys", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def run(engine: Engine, database_url: str) -> Run:
    return lambda *arguments: run_command(database_url, *arguments)


@pytest.fixture
def store(engine: Engine) -> KeyStore:
    return KeyStore(engine)


def test_the_key_stands_alone_on_standard_output_and_opens(run: Run, store: KeyStore) -> None:
    limits = ["--requests-per-minute", "60", "--max-open-jobs", "5", "--tokens-per-day", "100000"]
    budget = ["--budget-usd-per-day", "2.5", "--budget-usd-per-month", "50"]
    who = ["--tenant", "acme", "--name", "ci bot", "--scopes", "query, admin", "--tiers", "simple,medium"]
    done = run("create", *who, *limits, *budget, "--expires-in-days", "90")

    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    key_id, secret = split_key(done.stdout.strip()) or pytest.fail(done.stdout)
    assert secret not in done.stderr
    key = store.find(key_id)
    assert key
    assert is_secret_of(key, secret)
    assert (key.tenant, key.name, key.scopes, key.tiers) == ("acme", "ci bot", {"query", "admin"}, {"simple", "medium"})
    assert (key.limits.requests_per_minute, key.limits.max_open_jobs, key.limits.tokens_per_day) == (60, 5, 100_000)
    assert (key.limits.budget_usd_per_day, key.limits.budget_usd_per_month) == (2.5, 50)
    assert key.expires_at
    assert round((key.expires_at - key.created_at).total_seconds()) == 90 * 86_400


def test_one_key_lives_from_its_making_to_its_end(run: Run, store: KeyStore) -> None:
    first = run("create", "--operator", "--scopes", "read,admin").stdout.split("_")[1]
    found = store.find(first)
    assert found
    assert found.is_operator

    rotated = run("rotate", first, "--grace-seconds", "3600")
    second = rotated.stdout.split("_")[1]
    assert (rotated.returncode, second != first) == (0, True)
    assert run("revoke", second).returncode == 0

    listed = run("list").stdout
    assert "secret" not in listed
    assert {line.split()[0]: line.split()[5] for line in listed.splitlines()[1:]} == {first: "live", second: "revoked"}
    assert len(run("list", "--tenant", "acme").stdout.splitlines()) == 1
    again = run("rotate", second)
    assert (again.returncode, again.stdout) == (1, "")
    assert "make a new key" in again.stderr


@pytest.fixture
def run_on_sqlite(sqlite_url: str) -> Run:
    return lambda *arguments: run_command(sqlite_url, *arguments)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "required"),
        (("create", "--requests-per-minute", "many"), 2, "requests-per-minute"),
        (("create", "--expires-in-days", "0"), 2, "more than 0"),
        (("create", "--expires-in-days", "1e9"), 2, "at most 3660"),
        (("create", "--tenant", "acme", "--operator"), 2, "not allowed with"),
        (("rotate", "x", "--grace-seconds", "-1"), 2, "from 0 to"),
        (("create", "--tenant", "*"), 1, "--operator"),
        (("create", "--tenant", "a b"), 1, "tenant must"),
        (("create", "--scopes", "root"), 1, "query, read, admin"),
        (("create", "--tiers", "huge"), 1, "simple, medium, complex"),
        (("create", "--name", "a\x1b[1m"), 1, "printable"),
        (("create", "--requests-per-minute", "0"), 1, "requests_per_minute"),
        (("list",), 1, "make migrate"),
        (("create",), 1, "make migrate"),
    ],
)
def test_it_says_what_does_not_fit_and_what_to_do(
    run_on_sqlite: Run, arguments: tuple[str, ...], status: int, says: str
) -> None:
    done = run_on_sqlite(*arguments)

    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr


def test_an_id_that_nobody_has_is_refused(run: Run) -> None:
    for arguments in (("revoke", "abcdefghijkl"), ("rotate", "nope")):
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "make key ARGS=list" in done.stderr


def test_it_says_when_the_database_does_not_answer() -> None:
    done = run_command("postgresql://nobody:hidden@127.0.0.1:1/none", "list")

    assert done.returncode == 1
    assert "DATABASE_URL" in done.stderr
    assert "hidden" not in done.stderr
