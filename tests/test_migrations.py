"""Migrations: one head, and an upgrade from nothing equals the tables in code, on both databases."""

import os
import subprocess
import sys

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from storage.table import metadata
from tests.conftest import ROOT, migrate


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
