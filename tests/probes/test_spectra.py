"""The probe of spectra, beside the functions that it is of."""

import numpy as np
import pytest
import torch

from grokfast import Experiment, train
from grokfast.measures.spectra import gini, inverse_participation_ratio, periodicity, spectrum
from grokfast.models import TransformerConfig
from grokfast.probes import Spectra
from grokfast.tasks import GroupTask, ModularTask, ParityTask

SMALL = Experiment.preset("quick").override(
    {"task.p": 13, "model.width": 24, "schedule.steps": 60, "schedule.eval_every": 30, "probes": "spectra",
     "device": "cpu"}
)  # fmt: skip


def expected(neurons, embedding, threshold):
    """neurons [N, p], embedding [d, p]."""
    share = (periodicity(neurons) >= threshold).double().mean().item()
    per_frequency = torch.linalg.vector_norm(spectrum(embedding), dim=0)
    return [share, inverse_participation_ratio(neurons).mean().item(), gini(per_frequency).item()]


def last(run):
    return [run.final[name] for name in ("periodic_neurons", "participation", "embedding_gini")]


@pytest.mark.parametrize("embed", [None, 8])
def test_a_pair_mlps_neurons_are_the_first_layers(embed):
    runs = train([SMALL.override({"probes": (Spectra(threshold=2),), "model.embed": embed, "seed": s}) for s in (0, 1)])
    for run in runs:
        w = run.weights
        first = w["w_a"] if embed is None else w["embed_a"] @ w["in_a"].T  # [p, N]
        embedding = first if embed is None else w["embed_a"]
        assert last(run) == pytest.approx(expected(first.T, embedding.T, 2), rel=1e-4)
        assert 0 < run.final["periodic_neurons"] < 1


@pytest.mark.parametrize("embed", [None, 8])
def test_a_token_mlps_neurons_are_the_first_tables(embed):
    run = train(SMALL.override({"model": "token_mlp", "model.width": 24, "model.embed": embed}))
    table = run.weights["w_in.0"]
    first = table if embed is None else run.weights["embed.0"] @ table.T
    embedding = first if embed is None else run.weights["embed.0"]
    assert last(run) == pytest.approx(expected(first.T, embedding.T, 4), rel=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_transformers_neurons_are_what_they_write_to_the_logits(tied):
    model = TransformerConfig(n_layers=2, d_model=16, n_heads=2, d_mlp=20, tied=tied)
    task = ModularTask(p=13, layout="equals")  # one token more than answers
    run = train(SMALL.override({"model": model, "task": task, "probes": (Spectra(threshold=1.8),)}))
    unembedding = run.weights["embedding"][:13] if tied else run.weights["unembedding"]
    neurons = (unembedding @ run.weights["blocks.1.w_out"]).T  # [20, 13]
    assert last(run) == pytest.approx(expected(neurons, run.weights["embedding"][:13].T, 1.8), rel=1e-4)


def test_periodicity_grows_as_a_network_generalises():
    change = {"task.p": 31, "task.train_fraction": 0.6, "model.width": 128, "schedule.steps": 600}
    run = train(SMALL.override(change))
    assert run.curves["periodic_neurons"][0] < 0.1 < 0.3 < run.final["periodic_neurons"]
    assert np.isfinite(run.curves["embedding_gini"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ParityTask(), "model": "mlp", "loss": "hinge"}, "probe spectra is of tasks whose answers are tokens"),
        ({"task": GroupTask(group="C2")}, "p at least 3, got 2 tokens and 2 answers"),
    ],
)
def test_other_tasks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(SMALL.override(change))


def test_a_module_of_ones_own_is_refused():
    class Own(torch.nn.Module):
        def __init__(self, data):
            super().__init__()
            self.table = torch.nn.Embedding(data.n_tokens, data.n_answers)

        def forward(self, tokens):
            return self.table(tokens).sum(1)

    with pytest.raises(ValueError, match="probe spectra is of a PairMLP, TokenMLP or transformer, got"):
        train(SMALL, model=Own)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"threshold must be in \[0, inf\), got -1"):
        Spectra(threshold=-1)
