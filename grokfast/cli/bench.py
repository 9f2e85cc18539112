"""`grokfast bench`: this machine's times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from grokfast import checks
from grokfast.cli.common import Screen


def bench(models: int = 1, seconds: float = 0.2) -> Callable[[], int]:
    """Time the fused operations on this machine, against eager and compiled PyTorch.

    Args:
        models: size of the ensemble.
        seconds: spent on each figure.
    """
    checks.integer("--models", models, minimum=1)
    checks.real("--seconds", seconds, minimum=0, maximum=3600, open_minimum=True)
    return partial(_bench, models, seconds)


def _bench(models: int, seconds: float) -> int:
    import torch

    from grokfast.bench import measure

    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Screen()
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"{name}, torch {torch.__version__}, {models} model{'s' if models > 1 else ''}")
    figures: dict[str, dict[str, float | str]] = {}
    with console.status("measuring"):
        for what, how, found in measure(models, device, seconds):
            figures.setdefault(what, {})[how] = found
    for what, rows in figures.items():
        times = {how: found for how, found in rows.items() if isinstance(found, float)}
        table = Table("", "ms", "", "", box=None, pad_edge=False, show_header=False, title=what, title_justify="left")
        for how, found in rows.items():
            if isinstance(found, str):
                table.add_row(how, "", "", Text(found, overflow="ellipsis", no_wrap=True))
            else:
                ratio = f"{times['eager'] / found:.2f} × as fast" if "eager" in times else ""
                bar = Bar(max(times.values()), 0, found, width=30, color="cyan")
                table.add_row(how, f"{1e3 * found:.3f} ms", bar, ratio)
        console.print()
        console.print(table)
    return 0
