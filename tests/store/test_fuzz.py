"""Damaged and forged stores: the store's own errors, nothing hangs, and nothing outside of the root is touched."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grokfast.cli import main
from grokfast.store import NewRun, RunStore, StoreError
from grokfast.store.seals import Row, SweepRow, seal
from grokfast.store.sweeps import digest
from tests.store.common import new_run, records, snapshot

BOUNDED = settings(
    max_examples=int(os.environ.get("GROKFAST_FUZZ", "30")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RESULT = {
    "phase": "grokking", "t_memorize": 10, "t_generalize": None, "diverged_at": None, "steps": 20, "seconds": 1.5,
    "collapsed": False, "final": {"train_loss": 0.1, "test_loss": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished, an interrupted and two pending runs, and a sweep."""
    root = tmp_path_factory.mktemp("whole")
    with RunStore(root) as store:
        done, stopped = new_run(store), new_run(store)
        for run_id in (done, stopped):
            store.append(run_id, records(0, 10, 20))
            store.save_checkpoint(run_id, {"w": torch.ones(3)}, {"steps": 20, "seconds": 1.0})
            store.save_weights(run_id, {"w": torch.ones(3)})
        store.update(done, status="finished", result=RESULT)
        store.update(stopped, status="interrupted")
        runs = [NewRun({"seed": seed, "lr": 0.1}, digest(seed), "v", "cpu") for seed in range(2)]
        store.sweeps.create("quick", {"seed": 0, "lr": 0.1}, {"axes": {"seed": [0, 1]}}, runs)
    return root


def every_door(root: Path) -> None:
    """Read and write all that there is; StoreErrors are answers."""

    def does(action: Callable[[], Any]) -> Any:
        with suppress(StoreError):
            return action()

    for what in ("list", "export"):
        to = ["--to", str(root.parent / "table.csv")] if what == "export" else []
        assert main([what, *to, "--out", str(root)]) in (0, 1)
    with RunStore(root, create=False) as store:
        with closing(sqlite3.connect(root / "grokfast.sqlite")) as db, suppress(sqlite3.Error):
            ids = [run_id for (run_id,) in db.execute("SELECT run_id FROM runs") if isinstance(run_id, str)]
            ids += [run_id for (run_id,) in db.execute("SELECT sweep_id FROM sweeps") if isinstance(run_id, str)]
        does(store.all_curves)
        for sweep in does(store.sweeps.list) or []:
            for read in (store.sweeps.statuses, store.table, store.all_curves, store.sweeps.own):
                does(lambda: read(sweep.sweep_id))  # noqa: B023
        for one in ids:
            for door in (
                store.get, store.curves, store.load_checkpoint, store.load_weights, store.has_weights,
                lambda one: store.sweeps.claim([one]), lambda one: store.truncate(one, 10),
                lambda one: store.append(one, records(30)), lambda one: store.save_checkpoint(one, {}, {}),
                lambda one: store.update(one, status="finished", result={}), store.remove, store.sweeps.remove,
            ):  # fmt: skip
                does(lambda: door(one))  # noqa: B023
        does(lambda: new_run(store))


def survives(whole: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    world = tmp_path / "world"
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(whole, world / "runs")
    (world / "victim").mkdir()
    (world / "victim" / "checkpoint.safetensors").write_bytes(b"precious")
    damage(world / "runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(StoreError):
            every_door(world / "runs")
    shutil.rmtree(world / "runs")
    (world / "table.csv").unlink(missing_ok=True)
    assert snapshot(world) == {"victim/checkpoint.safetensors": b"precious"}


@BOUNDED
@given(data=st.data())
def test_flipped_bits_and_truncated_files(whole: Path, tmp_path: Path, capsys, data: st.DataObject) -> None:
    names = sorted(snapshot(whole))
    name = data.draw(st.sampled_from(["grokfast.sqlite"] * len(names) + names))
    content = (whole / name).read_bytes()
    bits = data.draw(st.lists(st.integers(0, 8 * len(content) - 1), max_size=20))
    length = data.draw(st.integers(0, len(content)) | st.just(len(content)))

    def damage(root: Path) -> None:
        flipped = bytearray(content)
        for bit in bits:
            flipped[bit // 8] ^= 1 << bit % 8
        (root / name).write_bytes(flipped[:length])

    survives(whole, tmp_path, damage)


STRANGE = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=8), st.text(max_size=8),
    st.sampled_from(["../victim", "/", "..", ".owners", "running", "finished", "grokfast.sqlite", "[/red]", "\x1b[2J"]),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.sampled_from([*RESULT, "kind", "x"]), part, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from([*RESULT, "axes", "filter", "seed", "lr"]), JSON, max_size=4)


@BOUNDED
@given(
    table=st.sampled_from(["runs", "sweeps"]),
    changes=st.dictionaries(
        st.sampled_from(["run_id", "sweep_id", "status", "owner", "hash", "preset", "created", "curve", "last_step"]),
        STRANGE,
        max_size=3,
    ),
    objects=st.dictionaries(st.sampled_from(["config", "result", "base", "grid"]), OBJECTS, max_size=2),
)
@example(table="runs", changes={"run_id": "../victim"}, objects={})
@example(table="runs", changes={"owner": "../../victim/checkpoint", "status": "running"}, objects={})
@example(table="sweeps", changes={"sweep_id": "../victim"}, objects={})
@example(table="runs", changes={}, objects={"result": {"steps": 10**30, "t_memorize": "x", "final": [1]}})
@example(table="runs", changes={}, objects={"config": {"seed": 10**30, "filter": {"kind": 1}}})
@example(table="sweeps", changes={}, objects={"grid": {"axes": {"filter": 3}}, "base": {"filter": {"kind": []}}})
def test_forged_rows_with_seals_that_fit(
    whole: Path, tmp_path: Path, capsys, table: str, changes: dict[str, Any], objects: dict[str, Any]
) -> None:
    def damage(root: Path) -> None:
        kind = Row if table == "runs" else SweepRow
        with closing(sqlite3.connect(root / "grokfast.sqlite")) as db, db:
            for values in db.execute(f"SELECT {', '.join(kind._fields)} FROM {table} WHERE key IN (1, 3)").fetchall():
                row = kind(*values)
                texts = {name: json.dumps(value) for name, value in objects.items()}
                own = {name: value for name, value in (changes | texts).items() if name in kind._fields}
                row = row._replace(**own)
                settings = ", ".join(f"{name} = ?" for name in kind._fields)
                with suppress(sqlite3.IntegrityError, UnicodeEncodeError):
                    db.execute(f"UPDATE {table} SET {settings}, seal = ? WHERE key = ?", (*row, seal(row), row.key))

    survives(whole, tmp_path, damage)
