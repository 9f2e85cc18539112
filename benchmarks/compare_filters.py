"""Grokfast's published speed-up (Lee et al., arXiv 2405.20233), and what there is of it beside tuned AdamW.

python -m benchmarks.compare_filters FOUND [--store DIR] [--picture FILE] [--out FILE]

FOUND is the compare.json, or its folder, of

    grokfast compare grokfast --arms paper-ema,paper-ma,ema,ma --budget 12 --tuning-seeds 2 --seeds 4 --steps 1500

The paper's baseline, Adam without decay, takes longer; its runs are those in the store, of any seed, of

    grokfast run grokfast --filter none --optimizer.weight-decay 0 --schedule.stop-after 0 --steps 42000 --seed 0

as far as they have come: one that is under way, or was interrupted, is censored there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import Experiment, RunStore
from grokfast.analysis import MedianTime, Ratio, median_time
from grokfast.analysis.times import followed_times
from grokfast.comparison import BASE, PUBLISHED, TaskResult
from grokfast.comparison.kept import read, recorded
from grokfast.comparison.record import finite
from grokfast.plots import Beside, plot_published
from grokfast.store import StoreError
from grokfast.store.records import records_of
from grokfast.training.machine import machine
from grokfast.training.outcome import Outcome
from grokfast.training.result import stored_experiment

STEPS = {PUBLISHED: 39_890, "paper-ema": 910, "paper-ma": 790}  # to 95% of the test set, one seed each
NAMES = {
    PUBLISHED: "Adam, no decay", "paper-ema": "Grokfast-EMA, as published", "paper-ma": "Grokfast-MA, as published",
    BASE: "AdamW, tuned", "ema": "AdamW and EMA, tuned", "ma": "AdamW and MA, tuned",
}  # fmt: skip
GROUPS = {
    "against Adam without decay, the paper's baseline": (PUBLISHED, "paper-ema", "paper-ma"),
    "against AdamW, tuned with the same budget": (BASE, "ema", "ma", "paper-ema", "paper-ma"),
}
ANY = {  # what two runs of the baseline may have otherwise
    "seed": 0, "device": "auto", "schedule.steps": 1, "schedule.stop_after": None, "schedule.patience": None,
    "schedule.snapshots": None, "schedule.full_snapshots": False,
}  # fmt: skip
Runs = dict[int, tuple[float, bool]]  # by seed: how far it was followed, and whether it generalised then


def finals(task: TaskResult, arm: str) -> Runs:
    """The final runs of an arm."""
    rows = [i for i, own in enumerate(task.table["arm"]) if own == arm]
    crossing, steps = (
        np.array([task.table[name][i] for i in rows], dtype=np.float64) for name in ("t_generalize", "steps")
    )
    diverged = np.array([task.table["status"][i] == "diverged" for i in rows], dtype=bool)
    times = zip(*(own.tolist() for own in followed_times(crossing, steps, diverged)))
    return dict(zip((int(task.table["seed"][i]) for i in rows), times))


def long_runs(root: Path, baseline: Experiment) -> Runs:
    """The baseline's runs of a store that were to go on for longer than the comparison's; of a seed the farthest."""
    found: Runs = {}
    with RunStore(root, create=False, read_only=True) as store:
        for stored in store.list():
            experiment = None
            with suppress(StoreError):  # of another version, or with a part of one's own
                experiment = stored_experiment(stored)
            if experiment is None or experiment.schedule.steps <= baseline.schedule.steps:
                continue
            if experiment.override(ANY) != baseline.override(ANY):
                continue
            outcome, step = Outcome(experiment.criteria), 0
            for record in records_of(store.curves(stored.run_id)):
                outcome.update(record)
                step = record.step
            time = outcome.t_generalize
            own = (step, False) if time is None else (time, True)
            if step and (own[1], own[0]) >= found.get(experiment.seed, (0, False))[::-1]:
                found[experiment.seed] = own
    return found


def quotient(base: MedianTime, arm: MedianTime) -> Ratio:
    """How many times sooner, by the medians alone: the two have other seeds, and the baseline few."""
    bound = min(base.median, base.followed) / min(arm.median, arm.followed)
    value = math.nan
    if base.reached or arm.reached:
        value = base.median / arm.median
    return Ratio(value=value, low=math.nan, high=math.nan, bound=bound, n=0, pairs=0)


def table(task: TaskResult, root: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Of each group its arms: the runs, the median, and the speed-ups, published and found."""
    own = {one.name: one for one in task.arms}
    if missing := [name for name in NAMES if name not in own]:
        raise ValueError(f"FOUND must have the arms {', '.join(NAMES)}; {task.name} is without {', '.join(missing)}")
    runs = {name: finals(task, name) for name in NAMES}
    if root is not None and (longer := long_runs(root, own[PUBLISHED].entry.untuned)):
        runs[PUBLISHED] = longer
    times = {name: median_time(*zip(*sorted(found.values()))) for name, found in runs.items()}
    return {
        group: [
            {
                "arm": name,
                "name": NAMES[name],
                "published": STEPS.get(name) if base == PUBLISHED else None,
                "published_speedup": STEPS[PUBLISHED] / STEPS[name] if base == PUBLISHED != name else None,
                "time": times[name],
                "speedup": None if name == base
                else own[name].speedup if base == BASE
                else quotient(times[base], times[name]),
                "runs": runs[name],
            }
            for name in (base, *others)
        ]
        for group, (base, *others) in GROUPS.items()
    }  # fmt: skip


