"""The benchmarks of a GPU as far as a CPU can say: contenders do the same work, and none takes what is another's."""

import contextlib
import gc
import inspect
import json
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baselines, bench_optimizer_gpu, bench_replay_gpu, bench_step_gpu, interleave
from benchmarks.bench_ops import in_tf32
from benchmarks.bench_optimizer_gpu import only
from benchmarks.gpu_report import tables
from benchmarks.interleave import Contender, compare, one_by_one
from benchmarks.predict_step import measurements
from grokfast import EMA, Experiment, backend
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay

SMALL = {"task.p": 7, "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 32}


@pytest.fixture(scope="module")
def work():
    return bench_step_gpu.Workload(p=7, width=16, device="cpu")


def flops(step):
    step()  # what is made once
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("ensemble", [bench_step_gpu.by_vmap, bench_step_gpu.by_bmm])
def test_an_ensemble_of_mlps_makes_the_products_of_as_many_models(ensemble, work):
    assert flops(bench_step_gpu.eager(work)) == work.flops(1)
    assert flops(ensemble(work, 3)) == work.flops(3)


def test_a_compiled_ensemble_of_mlps_is_the_same_one(work, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, mode: made.append(mode) or function)
    assert flops(bench_step_gpu.by_bmm(work, 3, compiled=True)) == work.flops(3)
    assert made == ["max-autotune"] * 2


def test_an_ensemble_of_transformers_makes_the_products_of_as_many_scripts():
    experiment = Experiment.preset("nanda").override(SMALL)
    one = flops(baselines.eager_step(experiment))
    assert flops(baselines.vmap_step(experiment, 3, "cpu")) == 3 * one
    batch = Experiment.preset("power").override({**SMALL, "schedule.batch_size": 10})
    assert flops(baselines.vmap_step(batch, 2, "cpu")) == 2 * flops(baselines.eager_step(batch))


def test_the_products_of_bmm_train_each_model_as_alone(work, monkeypatch):
    seen = []

    class AdamW(torch.optim.AdamW):
        def step(self):
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    for models in (1, 2):
        torch.manual_seed(0)
        drawn = [torch.randn(s) for s in ((7, 16), (7, 16), (1, 1, 16), (1, 16, 7), (1, 1, 7))]
        repeated = [t.repeat(models, *[1] * (t.ndim - 1)) for t in drawn]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *_, left=repeated, **__: left.pop(0))
            step = bench_step_gpu.by_bmm(work, models)
        step()
    for alone, both in zip(*seen, strict=True):
        torch.testing.assert_close(both.view(2, *alone.shape), alone.expand(2, *alone.shape))


def test_a_section_of_mlps_is_kept_as_it_is_found(work):
    seen = []
    bench_step_gpu.measure(work, {"eager": lambda: bench_step_gpu.eager(work)}, 1, 2, seen.append)
    makers = {"bmm": lambda: bench_step_gpu.by_bmm(work, 2), "vmap": lambda: bench_step_gpu.by_vmap(work, 2)}
    bench_step_gpu.measure(work, makers, 2, 2, seen.append)
    assert [[row["name"] for row in rows] for rows in seen] == [["eager"], ["bmm"], ["bmm", "vmap"]]
    assert all(row["model_steps_per_s"] > 0 for rows in seen for row in rows)


def test_contenders_are_ours_or_others_beside_one_of_ours():
    makers = dict.fromkeys(["eager", "grokfast, ieee", "grokfast, tf32", "bmm"], 1)
    assert list(only(makers, "ours")) == ["grokfast, ieee", "grokfast, tf32"]
    assert list(only(makers, "others")) == ["eager", "grokfast, tf32", "bmm"]
    assert list(only(makers, "all")) == list(makers)


def test_each_kind_of_contender_of_the_mlp_has_its_section(monkeypatch, tmp_path):
    sections = {}

    def measure(work, makers, models, rounds, keep):
        keep([{"name": name, "median_ms": 1.0, "ratio": 1.0} for name in makers])

    monkeypatch.setattr(bench_step_gpu, "measure", measure)
    monkeypatch.setattr(bench_step_gpu, "Workload", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench_step_gpu, "free", lambda: None)
    monkeypatch.setattr(bench_step_gpu, "report", lambda title, found, out: sections.update(found))
    monkeypatch.setattr(bench_step_gpu, "write", lambda *about: None)
    for which, there in {
        "ours": {"one model": "grokfast, ieee", "9 models": "grokfast, ieee"},
        "others": {"one model": "eager", "9 models": "torch.func vmap"},
        "compiled": {"one model, compiled": "eager", "9 models, compiled": "torch.compile of bmm, tf32"},
    }.items():
        sections.clear()
        monkeypatch.setattr(sys, "argv", ["bench", "--models", "9", "--only", which])
        bench_step_gpu.main()
        assert {name: rows[0]["name"] for name, rows in sections.items()} == there
    assert [row["name"] for row in sections["9 models, compiled"]][1:] == ["grokfast, tf32"]


