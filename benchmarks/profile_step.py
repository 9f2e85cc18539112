"""Where a replayed training step's time goes on a GPU: each kernel's time and the gaps, beside what is counted of it.

python -m benchmarks.profile_step [--names nanda power] [--models 1 256] [--products tf32] [--steps 20] [--seconds N]
                                  [--out DIR]

A stretch of steps is replayed from its CUDA graph under torch.profiler. A launch that `benchmarks.predict_step` knows
stands with the bytes and operations counted for it, the rates that it reached, the least time that it can take, and,
where its instructions are counted, how many of four in a cycle were issued; the others, with their names. "gaps" are
the times between kernels, which the profiler may lengthen: "step" is the time with it, "step, not profiled" that
without. No section is begun after `--seconds`. DIR gets a gpu-profile-NAME.json of each configuration.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.interleave import machine, write
from benchmarks.predict_step import PRECISIONS, configurations, predicted
from benchmarks.prediction.devices import DEVICES, H200
from benchmarks.prediction.timing import Time
from grokfast import Experiment, checks
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay

NAMES = ("nanda", "power", "p = 97 MLP")
LAST = "update_kernel"  # of a step
# A second start of CUPTI can crash where there are CUDA graphs.
CUPTI = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}
WARM = 4  # stretches: two kinds of them, each called and then captured


class Event(NamedTuple):
    """Something the GPU did, in microseconds."""

    name: str
    begin: float
    end: float


def events_of(trace: dict[str, Any]) -> list[Event]:
    """What a trace of torch.profiler has of the GPU, in order."""
    found = [
        Event(event["name"], float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    return sorted(found, key=lambda event: event.begin)


def in_steps(events: Sequence[Event], last: str = LAST) -> list[list[Event]]:
    """The usual steps, of the same kernels in the same order; each begins with the last event of the one before.

    Others, which an evaluation stands before, are left out. Raises ValueError where there is no step.
    """
    ends = [i for i, event in enumerate(events) if event.name.startswith(last)]
    steps = [list(events[begin : end + 1]) for begin, end in pairwise(ends)]
    kinds = [tuple(event.name for event in step) for step in steps]
    if not kinds:
        raise ValueError(f"the profiler saw {len(events)} kernels, and no two that are {last}")
    usual = Counter(kinds).most_common(1)[0][0]
    return [step for step, kind in zip(steps, kinds) if kind == usual]


def match(names: Sequence[str], found: Sequence[Time]) -> dict[int, Time]:
    """Which kernel of a step belongs to which launch, in their order; torch's own go to launches without a name."""
    known = tuple(one.launch.kernel for one in found if one.launch.kernel)
    own = {i for i, name in enumerate(names) if name.startswith(known)}
    matched: dict[int, Time] = {}
    for one in found:
        of = one.launch.kernel
        mine = (i for i, name in enumerate(names) if (name.startswith(of) if of else i not in own) and i not in matched)
        matched |= dict.fromkeys(islice(mine, one.launch.count), one)
    return matched


def table(events: Sequence[Event], found: Sequence[Time]) -> list[dict[str, Any]]:
    """Rows of a step: its launches in their order, gaps, and the whole. Medians over the steps; of gaps their sum."""
    steps = in_steps(events)
    names = [event.name for event in steps[0][1:]]
    lengths = [statistics.median(step[i].end - step[i].begin for step in steps) for i in range(1, len(names) + 1)]
    gaps = [statistics.median(step[i].begin - step[i - 1].end for step in steps) for i in range(1, len(names) + 1)]
    whole = statistics.median(step[-1].end - step[0].end for step in steps)
    matched = match(names, found)
    rows: dict[str, dict[str, Any]] = {}
    for i, (name, length) in enumerate(zip(names, lengths)):
        one = matched.get(i)
        key = short(name) if one is None else one.launch.name
        row = rows.setdefault(key, {"name": key, "kernel": short(name), "calls": 0, "median_us": 0.0})
        row["calls"] += 1
        row["median_us"] += length
        if one is not None:
            row |= {
                "MB_asked": one.launch.bytes / 1e6, "MB_of_memory": one.memory / 1e6,
                "GFLOP": one.launch.flops / 1e9, "programs": one.launch.programs,
                "at_least_us": one.seconds * 1e6, "bound": one.bound, "issue_us": one.issuing * 1e6,
            }  # fmt: skip
    for row in rows.values():
        row["share"] = row["median_us"] / whole
        if "MB_asked" in row and row["median_us"]:
            row["asked_TB_per_s"] = row["MB_asked"] / row["median_us"]
            row["memory_TB_per_s"] = row["MB_of_memory"] / row["median_us"]
            row["TFLOP_per_s"] = row["GFLOP"] / row["median_us"] * 1e3
        if row.get("issue_us"):
            row["issued_of_4"] = 4 * row["issue_us"] / row["median_us"]
    gap = {"name": "gaps", "calls": len(gaps), "median_us": sum(gaps), "median_gap_us": statistics.median(gaps)}
    missing = [each.launch.name for each in found if each.launch.name not in rows]
    step = {
        "name": "step", "calls": len(steps), "median_us": whole, "share": 1.0, "not_seen": missing,
        "at_least_us": sum(each.seconds for each in found) * 1e6,
    }  # fmt: skip
    return [_rounded(row) for row in (*rows.values(), gap | {"share": sum(gaps) / whole}, step)]


