"""`Trial`: a reproduction here, from its sweeps to its verdict, picture and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokfast import checks
from grokfast.reproductions.base import Reproduction, Version
from grokfast.reproductions.findings import Finding, Summary
from grokfast.reproductions.names import named
from grokfast.store.files import write_atomic
from grokfast.sweeps import PlannedSweep, Runner, SweepObserver, SweepResult, plan
from grokfast.sweeps.estimate import estimate
from grokfast.training.ensemble import resolve_device
from grokfast.training.machine import machine

FOLDER = "reproductions"  # of the store's directory


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out: the findings, the verdict on all of them, and where JSON and picture are."""

    name: str
    findings: Sequence[Finding]
    summary: Summary
    record: dict[str, Any]
    path: Path
    picture: Path


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One reproduction in the store at `root`. seeds: of every arm; None: as many as each has.

    Its runs are stored sweeps, one for each arm: what is there is not trained again, what was interrupted goes on.
    """

    reproduction: Reproduction
    root: Path
    seeds: int | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        checks.Fields(self).integer("seeds", minimum=2, optional=True)

    @property
    def version(self) -> Version:
        which = self.reproduction.quick if self.quick else self.reproduction.full
        return which.with_seeds(self.seeds)

    @property
    def path(self) -> Path:
        """Of the JSON."""
        return _path(self.root, self.reproduction.name, self.quick)

    def seconds(self, workers: int) -> float:
        """About how long the training takes on so many workers, from nothing, measured for a moment on each arm."""
        total = 0.0
        for arm in self.version.arms.values():
            device = resolve_device(arm.experiment.device).type
            step = estimate([arm.experiment.override({"device": device})], device).seconds_per_step
            runs = arm.seeds * math.prod(map(len, arm.axes.values()))
            total += step * arm.experiment.schedule.steps * -(-runs // workers)
        return total

    def plans(self, runner: Runner | None = None) -> Iterator[tuple[str, PlannedSweep]]:
        """The sweep of each arm, stored when its turn comes."""
        for name, arm in self.version.arms.items():
            yield name, plan(arm.experiment, dict(arm.axes), seeds=arm.seeds, store=self.root, runner=runner)

    def conclude(self, results: dict[str, SweepResult]) -> Outcome:
        """Compare the trained sweeps, by arm, with what was published; write JSON and picture.

        Raises ValueError where a run of an arm has failed.
        """
        from grokfast.plots import plot_findings

        reproduction, version = self.reproduction, self.version
        for name, result in results.items():
            if result.errors:
                raise ValueError(f"arm {name!r} has runs that failed: {'; '.join(result.errors.values())}")
        runs = {name: [*result.runs] for name, result in results.items()}
        findings = version.compare(runs)
        summary = Summary(findings)
        record: dict[str, Any] = {
            "title": f"{reproduction.title} ({reproduction.paper})",
            "name": reproduction.name,
            "quick": self.quick,
            "command": self.command,
            "machine": machine(),
            "expectation": version.expectation,
            "verdict": summary.verdict,
            "summary": str(summary),
            "arms": {
                name: {
                    "preset": arm.experiment.name,
                    "differs": arm.differences(),
                    **({"axes": {axis: [*values] for axis, values in arm.axes.items()}} if arm.axes else {}),
                    "seeds": [*dict.fromkeys(run.experiment.seed for run in runs[name])],
                    "seconds": round(sum(run.seconds for run in runs[name]), 1),
                }
                for name, arm in version.arms.items()
            },
            "findings": [found.plain() for found in findings],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, ensure_ascii=False)
        write_atomic(self.path, f"{text}\n".encode())
        picture = self.path.with_suffix(".png")
        plot_findings(findings, picture, title=f"{reproduction.title}\n{reproduction.paper}")
        return Outcome(
            name=reproduction.name, findings=findings, summary=summary, record=record, path=self.path, picture=picture
        )

    @property
    def command(self) -> str:
        """What does it again."""
        words = ["grokfast", "reproduce", self.reproduction.name]
        words += ["--quick"] if self.quick else []
        words += [] if self.seeds is None else ["--seeds", str(self.seeds)]
        return " ".join(words)


def reproduce(
    name: str,
    *,
    seeds: int | None = None,
    quick: bool = False,
    store: str | Path = "runs",
    runner: Runner | None = None,
    observers: Sequence[SweepObserver] = (),
) -> Outcome:
    """Train what a paper trained, and say whether its figures come out: `grokfast reproduce NAME`.

    seeds: of every arm, at least 2; None: as many as each has. quick: the version of two minutes at most, with an
    expectation of its own. runner, observers: see `sweep`, which also says what is raised; ValueError for an unknown
    name, with the nearest.
    """
    trial = Trial(reproduction=named(name), root=Path(store), seeds=seeds, quick=quick)
    return trial.conclude({arm: planned.train(observers) for arm, planned in trial.plans(runner)})


def last_verdict(name: str, root: Path) -> str:
    """What was found last in the store at `root`, in full if it was, and when; empty where nothing was."""
    for quick in (False, True):
        path = _path(root, name, quick)
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            return f"{found['summary']}{' (quick)' if quick else ''}, {found['machine']['date']}"
    return ""


def _path(root: Path, name: str, quick: bool) -> Path:
    return root / FOLDER / f"{name}{'-quick' if quick else ''}.json"