def test_the_planned_computation_in_torchs_operations_trains_as_the_model_does():
    base = Experiment.preset("nanda").override({**SMALL, "device": "cpu", "schedule.eval_every": 3})
    experiments = [base.override({"seed": seed, "precision": "float64"}) for seed in range(2)]
    run = bench_replay_gpu.planned(experiments)
    replay = inspect.getclosurevars(run).nonlocals["replay"]
    for _ in range(2):
        run()
    with backend.using("reference"):
        usual = Replay(Ensemble(experiments), [Outcome(one.criteria) for one in experiments])
        for _ in range(2):
            usual.launch().read()
    assert usual.ensemble.steps == replay.ensemble.steps == 6
    assert type(usual.ensemble.compute) is not type(replay.ensemble.compute)
    torch.testing.assert_close(replay.ensemble.flat, usual.ensemble.flat, rtol=1e-7, atol=1e-9)
    with pytest.raises(TypeError, match="experiments must be of a transformer, got PairMLPConfig"):
        bench_replay_gpu.planned([Experiment.preset("quick")])


def test_the_planned_computation_is_fewer_products_and_can_be_captured():
    pytest.importorskip("triton")
    from benchmarks.launches import as_in_a_capture

    experiment = Experiment.preset("nanda").override({**SMALL, "device": "cpu", "schedule.eval_every": 1})
    run = bench_replay_gpu.planned([experiment])
    run()
    ensemble = inspect.getclosurevars(run).nonlocals["replay"].ensemble
    grad, loss = torch.empty_like(ensemble.flat), torch.empty(1)
    of_planned = flops(lambda: ensemble.compute.gradient(ensemble.flat, grad, loss, None))
    assert of_planned < 0.6 * flops(baselines.eager_step(experiment))
    with as_in_a_capture():
        ensemble.compute.gradient(ensemble.flat, grad, loss, None)


def test_a_filter_does_not_go_into_a_graph():
    experiment = Experiment.preset("grokfast").override(SMALL)
    assert isinstance(experiment.filter, EMA)
    with pytest.raises(ValueError, match="no filter in a CUDA graph"):
        baselines.eager_step(experiment, capturable=True)


def test_tf32_ends_with_the_step_even_if_it_fails():
    def fail():
        assert torch.get_float32_matmul_precision() == "high"
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_tf32(fail)()
    assert torch.get_float32_matmul_precision() == "highest"
    assert in_tf32(torch.get_float32_matmul_precision)() == "high"


def test_a_graph_keeps_the_tensors_that_it_reads(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    replays = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda one: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: replays.append(1)))
    monkeypatch.setattr(torch.cuda, "graph", lambda one: contextlib.nullcontext())
    calls = []

    def maker():
        parameter = torch.zeros(3)
        return (lambda: calls.append(parameter.sum())), weakref.ref(parameter)

    step, parameter = maker()
    replay = bench_optimizer_gpu.captured(step)
    calls.clear()
    del step
    gc.collect()
    assert parameter() is not None
    replay()
    assert replays == [1]
    assert not calls
    del replay
    gc.collect()
    assert parameter() is None


class Made:
    """Makers of contenders, and how many there are at once."""

    def __init__(self):
        self.alive, self.most = 0, 0

    def maker(self, fails_at=None):
        made, calls = self, []

        class One:
            def __init__(self):
                made.alive += 1
                made.most = max(made.most, made.alive)

            def __del__(self):
                made.alive -= 1

            def __call__(self):
                calls.append(1)
                if len(calls) == fails_at:
                    raise torch.OutOfMemoryError("no memory")

        return lambda: Contender(One())


def test_one_by_one_has_one_contender_at_a_time(capsys):
    made = Made()
    makers = {"a": made.maker(), "b": made.maker(fails_at=1), "c": made.maker()}
    kept = []
    rows = one_by_one(makers, rounds=2, keep=lambda rows: kept.append([row["name"] for row in rows]))
    assert kept == [["a"], ["a", "c"]]
    assert [row["name"] for row in rows] == ["a", "c"]
    assert rows[0]["ratio"] == 1.0
    assert made.most == 1
    assert "b: left out, OutOfMemoryError: no memory" in capsys.readouterr().out


def test_who_fails_while_it_is_timed_is_left_out(capsys):
    made = Made()
    rows = compare({"a": made.maker(fails_at=3), "b": made.maker(), "c": made.maker()}, rounds=3, warmup=1)
    assert [row["name"] for row in rows] == ["b", "c"]
    assert rows[0]["ratio"] == 1.0
    assert "a: left out" in capsys.readouterr().out


