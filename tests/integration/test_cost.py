"""A hit and a miss cost no more than they did: instructions, which a busy machine does not change."""

import json
import os
import shutil

import pytest

from bench.cost import ALLOWED, PATHS, REFERENCE, count, regressions

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def valgrind() -> None:
    if not shutil.which("valgrind"):
        assert "CI" not in os.environ, "valgrind is missing"
        pytest.skip("valgrind is missing: tests/install_servers.sh installs it")


def test_no_path_costs_a_fifth_more_than_its_reference() -> None:
    found, reference = count(), json.loads(REFERENCE.read_text())
    assert not regressions(found, reference), (
        f"{found} against {reference}: find out what it is, or accept it with `python -m bench.cost --write`"
    )


def test_a_cost_above_the_allowance_is_a_regression() -> None:
    reference = dict.fromkeys(PATHS, 1_000)
    within = dict.fromkeys(PATHS, int(1_000 * ALLOWED))
    assert regressions(within, reference) == []
    assert regressions(within | {"hit": within["hit"] + 1}, reference) == ["hit"]