def short(kernel: str) -> str:
    """A kernel's name without its template's arguments and its own."""
    return re.sub(r"[<(].*", "", kernel.removeprefix("void ")) or kernel


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def stretch(experiment: Experiment, models: int, products: str, steps: int) -> Callable[[], Any]:
    """What replays so many steps and an evaluation, and waits for them; captured already."""
    schedule = {"schedule.eval_every": steps, "schedule.steps": 10**7, "schedule.stop_after": None}
    base = experiment.override({"device": "cuda", "products": products, **schedule})
    seeds = [base.override({"seed": seed}) for seed in range(models)]
    replay = Replay(Ensemble(seeds), [Outcome(one.criteria) for one in seeds])

    def run() -> None:
        replay.launch().read()

    for _ in range(WARM):
        run()
    return run


def profiled(run: Callable[[], Any]) -> list[Event]:
    """What the GPU does in one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return events_of(json.loads(path.read_text()))


def section(name: str, models: int, products: str, steps: int) -> list[dict[str, Any]]:
    """Rows of one number of models."""
    ceilings = next((one for known, one in DEVICES.items() if known in machine().get("gpu", "")), H200)
    found, _ = predicted(name, models, products, ceilings)
    run = stretch(configurations()[name], models, products, steps)
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        run()
        taken.append((time.perf_counter() - begin) / steps * 1e6)
    unprofiled = {"name": "step, not profiled", "calls": 3 * steps, "median_us": statistics.median(taken)}
    return [*table(profiled(run), found), _rounded(unprofiled)]


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """As text."""
    head = f"  {'':<34} {'calls':>5} {'µs':>9} {'share':>6} {'at least':>9} {'TB/s asked':>10} {'memory':>7}"
    yield f"{head} {'TFLOP/s':>8} {'of 4':>5}"
    for row in rows:
        cells = [f"{row['share']:>6.0%}" if "share" in row else f"{'':>6}"]
        for name, width, digits in (
            ("at_least_us", 9, 1), ("asked_TB_per_s", 10, 2), ("memory_TB_per_s", 7, 2), ("TFLOP_per_s", 8, 1),
            ("issued_of_4", 5, 2),
        ):  # fmt: skip
            cells.append(f"{row[name]:>{width}.{digits}f}" if name in row else " " * width)
        bound = f"  {row['bound']}" if "bound" in row else ""
        yield f"  {row['name'][:34]:<34} {row['calls']:>5} {row['median_us']:>9.1f} {' '.join(cells)}{bound}".rstrip()
        if row.get("not_seen"):
            yield f"  not seen: {', '.join(row['not_seen'])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=configurations(), default=list(NAMES))
    parser.add_argument("--models", type=int, nargs="+", default=[1, 256], help="sizes of the ensembles")
    parser.add_argument("--products", choices=PRECISIONS, default="tf32")
    parser.add_argument("--steps", type=int, default=20, help="in a stretch")
    parser.add_argument("--seconds", type=float, default=600, help="begin no further section after these")
    parser.add_argument("--out", type=Path, help="folder for the results as JSON")
    args = parser.parse_args()
    checks.integer("--steps", args.steps, minimum=3)
    for count in args.models:
        checks.integer("--models", count, minimum=1)
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    for name, value in CUPTI.items():
        os.environ.setdefault(name, value)
    profiled(lambda: torch.zeros(1, device="cuda"))  # before any graph is captured, or its kernels may not be seen
    begun, failed = time.monotonic(), 0
    sections: dict[str, dict[str, Any]] = {name: {} for name in args.names}
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    for models in args.models:
        for name in args.names:
            title = f"{'one model' if models == 1 else f'{models} models'}, {args.products}"
            if time.monotonic() - begun > args.seconds:
                print(f"{name}, {title}: left out, no time", flush=True)
                continue
            try:
                rows = section(name, models, args.products, args.steps)
            except Exception as error:  # no CUPTI, no memory, a compiler's: the others are profiled all the same
                print(f"{name}, {title}: left out, {type(error).__name__}: {error}", flush=True)
                failed += 1
                continue
            finally:
                gc.collect()
                torch.cuda.empty_cache()
            sections[name][title] = rows
            print(f"{name}, {title}", *lines(rows), sep="\n", flush=True)
            if args.out is not None:
                file = re.sub(r"\W+", "-", name).lower()
                write(f"{name} profile", sections[name], args.out / f"gpu-profile-{file}.json")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
