"""What of a comparison lies beside its runs in the store: the command, what was measured of it, and its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokfast import checks
from grokfast.comparison.costs import Cost
from grokfast.comparison.page import markdown
from grokfast.comparison.record import from_dict, to_dict
from grokfast.comparison.result import TaskResult
from grokfast.store.files import write_atomic
from grokfast.store.places import Places, is_id
from grokfast.text import command, one_line
from grokfast.training.machine import machine

COMMAND, RECORD = "command.json", "compare.json"


@dataclass(frozen=True)
class Kept:
    """The folder `name` of the store at `root`, and where results go: there, or `to`, and what is found in both."""

    name: str
    root: Path
    to: Path | None = None

    @property
    def folder(self) -> Path:
        return Places(self.root).folder(self.name)

    @property
    def results(self) -> Path:
        return self.folder if self.to is None else self.to

    def begin(self, words: Sequence[str]) -> None:
        """Keep the words of the command, to be resumed by name."""
        for folder in (self.folder, self.results):
            folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / COMMAND, [*words])

    def words(self) -> list[str]:
        """Those of the command. Raises ValueError, with the nearest name, where there is no such comparison."""
        path = self.folder / COMMAND
        if not path.exists():
            there = [found.parent.name for found in sorted(self.root.glob(f"*/{COMMAND}"))]
            raise ValueError(f"{self.root} has no comparison {self.name!r}{checks.nearest(self.name, there)}")
        return [str(word) for word in json.loads(path.read_text())]

    def costs(self, task: str) -> dict[str, Cost] | None:
        """What was measured before, so that the same command says the same; None where that was not."""
        path = self._costs(task)
        if not path.exists():
            return None
        return {name: Cost(**own) for name, own in json.loads(path.read_text()).items()}

    def keep_costs(self, task: TaskResult) -> None:
        _write(self._costs(task.name), {one.name: one.cost.to_dict() for one in task.arms if one.cost is not None})

    def keep(self, tasks: Sequence[TaskResult], drawn: Mapping[str, Mapping[str, Path]], said: str) -> dict[str, Any]:
        """Write what is known so far as compare.json and compare.md, with the command as it was `said`, and the
        pictures that are `drawn` of each task; returns the first."""
        found = [
            {**to_dict(task), "pictures": {what: str(path) for what, path in drawn[task.name].items()}}
            for task in tasks
        ]
        whole = {"comparison": self.name, "command": said, "machine": machine(), "tasks": found}
        for folder in dict.fromkeys((self.folder, self.results)):
            _write(folder / RECORD, whole)
        write_atomic(self.results / "compare.md", markdown(tasks, drawn, said).encode())
        return whole

    def record(self) -> Path:
        """What is found, as JSON. Raises ValueError where that is nothing yet, or as `words`."""
        self.words()
        if not (path := self.folder / RECORD).exists():
            again = command("grokfast", "compare", "--resume", self.name)
            raise ValueError(f"comparison {self.name} has found nothing yet; go on with: {again}")
        return path

    def _costs(self, task: str) -> Path:
        return self.folder / f"{task}_costs.json"


def recorded(which: str, root: Path) -> Path | None:
    """The JSON file of a comparison: which is its id in the store at `root`, its folder, or that file; None where it
    names none of these. Raises ValueError or OSError where it has found nothing yet, or is not there."""
    path = Path(which)
    if path.suffix == ".json" or len(path.parts) > 1:
        return path / RECORD if path.is_dir() else path
    if (path / RECORD).exists():
        return path / RECORD
    if not is_id(which):
        return None
    kept = Kept(which, root)
    is_comparison = (kept.folder / COMMAND).exists() or (which.startswith("compare-") and not kept.folder.exists())
    return kept.record() if is_comparison else None


def read(path: Path) -> dict[str, Any]:
    """What `Kept.keep` wrote, its "tasks" as `TaskResult`. Raises ValueError where it did not, OSError."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be the JSON that grokfast compare writes: {one_line(error)}") from error
    if not isinstance(whole, dict) or not {"comparison", "command", "machine", "tasks"} <= {*whole}:
        raise ValueError(f"{path} must be the JSON that grokfast compare writes: it has no tasks of a comparison")
    return {**whole, "tasks": [from_dict(task) for task in whole["tasks"]]}


def _write(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())
