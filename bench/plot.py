"""A run as a picture: throughput of hits and of misses, ours beside the rivals', as an SVG for the documents."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of what draws

from bench.table import median, number  # noqa: E402

TITLES = {"hit@32": "Cached answers a second, 32 connections", "miss0@32": "New answers a second, 32 connections"}
OURS, THEIRS = "#1f6feb", "#9aa4b2"


def plot(result: dict[str, Any], path: Path) -> None:
    """One panel a cell, a bar a target; a cell that was not run stays empty."""
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "font.size": 9, "svg.fonttype": "none"})
    figure, panels = plt.subplots(1, len(TITLES), figsize=(10, 2.8), layout="constrained")
    for axes, (cell, title) in zip(panels, TITLES.items(), strict=True):
        axes.set_title(title, fontsize=10)
        _draw(axes, _rates(result["rows"], cell))
    figure.savefig(path, format="svg", metadata={"Date": None})  # the same run, the same file
    plt.close(figure)


def _rates(rows: list[dict[str, Any]], cell: str) -> dict[str, float]:
    """Answers a second by target, the slowest first; the bare provider is no rival."""
    names = dict.fromkeys(row["target"] for row in rows if row["cell"] == cell and row["target"] != "direct")
    rates = {
        name: median([r for r in rows if (r["cell"], r["target"]) == (cell, name)], "per_second") for name in names
    }
    return dict(sorted(((name, rate) for name, rate in rates.items() if rate), key=lambda item: item[1]))


def _draw(axes: Any, rates: dict[str, float]) -> None:
    colours = [OURS if name == "product" else THEIRS for name in rates]
    names = ["AI Query Router" if name == "product" else name for name in rates]
    bars = axes.barh(names, list(rates.values()), color=colours)
    axes.bar_label(bars, [number(rate) for rate in rates.values()], padding=3)
    axes.margins(x=0.15)  # room for the numbers
    axes.spines[["top", "right"]].set_visible(False)
