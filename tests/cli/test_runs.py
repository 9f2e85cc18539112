import csv
import io
import json
import sys

import pytest

from grokfast import EMA, Experiment, RunStore, sweep, train
from grokfast.cli import main
from grokfast.store import NewRun
from grokfast.sweeps import InProcess, plan
from grokfast.training.version import version

TINY = Experiment.preset("quick").override({"task.p": 13, "model.width": 16, "schedule.steps": 20, "device": "cpu"})


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with one sweep of two runs and one other run: its root, the sweep's id, the runs' ids."""
    root = tmp_path_factory.mktemp("runs")
    swept = sweep(TINY, {"optimizer.weight_decay": [0.1, 1]}, store=root, runner=InProcess())
    with RunStore(root) as store:
        other = train(TINY.override({"name": "other"}), store=store).run_id
    return root, swept.sweep_id, swept.table()["run_id"].tolist(), other


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_list_has_sweeps_runs_and_the_size(filled, capsys):
    root, sweep_id, (one, two), other = filled
    assert main(["list", "--out", str(root)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (sweep_id, "2 finished", one, two, other, "kB"))
    assert main(["list", "--sweep", sweep_id, "--out", str(root)]) == 0
    said = capsys.readouterr().out
    assert one in said
    assert other not in said
    assert main(["list", "--preset", "other", "--status", "finished", "--out", str(root)]) == 0
    said = capsys.readouterr().out
    assert other in said
    assert one not in said
    assert main(["list", "--limit", "1", "--out", str(root)]) == 0
    assert "... and more" in capsys.readouterr().out


def test_a_narrow_terminal_cuts_no_id_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a-name-of-thirty-six-characters-long"
    planned = plan(TINY.override({"name": name}), {"seed": [0]}, store=tmp_path)
    assert main(["list", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(known in said for known in (planned.sweep_id, *planned.runs))


def test_show_tells_a_run_and_a_sweep(filled, capsys):
    root, sweep_id, (one, _), _ = filled
    assert main(["show", one, "--out", str(root)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{one}: did not memorise in 20 steps\ntrain ")
    assert '"weight_decay": 0.1' not in said
    assert main(["show", one, "--config", "--out", str(root)]) == 0
    assert '"weight_decay": 0.1' in capsys.readouterr().out
    assert main(["show", sweep_id, "--out", str(root)]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 2 finished; optimizer.weight_decay 0.1, 1\n" in said
    assert "0 of 1" in said
    assert main(["show", sweep_id, "--json", "--out", str(root)]) == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 2
    assert main(["show", one, "--json", "--out", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"


def test_show_of_a_run_is_small(filled, capsys):
    """The sentence, the curve, the last values, and where the rest is."""
    root, _, _, other = filled
    assert main(["show", other, "--out", str(root)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"{other}: did not memorise in 20 steps"
    assert [line[:5].strip() for line in lines[1:8]] == ["train", "", "", "test", "", "", "step"]
    assert lines[7].split() == ["step", "10", "20"]
    with RunStore(root) as store:
        curves = store.curves(other)
    last = dict(line.split() for line in lines[8 : 8 + len(curves)])
    assert last == {name: f"{column[-1]:.6g}" for name, column in curves.items()}
    rest = dict(line.split(maxsplit=1) for line in lines[8 + len(curves) :])
    assert rest["run"].startswith("finished, begun ")
    assert rest["files"] == str(root / other)
    assert rest["pictures"] == f"none yet: grokfast show {other} --picture"
    assert rest["configuration"] == f"grokfast show {other} --config"


def test_show_says_where_the_pictures_are(tmp_path, capsys):
    with RunStore(tmp_path) as store:
        run = train(TINY, store=store)
    assert main(["show", run.run_id, "--picture", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["show", run.run_id, "--out", str(tmp_path)]) == 0
    assert f"pictures       {run.directory / 'curves.png'}" in capsys.readouterr().out


def test_show_of_a_run_that_has_no_evaluation_yet_says_its_status(tmp_path, capsys):
    with RunStore(tmp_path) as store:
        begun = store.create(TINY.to_dict(), preset="quick", version=version(), device="cpu")
    assert main(["show", begun, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{begun}: interrupted\nrun ")  # nobody trains it


def test_show_has_the_configuration_of_a_sweeps_base_on_request(filled, capsys):
    root, sweep_id, _, _ = filled
    assert main(["show", sweep_id, "--out", str(root)]) == 0
    assert '"operation": "add"' not in capsys.readouterr().out
    assert main(["show", sweep_id, "--config", "--out", str(root)]) == 0
    assert '"operation": "add"' in capsys.readouterr().out


def test_filters_are_said_as_they_were_written(tmp_path, capsys):
    base = TINY.override({"filter": EMA(alpha=0.9)})
    filters = ["none", "ema", {"kind": "ema", "lamb": 1}, {"kind": "ma", "window_size": 7}]
    swept = plan(base, {"filter": filters, "seed": range(20)}, store=tmp_path)
    assert main(["show", swept.sweep_id, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "filter none, ema, ema lamb=1, ma window_size=7; seed 0, 1, 2, 3, 4, ..., 15, 16, 17, 18, 19\n" in said
    assert "{" not in said
    swept = plan(TINY, {"filter": ["ema", "ma"], "filter.lamb": [1, 2]}, store=tmp_path)
    assert main(["show", swept.sweep_id, "--out", str(tmp_path)]) == 0
    assert "filter ema, ma; filter.lamb 1, 2\n" in capsys.readouterr().out


def test_show_draws_a_runs_picture_again(tmp_path, capsys):
    with RunStore(tmp_path) as store:
        run = train(TINY, store=store)
        begun = store.create(TINY.to_dict(), preset="quick", version="grokfast 0", device="cpu")
        unknown = store.create({"tsk": {}}, preset="quick", version="grokfast 0", device="cpu")
    picture = run.directory / "curves.png"
    assert not picture.exists()  # as after a kill between the two
    assert main(["show", run.run_id, "--picture", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"curves: {picture}\n" in said
    assert f"data: {run.directory / 'data.png'}\n" in said
    first = picture.read_bytes()
    assert main(["show", run.run_id, "--picture", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    assert picture.read_bytes() == first
    assert main(["show", begun, "--picture", "--out", str(tmp_path)]) == 1
    assert "no picture: curves must have at least one record, got none\n" in capsys.readouterr().out
    with RunStore(tmp_path) as store:
        store.append(begun, [run.final])
    assert main(["show", begun, "--picture", "--out", str(tmp_path)]) == 0
    assert (tmp_path / begun / "curves.png").exists()
    assert main(["show", unknown, "--picture", "--out", str(tmp_path)]) == 1
    assert "was stored by grokfast 0" in capsys.readouterr().err


def test_a_runs_data_are_drawn_once(tmp_path, capsys, monkeypatch):
    with RunStore(tmp_path) as store:
        run = train(TINY, store=store)
    assert main(["show", run.run_id, "--picture", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr("grokfast.plots.plot_data", None)
    monkeypatch.setattr(type(TINY.task), "build", None)
    assert main(["show", run.run_id, "--picture", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(f"data: {run.directory / 'data.png'}\n") == 2
    (run.directory / "data.png").unlink()
    assert main(["show", run.run_id, "--picture", "--out", str(tmp_path)]) == 1


def test_a_number_that_was_stored_too_large_is_exported(tmp_path, capsys):
    with RunStore(tmp_path) as store:
        for gap, seed in ((10**20, 0), (1, 10**400)):
            config = {**TINY.to_dict(), "criteria": {"kind": "Criteria", "grok_gap": gap}, "seed": seed}
            store.create(config, preset="quick", version="grokfast 0", device="cpu")
    assert main(["export", "--to", "-", "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["criteria.grok_gap"] for row in rows] == [str(10**20), "1"]
    assert [row["seed"] for row in rows] == ["0", str(10**400)]
    assert main(["list", "--out", str(tmp_path)]) == 0


HOSTILE = "[/red]\x1b[2J\u202e\n:smile:"
HARMLESS = r"[/red]\x1b[2J\u202e\n:smile:"


@pytest.fixture
def hostile(tmp_path):
    """A store that somebody sent, with markup, control characters and formulas in what it says: its root and ids."""
    config = TINY.to_dict()
    with RunStore(tmp_path) as store:
        run_id = store.create({**config, "name": HOSTILE}, preset="quick", version=HOSTILE, device=HOSTILE)
        store.update(run_id, status="failed", result={"phase": HOSTILE, "t_memorize": None})
        grid = {"axes": {"name": [HOSTILE, "+x"]}}
        runs = [
            NewRun({**config, "=k": "-2+3", "name": name}, str(i) * 64, "grokfast 0", "cpu")
            for i, name in enumerate(grid["axes"]["name"])
        ]
        sweep_id = store.sweeps.create("quick", config, grid, runs)
    return tmp_path, sweep_id, run_id


def test_what_a_store_says_is_shown_as_text(hostile, capsys):
    root, sweep_id, run_id = hostile
    for arguments in (["list"], ["show", run_id], ["show", sweep_id], ["rm", run_id, sweep_id, "--yes"]):
        assert main([*arguments, "--out", str(root)]) == 0, capsys.readouterr().err
        said = "".join(capsys.readouterr())
        assert all(character.isprintable() or character == "\n" for character in said)
        assert HARMLESS in said or arguments[0] == "rm"


def test_a_table_has_nothing_that_a_spreadsheet_would_run(hostile, capsys):
    root, _, _ = hostile
    assert main(["export", "--to", "-", "--out", str(root)]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    table = [dict(zip(header, row)) for row in rows]
    assert [row["phase"] for row in table] == [HARMLESS, "", ""]
    assert [row["name"] for row in table] == [HARMLESS, HARMLESS, "'+x"]
    assert [row["'=k"] for row in table] == ["", "'-2+3", "'-2+3"]


@pytest.mark.parametrize("grid", [{}, {"axes": 3}, {"axes": {"seed": 1}}, {"axes": None}])
def test_a_stored_grid_without_axes_is_a_message(tmp_path, capsys, grid):
    with RunStore(tmp_path) as store:
        new = NewRun(TINY.to_dict(), "0" * 64, version(), "cpu")
        sweep_id = store.sweeps.create("quick", TINY.to_dict(), grid, [new])
    for arguments in (["show"], ["export"], ["sweep", "--resume"]):
        assert main([*arguments, sweep_id, "--out", str(tmp_path)]) == 1
        assert capsys.readouterr().err == f"grokfast: the grid of {sweep_id} is damaged: it has no axes\n"


def test_show_of_a_sweep_that_has_not_begun_draws_nothing(tmp_path, capsys):
    planned = plan(TINY, {"seed": [0, 1]}, store=tmp_path)
    assert main(["show", planned.sweep_id, "--json", "--out", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["pictures"], said["counts"]) == ({}, {"pending": 2})
    assert said["cells"][0]["unfinished"] == 2


def test_export_writes_a_row_per_run(filled, tmp_path, capsys):
    root, sweep_id, ids, other = filled
    path = tmp_path / "table.csv"
    assert main(["export", sweep_id, "--to", str(path), "--out", str(root)]) == 0
    rows = list(csv.DictReader(path.open()))
    assert [row["run_id"] for row in rows] == ids
    assert [row["optimizer.weight_decay"] for row in rows] == ["0.1", "1.0"]
    assert [row["t_generalize"] for row in rows] == ["", ""]
    assert main(["export", "--to", str(path), "--out", str(root)]) == 0
    assert [row["run_id"] for row in csv.DictReader(path.open())] == [*ids, other]


def test_export_writes_curves_and_parquet(filled, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    root, sweep_id, ids, _ = filled
    path = tmp_path / "curves.parquet"
    command = ["export", sweep_id, "--curves", "--format", "parquet", "--to", str(path), "--out", str(root)]
    assert main(command) == 0
    table = parquet.read_table(path)
    assert table["run_id"].to_pylist() == [ids[0]] * 3 + [ids[1]] * 3
    assert table["step"].to_pylist() == [0, 10, 20] * 2
    assert main(["export", "--format", "parquet", "--to", str(path), "--out", str(root)]) == 0
    assert parquet.read_table(path)["t_generalize"].to_pylist() == [None] * 3


@pytest.mark.parametrize("has_pyarrow", [True, False])
def test_export_to_standard_output_is_the_table_alone(filled, capsys, monkeypatch, has_pyarrow):
    if not has_pyarrow:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    root, _, ids, other = filled
    assert main(["export", "--to", "-", "--out", str(root)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run_id"] for row in rows] == [*ids, other]
    assert main(["export", "--to", "-", "--format", "parquet", "--out", str(root)]) == 2
    assert "--to - is for csv" in capsys.readouterr().err


def test_export_without_pyarrow_names_the_extra(filled, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", "--format", "parquet", "--out", str(filled[0])]) == 2
    assert "pip install 'grokfast[parquet]'" in capsys.readouterr().err


def test_rm_asks_and_deletes(tmp_path, capsys, monkeypatch):
    swept = sweep(TINY, {"seed": [0, 1]}, store=tmp_path, runner=InProcess())
    with RunStore(tmp_path) as store:
        other = train(TINY, store=store).run_id
    assert main(["show", swept.sweep_id, "--out", str(tmp_path)]) == 0  # draws pictures
    monkeypatch.setattr("rich.prompt.Confirm.ask", lambda question, default: "(3 runs)" not in question)
    assert main(["rm", swept.sweep_id, other, "--out", str(tmp_path)]) == 1
    with RunStore(tmp_path) as store:
        assert len(store.list()) == 3
    assert main(["rm", other, "--out", str(tmp_path)]) == 0
    assert main(["rm", swept.sweep_id, "--yes", "--out", str(tmp_path)]) == 0
    with RunStore(tmp_path) as store:
        assert store.list() == []
        assert store.sweeps.list() == []
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != ".owners"]


def test_rm_with_nobody_to_ask_deletes_nothing(filled, capsys, monkeypatch):
    root, _, _, other = filled
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["rm", other, "--out", str(root)]) == 2
    assert "nobody to ask: --yes deletes without asking" in capsys.readouterr().err
    with RunStore(root) as store:
        assert store.get(other)


def test_pictures_that_cannot_be_written_are_left_out(filled, capsys, monkeypatch):
    root, sweep_id, _, _ = filled

    def refuse(*_):
        raise PermissionError(13, "Permission denied", "phase_diagram.png")

    monkeypatch.setattr("grokfast.cli.sweep.draw", refuse)
    assert main(["show", sweep_id, "--out", str(root)]) == 0
    assert "no picture: [Errno 13] Permission denied: 'phase_diagram.png'\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "quick-x"], "has no run 'quick-x'"),
        (["rm", "quick-x", "--yes"], "has no run 'quick-x'"),
        (["rm"], "rm needs the id"),
        (["list", "--status", "finishd"], "did you mean 'finished'"),
        (["list", "--sweep", "quick-sweep-x"], "has no sweep 'quick-sweep-x'"),
        (["list", "--limit", "0"], "--limit must be between 1 and"),
        (["list", "--limit", "99999999999999999999"], "--limit must be between 1 and"),
        (["export", "quick-sweep-x"], "has no sweep 'quick-sweep-x'"),
    ],
)
def test_bad_usage_is_a_clear_message(filled, capsys, arguments, message):
    assert main([*arguments, "--out", str(filled[0])]) in (1, 2)
    assert message in capsys.readouterr().err


def test_where_there_is_no_store_nothing_is_made(tmp_path, capsys):
    for arguments in (["list"], ["show", "x"], ["rm", "x", "--yes"], ["export"]):
        assert main([*arguments, "--out", str(tmp_path / "none")]) == 1
        assert "there is no run store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
