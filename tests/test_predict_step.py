"""The step's time from counted bytes, products and launches."""

import dataclasses
import json
import re
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import predict_step
from benchmarks.predict_step import AIMS, configurations, lines, measurements, predicted, range_of, step_of
from benchmarks.prediction.devices import H100, H200
from benchmarks.prediction.timing import seconds, spent, times
from benchmarks.prediction.transformer import cost
from benchmarks.prediction.work import Launch, Use
from grokfast import EMA, MA, Experiment, backend
from grokfast.models import Plan
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.training.ensemble import Ensemble
from tests.models.transformer.common import planned_forward


def launch(size=0, asked=0, flops=0, programs=13_200, **about):
    """Of an array that nothing else touches; what several programs ask for counts for each."""
    return Launch("a", "a_kernel", programs, ((Use("x", size, asked),),), flops, **about)


def test_what_is_read_again_comes_from_the_cache():
    read_again = launch(100_000_000, 400_000_000)
    assert seconds([read_again], "tf32") == pytest.approx(H200.launch + 400e6 / H200.l2)
    assert seconds([read_again], "tf32", H200._replace(l2=1e15, port=1e15)) == pytest.approx(
        H200.launch + 100e6 / 4.8e12
    )
    kept = launch(1_000_000, 2_000_000)
    assert times([kept], "tf32")[0].memory == 0
    exact = launch(flops=67_000_000 + 989_500_000, bf16=989_500_000)
    assert seconds([exact], "ieee") == pytest.approx(H200.launch + 2e-6)


def test_time_is_the_longest_of_its_parts_and_the_launches():
    moving, multiplying = launch(96_000_000, 96_000_000, count=2), launch(flops=670_000_000)
    assert seconds([moving], "ieee") == pytest.approx(2 * H200.launch + 20e-6)
    assert seconds([multiplying], "ieee") == pytest.approx(H200.launch + 10e-6)
    assert seconds([moving, multiplying], "ieee") == pytest.approx(3 * H200.launch + 30e-6)
    assert seconds([multiplying], "tf32") < seconds([multiplying], "ieee")
    assert [time.bound for time in times([moving, multiplying, launch()], "ieee")] == ["memory", "products", "launch"]
    assert spent(times([moving, launch()], "ieee")) == "memory 74%, launches 26%"


def test_few_programs_wait_for_the_slowest():
    few = launch(asked=60 * 127_000, programs=60)
    assert seconds([few], "tf32") == pytest.approx(H200.launch + 1e-6)
    assert seconds([dataclasses.replace(few, largest=3.0)], "tf32") == pytest.approx(H200.launch + 3e-6)
    assert seconds([dataclasses.replace(few, programs=120)], "tf32") == pytest.approx(
        H200.launch + 60 * 127_000 / H200.l2
    )
    multiplying = launch(flops=67_000_000, programs=66)
    assert seconds([multiplying], "ieee") == pytest.approx(H200.launch + 2e-6)
    assert times([launch(flops=670_000_000, programs=66)], "ieee")[0].bound == "one processor's products"


@pytest.mark.parametrize("name", configurations())
def test_more_models_cost_more_and_less_each(name):
    experiment = configurations()[name]
    times = [seconds(step_of(experiment, models, "tf32"), "tf32") for models in (1, 64, 256)]
    assert all(a < b for a, b in pairwise(times))
    assert times[1] / 64 < times[0]


def test_products_of_a_transformer_are_at_least_those_of_its_layers():
    """What torch counts of one planned forward pass, and twice as much for the backward."""
    experiment = Experiment.preset("nanda").override({"device": "cpu"})
    made = Ensemble([experiment])
    with backend.using("reference"), FlopCounterMode(display=False) as counter:
        planned_forward(made.model, [Plan(experiment.model, experiment.task.build().train.inputs)])
    counted = sum(one.flops for one in step_of(experiment, 1, "ieee"))
    assert 3e9 < 3 * counter.get_total_flops() <= counted  # hidden layers and logits are made anew in the backward


