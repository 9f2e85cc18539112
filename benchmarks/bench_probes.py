"""What probes add to a run: the steps from one evaluation to the next, and the evaluation, with each and without.

python -m benchmarks.bench_probes [--presets quick,nanda] [--out FILE]     # interleaved: the ratios to quote
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.interleave import Contender, interleave, report
from grokfast import Experiment
from grokfast.training.ensemble import Ensemble
from grokfast.training.memory import keep_freed_memory

ROUNDS = {"quick": 60, "nanda": 6}
PROBES = ("default", "norms", "spectra", "local_complexity", "progress")
NONE = "no probe"


def stretch(preset: str, probe: str) -> Contender:
    """All that lies between two evaluations of a preset, and the second of them."""
    changes = {"device": "cpu"} if probe == NONE else {"device": "cpu", "probes": probe}
    ensemble = Ensemble([Experiment.preset(preset).override(changes)])

    def run() -> None:
        for _ in range(ensemble.schedule.eval_every):
            ensemble.step()
        ensemble.evaluate(goes_on=True)

    return Contender(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(ROUNDS))
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    keep_freed_memory()
    tables = {}
    for preset in args.presets.split(","):
        every = Experiment.preset(preset).schedule.eval_every
        contenders = {name: stretch(preset, name) for name in (NONE, *PROBES)}
        tables[f"{preset}: {every} steps and an evaluation"] = interleave(
            contenders, baseline=NONE, rounds=ROUNDS[preset]
        )
    report("Probes", tables, args.out)


if __name__ == "__main__":
    main()
