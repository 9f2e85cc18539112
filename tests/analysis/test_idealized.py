"""Idealised networks: their weights, what they score, what is extracted from trained ones, and the controls."""

import math

import pytest
import torch

from grokfast import Experiment, train
from grokfast.analysis import extract_idealized, idealization_table, idealized_pair_mlp
from grokfast.models import MLPConfig, PairMLPConfig
from grokfast.tasks import ModularTask, ParityTask

TASK = ModularTask(operation="add", p=31, train_fraction=0.5)


def accuracy(model, p):
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    return (model(pairs).argmax(-1) == pairs.sum(1) % p).double().mean(1)


def test_weights_are_waves_whose_output_phase_is_the_sum():
    p, model = 11, idealized_pair_mlp(11, 7, "square", "cos", "relu", seed=(0, 3))
    assert model.b_in is None
    assert model.out.bias is None
    assert model.w_a.shape == (2, 11, 7)
    w_out = model.out.weight.detach()  # [E, p, N]
    for e in range(2):
        for i in range(7):
            turn = 2 * math.pi * (i % 5 + 1) / p * torch.arange(p)
            phi = (w_out[e, :, i] * torch.exp(-1j * turn)).sum()
            phi_out = -math.atan2(phi.imag, phi.real)
            assert torch.allclose(w_out[e, :, i], torch.cos(turn - phi_out), atol=1e-5)
            phases = []
            for w in (model.w_a[e, :, i], model.w_b[e, :, i]):
                fits = [f for f in torch.linspace(0, 2 * math.pi, 720) if torch.equal(torch.cos(turn - f).sign(), w)]
                phases.append(fits[len(fits) // 2].item())  # known to half a step of 2π/p
            gap = (phi_out - sum(phases) + math.pi) % (2 * math.pi) - math.pi
            assert abs(gap) < 2 * math.pi / p
    alone = idealized_pair_mlp(11, 7, "square", "cos", "relu", seed=3)
    assert torch.equal(alone.w_a[0], model.w_a[1])


def test_square_inputs_and_cosine_outputs_are_the_best():
    scores = {
        waves: accuracy(idealized_pair_mlp(97, 256, *waves, seed=range(4)), 97).mean().item()
        for waves in (("cos", "cos"), ("square", "cos"), ("square", "square"))
    }
    assert 0.965 < scores["cos", "cos"] < 0.99
    assert 0.975 < scores["square", "cos"] < 0.992
    assert 0.92 < scores["square", "square"] < 0.955
    assert scores["square", "cos"] > scores["cos", "cos"] > scores["square", "square"]


def test_quadratic_cosines_are_the_analytic_solution():
    assert accuracy(idealized_pair_mlp(97, 256, "cos", "cos", "square", seed=range(3)), 97).tolist() == [1, 1, 1]
    assert 0.9 < accuracy(idealized_pair_mlp(97, 64, "cos", "cos", "square", seed=range(3)), 97).mean() < 0.99


def test_what_is_extracted_of_an_idealised_network_is_itself():
    made = idealized_pair_mlp(31, 64, "cos", "cos", "square", seed=(1, 2))
    again = extract_idealized(made, "cos", "cos")
    assert again.config.activation == "square"
    assert again.seeds == (1, 2)
    tables = (made.w_a[0], made.w_b[0], made.out.weight[0])
    of_tables = extract_idealized(tuple(3 * w for w in tables), "cos", "cos", activation="square")
    for name, w in made.named_parameters():
        assert torch.allclose(dict(again.named_parameters())[name], w, atol=1e-5)
        assert torch.allclose(dict(of_tables.named_parameters())[name][0], w[0], atol=1e-5)


def test_a_trained_network_is_told_from_an_untrained_one_by_its_measured_phases():
    experiment = Experiment.preset("quick").override(
        {"task": TASK, "schedule.steps": 400, "schedule.eval_every": 100, "device": "cpu"}
    )
    run = train(experiment)
    table = idealization_table(run)
    rows = {(n, phases): i for i, (n, phases) in enumerate(zip(table["network"], table["output_phase"]))}
    assert len(rows) == len(table["seed"]) == 4
    for waves in ("cos>cos", "square>cos", "square>square"):
        trained, untrained = (table[waves][rows[n, "measured"]] for n in ("trained", "untrained"))
        assert trained > 0.8 > 0.2 > untrained
    assert table["square>cos"][rows["untrained", "sum"]] > 0.9  # the control, which has learned nothing
    assert table["accuracy"][rows["trained", "sum"]] == pytest.approx(run.final["test_accuracy"])
    assert table["accuracy"][rows["untrained", "measured"]] < 0.1
    live = run.experiment.model.build(TASK.build(seed=0), seeds=(0,))
    again = idealization_table(live, TASK)  # untrained: both halves are alike
    assert again["square>cos"][:2] == again["square>cos"][2:]
    assert again["square>cos"][2:] == table["square>cos"][2:]


def test_a_table_of_runs_has_each_ones_own_split_and_untrained_network():
    changes = [{"task.train_fraction": 0.3 + 0.2 * s, "seed": s} for s in range(2)]
    base = Experiment.preset("quick").override({"task.p": 7, "model.width": 8, "schedule.steps": 10, "device": "cpu"})
    runs = train([base.override(change) for change in changes])
    table = idealization_table(runs)
    assert table["seed"] == [0, 1] * 4
    assert table["network"] == ["trained"] * 4 + ["untrained"] * 4
    assert table["accuracy"][:2] == pytest.approx([run.final["test_accuracy"] for run in runs])
    alone = [idealization_table(run) for run in runs]
    for name, column in table.items():
        assert column == [alone[i % 2][name][i // 2] for i in range(8)]
    trained = idealization_table(runs, split="train")["accuracy"][:2]
    assert trained == pytest.approx([run.final["train_accuracy"] for run in runs])


def test_networks_of_embeddings_have_tables_too():
    module = PairMLPConfig(width=16, embed=8).build(TASK.build(), seeds=(0,))
    assert extract_idealized(module).w_a.shape == (1, 31, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: idealized_pair_mlp(10), ValueError, "p must be odd, got 10"),
        (lambda: idealized_pair_mlp(1), ValueError, "p must be at least 3, got 1"),
        (lambda: idealized_pair_mlp(7, 4, "sine"), ValueError, "input_wave must be one of 'cos', 'square', got 'sine'"),
        (lambda: idealized_pair_mlp(7, 4, activation="tanh"), ValueError, "activation must be one of"),
        (
            lambda: extract_idealized(idealized_pair_mlp(7, 4), output_phase="total"),
            ValueError,
            "output_phase must be one of 'measured', 'sum', got 'total'",
        ),
        (lambda: extract_idealized("net"), TypeError, "model must be a run's result"),
        (
            lambda: extract_idealized((torch.ones(7, 2), torch.ones(7, 2), torch.ones(6, 2))),
            ValueError,
            "as many answers as operands",
        ),
        (
            lambda: extract_idealized(PairMLPConfig(width=4, depth=2).build(TASK.build())),
            ValueError,
            "model must be a PairMLP of one hidden layer, got depth 2",
        ),
        (
            lambda: idealization_table(MLPConfig(width=4).build(ParityTask().build()), ParityTask()),
            ValueError,
            "model must be a PairMLP of one hidden layer, got MLP",
        ),
        (
            lambda: idealization_table(idealized_pair_mlp(31, 4), TASK, split="tset"),
            ValueError,
            "split must be one of 'train', 'test', got 'tset'",
        ),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
