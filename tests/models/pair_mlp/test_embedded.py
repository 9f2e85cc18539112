"""A PairMLP of embeddings: two tables through one matrix; its fused step against autograd in fp64."""

import pytest
import torch

from grokfast import Experiment, backend, train
from grokfast.models import PairMLPConfig
from grokfast.models.base import FUSED, OPERATIONS
from grokfast.tasks import GroupTask, ModularTask
from grokfast.training.ensemble import Ensemble
from tests.training.common import same_result

SMALL = Experiment.preset("a5").override({"task.group": "S4", "model.width": 24, "model.embed": 10, "device": "cpu"})


def gradients(experiments, precision, name):
    with backend.using(name):
        ensemble = Ensemble([e.override({"precision": precision}) for e in experiments])
        return ensemble, ensemble.gradient(None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "square", "abs"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_fused_step_is_as_good_as_autograd(compiled, judge, set_threads, bias, activation, loss):
    set_threads(1)
    options = {"model.bias": bias, "model.activation": activation, "loss": loss}
    experiments = [SMALL.override({**options, "seed": seed}) for seed in (0, 1)]
    fused, (loss_, accuracy, grad) = gradients(experiments, "float32", "auto")
    assert fused.choice.name == FUSED
    _, by_torch = gradients(experiments, "float32", "reference")
    exact_ensemble, exact = gradients(experiments, "float64", "reference")
    assert torch.equal(exact_ensemble.flat.float(), fused.flat)
    judge(loss_, by_torch[0], exact[0])
    assert torch.equal(accuracy, exact[1].float())
    for name, own in fused.runs.layout.views(grad).items():
        judge(own, fused.runs.layout.views(by_torch[2])[name], fused.runs.layout.views(exact[2])[name])


def test_it_is_the_concatenation_through_one_matrix():
    data = GroupTask(group="S3").build()
    model = PairMLPConfig(width=7, embed=5).build(data, seeds=(3,), dtype=torch.float64)
    pairs = data.train.inputs
    both = torch.cat([model.embed_a[0][pairs[:, 0]], model.embed_b[0][pairs[:, 1]]], 1)  # [N, 10]
    first = both @ torch.cat([model.in_a[0], model.in_b[0]], 1).T + model.b_in[0]
    expected = first.relu() @ model.out.weight[0].T + model.out.bias[0]
    torch.testing.assert_close(model(pairs)[0], expected)


@pytest.mark.parametrize(
    ("init", "sizes"),
    [("normal", (100**-0.5, 200**-0.5, 400**-0.5)), ("torch", (100**-0.5, (3 * 200) ** -0.5, (3 * 400) ** -0.5))],
)
def test_initial_sizes(init, sizes):
    data = ModularTask(p=97).build()
    model = PairMLPConfig(width=400, embed=100, init=init).build(data)
    for tensor, size in zip((model.embed_a, model.in_b, model.out.weight), sizes):
        assert tensor.std().item() == pytest.approx(size, rel=0.05)
    assert bool(model.b_in.any()) == (init == "torch")


def test_it_trains_the_same_alone_as_in_company(how):
    short = SMALL.override({"schedule.steps": 30, "schedule.eval_every": 10, "schedule.stop_after": None})
    experiments = [short.override({"seed": seed}) for seed in (0, 1)]
    for together, experiment in zip(train(experiments), experiments):
        same_result(together, train(experiment))


def test_the_kernels_say_that_they_do_not_have_it():
    pytest.importorskip("triton")
    with backend.using("triton"):
        choice = Ensemble([SMALL]).choice
    assert (choice.name, choice.reason) == (OPERATIONS, "embeddings are not in the kernels")


def test_bad_embeddings_are_refused():
    with pytest.raises(ValueError, match="embed must be at least 1, got 0"):
        PairMLPConfig(embed=0)
