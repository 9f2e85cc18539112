"""Contenders take turns, so that a machine whose speed drifts does not favour one of them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import grokfast


@dataclass
class Contender:
    """`step` is timed; `prepare` runs before it, untimed."""

    step: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


def interleave(
    contenders: Mapping[str, Contender], *, baseline: str, rounds: int, warmup: int = 3
) -> list[dict[str, Any]]:
    """A row per contender: its times in ms (p20, median, p80) and the median of its per-round ratios to `baseline`."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(warmup + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            contenders[name].prepare()
            begin = time.perf_counter()
            contenders[name].step()
            elapsed = time.perf_counter() - begin
            if turn >= warmup:
                times[name].append(elapsed)
    rows = []
    for name, values in times.items():
        ratios = [v / b for v, b in zip(values, times[baseline])]
        p20, p80 = (statistics.quantiles(values, n=5)[i] for i in (0, 3))
        rows.append(
            {
                "name": name,
                "p20_ms": round(p20 * 1e3, 4),
                "median_ms": round(statistics.median(values) * 1e3, 4),
                "p80_ms": round(p80 * 1e3, 4),
                "ratio": round(statistics.median(ratios), 3),
            }
        )
    return rows


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), model)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": f"CPU {model}, {os.cpu_count()} processors",
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grokfast": grokfast.__version__,
    }


def report(title: str, sections: dict[str, list[dict[str, Any]]], out: Path | None) -> None:
    """Print the tables, and write them as JSON where a file is named."""
    about = machine()
    print(f"{title}: {about['device']}, {about['threads']} threads, torch {about['torch']}, {about['date']}, "
          f"OMP_WAIT_POLICY {about['omp_wait_policy']}")  # fmt: skip
    for section, rows in sections.items():
        print(f"\n{section}")
        for row in rows:
            print(f"  {row['name']:<36} {row['median_ms']:>10.3f} ms  {row['ratio']:>7.2f} ×")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"title": title, "machine": about, "sections": sections}, indent=1) + "\n")
