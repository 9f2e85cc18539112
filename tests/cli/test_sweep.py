import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grokfast.cli import main
from grokfast.cli.sweep import merged
from grokfast.store import RunStore
from grokfast.sweeps import engine

TINY = ["--task.p", "13", "--model.width", "16", "--steps", "60", "--device", "cpu", "--processes", "1"]
GRID = ["--grid", "optimizer.weight_decay=0.1,1", "task.train_fraction=0.3,0.4"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def swept(out, capsys):
    """A sweep of four cells of two runs, and what it said."""
    assert main(["sweep", "quick", *GRID, "--seeds", "2", *TINY, "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]), captured


def test_a_sweep_says_what_it_will_do_and_what_happened(swept, out):
    summary, said = swept
    for words in (
        "8 runs",
        "8 to train",
        "on 1 process",
        "B of memory",
        "ms a step",
        "if every run took all its steps",
    ):
        assert words in said.err
    assert "8/8 done" in said.out
    for words in ("weight_decay", "train_fraction", "0 of 2", "0% [0%, 66%]", ">60", "phase diagram"):
        assert words in said.out
    assert [cell["cell"] for cell in summary["cells"]] == [
        {"optimizer.weight_decay": decay, "task.train_fraction": share} for decay in (0.1, 1) for share in (0.3, 0.4)
    ]
    assert summary["cells"][0]["n"] == 2
    assert list(summary["pictures"]) == ["phase diagram", "scaling", "curves"]
    for path in summary["pictures"].values():
        assert Path(path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("here")
def test_the_same_command_again_and_resume_do_nothing_twice(swept, out, capsys):
    summary, _ = swept
    with RunStore(out, create=False) as store:
        before = store.table(summary["sweep_id"])["run_id"].tolist()
    for arguments in (["quick", *GRID, "--seeds", "2", *TINY], ["--resume", summary["sweep_id"]]):
        assert main(["sweep", *arguments, "--json", "--out", str(out)]) == 0
        captured = capsys.readouterr()
        assert "8 runs, 8 of them done already" in captured.err
        assert json.loads(captured.out.splitlines()[-1]) == summary
        assert "starting" not in captured.out
    with RunStore(out, create=False) as store:
        assert store.table(summary["sweep_id"])["run_id"].tolist() == before


@pytest.mark.usefixtures("here")
def test_a_sweep_from_a_file(out, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("[experiment]\ntask.p = 13\nmodel.width = 16\n[grid]\nseed = '0:2:3'\n[sweep]\nzip = true\n")
    assert main(["sweep", str(path), "--steps", "20", "--processes", "1", "--out", str(out)]) == 0
    with RunStore(out, create=False) as store:
        (sweep,) = store.sweeps.list()
        assert sweep.grid == {"axes": {"seed": [0, 1, 2]}, "zip": True, "random": None, "seeds": None}
        assert sweep.base["schedule"]["steps"] == 20
    assert "phase diagram" not in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_seeds_of_a_range_are_exact(out, capsys):
    seeds = [1000000000001, 2000000000003]
    grid = f"seed={seeds[0]}:{seeds[1]}:2"
    assert main(["sweep", "quick", "--grid", grid, *TINY, "--steps", "1", "--out", str(out)]) == 0
    with RunStore(out, create=False) as store:
        assert [run.config["seed"] for run in store.list()] == seeds[::-1]


@pytest.mark.usefixtures("here")
def test_filters_are_compared_in_a_sweep(out, capsys):
    grid = ["--grid", "filter.lamb=1,2", "filter=ema,ma"]
    assert main(["sweep", "quick", *grid, *TINY, "--steps", "20", "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert [cell["cell"] for cell in summary["cells"]] == [
        {"filter.lamb": lamb, "filter": name} for lamb in (1.0, 2.0) for name in ("ema", "ma")
    ]
    assert "phase diagram" in summary["pictures"]


def test_grid_may_be_given_often():
    args = ["sweep", "quick", "--grid", "a=1", "b=2", "--zip", "--grid=c=3", "--seeds", "2"]
    assert merged(args) == ["sweep", "quick", "--zip", "--seeds", "2", "--grid", "a=1", "b=2", "c=3"]
    assert merged(["sweep", "quick"]) == ["sweep", "quick"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quick"], "nothing varies"),
        (["quick", "--grid", "optimizer.weight_dekay=1"], "did you mean 'optimizer.weight_decay'"),
        (["quick", "--grid", "seed=1", "seed=2"], "has the key 'seed' twice"),
        (["quick", "--grid", "task.train_fraction=0.5,1.0"], "cell task.train_fraction=1.0"),
        (["quick", "--grid", "seed=1", "--seeds", "2"], "seeds cannot be given"),
        (["quick", "--seeds", "0"], "seeds must be at least 1"),
        (
            ["quick", "--seeds", "99999999999999999999"],
            "seeds must be at most 9007199254740991, got 99999999999999999999",
        ),
        (["quick", "--seeds", "1000001"], "a sweep has at most 1,000,000 runs, this one 1,000,001"),
        (
            ["quick", "--grid", "seed=0:400000000:400000001"],
            "a sweep has at most 1,000,000 runs, grid['seed'] has more",
        ),
        (
            ["quick", "--grid", "optimizer.betas=({1:2},0.9)"],
            "grid['optimizer.betas'] must have plain values, got ({1: 2}, 0.9)",
        ),
        (["quick", "--seeds", "2", "--processes", "0"], "processes must be at least 1"),
        (["quick", "--seeds", "2", "--processes", "2", "--ray", "local"], "not both"),
        (["quick", "--seeds", "2", "--checkpoint-every", "-1"], "--checkpoint-every"),
        (["quick", "--seeds", "2", "--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["quick", "--resume", "x"], "--resume takes the sweep as it was begun"),
        (["--resume", "x", "--seeds", "3"], "--resume takes the sweep as it was begun"),
        (["--resume", "x"], "there is no run store"),
        (["--seeds", "2", "nanda"], "the preset comes first"),
        (["quik", "--seeds", "2"], "did you mean 'quick'"),
        (["nowhere.toml"], "nowhere.toml"),
        (["quick", "--grid", "filter=ema", "filter.lam=1"], "unknown key 'filter.lam' (did you mean 'filter.lamb'?)"),
        (["quick", "--seeds", "2", "--filter.lamb", "1"], "--filter.lamb is of a filter: choose one"),
    ],
)
def test_bad_usage_is_a_clear_message_and_leaves_nothing(arguments, message, out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["sweep", *arguments, "--out", str(out)]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_ray_names_the_extra(out, capsys, monkeypatch):
    pytest.importorskip("grokfast.sweeps.on_ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "quick", "--seeds", "2", "--ray", "local", "--out", str(out)]) == 2
    assert "grokfast[ray]" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_how_to_go_on(out, capsys):
    command = [sys.executable, "-m", "grokfast", "sweep", "quick", "--seeds", "2", *TINY, "--out", str(out)]
    command[command.index("60")] = "1000000"
    command += ["--schedule.stop-after", "None"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert "2 runs" in process.stderr.readline()
        wait_for_a_checkpoint_to_be_possible(out)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped and saved. Go on with: grokfast sweep --resume quick-sweep-" in said
    assert f"--out {out}" in said
    sweep_id = said.rpartition("--resume ")[2].split()[0]
    with RunStore(out, create=False) as store:
        assert sorted(store.sweeps.statuses(sweep_id).values()) == ["interrupted", "pending"]


def wait_for_a_checkpoint_to_be_possible(out):
    """Until the worker has stored its first evaluations."""
    while True:
        if (out / "grokfast.sqlite").exists():
            with RunStore(out, create=False) as store:
                if len(store.all_curves()["step"]):
                    return
        time.sleep(0.05)


@pytest.mark.usefixtures("here")
def test_a_run_that_fails_is_said_and_is_the_exit_status(out, capsys, monkeypatch):
    make = engine.make_groups
    monkeypatch.setattr(engine, "make_groups", lambda *a, **k: [replace(g, backend="nonsense") for g in make(*a, **k)])
    assert main(["sweep", "quick", "--seeds", "1", *TINY, "--out", str(out)]) == 1
    assert "backend must be one of" in capsys.readouterr().err
