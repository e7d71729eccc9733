"""What figures have in common: colours, and how they are made and saved.

Figures are made without `pyplot`, which would choose a display and keep every figure: importing this library changes
no setting of matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

TEACHER, STUDENT = "#555555", "#1f6fb4"  # of lines and bars, in every figure
LAYERS = colormaps["viridis"]  # of layers and of sizes


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    figure.savefig(path, format="png", dpi=110, metadata={"Software": "lowrank-clone"})
