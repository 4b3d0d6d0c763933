"""Puts a rival, pinned, into the user's cache folder: its own virtual environment or node_modules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.rival import Rival

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ai-query-router" / "bench"
_LIMIT_S = 900


class NotInstalled(Exception):
    """A rival that cannot be had here; the text says why."""


def install(rival: Rival) -> Path:
    """The folder it lives in; installed there now where it was not yet. Raises NotInstalled."""
    wanted = "\n".join([*rival.pip, *rival.npm])
    home = CACHE / rival.name
    marker = home / ".complete"
    if not wanted or (marker.exists() and marker.read_text() == wanted):
        return home
    sys.stderr.write(f"Installing {' '.join(wanted.split())} into {home}\n")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if rival.pip:
        _run(sys.executable, "-m", "venv", str(home))
        _run(str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *rival.pip)
    if rival.npm:
        if shutil.which("npm") is None:
            raise NotInstalled("npm is missing: bench/install.sh")
        _run("npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", "--loglevel=error", *rival.npm)
    marker.write_text(wanted)
    return home


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.CalledProcessError as failed:
        raise NotInstalled(f"{command[0]}: {(failed.stderr or failed.stdout).strip()[-300:]}") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{command[0]} took longer than {_LIMIT_S} s") from None
