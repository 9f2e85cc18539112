"""A runner without workers: one group after the other, here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grokfast.sweeps.runner import Group, Report
from grokfast.sweeps.worker import train_group


class InProcess:
    """Trains in the process and the thread that call it."""

    workers = 1

    def where(self) -> str:
        return "this process"

    def run(self, groups: Sequence[Group], root: Path, report: Report) -> None:
        for group in groups:
            train_group(group, root, report)