def test_the_update_moves_the_streams_of_its_state():
    quick = Experiment.preset("quick").override({"task.p": 11, "model.width": 16})

    def streams(**changes):
        made = predict_step.optimizer_launches(dataclasses.replace(quick, **changes), 2, {"a": 300, "b": 700})
        return made[1].bytes / (4 * 2 * 1000)

    assert streams() == 7
    assert streams(filter=EMA()) == 9
    assert streams(filter=MA()) == 11
    assert streams(filter=MA(ring="bfloat16")) == 10
    assert streams(optimizer=quick.override({"optimizer": "sgd"}).optimizer) == 3


def test_the_tick_sums_partial_gradients():
    quick = Experiment.preset("quick")
    one, several = (predict_step.optimizer_launches(quick, 1, {"a": 4000}, splits)[0] for splits in (1, 3))
    assert (one.bytes, several.bytes) == (4 * 4000, 4 * 4000 * 4)
    assert several.programs == 4


def test_a_transformers_launches_are_those_of_a_step_of_as_many_models():
    experiment = Experiment.preset("power").override({"task.p": 7, "schedule.batch_size": 10, "device": "cpu"})
    both = [experiment, experiment.override({"seed": 1})]
    train = [one.task.build(seed=one.seed).train for one in both]
    inputs, targets = (torch.stack([getattr(split, name) for split in train]) for name in ("inputs", "targets"))
    step = TransformerStep(Ensemble(both).model, inputs, targets, precision="tf32")
    names = {name for phases in (one.phases for one in cost(step, 10)) for phase in phases for name, *_ in phase}
    found = step_of(experiment, 2, "tf32")
    assert found[1:-2] == cost(step, 10)
    assert [one.name for one in (found[0], *found[-2:])] == ["batch", "tick", "adamw update"]
    updated = {use.array for use in found[-1].phases[0] if use.stores}
    assert updated - names <= {"exp_avg", "exp_avg_sq"} | step.shapes.keys()
    assert {"blocks.0.w_in", "blocks.1.w_out", "unembedding"} <= updated & names


@pytest.mark.parametrize("name", ["nanda", "p = 97 MLP"])
def test_a_model_stays_in_the_cache_and_an_ensemble_does_not(name):
    experiment = configurations()[name]
    one, many = (times(step_of(experiment, models, "tf32"), "tf32") for models in (1, 256))
    assert sum(time.memory for time in one) < 0.2 * sum(time.launch.bytes for time in one)
    assert sum(time.memory for time in many) > 2 * 256 * sum(time.memory for time in one) / len(one)
    for time in many:
        if time.launch.name == "adamw update":
            assert time.bound == "memory"
            assert time.memory == time.launch.bytes
        assert time.memory <= 1.1 * time.launch.bytes


@pytest.mark.parametrize("field", ["memory", "l2", "port", "cache"])
def test_more_of_anything_takes_no_longer(field):
    for models in (1, 64):
        step = step_of(configurations()["nanda"], models, "tf32")
        more = H200._replace(**{field: 4 * getattr(H200, field)})
        assert seconds(step, "tf32", more) <= seconds(step, "tf32")


