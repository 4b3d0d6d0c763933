"""What the documents promise exists: problem codes, make targets, links."""

import re
from pathlib import Path

import pytest

from webapp.problem import PROBLEMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_problem_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", (ROOT / "docs/api.md").read_text(), re.MULTILINE)

    assert {code: int(status) for code, status in rows} == {code: status for code, (status, _) in PROBLEMS.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_path_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    for link in links:
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:routing|providers|storage|tasks|webapp|tests|docs|bench|embedded)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b(?=`|$| #|\n)", page.read_text())) <= targets


def test_every_promise_of_the_readme_names_a_test_that_exists() -> None:
    text = (ROOT / "README.md").read_text()
    promises = re.findall(r"^\| .+ \| .+ \| (.+) \|$", text.partition("held by |")[2].partition("###")[0], re.MULTILINE)
    files = list((ROOT / "tests").rglob("test_*.py"))
    known = {path.name for path in files} | set(
        re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in files), re.MULTILINE)
    )
    named = [name for held_by in promises for name in re.findall(r"`(test_[\w.]+)`", held_by)]

    assert len(promises) > 20
    assert set(named) <= known
    assert all("`" in held_by for held_by in promises)
