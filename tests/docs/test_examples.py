"""The parts of docs/examples, as their users run them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from grokfast.cli import main
from grokfast.store import RunStore

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ALL = [
    "--task", "my_task:Below", "--task.n", "6", "--task.threshold", "7", "--model", "my_model:Net",
    "--filter", "my_transform:Orthogonal(share=0.5)+ema", "--schedule.changes", "my_change:Waves(period=30)",
    "--probes", "my_probe:Confidence,spread",
]  # fmt: skip


def grokfast(*words, **options):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "grokfast", *words], cwd=EXAMPLES, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def done(*words):
    process = grokfast(*words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def only_run(out):
    with RunStore(out, create=False, read_only=True) as store:
        (run,) = store.list()
        return run, store.curves(run.run_id), store.load_weights(run.run_id) if run.status == "finished" else {}


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(example):
    assert len(example.read_text().splitlines()) <= 40


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "my_task:Below", "--model", "my_model:Net"],
        ["--model", "my_model:Net"],
        ["--filter", "my_transform:Orthogonal", "--filter.share", "0.5"],
        ["--schedule.changes", "my_change:Waves"],
        ["--probes", "my_probe:Confidence"],
    ],
    ids=lambda words: words[-1],
)
def test_an_example_alone(words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # as `python -m grokfast` there has it
    size = ["--task.p" if "--task" not in words else "--task.n", "7", "--steps", "12"]
    assert main(["run", "quick", *words, *size, "--out", str(tmp_path)]) == 0
    run, curves, weights = only_run(tmp_path)
    assert run.status == "finished"
    assert curves["step"].tolist() == [0, 10, 12]
    assert all(torch.isfinite(w).all() for w in weights.values())
    if "my_probe:Confidence" in words:
        assert list(curves)[-2:] == ["train_confidence", "test_confidence"]
        assert ((curves["test_confidence"] > 0) & (curves["test_confidence"] <= 1)).all()


@pytest.mark.slow
def test_all_five_killed_and_resumed_have_the_bits_of_an_uninterrupted_run(tmp_path):
    words = [*ALL, "--schedule.stop-after", "100000", "--steps", "600", "--checkpoint-every", "0"]
    done("run", "quick", *words, "--out", str(tmp_path / "whole"))
    process = grokfast("run", "quick", *words, "--out", str(tmp_path / "killed"), start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*/checkpoint.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run, curves, _ = only_run(tmp_path / "killed")
    if run.status != "finished":
        assert curves["step"][-1] < 600
        done("run", "--resume", run.run_id, "--out", str(tmp_path / "killed"))
    (_, expected, right), (_, found, weights) = (only_run(tmp_path / name) for name in ("whole", "killed"))
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    assert {name: w.tolist() for name, w in weights.items()} == {name: w.tolist() for name, w in right.items()}


def test_a_run_whose_part_is_missing_says_so(tmp_path):
    done("run", "quick", *ALL, "--steps", "4", "--out", str(tmp_path))
    run, _, _ = only_run(tmp_path)
    process = subprocess.run(
        [sys.executable, "-m", "grokfast", "run", "--resume", run.run_id, "--steps", "8", "--out", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 1
    assert "task 'my_task:Below' is not there: No module named 'my_task'" in " ".join(process.stderr.split())


@pytest.mark.slow
def test_the_console_script_finds_parts_in_the_current_directory(tmp_path):
    script = Path(sys.executable).with_name("grokfast")
    if not script.exists():
        pytest.skip("the package is not installed with its script")

    def run(*words):
        return subprocess.run([script, *words, "--out", tmp_path], cwd=EXAMPLES, capture_output=True, text=True)

    assert run("run", "quick", *ALL, "--steps", "4").returncode == 0
    (run_id,) = (path.name for path in tmp_path.glob("quick-*"))
    shown = run("show", run_id)
    assert shown.returncode == 0, shown.stderr
    assert "did not memorise in 4 steps" in " ".join(shown.stdout.split())
    assert run("run", "--resume", run_id, "--steps", "8").returncode == 0
    swept = run("sweep", "quick", *ALL, "--steps", "4", "--grid", "seed=0,1", "--processes", "2")
    assert "2/2 done" in swept.stdout, swept.stderr


@pytest.mark.slow
def test_all_five_in_a_sweep_on_two_processes(tmp_path):
    said = done(
        "sweep", "quick", *ALL, "--steps", "20", "--processes", "2", "--out", str(tmp_path), "--grid",
        "task.threshold=7,9", "filter.Orthogonal.share=0,1",
    )  # fmt: skip
    assert "4/4 done" in said
    with RunStore(tmp_path, create=False, read_only=True) as store:
        runs = store.list()
        assert [run.status for run in runs] == ["finished"] * 4
        assert all("test_confidence" in store.curves(run.run_id) for run in runs)
