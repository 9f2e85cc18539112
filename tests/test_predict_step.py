"""The step's time from counted bytes, products and launches."""

import dataclasses
import json
from itertools import pairwise

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import predict_step
from benchmarks.predict_step import H200, LAUNCH, Work, configurations, lines, measurements, seconds, step_of
from grokfast import EMA, MA, Experiment, backend, tasks
from grokfast.nn.planned import planned_forward
from grokfast.nn.transformer_cost import cost
from grokfast.nn.transformer_step import TransformerStep
from grokfast.training.ensemble import Ensemble


def test_what_is_read_again_comes_from_the_cache():
    read_again = Work("a", 0, 7.2e6, 0, memory=2.4e6)
    assert seconds([read_again], "tf32") == pytest.approx(7.2e6 / H200.l2)
    assert seconds([read_again], "tf32", H200._replace(l2=1e15)) == pytest.approx(0.5e-6)
    exact = Work("a", 0, 0, 67e6 + 989.5e6, 0, bf16=989.5e6)
    assert seconds([exact], "ieee") == pytest.approx(2e-6)


def test_time_is_the_longer_of_moving_and_multiplying_and_the_launches():
    moving, multiplying = Work("a", 2, 4.8e6, 0), Work("b", 1, 48, 67e6)
    assert seconds([moving], "ieee") == pytest.approx(2 * LAUNCH + 1e-6)
    assert seconds([multiplying], "ieee") == pytest.approx(LAUNCH + 1e-6)
    assert seconds([moving, multiplying], "ieee") == pytest.approx(3 * LAUNCH + 2e-6)
    assert seconds([multiplying], "tf32") < seconds([multiplying], "ieee")


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
        planned_forward(made.model, made.plans["train"])
    counted = sum(w.flops for w in step_of(experiment, 1, "ieee"))
    assert 3e9 < 3 * counter.get_total_flops() <= counted  # hidden layers and logits are made anew in the backward


def test_the_update_moves_the_streams_of_its_state():
    quick = Experiment.preset("quick").override({"task.p": 11, "model.width": 16})
    numbers = 1000

    def streams(**changes):
        return predict_step.optimizer_work(dataclasses.replace(quick, **changes), numbers)[1].bytes / (4 * numbers)

    assert streams() == 7
    assert streams(filter=EMA()) == 9
    assert streams(filter=MA()) == 11
    assert streams(filter=MA(ring="bfloat16")) == 10
    assert streams(optimizer=dataclasses.replace(quick.optimizer, name="sgd")) == 3


def test_a_transformers_cost_is_that_of_a_step_of_as_many_models():
    experiment = Experiment.preset("power").override({"task.p": 7, "schedule.batch_size": 10, "device": "cpu"})
    made = Ensemble([experiment, experiment.override({"seed": 1})])
    step = TransformerStep(made.model, made.train_inputs, made.train_targets, precision="tf32")
    work = step_of(experiment, 2, "tf32")[0]
    assert (work.bytes, work.flops, work.launches) == cost(step, 10)


def test_minibatches_are_counted_by_their_rows():
    quick = Experiment.preset("quick")
    rows = len(tasks.build(quick.task).train_inputs)
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
    (tmp_path / "kernel-resources.json").write_text(json.dumps({"rows": []}))
    found = measurements(tmp_path)
    assert found["quick", 1, "tf32"] == found["quick", 64, "tf32"] == (5e-5, "NVIDIA H200, sm_90")
    assert [key for key in found if key[0] == "quick"] == [("quick", 1, "tf32"), ("quick", 64, "tf32")]
    monkeypatch.setattr(predict_step, "configurations", lambda: {"quick": Experiment.preset("quick")})
    table = [line for line in lines([1, 2], tmp_path) if line.startswith("quick")]
    measured = [line for line in table if "MEASURED on NVIDIA H200, sm_90" in line]
    assert len(measured) == 1
    assert " 50.0 " in measured[0]
    assert all("predicted" in line for line in table if line not in measured)


def test_it_says_that_it_is_a_prediction_and_shows_the_resources():
    text = "\n".join(lines([1], predict_step.RESULTS))
    assert "PREDICTION, not a measurement" in text
    assert "bytes spilled" in text
    assert all(name in text for name in configurations())


def test_ceilings_are_those_of_the_datasheet():
    assert H200.memory == 4.8e12
    assert H200.flops["tf32"] == 989e12 / 2
    assert H200.flops["ieee"] == 67e12


def test_bad_sizes_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["predict_step", "--models", "0"])
    with pytest.raises(ValueError, match="--models must be at least 1, got 0"):
        predict_step.main()
