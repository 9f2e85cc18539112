"""The versions that a run is stored with."""

from __future__ import annotations

import torch


def version() -> str:
    """What a run's bits depend on, beside its experiment and device."""
    from grokfast import __version__

    return f"grokfast {__version__}, torch {torch.__version__}"
