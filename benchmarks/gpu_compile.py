"""Compile, on all processors, what training and its evaluations launch at 1, 64 and 256 models, into Triton's cache.

python -m benchmarks.gpu_compile [--names nanda ...] [--products tf32 ...] [--models 1 64 256] [--capability 90]

A kernel is compiled for its tile, which depends on how many models there are, and again for numbers that 16 divides: so
the ensembles themselves are made, on the CPU, each in a process of its own, and their launches noted, not made
(`benchmarks.launches`). What has most models takes some 10 GB. Exits with 1 where one fails; the others are compiled.
TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from benchmarks.launches import Launch, compiled, recording
from benchmarks.predict_step import PRECISIONS, configurations
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay

NAMES = ("nanda", "p = 97 MLP", "power")
LARGE = 4  # processes that make ensembles at once, for memory's sake


def launched(name: str, products: str, models: int, capability: int, changes: dict[str, object]) -> list[Launch]:
    """Kernels of a training step and an evaluation, each once."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // LARGE))
    plain = {"device": "cpu", "schedule.steps": 8, "schedule.eval_every": 2, "products": products}
    base = configurations()[name].override({**plain, **changes})
    experiments = [base.override({"seed": seed}) for seed in range(models)]
    with recording(capability) as noted:
        replay = Replay(Ensemble(experiments), [Outcome(one.criteria) for one in experiments])
        replay.launch()
    return list({launch.facts: launch for launch in noted}.values())


def main(changes: dict[str, object] | None = None) -> int:
    """changes: of the experiments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=configurations(), default=list(NAMES))
    parser.add_argument("--products", nargs="+", choices=PRECISIONS, default=["tf32", "ieee", "bf16", "tf32x3"])
    parser.add_argument("--models", type=int, nargs="+", default=[1, 256, 64], help="sizes of the ensembles")
    parser.add_argument("--capability", type=int, default=90)
    args = parser.parse_args()
    processes, failures = multiprocessing.get_context("spawn"), 0
    seen: set[str] = set()
    with (
        ProcessPoolExecutor(LARGE, mp_context=processes) as makers,
        ProcessPoolExecutor(mp_context=processes) as compilers,
    ):
        places = [(name, of, n) for of in args.products for n in args.models for name in args.names]
        noted = {makers.submit(launched, *place, args.capability, changes or {}): place for place in places}
        under_way = {}
        for done in as_completed(noted):
            try:
                launches = [launch for launch in done.result() if launch.facts not in seen]
            except Exception as error:  # the others are of use all the same
                failures += 1
                print(f"{noted[done]}: {type(error).__name__}: {error}", flush=True)
                continue
            seen |= {launch.facts for launch in launches}
            under_way |= {compilers.submit(compiled, launch, args.capability): noted[done] for launch in launches}
        for one in as_completed(under_way):
            row = one.result()
            why = row.get("error", "") or (f"{row['spilled_bytes']} bytes spilled" if row["spilled_bytes"] else "")
            failures += bool(row.get("error"))
            print(f"{row['kernel']} {under_way[one]}: {why or 'good'}", flush=True)
    print(f"{len(under_way)} kernels, {failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
