"""Frequencies of the neurons of networks, written down and trained."""

import pytest
import torch
from torch import nn

from grokfast import Experiment, train
from grokfast.analysis import idealized_pair_mlp, neuron_frequencies, progress_measures
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.tasks import ModularTask

P = 13
TASK = ModularTask(p=P, train_fraction=0.5)


def test_a_written_networks_neurons_have_the_frequencies_that_were_written():
    found = neuron_frequencies(idealized_pair_mlp(P, 18, "cos", "cos", seed=(0, 1)), TASK)
    assert found.frequency.tolist() == [[i % 6 + 1 for i in range(18)]] * 2
    assert found.share.min() > 0.85
    assert found.keys() == (tuple(range(1, 7)),) * 2
    assert found.keys(0.999) == ((), ())


def test_key_frequencies_by_neurons_are_those_that_neurons_have():
    model = idealized_pair_mlp(P, 18, "cos", "cos")
    with torch.no_grad():
        for w in (model.w_a, model.w_b, model.out.weight):
            w[:, :, torch.arange(18) % 6 > 1] = 0  # only k = 1 and 2 are left
    by_neurons, by_logits = (progress_measures(model, TASK, by=by) for by in ("neurons", "logits"))
    assert by_neurons.frequencies == by_logits.frequencies == ((1, 2),)
    assert torch.equal(by_neurons.restricted, by_logits.restricted)


def test_trained_neurons_come_to_have_one_frequency():
    run = train(
        Experiment.preset("quick").override(
            {"task.p": 31, "task.train_fraction": 0.6, "schedule.steps": 800, "schedule.eval_every": 400,
             "device": "cpu"}
        )
    )  # fmt: skip
    task = run.experiment.task
    before = neuron_frequencies(run.experiment.model.build(task.build()), task)
    assert before.share.max() < 0.5
    assert (neuron_frequencies(run).share > 0.7).double().mean() > 0.5


def test_a_transformers_neurons_are_those_of_the_last_position():
    task = ModularTask(p=P, layout="equals")
    model = TransformerConfig(d_model=16, n_heads=2, d_mlp=10, outputs="tokens").build(task.build(seed=0))
    found = neuron_frequencies(model, task)
    assert found.share.shape == (1, 10)
    layers = []
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    inputs = torch.cat([pairs, torch.full((P * P, 1), P)], 1)
    model.from_embedded(model.embedded(inputs), layers)
    constant = (layers[0][0, :, -1] < 0).all(0)  # what a relu never lets through
    assert torch.equal(found.share[0].isnan(), constant)


class Own(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.table = nn.Embedding(data.n_tokens, data.n_answers)

    def forward(self, tokens):
        return self.table(tokens).sum(1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: neuron_frequencies(
                PairMLPConfig(width=3000).build(ModularTask(p=223, train_fraction=0.1).build()), ModularTask(p=223)
            ),
            ValueError,
            r"at most 134,217,728 activations of all pairs, all models together: 1 x 223² pairs x 3000 are 149,187,000",
        ),
        (
            lambda: neuron_frequencies(
                train(Experiment.preset("quick").override({"task.p": 7, "schedule.steps": 1}), model=Own)
            ),
            TypeError,
            "must have `embedded` and `from_embedded`",
        ),
        (lambda: progress_measures(idealized_pair_mlp(P, 8), TASK, by="weights"), ValueError, "by must be one of"),
        (lambda: neuron_frequencies(idealized_pair_mlp(P, 8)), ValueError, "task must say what the model learns"),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
