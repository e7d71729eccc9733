"""What figures have in common: colours, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

TEACHER, STUDENT = "#555555", "#1f6fb4"  # of lines and bars, in every figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure and let it go."""
    figure.savefig(path, dpi=110)
    plt.close(figure)
