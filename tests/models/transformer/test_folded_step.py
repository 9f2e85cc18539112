from functools import partial

import pytest
import torch

from grokfast import Experiment, backend
from grokfast.models.transformer import folded_step
from grokfast.models.transformer.folded_step import FoldedStep
from grokfast.training.ensemble import Ensemble
from tests.models.transformer.common import assert_within_twice_torchs_error, first_batch, gradients_of

pytestmark = pytest.mark.skipif(backend.extension() is None, reason="needs the C++ extension")


def experiment(seed=0, **changes):
    base = {"task.p": 13, "device": "cpu", "seed": seed, "schedule.steps": 10}
    return Experiment.preset("nanda").override({**base, **changes})


VARIANTS = {
    "nanda": {},
    "odd sizes, mse": {"model.d_mlp": 50, "model.n_heads": 2, "model.d_model": 62, "loss": "mse"},
    "batches": {"schedule.batch_size": 40},
    "label smoothing": {"loss.label_smoothing": 0.1},
    "an attention rate, biases": {"model.attention_rate": 0.4, "model.attention_bias": True},
    "many answers": {"task.p": 149, "model.d_model": 16, "model.d_mlp": 32, "model.n_heads": 1},
}


gradients = partial(gradients_of, way=FoldedStep)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_within_twice_the_error_of_torch(variant):
    assert_within_twice_torchs_error(FoldedStep, partial(experiment, **VARIANTS[variant]))


def test_dense_products_do_the_same(monkeypatch):
    ensemble = Ensemble([experiment()])
    active = gradients(ensemble)
    monkeypatch.setattr(folded_step, "_only_active", lambda *_: False)
    for own, other in zip(active, gradients(ensemble)):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 40])
def test_bits_are_the_same_twice_alone_and_on_any_number_of_threads(batch_size):
    experiments = [experiment(seed, **{"schedule.batch_size": batch_size}) for seed in (0, 1, 2)]
    together = Ensemble(experiments)
    found = gradients(together, batch=first_batch(together))
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for a, b in zip(found, gradients(together, batch=first_batch(together))):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
    for i, own in enumerate(experiments):
        alone = Ensemble([own])
        for a, b in zip(found, gradients(alone, batch=first_batch(alone))):
            assert torch.equal(a[i], b[0])


def test_a_run_learns_what_it_learns_without_folding():
    ours, plain = Ensemble([experiment()]), Ensemble([experiment(engine="reference")])
    for _ in range(10):
        ours.step()
        plain.step()
    torch.testing.assert_close(ours.flat, plain.flat, rtol=0, atol=2e-3)


def test_the_rows_decide():
    assert isinstance(Ensemble([experiment(**{"task.p": 53})]).compute, FoldedStep)
    assert "times the multiplications" in FoldedStep.why_not(Ensemble([experiment()]).runs.spec)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model.n_layers": 2}, "in one layer without LayerNorm"),
        ({"model.norm": "pre"}, "in one layer without LayerNorm"),
        ({"model.activation": "gelu"}, "relu networks"),
        ({"model.residual": False}, "relu networks"),
        ({"model.dropout": 0.1}, "without dropout"),
        ({"precision": "float64"}, "takes no float64"),
        ({"schedule.batch_size": 4}, "times the multiplications"),
    ],
)
def test_what_is_not_folded(changes, why):
    ensemble = Ensemble([experiment(**changes)])
    assert not isinstance(ensemble.compute, FoldedStep)
    assert why in FoldedStep.why_not(ensemble.runs.spec)
