"""`grokfast doctor`: what is here."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from grokfast.cli.common import output


def doctor() -> Callable[[], int]:
    """Say what this machine has, which implementation each operation will use here and why, and what probes cost."""
    return _doctor


def _doctor() -> int:
    from grokfast import Experiment
    from grokfast import doctor as report

    console = output()
    table = Table.grid(padding=(0, 2))
    for what, found in report.machine():
        table.add_row(what, found)
    console.print(table)
    console.print()
    table = Table("operation", "where", "implementation", box=None, pad_edge=False)
    for row in report.operations():
        table.add_row(*row)
    console.print(table)
    console.print()
    intervals = (f"{name}, every {Experiment.preset(name).schedule.eval_every} steps" for name in report.PROBED)
    table = Table("probe: × time, a thread of this CPU", *intervals, box=None, pad_edge=False)
    for costs in report.probe_costs():
        table.add_row(*costs)
    console.print(table)
    return 0
