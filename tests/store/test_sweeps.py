"""Sweeps in the store: identity, sharing, claims, tables, older stores."""

import multiprocessing
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from grokfast.store import NewRun, RunStore, StoreError, UnknownRunError
from grokfast.store.sweeps import digest
from tests.store.common import values

RESULT = {
    "phase": "grokking", "t_memorize": 10, "t_generalize": None, "diverged_at": None, "steps": 20, "seconds": 1.5,
    "collapsed": False, "final": {"train_loss": 0.1, "test_loss": None},
}  # fmt: skip


def new(**config):
    return NewRun(config=config, hash=digest(config), version="v", device="cpu")


def add(store, runs, axes=()):
    return store.sweeps.create("quick", {"base": 1}, {"axes": {key: [] for key in axes}}, runs)


def test_a_sweep_comes_back_as_it_was_stored(store):
    sweep_id = add(store, [new(seed=3), new(seed=1)], ["seed"])
    found = store.sweeps.get(sweep_id)
    assert sweep_id.startswith("quick-sweep-")
    assert (found.preset, found.base, found.grid) == ("quick", {"base": 1}, {"axes": {"seed": []}})
    assert (found.counts, found.n_runs) == ({"pending": 2}, 2)
    first, _ = store.sweeps.statuses(sweep_id)
    assert store.get(first).config == {"seed": 3}
    assert store.sweeps.list() == [found]
    assert store.sweeps.has(sweep_id)
    assert not store.sweeps.has("quick")
    with pytest.raises(UnknownRunError, match=rf"no sweep 'quick-sweep-' \(did you mean '{sweep_id}'"):
        store.sweeps.get("quick-sweep-")


def test_the_same_run_and_the_same_sweep_are_stored_once(store):
    one = add(store, [new(seed=1), new(seed=2)])
    assert add(store, [new(seed=1), new(seed=2)]) == one
    two = add(store, [new(seed=2), new(seed=3)])
    assert len(store.list()) == 3
    assert {run.run_id for run in store.list(sweep_id=two)} == set(store.sweeps.statuses(two))
    assert len(store.list(sweep_id=two)) == 2
    assert store.sweeps.remove(one) == 1
    assert list(store.sweeps.statuses(two).values()) == ["pending"] * 2
    assert len(store.list()) == 2


def test_a_run_that_was_removed_comes_back_with_its_sweep(store):
    sweep_id = add(store, [new(seed=1), new(seed=2)])
    before = store.sweeps.statuses(sweep_id)
    store.remove(next(iter(before)))
    assert len(store.sweeps.statuses(sweep_id)) == 1
    assert add(store, [new(seed=1), new(seed=2)]) == sweep_id
    assert store.sweeps.statuses(sweep_id) == before


def test_numbers_and_the_order_of_keys_do_not_change_a_digest():
    assert digest({"a": 1, "b": [2.0, None]}) == digest({"b": (2, None), "a": 1.0})
    assert digest({"a": 2**62}) != digest({"a": 2**62 + 1})
    assert digest({"a": 0.1}) != digest({"a": 0.2})
    assert digest({"a": True}) != digest({"a": "True"})


def create_many(root):
    with RunStore(root) as store:
        return add(store, [new(seed=seed) for seed in range(50)])


