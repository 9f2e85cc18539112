"""Norms, effective ranks and scales of logits in closed form, of runs, and as columns of a run."""

import math

import pytest
import torch

from grokfast import Experiment, RunStore, train
from grokfast.analysis import effective_rank, logit_scale, weight_norms
from grokfast.probes import Norms

TINY = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 8, "schedule.steps": 10, "schedule.eval_every": 5, "device": "cpu"}
)


def test_norms_of_parameters_and_of_all():
    weights = {"w": torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]), "b": torch.tensor([[12.0], [1.0]])}
    found = weight_norms(weights)
    assert [*found] == ["w", "b", "all"]
    assert {name: norm.tolist() for name, norm in found.items()} == {"w": [5, 0], "b": [12, 1], "all": [13, 1]}


def test_effective_rank_is_the_number_of_equal_singular_values():
    q = torch.linalg.qr(torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for r in (1, 4, 9):
        assert effective_rank(q[:, :, :r] @ q[:, :r]).tolist() == pytest.approx([r, r])
    two = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(two).item() == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert effective_rank(torch.zeros(2, 2)).isnan()


def test_scale_of_logits_is_what_softmax_sees():
    logits = torch.tensor([[1.0, -1.0], [12.0, 10.0]])
    assert logit_scale(logits).item() == 1
    assert logit_scale(torch.stack([5 * logits, logits + 3])).tolist() == [5, 1]


def test_of_runs():
    runs = train([TINY.override({"seed": s}) for s in (0, 1)])
    norms = weight_norms(runs)
    for e, run in enumerate(runs):
        assert norms["all"][e].item() == pytest.approx(run.final["weight_norm"])
        assert norms["w_b"][e].item() == pytest.approx(run.weights["w_b"].norm().item())
        assert weight_norms(run)["all"].tolist() == [norms["all"][e].item()]
    module = TINY.model.build(TINY.task.build(seed=1), seeds=(1,))
    with torch.no_grad():
        for name, p in module.named_parameters():
            p[0] = runs[1].weights[name]
        logits = module(TINY.task.build(seed=1).test.inputs)[0].double()
    expected = (logits - logits.mean(1, keepdim=True)).square().mean().sqrt().item()
    assert logit_scale(runs)[1].item() == pytest.approx(expected)


def test_a_probe_of_each_parameter(tmp_path):
    with RunStore(tmp_path) as store:
        run = train(TINY.override({"probes": "norms"}), store=store)
        assert [n for n in store.curves(run.run_id) if n.startswith("norm_")] == [f"norm_{n}" for n in run.weights]
    for name, w in run.weights.items():
        assert run.curves[f"norm_{name}"][-1] == pytest.approx(w.double().norm().item())
    some = train(TINY.override({"probes": "norms(parameters='w_b,out.*')"}))
    assert [n for n in some.curves if n.startswith("norm_")] == ["norm_w_b", "norm_out.weight", "norm_out.bias"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weight_norms({}), ValueError, "weights must be parameters"),
        (lambda: weight_norms({"a": torch.ones(2, 1), "b": torch.ones(3, 1)}), ValueError, "of one E"),
        (lambda: weight_norms({"all": torch.ones(2, 1)}), ValueError, "named 'all'"),
        (lambda: weight_norms(3), TypeError, "model must be a run's result"),
        (lambda: weight_norms({"a": 3}), TypeError, "weights must be tensors"),
        (lambda: effective_rank(torch.ones(3)), ValueError, r"matrix must be \[..., M, N\]"),
        (lambda: effective_rank(torch.ones(3, 3, dtype=torch.int64)), TypeError, "matrix must be a floating-point"),
        (lambda: logit_scale(torch.ones(0, 3)), ValueError, "logits must be"),
        (lambda: Norms(parameters=""), ValueError, "parameters must have"),
        (lambda: train(TINY.override({"probes": "norms(parameters='w_c')"})), ValueError, "parameters 'w_a', .* 'w_c'"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
