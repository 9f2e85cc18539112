"""benchmarks.profile_step: from what a profiler saw to a table of launches."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import interleave, profile_step
from benchmarks.predict_step import configurations, measurements, step_of
from benchmarks.prediction.devices import H200
from benchmarks.prediction.issue import Executed
from benchmarks.prediction.timing import times
from benchmarks.profile_step import Event, events_of, in_steps, match, short, table

LAUNCHES = times(step_of(configurations()["power"], 1, "tf32"), "tf32")


def kernels(found, torchs=("void at::native::gather<int>(float)",)):
    """Names of a step's kernels, as many as there are launches."""
    names = (one.launch.kernel or torchs[0] for one in found for _ in range(one.launch.count))
    return [f"{name}_0d1d" if name == "rows_kernel" else name for name in names]


def step(names, at, length=2.0, gap=0.5):
    events = []
    for name in names:
        events.append(Event(name, at + gap, at + gap + length))
        at += gap + length
    return events


def steps(names, n, between=(), **about):
    events = []
    for i in range(n):
        events += step((*between, *names) if i == n // 2 else names, events[-1].end if events else 0.0, **about)
    return events


def test_a_trace_gives_what_the_gpu_did_in_order():
    trace = [
        {"cat": "kernel", "name": "b", "ts": 5.5, "dur": 2},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0, "dur": 9},
        {"cat": "gpu_memset", "name": "Memset", "ts": 1, "dur": 0.5},
        {"ph": "M", "name": "process_name"},
    ]
    assert events_of({"traceEvents": trace}) == [Event("Memset", 1, 1.5), Event("b", 5.5, 7.5)]


def test_steps_with_an_evaluation_in_between_are_left_out():
    names = ["rows_kernel", "tick_kernel", "update_kernel"]
    found = in_steps(steps(names, 6, between=["measure"]))
    assert len(found) == 4
    assert [event.name for event in found[0]] == ["update_kernel", *names]
    with pytest.raises(ValueError, match="saw 1 kernels, and no two that are update_kernel"):
        in_steps([Event("update_kernel", 0, 1)])


def test_launches_of_one_kernel_are_told_apart_by_their_order():
    names = kernels(LAUNCHES)
    matched = match(names, LAUNCHES)
    assert [matched[i].launch.name for i in range(len(names))] == [
        one.launch.name for one in LAUNCHES for _ in range(one.launch.count)
    ]
    later = match(["unknown_kernel", *names], LAUNCHES)  # where torch has no more than the launches that are counted
    assert later[0].launch.name == "batch"
    of_rows = [one.launch.name for one in later.values() if one.launch.kernel == "rows_kernel"]
    assert of_rows == [
        "rows 1, forward-project",
        "rows 2, forward-classify-turn-back",
        "rows 1, above-back",
        "rows 0, above",
    ]
    assert match(["unknown_kernel"], [one for one in LAUNCHES if one.launch.kernel]) == {}


def test_a_table_has_times_gaps_and_what_is_counted():
    names = kernels(LAUNCHES)
    rows = {row["name"]: row for row in table(steps(names, 5, between=["measure"]), LAUNCHES)}
    assert rows.keys() == {one.launch.name for one in LAUNCHES} | {"gaps", "step"}
    assert rows["weights"]["median_us"] == pytest.approx(2.0)
    assert rows["batch"]["median_us"] == pytest.approx(4.0)
    assert rows["batch"]["calls"] == 2
    assert rows["gaps"]["median_us"] == pytest.approx(0.5 * len(names))
    assert rows["step"]["median_us"] == pytest.approx(2.5 * len(names))
    assert sum(row["share"] for name, row in rows.items() if name != "step") == pytest.approx(1, abs=1e-3)
    weights = next(one for one in LAUNCHES if one.launch.name == "weights")
    assert rows["weights"]["at_least_us"] == pytest.approx(weights.seconds * 1e6, abs=1e-3)
    assert rows["weights"]["asked_TB_per_s"] == pytest.approx(weights.launch.bytes / 2e6, abs=1e-3)
    assert rows["step"]["not_seen"] == []
    assert not any("issued_of_4" in row for row in rows.values())


