"""Tables of runs for the tests of statistics and pictures."""

from __future__ import annotations


def table(*rows, **columns):
    """A table of finished runs. A row is (t_memorize, t_generalize, steps) and perhaps a status; columns are added."""
    made = {name: [] for name in ("status", "phase", "t_memorize", "t_generalize", "steps", "collapsed")}
    for t_memorize, t_generalize, steps, *rest in rows:
        if t_memorize is None:
            phase = "confusion"
        elif t_generalize is None:
            phase = "memorization"
        else:
            phase = "grokking" if t_generalize - t_memorize >= 1000 else "comprehension"
        values = (rest[0] if rest else "finished", phase, t_memorize, t_generalize, steps, False)
        for column, value in zip(made.values(), values):
            column.append(value)
    return made | {name.replace("__", "."): list(values) for name, values in columns.items()}


GROKKED, MEMORIZED, CONFUSED = (60, 2000, 2100), (60, None, 10_000), (None, None, 10_000)
COMPREHENDED, DIVERGED = (60, 500, 600), (None, None, 300, "diverged")
FAILED, RUNNING = (None, None, 50, "failed"), (60, None, 70, "running")
