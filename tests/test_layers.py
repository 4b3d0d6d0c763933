"""Arrows between the rooms point down only, and importing a module does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "routing": set(),
    "providers": {"routing"},
    "storage": {"routing"},
    "tasks": {"routing", "providers", "storage"},
    "webapp": {"routing", "providers", "storage", "tasks"},
    "embedded": {"routing"},
}
OUTSIDE_ROOMS = {"config", "logs"}


def imports(path: Path) -> set[str]:
    """Top-level names of everything a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def modules(room: str) -> list[Path]:
    found = sorted((ROOT / room).glob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_points_up(room: str) -> None:
    for path in modules(room):
        reached = imports(path) & set(ROOMS) - {room}
        assert reached <= ROOMS[room], f"{path.name} imports {reached - ROOMS[room]}"


def test_routing_imports_the_standard_library_only() -> None:
    for path in modules("routing"):
        assert imports(path) - {"routing"} <= set(sys.stdlib_module_names), path.name


def test_storage_and_providers_do_not_read_settings_they_were_not_given() -> None:
    for path in [*modules("storage"), *modules("providers")]:
        assert "load_settings" not in path.read_text(), path.name


def test_importing_connects_to_nothing_and_reads_no_environment() -> None:
    rooms = ("routing", "providers", "storage", "tasks", "webapp")
    names = [f"{room}.{p.stem}" for room in rooms for p in modules(room)]
    entries = {"tasks.worker", "tasks.monitor"}  # Celery asks for its app at import
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('connected at import')\n"
        "socket.socket.connect = refuse\n"
        f"import importlib\nfor name in {[n for n in names if n not in entries]!r}: importlib.import_module(name)\n"
        "import threading; assert threading.active_count() == 1, threading.enumerate()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_only_the_recorder_needs_is_not_loaded_into_every_worker() -> None:
    code = "import sys, tasks.worker; print(sorted({'sqlalchemy', 'kafka', 'flask'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
