"""Instructions that a training step's launches issue, as `python -m benchmarks.count_instructions` has counted them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parent / "results" / "kernel-instructions.json"


class Counted(NamedTuple):
    """A launch, as one of `models` models has its share in it.

    kernel: its name in the source, which is how a profiler's name begins (`prediction.work.Launch.kernel`).
    programs, warps: of one model, and of each program.
    instructions: of PTX, issued by warps, all programs of one model together.
    products: floating-point operations of tensor cores, those of padding and of warps that repeat others' with them.
    shared: bytes that the shared memory moves, 128 in each turn, however few of them are asked for.
    """

    kernel: str
    programs: int
    warps: int
    instructions: int
    products: int = 0
    shared: int = 0


def of_step(name: str, models: int, precision: str, table: Path = TABLE) -> list[Counted]:
    """The Triton launches of one training step in their order, with the optimizer's; empty where nobody has counted.

    name: as in `predict_step.configurations`. PyTorch's own launches are not among them. Of several launches of one
    kernel the first is the first: match them with a prediction's kernel by kernel.
    """
    rows = _rows(table)
    return [Counted(*row) for row in rows.get(f"{name}, {models}, {precision}", [])]


@functools.cache
def _rows(table: Path) -> dict[str, list[list]]:
    return json.loads(table.read_text())["steps"] if table.exists() else {}
