"""How many instructions the warps of a training step issue, launch by launch: counted on the CPU, without a GPU.

python -m benchmarks.count_instructions [--step NAME] [--models 1 256] [--products tf32] [--out FILE] [--capability 90]

The first step of one model is taken, compiled as a GPU would have it, and every instruction of every program executed,
but for the numbers of its products, which no branch depends on (tests/ptx). Beside them stand the operations of tensor
cores, repeated ones and padding with them, and what the shared memory moves. With several models the one has the tiles,
launches and splits that it has among them: models have programs of their own, so that all take so many times its count.
What a run does once is left out. PTX is counted, which ptxas turns into the GPU's own: a few more, or fewer.
--out adds to a table that `benchmarks.instructions` reads. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import triton

from benchmarks.instructions import Counted
from benchmarks.interleave import machine
from benchmarks.launches import recording
from benchmarks.predict_step import configurations
from grokfast import Experiment
from grokfast.models.transformer.fused import layout
from grokfast.ops.pair_step import plan
from grokfast.training.ensemble import Ensemble
from grokfast.transforms import sizes
from tests.ptx.emulate import emulated


@contextmanager
def one_of(models: int) -> Iterator[None]:
    """A block of code in which one model alone is cut up as one of `models`."""
    height, of_layout, of_plan, chunk = layout.height, layout.n_splits, plan.n_splits, sizes.chunk_size
    with ExitStack() as changed:
        for owner, name, function in (
            (layout, "height", lambda precision, d, n_rows, n: height(precision, d, n_rows, n * models)),
            (layout, "n_splits", lambda chunks, tiles, n: of_layout(chunks, tiles, n * models)),
            (plan, "n_splits", lambda chunks, programs, n, wide: of_plan(chunks, programs, n * models, wide)),
            (sizes, "chunk_size", lambda total: chunk(total * models)),
            (sizes, "MANY", -(-sizes.MANY // models)),
        ):  # fmt: skip
            changed.enter_context(mock.patch.object(owner, name, function))
        yield


def count(experiment: Experiment, models: int, precision: str, capability: int = 90) -> list[Counted]:
    """The launches of one training step, as one of `models` models has its share in them."""
    experiment = experiment.override({"device": "cpu", "products": precision})
    with one_of(models):
        with emulated(capability, only_counts=True) as seen:
            ensemble = Ensemble([experiment])
            before = len(seen.launches)
            ensemble.step()
        with recording(capability) as noted:
            ensemble.step()
    first, found = iter(seen.launches[before:]), []
    for launch in noted:  # what the first step made once for all, as readers of rows that never change, it skips
        ran = next(ran for ran in first if (ran.name, ran.grid) == (launch.name, launch.grid))
        sizes = math.prod(ran.grid), ran.threads // 32
        found.append(Counted(ran.name, *sizes, ran.instructions, ran.mma_flops, ran.shared))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", nargs="+", default=["nanda", "p = 97 MLP", "power"], help="names of predict_step's")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--products", nargs="+", default=["tf32"])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for name in args.step:
        for models in args.models:
            for precision in args.products:
                found = count(configurations()[name], models, precision, args.capability)
                whole = sum(one.instructions for one in found)
                print(f"{name}, {models}, {precision}: {whole:,} instructions of warps for each model and step")
                for one in found:
                    print(
                        f"  {one.kernel:<38} {one.programs:>6,} programs of {one.warps} warps {one.instructions:>12,} "
                        f"{one.instructions / whole:>5.0%} {one.products / 1e6:>9,.1f} MFLOP {one.shared / 1e6:>8,.1f} "
                        "MB of shared memory",
                        flush=True,
                    )
                if args.out is not None:
                    _add(args.out, f"{name}, {models}, {precision}", found, args.capability)
    return 0


def _add(table: Path, step: str, found: list[Counted], capability: int) -> None:
    steps = json.loads(table.read_text())["steps"] if table.exists() else {}
    about = {**machine(), "triton": triton.__version__, "compiled_for": capability}
    content = {"title": "Instructions of a training step", "machine": about, "columns": Counted._fields}
    table.write_text(json.dumps(content | {"steps": steps | {step: found}}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