def test_what_is_issued_is_told_where_it_is_counted():
    step = step_of(configurations()["power"], 1, "tf32")
    counts = {"weights": Executed(int(H200.instructions * 0.5e-6))}
    found = times(step, "tf32", H200, counts)
    rows = {row["name"]: row for row in table(steps(kernels(found), 5), found)}
    whose = next(one for one in found if one.launch.name == "weights")
    assert whose.issuing == pytest.approx(0.5e-6 * 132 * whose.launch.slowest(132), rel=1e-3)
    assert rows["weights"]["issued_of_4"] == pytest.approx(4 * whose.issuing / 2e-6, rel=1e-3)
    assert "issued_of_4" not in rows["finish"]


def test_what_is_not_counted_or_not_seen_is_said():
    named = [one for one in LAUNCHES if one.launch.kernel]
    names = ["void at::native::copy<float>(int)", *(name for name in kernels(named) if name != "enter_kernel")]
    rows = {row["name"]: row for row in table(steps(names, 4), named)}
    assert "at_least_us" not in rows["at::native::copy"]
    assert rows["step"]["not_seen"] == ["enter"]
    assert short("triton_kernel") == "triton_kernel"


def test_a_stretch_is_captured_before_it_is_profiled(monkeypatch):
    seen, log = [], []
    window = SimpleNamespace(read=lambda: log.append("read"))
    monkeypatch.setattr(profile_step, "Ensemble", seen.extend)
    monkeypatch.setattr(profile_step, "Replay", lambda *_: SimpleNamespace(launch=lambda: window))
    run = profile_step.stretch(configurations()["nanda"], 2, "tf32", 20)
    assert len(log) == profile_step.WARM
    run()
    assert len(log) == profile_step.WARM + 1
    assert [one.seed for one in seen] == [0, 1]
    assert {(one.device, one.products, one.schedule.eval_every) for one in seen} == {("cuda", "tf32", 20)}


class Run:
    def __init__(self, names):
        self.names = names

    def __call__(self):
        pass


@pytest.fixture
def fake_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(interleave, "machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(profile_step, "machine", lambda: {"gpu": "none"})

    def stretch(experiment, models, products, steps):
        if models == 2:
            raise torch.OutOfMemoryError("no memory")
        return Run(kernels(times(step_of(experiment, models, products), products)))

    monkeypatch.setattr(profile_step, "stretch", stretch)
    monkeypatch.setattr(profile_step, "profiled", lambda run: steps(run.names, 4) if isinstance(run, Run) else [])
    monkeypatch.setattr(profile_step, "CUPTI", {})


def test_what_fails_costs_nothing_else_and_predictions_read_the_rest(fake_gpu, tmp_path, monkeypatch, capsys):
    arguments = ["--names", "nanda", "p = 97 MLP", "--models", "1", "2", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["profile_step", *arguments])
    assert profile_step.main() == 1
    said = capsys.readouterr().out
    assert "nanda, 2 models, tf32: left out, OutOfMemoryError: no memory" in said
    content = json.loads((tmp_path / "gpu-profile-p-97-mlp.json").read_text())
    assert content["title"] == "p = 97 MLP profile"
    assert list(content["sections"]) == ["one model, tf32", "3 models, tf32"]
    kernels = measurements(tmp_path).kernels
    assert kernels.keys() == {(name, n, "tf32") for name in ("nanda", "p = 97 MLP") for n in (1, 3)}
    assert kernels["nanda", 1, "tf32"]["weights"] == pytest.approx(2e-6)


def test_no_section_begins_without_time(fake_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["profile_step", "--seconds", "-1", "--out", str(tmp_path)])
    assert profile_step.main() == 0
    assert capsys.readouterr().out.count("left out, no time") == 6
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr(sys, "argv", ["profile_step"])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        profile_step.main()
    monkeypatch.setattr(sys, "argv", ["profile_step", "--steps", "1"])
    with pytest.raises(ValueError, match="--steps must be at least 3, got 1"):
        profile_step.main()
