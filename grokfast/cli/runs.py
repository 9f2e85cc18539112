"""`grokfast list`, `show`, `rm` and `export`: what is in the store."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TextIO

import numpy as np
import tyro
from rich.prompt import Confirm
from rich.table import Column, Table
from rich.text import Text

from grokfast import checks
from grokfast.cli.common import Screen, UsageError, output
from grokfast.store import RunStore, StoredRun, StoredSweep
from grokfast.store.files import replacing
from grokfast.store.run import DONE
from grokfast.store.words import written
from grokfast.text import cell, command, shown
from grokfast.units import memory

Format = Literal["csv", "parquet"]
STDOUT = Path("-")
MOST = 1_000_000_000  # that --limit may be
ENDS = 5  # values of an axis that are said at either end, where there are many


Id = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]


def list_runs(
    status: str | None = None,
    preset: str | None = None,
    sweep: str | None = None,
    limit: int = 50,
    out: Path = Path("runs"),
) -> Callable[[], int]:
    """List sweeps and runs, the newest first, and the size of the store.

    Args:
        status: only runs that are pending, running, interrupted, finished, diverged or failed.
        preset: only runs of this preset.
        sweep: only the runs of this sweep.
        limit: how many at most.
        out: directory of the run store.
    """
    checks.integer("--limit", limit, minimum=1, maximum=MOST)
    return partial(_list, status, preset, sweep, limit, out)


def _list(status: str | None, preset: str | None, sweep: str | None, limit: int, out: Path) -> int:
    console = output()
    with RunStore(out, create=False, read_only=True) as store:
        if status is None and sweep is None:
            sweeps = [found for found in store.sweeps.list() if preset in (None, found.preset)]
            table = Table(_ids("sweep", sweeps[:limit]), "begun", "runs", "", box=None, pad_edge=False)
            for found in sweeps[:limit]:
                table.add_row(found.sweep_id, _time(found.created), f"{found.n_runs:,}", _counts(found))
            if sweeps:
                console.print(table)
                console.print()
        runs = store.list(status=status, preset=preset, sweep_id=sweep, limit=limit + 1)
        names = ("begun", "status", "phase", "memorised", "generalised")
        columns = [_ids("run", runs[:limit]), *(Column(name, no_wrap=True) for name in names)]
        table = Table(*columns, box=None, pad_edge=False)
        for run in runs[:limit]:
            result = run.result or {}
            times = (_number(result.get(name)) for name in ("t_memorize", "t_generalize"))
            table.add_row(run.run_id, _time(run.created), run.status, result.get("phase", ""), *times)
        console.print(table)
        if len(runs) > limit:
            console.print(f"... and more: --limit {10 * limit}")
        console.say(f"{memory(store.size())} in {store.root}")
    return 0


def _ids(name: str, items: Sequence[StoredRun | StoredSweep]) -> Column:
    """A column that is never cut off: ids are there to be copied."""
    ids = [item.run_id if isinstance(item, StoredRun) else item.sweep_id for item in items]
    return Column(name, no_wrap=True, min_width=max((len(shown(own)) for own in ids), default=0))


def show(
    which: Id,
    at: int | None = None,
    out: Path = Path("runs"),
    json: bool = False,
    picture: bool = False,
    config: bool = False,
) -> Callable[[], int]:
    """Say what a run or a sweep is, and what happened in it.

    Args:
        which: id of a run or a sweep.
        at: the run as it was after this step, of which there is a snapshot.
        out: directory of the run store.
        json: as one JSON object.
        picture: draw the run's curves again, as far as they go, and its data; a sweep's pictures are drawn anyway.
        config: also its configuration, of a sweep the base's; --json has it anyway.
    """
    if at is not None:
        checks.integer("--at", at, minimum=0)
        return partial(_show_snapshot, which, at, out, json, config)
    return partial(_show, which, out, json, picture, config)


def _show_snapshot(which: str, step: int, out: Path, as_json: bool, config: bool) -> int:
    from grokfast.training.result import snapshots_of, stored_snapshot

    with RunStore(out, create=False, read_only=True) as store:
        found, is_full = stored_snapshot(store, which, step), snapshots_of(store, which)[step]
    shapes = {name: [*tensor.shape] for name, tensor in found.weights.items()}
    if as_json:
        print(json_module.dumps({**found.summary(), "full": is_full, "weights": shapes}))
        return 0
    console = output()
    console.say(f"{which} after step {step:,}: {found.sentence}", style="bold")
    table = _values({"step": found.final.step, **found.final.values})
    for name, tensor in found.weights.items():
        table.add_row(name, f"{shapes[name]}, norm {tensor.double().norm():.6g}")
    console.print(table)
    if is_full:
        console.say(f"It can be forked: {command('grokfast', 'branch', which, '--at', str(step))}")
    if config:
        console.print_json(data=found.experiment.to_dict(), ensure_ascii=True)
    return 0


def _show(which: str, out: Path, as_json: bool, picture: bool, config: bool) -> int:
    with RunStore(out, create=False, read_only=True) as store:
        if store.sweeps.has(which):
            return _show_sweep(store.sweeps.get(which), store.root, as_json, config)
        run = store.get(which)
        if as_json:
            print(json_module.dumps({"config": run.config, "status": run.status, "result": run.result}))
        else:
            _show_run(store, run, config)
        return _draw_run(store, run, Screen(stderr=True) if as_json else output()) if picture else 0


def _draw_run(store: RunStore, run: StoredRun, screen: Screen) -> int:
    """Draw its pictures; 1 where one cannot be drawn."""
    from grokfast.cli.pictures import draw_all
    from grokfast.training.result import stored_experiment

    curves = store.curves(run.run_id)
    return 0 if draw_all(stored_experiment(run), curves, run.directory, screen, has_ended=run.status in DONE) else 1


def _show_sweep(found: StoredSweep, root: Path, as_json: bool, config: bool) -> int:
    from grokfast.cli.sweep import report  # this and `_sentence` are all that needs torch
    from grokfast.sweeps import SweepResult

    screen, which, axes = Screen(stderr=True) if as_json else output(), found.sweep_id, found.axes
    result = SweepResult(sweep_id=which, root=root, axes=list(axes))
    words = {key: written(values, found.base.get(key), _fields(key, axes)) for key, values in axes.items()}
    varied = "; ".join(f"{key} {', '.join(_ends(of_key))}" for key, of_key in words.items())
    fork = f"forks of {origin}, " if (origin := found.base.get("origin")) else ""
    screen.say(f"{which}: {fork}{found.n_runs:,} runs, {_counts(found)}; {varied}")
    summary = report(result, screen)
    if as_json:
        print(json_module.dumps({**summary, "base": found.base, "grid": found.grid, "counts": found.counts}))
    elif config:
        screen.print_json(data=found.base, ensure_ascii=True)
    return 0


def _fields(key: str, axes: Iterable[str]) -> set[str]:
    """Those of a part that are axes themselves."""
    return {name.removeprefix(f"{key}.") for name in axes if name.startswith(f"{key}.")}


def _ends(words: list[str]) -> list[str]:
    """Of many only some."""
    return words if len(words) <= 2 * ENDS + 1 else [*words[:ENDS], "...", *words[-ENDS:]]


def _sentence(store: RunStore, run: StoredRun) -> str:
    """What happened in a run, if it has ended."""
    if run.status not in DONE:
        return ""
    from grokfast.training.result import stored_result

    return stored_result(store, run.run_id).sentence


def _show_run(store: RunStore, run: StoredRun, config: bool) -> None:
    """What happened, the curve, the last values, and where the rest is."""
    from grokfast.display.curve import curve

    console, curves = output(), store.curves(run.run_id)
    console.say(f"{run.run_id}: {_sentence(store, run) or run.status}", style="bold")
    for line in curve(curves):
        console.say(line)
    if len(curves["step"]):
        console.print(_values({name: column[-1] for name, column in curves.items()}))
    by = f"{run.status}, begun {_time(run.created)} with {run.version} on {run.device}"
    rows = {"run": by, "files": str(run.directory)}
    if origin := run.config.get("origin"):
        rows["forked from"] = str(origin)
    if snapshots := store.snapshots.of(run.run_id):
        full = sum(snapshots.values())
        which = "full" if full == len(snapshots) else f"{full:,} of them full" if full else "weights alone"
        rows["snapshots"] = f"{', '.join(_ends([*map(str, snapshots)]))} ({which})"
    pictures = sorted(run.directory.glob("*.png"))
    again = command("grokfast", "show", run.run_id)
    rows["pictures"] = ", ".join(map(str, pictures)) or f"none yet: {again} --picture"
    reports = sorted(run.directory.glob("report*.html"))
    make = command("grokfast", "report", run.run_id)
    rows["report"] = ", ".join(map(str, reports)) or f"none yet: {make}"
    if not config:
        rows["configuration"] = f"{again} --config"
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, soft_wrap=True)
    if config:
        console.print_json(data=run.config, ensure_ascii=True)


def _values(values: Mapping[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(name, f"{value:.6g}")
    return table


def remove(
    which: tyro.conf.Positional[tuple[str, ...]], out: Path = Path("runs"), yes: bool = False
) -> Callable[[], int]:
    """Delete runs and sweeps; of a sweep also its runs, unless another sweep has them, too.

    Args:
        which: ids of runs and sweeps.
        out: directory of the run store.
        yes: do not ask.
    """
    if not which:
        raise UsageError("rm needs the id of a run or a sweep (see grokfast list)")
    return partial(_remove, which, out, yes)


def _remove(which: tuple[str, ...], out: Path, yes: bool) -> int:
    console = output()
    with RunStore(out, create=False) as store:
        n = 0
        for one in which:  # all must be there before the first is deleted
            n += len(store.sweeps.own(one)) if store.sweeps.has(one) else store.has(one) or bool(store.get(one))
        if not yes and not _confirmed(f"Delete {', '.join(which)} ({n:,} run{'s' if n != 1 else ''})?"):
            return 1
        for one in which:
            if store.sweeps.has(one):
                runs = store.sweeps.remove(one)
                console.print(f"deleted {one} and {runs:,} runs")
            else:
                store.remove(one)
                console.print(f"deleted {one}")
    return 0


def _confirmed(question: str) -> bool:
    try:
        return Confirm.ask(Text(shown(question)), default=False)
    except EOFError as error:
        raise UsageError("there is nobody to ask: --yes deletes without asking") from error


def export(
    sweep: tyro.conf.Positional[str | None] = None,
    *,
    format: Format = "csv",
    to: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    curves: bool = False,
    out: Path = Path("runs"),
) -> Callable[[], int]:
    """Write a sweep, or all runs, as a table with a row per run, or with a row per evaluation.

    Args:
        sweep: id of the sweep; without it all runs.
        format: csv, or parquet (extra "parquet").
        to: the file, - for standard output (csv); default NAME.FORMAT here.
        curves: a row per evaluation instead, with the run's id.
        out: directory of the run store.
    """
    return partial(_export, sweep, format, to, curves, out)


def _export(sweep: str | None, format: Format, to: Path | None, curves: bool, out: Path) -> int:
    if format == "parquet":
        if to == STDOUT:
            raise UsageError("--to - is for csv: parquet needs a file")
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UsageError("parquet needs pyarrow: pip install 'grokfast[parquet]'") from error
    path = to or Path(f"{sweep or 'runs'}{'-curves' if curves else ''}.{format}")
    with RunStore(out, create=False, read_only=True) as store:
        table = store.table(sweep)
        if curves:
            found = store.all_curves(sweep)
            table = {"run_id": table["run_id"][found.pop("run")], **found}
    if path == STDOUT:
        _write_csv(table, sys.stdout)
        return 0
    with replacing(path.resolve()) as file:
        if format == "parquet":
            _write_parquet(table, file)
        else:
            text = TextIOWrapper(file, encoding="utf-8", newline="")
            _write_csv(table, text)
            text.detach()
    print(f"{len(table['run_id']):,} rows: {shown(path)}")
    return 0


def _write_parquet(table: dict[str, np.ndarray], file: IO[bytes]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {name: pyarrow.array(column, from_pandas=True) for name, column in table.items()}
    parquet.write_table(pyarrow.table(columns), file)


def _write_csv(table: dict[str, np.ndarray], file: TextIO) -> None:
    """What is missing (NaN) is empty."""
    import csv

    writer = csv.writer(file, lineterminator="\n" if file is sys.stdout else "\r\n")
    writer.writerow(map(cell, table))
    writer.writerows(zip(*(_cells(column) for column in table.values())))


def _cells(column: np.ndarray) -> list[Any]:
    if column.dtype.kind == "U":
        return [cell(value) for value in column.tolist()]
    return ["" if isinstance(value, float) and value != value else value for value in column.tolist()]


def _counts(sweep: StoredSweep) -> str:
    return ", ".join(f"{n:,} {status}" for status, n in sweep.counts.items())


def _time(text: str) -> str:
    return text[5:16].replace("T", " ")


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