def test_minibatches_are_counted_by_their_rows():
    quick = Experiment.preset("quick")
    rows = len(quick.task.build().train.inputs)
    full, half = (
        step_of(quick.override({"schedule.batch_size": size}), 1, "ieee")[0].flops for size in (None, rows // 2)
    )
    assert half < 0.6 * full


def test_a_measurement_takes_the_place_of_its_prediction(tmp_path, monkeypatch):
    rows = [
        {"name": name, "median_ms": ms} for name, ms in (("eager", 1.0), ("grokfast, tf32", 0.05), ("grokfast", 2.0))
    ]
    sections = {"one model": rows, "64 models": rows[1:], "one model, compiled": rows}
    about = {"gpu": "NVIDIA H200, sm_90"}
    content = {"title": "quick training step", "machine": about, "sections": sections}
    (tmp_path / "gpu-quick.json").write_text(json.dumps(content))
    (tmp_path / "gpu-ops.json").write_text(json.dumps({"title": "Operations", "sections": {"mlp": rows}}))
    (tmp_path / "gpu-torn.json").write_text('{"title": "quick training')
    kernels = [{"name": "gradient", "median_us": 7.5, "at_least_us": 6.0}, {"name": "memset", "median_us": 1.0}]
    profile = {"title": "quick profile", "machine": about, "sections": {"one model, tf32": kernels}}
    (tmp_path / "gpu-profile-quick.json").write_text(json.dumps(profile))
    (tmp_path / "kernel-resources.json").write_text(json.dumps({"rows": []}))
    found = measurements(tmp_path)
    assert found.steps["quick", 1, "tf32"] == found.steps["quick", 64, "tf32"] == (5e-5, "NVIDIA H200, sm_90")
    assert [key for key in found.steps if key[0] == "quick"] == [("quick", 1, "tf32"), ("quick", 64, "tf32")]
    assert found.kernels == {("quick", 1, "tf32"): {"gradient": pytest.approx(7.5e-6)}}
    monkeypatch.setattr(predict_step, "configurations", lambda: {"quick": Experiment.preset("quick")})
    monkeypatch.setattr(predict_step, "AIMS", [predict_step.Aim("quick", 64, "tf32", 1e9)])
    text = list(lines([1, 2], tmp_path))
    measured = [line for line in text if "MEASURED on NVIDIA H200, sm_90: 50.0 µs, " in line]
    assert len(measured) == 1
    assert any(line.startswith("    gradient") and " 7.5 " in line for line in text)
    assert f"{64 / 5e-5:,.0f}" in text[-1]
    assert text[-1].endswith("% of the aim")


def test_it_says_that_it_is_a_prediction_and_shows_resources_launches_and_aims():
    text = "\n".join(lines([1], predict_step.RESULTS))
    assert "PREDICTION, not a measurement" in text
    assert "ASSUMED" in text
    assert "bytes spilled" in text
    assert all(name in text for name in configurations())
    assert "rows 1, forward" in text
    assert text.count("not yet") == len(AIMS)


def test_ceilings_are_those_of_the_datasheet():
    assert H200.memory == 4.8e12
    assert H200.flops["tf32"] == 989e12 / 2
    assert H200.flops["ieee"] == 67e12


@pytest.mark.parametrize("device", [H200, H100])
@pytest.mark.parametrize(("name", "models"), [("nanda", 256), ("power", 256), ("p = 97 MLP", 256), ("nanda", 1)])
def test_nothing_that_is_predicted_is_above_a_limit(name, models, device):
    found, step = predicted(name, models, "tf32", device)
    fastest = models / step.seconds
    assert fastest <= models * device.memory / step.memory
    assert step.likely is None or step.seconds <= step.likely[0] <= step.likely[1]
    for time in found:
        assert time.likely is None or time.seconds <= time.likely[0] <= time.likely[1]
    assert range_of(step, models) == "" or step.likely is not None


def test_the_document_claims_nothing_above_a_limit():
    text = (predict_step.RESULTS.parents[1] / "docs" / "gpu.md").read_text()
    rows = re.findall(r"\| (one|256) `?(nanda|power|p = 97 MLP)s?`? \| ([\d,]+) \| ([\d,]+) to ([\d,]+) \|", text)
    assert len(rows) == 6
    for count, name, *said in rows:
        models = 1 if count == "one" else int(count)
        most, low, high = (int(number.replace(",", "")) for number in said)
        limit = models / predicted(name, models, "tf32")[1].seconds
        assert low <= high <= most <= 1.001 * limit


def test_another_device_with_slower_memory_is_slower_where_memory_is_the_limit():
    (slow, slow_step), (fast, fast_step) = (predicted("nanda", 256, "tf32", device) for device in (H100, H200))
    limited = [(one, other) for one, other in zip(slow, fast, strict=True) if other.bound == "memory"]
    assert limited
    assert all(one.seconds > 1.2 * other.seconds for one, other in limited)
    assert slow_step.seconds > fast_step.seconds
    assert slow_step.launch == fast_step.launch
    assert "an H100's rates" in "\n".join(lines([1], predict_step.RESULTS, H100))


def test_bad_sizes_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["predict_step", "--models", "0"])
    with pytest.raises(ValueError, match="--models must be at least 1, got 0"):
        predict_step.main()