def note(row: Mapping[str, Any]) -> str:
    """What stands beside a row of the picture."""
    if row["speedup"] is None:
        return f"{row['time'].observed} of {row['time'].n} seeds"
    claimed = "" if row["published_speedup"] is None else f"published {row['published_speedup']:.1f} ×, here "
    return f"{claimed}{row['speedup']} ×"


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON values."""
    time, ratio = row["time"], row["speedup"]
    return {
        **{name: row[name] for name in ("arm", "name", "published", "published_speedup")},
        "median": [finite(step) for step in (time.median, time.low, time.high)],
        "generalized": [time.observed, time.n],
        "speedup": None if ratio is None else [finite(own) for own in (ratio.value, ratio.low, ratio.high)],
        "said": note(row),
        "seeds": [
            {"seed": seed, "step": step, "generalized": own} for seed, (step, own) in sorted(row["runs"].items())
        ],
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path)
    parser.add_argument("--store", type=Path, help="where long runs of the paper's baseline are")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path, help="write the table there as JSON")
    arguments = parser.parse_args(words)
    path = recorded(str(arguments.found), arguments.store or Path("runs"))
    if path is None:
        raise ValueError(f"FOUND must be a comparison, its folder or its JSON, got {str(arguments.found)!r}")
    whole = read(path)
    task = whole["tasks"][0]
    groups, threshold = table(task, arguments.store), task.contest.experiment.criteria.threshold
    for group, rows in groups.items():
        print(group)
        for row in rows:
            claim = "" if row["published"] is None else f"published {row['published']:,}"
            print(f"  {row['name']:<28}{claim:<18}{row['time']!s:<24}{note(row)}")
    title = "x · y mod 97, 2-layer decoder: what Grokfast's paper has, and what is found"
    if arguments.picture:
        drawn = {
            group: [
                Beside(
                    name=row["name"], time=row["time"], runs=[*row["runs"].values()], published=row["published"],
                    note=note(row),
                )
                for row in rows
            ]
            for group, rows in groups.items()
        }  # fmt: skip
        plot_published(drawn, arguments.picture, title=title, threshold=threshold)
    if arguments.out:
        result = {
            "title": title,
            "threshold": threshold,
            "machine": machine(),
            "comparison": {name: whole[name] for name in ("comparison", "command", "machine")},
            "groups": {group: [plain(row) for row in rows] for group, rows in groups.items()},
        }
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
