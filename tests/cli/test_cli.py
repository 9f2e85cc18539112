import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

import grokfast
from grokfast.cli import COMMANDS, main
from grokfast.store import NewRun, RunStore
from grokfast.sweeps.presets import SWEEPS
from grokfast.training import PRESETS, Interrupted
from grokfast.training.ensemble import Ensemble
from tests.training.common import short_of_memory

QUICK = ["run", "quick", "--task.p", "13", "--model.width", "32", "--steps", "40"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_run_says_what_happened_and_prints_json_last(out, capsys):
    assert main([*QUICK, "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    result = json.loads(lines[-1])
    assert {
        "run_id",
        "preset",
        "status",
        "phase",
        "t_memorize",
        "t_generalize",
        "steps",
        "seconds",
        "final",
    } <= result.keys()
    assert (result["preset"], result["status"], result["steps"]) == ("quick", "finished", 40)
    assert {"train_accuracy", "test_accuracy"} <= result["final"].keys()
    assert "had not generalised after 40 steps" in lines[0] or "did not memorise in 40 steps" in lines[0]
    directory = out / result["run_id"]
    assert result["directory"] == str(directory)
    for picture in ("data", "curves"):
        assert (directory / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{picture}: {directory / picture}.png\n" in captured.err
    with RunStore(out, create=False) as store:
        assert store.get(result["run_id"]).result == result


@pytest.mark.parametrize(
    ("which", "error"),
    [
        ("data", ValueError("no\nbackend")), ("data", RuntimeError("odd")), ("data", MemoryError()),
        ("curves", PermissionError(13, "no")), ("curves", MemoryError()),
    ],
)  # fmt: skip
def test_a_picture_that_fails_costs_nothing_else(which, error, out, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"grokfast.plots.plot_{which}", fail)
    assert main([*QUICK, "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    sentence, result = captured.out.splitlines()
    assert "40 steps in" in sentence
    assert json.loads(result)["status"] == "finished"
    said = sorted(captured.err.splitlines()[-2:])  # of the one, and where the other is
    assert re.fullmatch("no picture: .+", said[1])
    assert re.fullmatch(f"{'curves' if which == 'data' else 'data'}: .+png", said[0])
    assert main([*QUICK, "--out", str(out)]) == 0
    assert "no picture: " in capsys.readouterr().out


def test_a_backend_that_is_not_there_costs_the_picture_alone(out):
    environment = {**os.environ, "MPLBACKEND": "module://no_such_backend"}
    command = [sys.executable, "-m", "grokfast", *QUICK, "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 40
    assert "no picture: " in done.stderr or len(list(out.rglob("curves.png"))) == 1  # which never needed it


@pytest.mark.parametrize("method", ["record", "close"])
@pytest.mark.parametrize("option", ["tensorboard", "wandb"])
def test_a_log_that_fails_costs_nothing_else(method, option, out, capsys, monkeypatch):
    class Broken:
        def __init__(self, *_, **__):
            pass

        def record(self, record):
            assert method != "record", "connection lost"

        def close(self, result):
            assert method != "close", "connection lost"

    name = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}[option]
    monkeypatch.setattr(f"grokfast.cli.run.{name.split()[0].replace('Weights', 'Wandb')}Sink", Broken)
    with pytest.warns(UserWarning, match=f"{name} takes no more: AssertionError: connection lost") as warned:
        assert main([*QUICK, f"--{option}", "--json", "--out", str(out)]) == 0
    assert len(warned) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 40


def test_short_and_dotted_options_reach_the_experiment(out, capsys):
    options = ["--optimizer.weight-decay", "0.3", "--optimizer.betas", "0.8", "0.9", "--seed", "7", "--device", "cpu"]
    assert main([*QUICK, *options, "--engine", "reference", "--task.stratified", "--out", str(out)]) == 0
    with RunStore(out, create=False) as store:
        config = store.list()[0].config
    assert config["optimizer"]["weight_decay"] == 0.3
    assert config["optimizer"]["betas"] == [0.8, 0.9]
    assert (config["seed"], config["device"], config["engine"]) == (7, "cpu", "reference")
    assert config["task"]["stratified"] is True
    assert config["schedule"]["steps"] == 40


def test_a_filter_can_be_switched_on_and_off(out, capsys):
    assert main([*QUICK, "--filter", "ema", "--filter.alpha", "0.9", "--out", str(out)]) == 0
    assert main([*QUICK, "--filter=ma", "--filter.window-size", "9", "--out", str(out)]) == 0
    assert main(["run", "grokfast", "--filter", "none", "--steps", "1", "--task.p", "7", "--out", str(out)]) == 0
    with RunStore(out, create=False) as store:
        last, middle, first = (run.config["filter"] for run in store.list())
    assert {"kind": "ema", "alpha": 0.9, "lamb": 2.0}.items() <= first.items()
    assert (middle["kind"], middle["window_size"]) == ("ma", 9)
    assert last is None


SMALLER = {
    "task.p": "7", "task.train_fraction": "0.5", "task.group": "S3", "task.n_train": "50", "task.n_test": "50",
    "model.width": "8",
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_a_step(preset, out, capsys, monkeypatch):
    monkeypatch.setattr("grokfast.cli.run.draw_all", lambda *_, **__: True)  # tests/plots draws every task
    if missing := PRESETS[preset].task.missing():
        pytest.skip(f"needs {missing}")
    there = PRESETS[preset].flat()
    options = [f"--{key}={value}" for key, value in SMALLER.items() if key in there]
    assert main(["run", preset, "--steps", "1", *options, "--out", str(out)]) == 0
    assert "1 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quik"], "did you mean 'quick'"),
        (["run", "--seed", "1", "nanda"], "the preset comes first"),
        (["run", "quick", "--optimizer.wieght-decay", "1"], "--optimizer.weight-decay"),
        (["run", "quick", "--filter", "em"], "--filter must be one of 'none', 'chain', 'egd', 'ema'"),
        (["run", "quick", "--filter", "ema", "--filter.alpha", "1.5"], "alpha must be in [0.0, 1.0], got 1.5"),
        (["run", "quick", "--filter", "ma", "--filter.window-size", "0"], "window_size must be at least 1, got 0"),
        (["run", "quick", "--task.operation", "div", "--task.p", "12"], "p must be prime"),
        (["run", "quick", "--task.train-fraction", "1.0"], "train_fraction must be in"),
        (["run", "quick", "--steps", "0"], "schedule.steps must be at least 1, got 0"),
        (["run", "quick", "--device", "warp"], "device must be"),
        (["run", "quick", "--device", "meta"], "device must be 'auto', 'cpu' or an available accelerator, got 'meta'"),
        (["run", "quick", "--device", "hpu"], "device must be 'auto', 'cpu' or an available accelerator, got 'hpu'"),
        (["run", "quick", "--device", ""], "device must have 1 to 200 printable characters, got ''"),
        (["run", "quick", "--model.init-scale", "1e39"], "init_scale must be in (0, 1e+38], got 1e+39"),
        (["run", "quick", "--model.width", f"1{'0' * 30}"], "width must be at most 9007199254740991, got 1000000"),
        (
            ["run", "quick", "--task.p", "997", "--model.width", "9007199254740991"],
            "does not fit into this machine's memory",
        ),
        (["run", "quick", "--criteria.grok-gap", f"1{'0' * 20}"], "criteria.grok_gap must be at most 9007199254740991"),
        (["run", "quick", "--filter.lamb", "3"], "--filter.lamb is of a filter: choose one, with --filter ema or"),
        (["run", "quick", "--model.width", "10000000000"], "quick does not fit into this machine's memory: can't"),
        (["run", "quick", "--checkpoint-every", "-1"], "--checkpoint-every must be in"),
        (["run", "quick", "--resume", "x"], "--resume takes the run as it was begun"),
        (["run", "--resume", "x", "--seed", "3"], "--resume takes the run as it was begun"),
        (["run", "--resume", "quick-000000"], "there is no run store at"),
        (["rum"], "run"),
    ],
)
def test_bad_usage_is_a_clear_message_and_leaves_nothing(arguments, message, out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    try:
        status = main([*arguments, "--out", str(out)])
    except SystemExit as stopped:  # tyro's own messages
        status = stopped.code
    captured = capsys.readouterr()
    assert status in (1, 2)
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert not out.exists() or not RunStore(out).list()


def test_a_store_of_a_newer_schema_is_refused(out, capsys):
    out.mkdir()
    with sqlite3.connect(out / "grokfast.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert main([*QUICK, "--out", str(out)]) == 1
    assert "99" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["grokfast.sqlite"]


def test_ctrl_c_saves_and_says_how_to_resume(out):
    command = [sys.executable, "-m", "grokfast", *QUICK[:-1], "1000000", "--schedule.stop-after", "None"]
    command += ["--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert "training and" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped and saved. Go on with: grokfast run --resume quick-" in said
    run_id = said.rpartition("--resume ")[2].split()[0]
    with RunStore(out, create=False) as store:
        assert store.get(run_id).status == "interrupted"
        assert store.has_checkpoint(run_id)


def test_resume_goes_on(out, capsys):
    command = [
        sys.executable,
        "-m",
        "grokfast",
        *QUICK[:-1],
        "2000",
        "--schedule.stop-after",
        "None",
        "--out",
        str(out),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    with RunStore(out, create=False) as store:
        run_id = store.list()[0].run_id
    assert main(["run", "--resume", run_id, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2000


def test_tensorboard_has_every_evaluation_also_after_a_resume(out, capsys):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command = [
        sys.executable,
        "-m",
        "grokfast",
        *QUICK[:-1],
        "1500",
        "--schedule.stop-after",
        "None",
        "--out",
        str(out),
    ]
    with subprocess.Popen([*command, "--tensorboard"], stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()
        process.kill()
        process.communicate(timeout=60)
    with RunStore(out, create=False) as store:
        run_id = store.list()[0].run_id
    assert main(["run", "--resume", run_id, "--tensorboard", "--out", str(out)]) == 0
    events = event_accumulator.EventAccumulator(str(out / run_id / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("accuracy/test")] == list(range(0, 1501, 10))


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_path_that_is_a_file_is_a_message(tmp_path, capsys, below):
    (tmp_path / "file").touch()
    assert main([*QUICK, "--out", str(tmp_path / "file" / below)]) == 1
    assert f"cannot be a run store: {tmp_path / 'file'}" in capsys.readouterr().err


def test_a_path_that_is_empty_is_not_this_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--out", ""], ["--out="]):
        assert main([*QUICK, *arguments]) == 2
        assert "--out must name a directory, got ''" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_says_its_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"grokfast {grokfast.__version__}\n"


def test_what_another_version_stored_is_a_message(out, capsys):
    with RunStore(out) as store:
        run_id = store.create({"name": "quick", "tsk": {}}, preset="quick", version="grokfast 9", device="cpu")
        store.update(run_id, status="interrupted")
    assert main(["run", "--resume", run_id, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"run {run_id} was stored by grokfast 9; this is grokfast" in said
    assert "unknown field 'tsk' (did you mean 'task'?)" in said


def test_too_little_memory_is_a_message(out, capsys, monkeypatch):
    short_of_memory(monkeypatch, Ensemble, "__init__", 0)
    assert main([*QUICK, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("grokfast: quick needs ")
    assert "GB for one run" in said
    with RunStore(out, create=False) as store:
        assert store.list() == []


def test_doctor_names_backends_and_reasons(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("grokfast", "torch", "C++ extension", "CUDA extension", "ops.pair_embed"):
        assert word in said
    for probe in ("default", "norms", "spectra", "local_complexity", "progress"):
        (line,) = (line for line in said.splitlines() if line.split()[:1] == [probe])
        assert line.count(" × (") == 2  # in quick, and in nanda
    monkeypatch.setenv("GROKFAST_BACKEND", "reference")
    assert main(["doctor"]) == 0
    assert "GROKFAST_BACKEND=reference" in capsys.readouterr().out


def test_bench_compares_every_operation(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("torch.compile", lambda function: function)  # minutes on a busy machine
    for name, value in (("ROWS", 8), ("WIDTH", 16), ("HIDDEN", 16)):
        monkeypatch.setattr(f"grokfast.bench.{name}", value)
    assert main(["bench", "--seconds", "0.001"]) == 0
    said = capsys.readouterr().out
    for operation in ("mlp", "attention", "linear_cross_entropy", "pair_embed", "layer_norm"):
        assert f"ops.{operation}, forward and backward" in said
    for word in ("eager", "torch.compile", "grokfast, ieee", "1.00 × as fast", "█"):
        assert word in said
    assert main(["bench", "--models", "0"]) == 2
    assert "--models must be at least 1, got 0" in capsys.readouterr().err


def test_python_m_grokfast_shows_help():
    shown = subprocess.run(
        [sys.executable, "-m", "grokfast", "run", "nanda", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    assert "--model.d-model" in shown
    assert "--steps" in shown


def test_the_list_of_commands_says_what_each_says_of_itself(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert command.help in " ".join(capsys.readouterr().out.split())


WITHOUT_TORCH = """
import sys
from grokfast.cli import COMMANDS, main
try:
    status = main(sys.argv[1:])
except SystemExit as stopped:
    status = stopped.code
print(status, *sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "scipy", "matplotlib"}))
"""


@pytest.mark.parametrize(
    "arguments", ["--help", "rm --help", "doctor --help", "list", "show begun-000000000000", "export --to runs.csv"]
)
def test_reading_the_store_does_not_wait_for_torch(tmp_path, arguments):
    with RunStore(tmp_path / "runs") as store:
        store.sweeps.create("begun", {}, {}, [NewRun({"seed": 0}, "0" * 64, "grokfast 0", "cpu")])
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0", done.stderr


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            RuntimeError("one\n  two\x1b[31m"),
            1,
            r"grokfast: RuntimeError: one two\x1b[31m (GROKFAST_DEBUG=1 shows where)",
        ),
        (KeyError("axes"), 1, "grokfast: KeyError: 'axes' (GROKFAST_DEBUG=1 shows where)"),
        (RecursionError(), 1, "grokfast: RecursionError (GROKFAST_DEBUG=1 shows where)"),
        (MemoryError(), 1, "grokfast: MemoryError"),
        (ValueError("p must be [/red]"), 2, "grokfast: p must be [/red]"),
        (OSError(28, "No space left on device"), 1, "grokfast: [Errno 28] No space left on device"),
    ],
)
def test_whatever_is_raised_is_a_line_and_with_debugging_a_traceback(error, status, message, out, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.delenv("GROKFAST_DEBUG", raising=False)
    monkeypatch.setattr("grokfast.cli.run.train", fail)
    assert main([*QUICK, "--out", str(out)]) == status
    assert capsys.readouterr().err == f"{message}\n"
    monkeypatch.setenv("GROKFAST_DEBUG", "1")
    assert main([*QUICK, "--out", str(out)]) == status
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith(f"{message}\n")


@pytest.mark.parametrize("name", ["my runs", "it's; rm -rf *", "--json"])
def test_the_command_to_go_on_with_can_be_copied(name, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise Interrupted(["quick-000000"])

    monkeypatch.setattr("grokfast.cli.run.train", stop)
    out = str(tmp_path / name)
    assert main([*QUICK, f"--out={out}"]) == 130
    said = capsys.readouterr().err.rpartition("Go on with: ")[2]
    assert shlex.split(said) == ["grokfast", "run", "--resume", "quick-000000", "--out", out]


@pytest.mark.parametrize(
    "arguments", [[name, "--help"] for name in COMMANDS] + [["run", "grokfast", "--help"], ["doctor"]]
)
def test_options_are_spelt_with_dashes(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with suppress(SystemExit):
        main(arguments)
    said = capsys.readouterr().out
    assert said
    assert not re.findall(r"--[\w.-]*_[\w.-]*", said)


def test_underscores_in_options_are_accepted(out, capsys):
    assert main([*QUICK, "--task.train_fraction", "0.3", "--checkpoint_every", "5", "--out", str(out)]) == 0
    with RunStore(out, create=False) as store:
        assert store.list()[0].config["task"]["train_fraction"] == 0.3


def test_tensors_of_a_file(tmp_path, capsys):
    rows = np.stack(np.meshgrid(np.arange(7), np.arange(7)), -1).reshape(-1, 2)
    np.savez(tmp_path / "set.npz", x=rows, y=rows.sum(1) % 7)
    words = ["run", "quick", "--task", "tensors", "--task.path", str(tmp_path / "set.npz"), "--steps", "10"]
    out = ["--out", str(tmp_path / "runs")]
    with pytest.raises(SystemExit):
        main([*words, *out, "--json"])
    assert "there must be a test split" in " ".join(capsys.readouterr().err.split())
    assert main([*words, *out, "--json", "--task.train-fraction", "0.4"]) == 0
    run_id = json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"]
    (tmp_path / "set.npz").unlink()
    assert main(["run", "--resume", run_id, "--steps", "20", *out]) == 0


def test_all_presets_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("grokfast.sweeps.estimate.SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["run", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["preset", *PRESETS, *SWEEPS]
    assert "Nanda et al., arXiv 2301.05217" in lines[1 + list(PRESETS).index("nanda")]