def test_processes_that_ask_for_the_same_sweep_at_once_share_it(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        ids = pool.map(create_many, [tmp_path / "new"] * 4, chunksize=1)
    assert len(set(ids)) == 1
    with RunStore(tmp_path / "new", create=False) as store:
        assert store.sweeps.get(ids[0]).n_runs == len(store.list()) == 50


def test_a_run_is_claimed_by_one_at_a_time(store):
    sweep_id = add(store, [new(seed=1), new(seed=2), new(seed=3)])
    a, b, c = store.sweeps.statuses(sweep_id)
    store.update(c, status="finished", result={})
    with RunStore(store.root) as other:
        assert other.sweeps.claim([a, c]) == [a]
        assert other.sweeps.claim([a]) == [a]
        assert store.sweeps.claim([b, a]) == [b]
        assert store.get(a).status == "running"
        for remove in (lambda: store.remove(a), lambda: store.sweeps.remove(sweep_id)):
            with pytest.raises(StoreError, match="being trained by another process"):
                remove()
        other.update(a, status="interrupted")
        assert store.sweeps.claim([a]) == [a]
        assert other.sweeps.claim([a, b]) == []
    assert store.sweeps.remove(sweep_id) == 3


def test_a_claim_ends_with_its_process(store):
    sweep_id = add(store, [new(seed=1)])
    (run_id,) = store.sweeps.statuses(sweep_id)
    code = """if True:
        import sys
        from grokfast.store import RunStore
        store = RunStore(sys.argv[1])
        print(store.sweeps.claim([sys.argv[2]]), flush=True)
        sys.stdin.read()"""
    command = [sys.executable, "-c", code, str(store.root), run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"['{run_id}']\n"
        assert store.sweeps.claim([run_id]) == []
        process.kill()
        process.wait()
        assert store.sweeps.claim([run_id]) == [run_id]
    assert len(list((store.root / ".owners").iterdir())) == 1


def test_a_table_has_what_varies_and_what_happened(store):
    runs = [
        new(seed=1, lr=0.1, task={"p": 13, "noise": None}, filter=None, betas=[0.9, 0.98], flag=True, name="x"),
        new(seed=2, lr=1, task={"p": 13, "noise": 4}, filter={"kind": "EMA"}, betas=[0.9, 0.99], flag=False, name="x"),
    ]
    sweep_id = add(store, runs, ["task.p"])
    first, second = store.sweeps.statuses(sweep_id)
    store.update(first, status="finished", result=RESULT)
    store.append(second, [values(0, 1, 1, 0, 0, 1), values(5, 1, 1, 0, 0, 1)])
    table = store.table(sweep_id)
    assert {len(column) for column in table.values()} == {2}
    assert table["run_id"].tolist() == [first, second]
    assert table["status"].tolist() == ["finished", "pending"]
    assert table["lr"].tolist() == [0.1, 1.0]
    assert table["task.p"].tolist() == [13, 13]  # of the grid
    assert (table["task.p"].dtype, table["seed"].dtype) == (np.int64, np.int64)
    np.testing.assert_array_equal(table["task.noise"], [np.nan, 4])
    assert table["filter.kind"].tolist() == ["", "EMA"]
    assert table["betas"].tolist() == ["(0.9,0.98)", "(0.9,0.99)"]
    assert table["flag"].tolist() == [True, False]
    assert "name" not in table
    assert table["phase"].tolist() == ["grokking", ""]
    assert table["steps"].tolist() == [20, 5]
    np.testing.assert_array_equal(table["t_memorize"], [10, np.nan])
    np.testing.assert_array_equal(table["t_generalize"], [np.nan, np.nan])
    np.testing.assert_array_equal(table["test_loss"], [np.nan, np.nan])
    assert table["train_loss"][0] == 0.1
    assert store.table()["run_id"].tolist() == [first, second]


def test_a_part_that_was_varied_is_a_column_of_words(store):
    filters = [
        None,
        {"kind": "MA", "window_size": 7, "lamb": 5.0},
        {"kind": "EMA", "alpha": 0.9, "lamb": 2.0},
        {"kind": "EMA", "alpha": 0.98, "lamb": 1.0},
    ]
    runs = [new(seed=i, filter=own) for i, own in enumerate(filters)]
    table = store.table(add(store, runs, ["filter"]))
    assert table["filter"].tolist() == ["none", "ma window_size=7", "ema alpha=0.9", "ema lamb=1"]
    np.testing.assert_array_equal(table["filter.alpha"], [np.nan, np.nan, 0.9, 0.98])
    table = store.table(add(store, runs[1:], ["filter", "filter.lamb"]))  # which is a column of its own
    assert table["filter"].tolist() == ["ma window_size=7", "ema alpha=0.9", "ema"]
    assert "filter" not in store.table(add(store, runs[1:], []))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_table_is_a_data_frame(store, library):
    sweep_id = add(store, [new(seed=1, lr=0.1, loss="mse"), new(seed=2, lr=1.0, loss="x")])
    frame = pytest.importorskip(library).DataFrame(store.table(sweep_id))
    assert frame.shape[0] == 2
    assert list(frame["loss"]) == ["mse", "x"]


def test_an_empty_store_has_an_empty_table_and_no_curves(store):
    assert {len(column) for column in store.table().values()} == {0}
    assert {len(column) for column in store.all_curves().values()} == {0}


def test_all_curves_are_those_of_the_runs_one_after_the_other(store):
    sweep_id = add(store, [new(seed=seed) for seed in range(4)])
    ids = list(store.sweeps.statuses(sweep_id))
    for i in (3, 0, 2):  # the second has none
        store.append(ids[i], [values(step, i, 0, 0, 0, step) for step in range(0, 30, 10)])
        store.append(ids[i], [values(40, i, 0, 0, 0, 40)])
    for curves in (store.all_curves(sweep_id), store.all_curves()):
        assert curves["run"].tolist() == [0] * 4 + [2] * 4 + [3] * 4
        assert curves["step"].tolist() == [0, 10, 20, 40] * 3
        assert curves["train_loss"].tolist() == curves["run"].tolist()


def statements(store, action):
    """How many statements an action gives to SQLite."""
    seen = []
    store._db._connection.set_trace_callback(seen.append)
    action()
    store._db._connection.set_trace_callback(None)
    return len(seen)


def test_listing_and_loading_take_as_many_statements_for_many_runs_as_for_few(store):
    few, many = (add(store, [new(seed=seed) for seed in range(n)]) for n in (2, 200))
    for load in (store.table, store.all_curves, store.sweeps.get, store.sweeps.statuses):
        assert statements(store, lambda: load(few)) == statements(store, lambda: load(many)) <= 5  # noqa: B023
    assert statements(store, store.list) == 1
    assert statements(store, lambda: store.list(sweep_id=many)) == 2


def test_listing_stops_at_a_limit(store):
    add(store, [new(seed=seed) for seed in range(5)])
    assert [run.config["seed"] for run in store.list(limit=2)] == [4, 3]


def test_a_store_of_schema_1_is_taken_over_with_everything(tmp_path):
    with RunStore(tmp_path) as store:
        run_id = store.create({"seed": 0}, preset="quick", version="v", device="cpu")
        store.append(run_id, [values(0, 1, 2, 3, 4, 5)])
        store.update(run_id, status="interrupted")
        before = store.get(run_id), store.curves(run_id)
    as_of_schema_1(tmp_path / "grokfast.sqlite")
    with RunStore(tmp_path) as store:
        assert store.get(run_id) == before[0]
        np.testing.assert_equal(store.curves(run_id), before[1])
        assert store.table()["run_id"].tolist() == [run_id]
        assert len(store.sweeps.statuses(add(store, [new(seed=1)]))) == 1
    with sqlite3.connect(tmp_path / "grokfast.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (4,)
    db.close()


def as_of_schema_1(path):
    with sqlite3.connect(path) as db:
        for statement in (
            "DROP TABLE members",
            "DROP TABLE sweeps",
            "DROP INDEX runs_by_hash",
            "ALTER TABLE runs DROP COLUMN hash",
            "ALTER TABLE runs DROP COLUMN owner",
            *(f"ALTER TABLE runs DROP COLUMN {name}" for name in ("columns", "last_step", "curve", "seal")),
            "PRAGMA user_version = 1",
        ):
            db.execute(statement)
    db.close()


def test_a_store_says_its_size(store):
    before = store.size()
    run_id = store.create({}, preset="quick", version="", device="")
    (store.root / run_id / "file").write_bytes(b"x" * 100_000)
    assert store.size() - before >= 100_000
