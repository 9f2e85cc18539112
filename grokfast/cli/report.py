"""`grokfast report`: a run, a sweep or a comparison as one page."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from grokfast import checks
from grokfast.cli.common import UsageError, output
from grokfast.comparison.kept import read, recorded
from grokfast.store import RunStore
from grokfast.store.files import write_atomic
from grokfast.store.places import Places
from grokfast.units import memory

NAME = "report.html"  # in the directory of the run or the sweep


def report(
    which: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|SWEEP|COMPARISON")],
    at: int | None = None,
    to: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    out: Path = Path("runs"),
) -> Callable[[], int]:
    """Make one HTML page of a run, sweep or comparison, which needs nothing else: what happened, what is inside.

    Args:
        which: id of a run that has ended, of a sweep, or of a comparison; or the folder, or JSON file, of this.
        at: the run as it was after this step, of which there is a snapshot.
        to: the file; default report.html where the run, the sweep or the comparison lies, report-STEP.html with --at.
        out: directory of the run store.
    """
    if at is not None:
        checks.integer("--at", at, minimum=0)
    return partial(_report, which, at, to, out)


def _report(which: str, at: int | None, to: Path | None, out: Path) -> int:
    if (record := recorded(which, out)) is not None:
        if at is not None:
            raise UsageError(f"--at is of a run, {which} is a comparison")
        return _write(_page_of("comparison")(read(record)), to or record.with_name(NAME))
    with RunStore(out, create=False, read_only=True) as store:
        is_sweep = store.sweeps.has(which)
        if is_sweep and at is not None:
            raise UsageError(f"--at is of a run, {which} is a sweep")
        page = _page_of("sweep" if is_sweep else "run")
        html = page(store, which) if is_sweep else page(store, which, at)
        path = to or Places(store.root).file(which, NAME if at is None else f"report-{at}.html")
    if to is None:
        path.parent.mkdir(exist_ok=True)
    return _write(html, path)


def _write(html: str, path: Path) -> int:
    data = html.encode()
    write_atomic(path.resolve(), data)
    output().say(f"{path} ({memory(len(data))})")
    return 0


def _page_of(kind: str) -> Callable[..., Any]:
    """What makes the page: report.run.page(store, run_id, at), report.sweep.page(store, sweep_id),
    report.comparison.page(record)."""
    found: Callable[..., Any] = importlib.import_module(f"grokfast.report.{kind}").page
    return found
