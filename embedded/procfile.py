"""The Procfile: the one place where the commands of the service's processes stand."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read_procfile(path: Path = ROOT / "Procfile") -> dict[str, str]:
    """Process name → shell command, in the file's order."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    rows = (line.partition(":") for line in lines if line and not line.startswith("#"))
    return {name.strip(): command.strip() for name, _, command in rows}