def test_memory_of_who_fails_is_there_for_the_next():
    made = Made()
    compare({"a": made.maker(fails_at=1), "b": made.maker()}, rounds=2)
    assert made.most == 1


def test_times_of_stretches_are_those_of_a_step():
    row = {"name": "a", "p20_ms": 1.0, "median_ms": 2.0, "p80_ms": 4.0, "ratio": 1.0}
    assert bench_replay_gpu.per_step([row], 5, 100)[0] == {
        "name": "a", "p20_ms": 0.01, "median_ms": 0.02, "p80_ms": 0.04, "ratio": 1.0, "model_steps_per_s": 250_000,
    }  # fmt: skip


def test_a_stretch_is_read_when_the_next_is_launched(monkeypatch):
    log = []
    window = SimpleNamespace(read=lambda: log.append("read"))
    replay = SimpleNamespace(launch=lambda: log.append("launch") or window)
    monkeypatch.setattr(bench_replay_gpu, "Ensemble", lambda experiments: None)
    monkeypatch.setattr(bench_replay_gpu, "Replay", lambda *about: replay)
    run = bench_replay_gpu.replayed([Experiment.preset("quick")], "auto")
    for _ in range(3):
        run()
    assert log == ["launch", "launch", "read", "launch", "read"]


def test_contenders_have_the_names_that_predictions_read():
    one, many = (bench_replay_gpu.contenders("nanda", "cuda", models, 10, "auto") for models in (1, 4))
    assert {f"grokfast, {p}" for p in bench_replay_gpu.PRECISIONS} < one.keys() & many.keys()
    assert next(iter(one)) == "script, eager"
    assert {"script in a CUDA graph", "script in a CUDA graph, tf32"} < one.keys()
    assert next(iter(many)) == "torch.func vmap"
    for tf32, end in ((True, ", tf32"), (False, "")):
        names = list(bench_replay_gpu.compiled("nanda", 10, "auto", tf32))
        assert names[0] == f"script, eager{end}"
        assert names[-1] == f"torch.compile, max-autotune{end}"
    assert "planned in a CUDA graph, tf32" in one.keys() & many.keys()
    assert "planned in a CUDA graph, tf32" not in bench_replay_gpu.contenders("quick", "cuda", 1, 10, "auto")
    assert "script, eager" not in bench_replay_gpu.contenders("quick", "cuda", 1, 10, "auto")


def test_it_can_be_tried_out_in_the_interpreter(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    whole = bench_replay_gpu.steps_of
    small = {"task.p": 5, "model.width": 8}
    monkeypatch.setattr(bench_replay_gpu, "steps_of", lambda *about, **changes: whole(*about, **changes, **small))
    for name, value in {"PRECISIONS": ("tf32",), "WARM": 1, "TURN": 1}.items():
        monkeypatch.setattr(bench_replay_gpu, name, value)
    arguments = ["--preset", "quick", "--interpreted", "--models", "1", "2", "--steps", "1", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--out", str(tmp_path / "gpu-quick.json")])
    bench_replay_gpu.main()
    sections = json.loads((tmp_path / "gpu-quick.json").read_text())["sections"]
    names = {section: [row["name"] for row in rows] for section, rows in sections.items()}
    assert names == {
        "one model": ["eager in a CUDA graph", "eager", "grokfast, tf32"],
        "2 models": ["eager in a CUDA graph", "grokfast, tf32"],
    }
    assert measurements(tmp_path).steps.keys() == {("quick", 1, "tf32"), ("quick", 2, "tf32")}


def test_whole_runs_of_an_ensemble_are_counted(monkeypatch, tmp_path):
    def train(experiments):
        found = [SimpleNamespace(steps=100, t_memorize=5, t_generalize=t, sentence="done") for t in (50, None, 70)]
        if experiments[0].products == "bf16":
            raise RuntimeError("a compiler's")
        return found[: len(experiments)]

    monkeypatch.setattr(bench_replay_gpu, "train", train)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(interleave, "machine", lambda: {"device": "none"})
    arguments = ["--preset", "quick", "--to-the-end", "--models", "1", "3", "--products", "tf32", "bf16"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--out", str(tmp_path / "gpu-whole.json")])
    bench_replay_gpu.main()
    content = json.loads((tmp_path / "gpu-whole.json").read_text())
    assert list(content["sections"]) == ["one run", "3 runs"]
    (row,) = content["sections"]["3 runs"]
    assert (row["name"], row["generalized"], row["t_memorize"], row["t_generalize"]) == ("grokfast, tf32", 2, 5, 60)
    assert row["runs_per_minute"] > 0
    assert any("| grokfast, tf32 |" in line for line in tables(tmp_path, {}))
