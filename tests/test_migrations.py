"""Migrations: one head, and an upgrade from nothing equals the tables in code, on both databases."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, insert, select, update

from storage.event import rows_of
from storage.metric import measure
from storage.record import write
from storage.table import metadata, queries, rollups
from tests.conftest import ROOT, migrate
from tests.usage_entries import AT, accepted, ended, hit


def test_there_is_one_head() -> None:
    script = ScriptDirectory.from_config(Config(str(ROOT / "alembic.ini")))

    assert len(script.get_heads()) == 1


def test_an_upgrade_from_nothing_equals_the_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    migrate(engine)

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def downgrade(engine: Engine, revision: str) -> None:
    config = Config(str(ROOT / "alembic.ini"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def test_roll_ups_are_made_of_the_rows_there_are(engine: Engine) -> None:
    write(engine, rows_of([accepted("open"), ended("q1"), hit("h1", at=AT - 86_400_000)]))
    with engine.connect() as connection:
        written = connection.execute(select(rollups).order_by(*rollups.primary_key)).all()
    downgrade(engine, "0002")
    migrate(engine)

    with engine.connect() as connection:
        made = connection.execute(select(rollups).order_by(*rollups.primary_key)).all()
    assert [(*row[:3], json.loads(row.tally)) for row in made] == [(*row[:3], json.loads(row.tally)) for row in written]
    assert len(made) == 2 * 3 * 2  # two tenants, three spans, two days


def test_a_migration_that_breaks_off_leaves_nothing_half_done(engine: Engine) -> None:
    downgrade(engine, "0002")
    [row] = rows_of([accepted("q1")]).opened
    with engine.begin() as connection:
        connection.execute(insert(queries), row | {"cost_usd": float("inf")})
    with pytest.raises(OverflowError):
        migrate(engine)

    with engine.begin() as connection:
        connection.execute(update(queries).values(cost_usd=0.5))
    migrate(engine)
    with engine.connect() as connection:
        assert measure(connection, datetime.fromtimestamp(AT / 1000, UTC))["cost"]["spent_usd"] == 0.5


def test_it_says_what_to_do_when_the_database_does_not_answer() -> None:
    env = {**os.environ, "DATABASE_URL": "postgresql://nobody:hidden@127.0.0.1:1/none", "ENV_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert "Check DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr
