"""Figures as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["save_figure"]


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Save a matplotlib figure whole or not at all."""
    path = Path(path)
    aside = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(aside, dpi=150, bbox_inches="tight")
    aside.replace(path)
