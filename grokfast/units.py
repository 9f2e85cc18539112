"""Seconds and bytes in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in words: "42 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def memory(n_bytes: float) -> str:
    """Bytes in words: "70 kB", "260 MB", "1.4 GB"."""
    if n_bytes < 1e6:
        return f"{n_bytes / 1e3:,.0f} kB"
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"
