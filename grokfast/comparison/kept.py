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
from grokfast.comparison.record import to_dict
from grokfast.comparison.result import TaskResult
from grokfast.store.files import write_atomic
from grokfast.store.places import Places
from grokfast.training.machine import machine

COMMAND = "command.json"


@dataclass(frozen=True)
class Kept:
    """The folder `name` of the store at `root`, and where results go: there, or `to`."""

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

    def keep(
        self, tasks: Sequence[TaskResult], drawn: Mapping[str, Mapping[str, Path]], command: str
    ) -> dict[str, Any]:
        """Write what is known so far as compare.json and compare.md, with the pictures that are `drawn` of each task;
        returns the first."""
        found = [
            {**to_dict(task), "pictures": {what: str(path) for what, path in drawn[task.name].items()}}
            for task in tasks
        ]
        whole = {"comparison": self.name, "command": command, "machine": machine(), "tasks": found}
        _write(self.results / "compare.json", whole)
        write_atomic(self.results / "compare.md", markdown(tasks, drawn, command).encode())
        return whole

    def _costs(self, task: str) -> Path:
        return self.folder / f"{task}_costs.json"


def _write(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())
