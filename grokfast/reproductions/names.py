"""Which papers there are."""

from __future__ import annotations

import importlib

from grokfast import checks
from grokfast.reproductions.base import Reproduction

NAMES = (
    "swaroop2026", "nanda2023", "gromov2023", "chughtai2023", "merrill2023", "doshi2023", "prieto2025", "liu2022",
    "davies2023", "lee2024", "power2022", "zhong2023",
)  # fmt: skip


def named(name: str) -> Reproduction:
    """The reproduction of that name. Raises ValueError with the nearest."""
    module = importlib.import_module(f"grokfast.reproductions.{checks.choice('name', name, NAMES)}")
    found: Reproduction = module.REPRODUCTION
    return found
