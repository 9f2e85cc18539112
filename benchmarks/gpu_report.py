"""The tables of what `benchmarks.gpu` has found so far, as Markdown, with device, clocks, versions and date in each."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = {
    "name": "", "median_ms": "ms", "host_ms": "host ms", "ratio": "ratio", "GB_per_s": "GB/s",
    "TFLOP_per_s": "TFLOP/s", "model_steps_per_s": "model-steps/s", "runs_per_minute": "runs/minute",
}  # fmt: skip
PROFILE = {
    "name": "", "calls": "calls", "median_us": "µs", "share": "share", "at_least_us": "µs at least", "bound": "by",
    "issued_of_4": "issued of 4", "asked_TB_per_s": "TB/s asked", "memory_TB_per_s": "TB/s of memory",
}  # fmt: skip
GRADIENTS = {"name": "", "worst": "worst", "ratio": "its error, torch's = 1", "verdict": "verdict"}
KINDS = {" profile": PROFILE, " gradients": GRADIENTS}  # by how titles end
SHOWN = ("gpu", "driver", "cuda", "torch", "triton", "python", "date")  # of a file's machine
CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"


def tables(results: Path, parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of every JSON of results in the folder; `parts` by name, with their clocks, if they are known."""
    lines: list[str] = []
    for file in sorted(results.glob("gpu-*.json")):
        try:
            result = json.loads(file.read_text())
        except ValueError:  # stopped while it was written
            continue
        names = next((names for end, names in KINDS.items() if result["title"].endswith(end)), COLUMNS)
        about = result.get("machine", {})
        made = ", ".join(f"{key} {about[key]}" for key in SHOWN if key in about)
        whose = [name for name in parts if file.stem == f"gpu-{name}" or file.stem.startswith(f"gpu-{name}-")]
        clocks = parts[max(whose, key=len)].get("clocks", "") if whose else ""
        for section, rows in result["sections"].items():
            lines += ["", f"## {result['title']}: {section}", "", "; ".join(filter(None, (made, clocks))), ""]
            lines += [f"| {' | '.join(names.values())} |", "|---" * len(names) + "|"]
            lines += [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]
    return lines


def clocks(samples: Path) -> str:
    """What nvidia-smi said of CLOCKS while a part ran, in words; empty where it said nothing."""
    if not samples.exists():
        return ""
    with samples.open(newline="") as file:
        rows = [row for row in csv.reader(file, skipinitialspace=True) if len(row) == CLOCKS.count(",") + 1]
    try:
        numbers = [[float(cell) for cell in row] for row in rows]
    except ValueError:  # "[N/A]" for one of them
        return ""
    busy = [row for row in numbers if row[4] > 0]
    if not busy:
        return f"idle in all of {len(numbers)} seconds" if numbers else ""
    sm = [row[0] for row in busy]
    return (
        f"SM clock {statistics.median(sm):.0f} MHz ({min(sm):.0f} to {max(sm):.0f}), memory {busy[-1][1]:.0f} MHz, up "
        f"to {max(row[2] for row in busy):.0f} W and {max(row[3] for row in busy):.0f} °C, "
        f"busy in {len(busy)} of {len(numbers)} seconds"
    )


def report(results: Path, parts: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The whole document."""
    lines = ["# grokfast on a GPU", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += [f"- {name}: {of['said']}" for name, of in parts.items()]
    gates = ("gradients", "tests")
    wrong = [name for name in gates if name in parts and not parts[name]["said"].startswith("passed")]
    if wrong:
        lines += ["", f"**{' and '.join(wrong)} did not pass: times of these kernels are not to be quoted.**"]
    return "\n".join([*lines, *tables(results, parts)]) + "\n"
