"""Layers without autograd: gradients against autograd's, runs in company, interrupted and with changed rows."""

import pytest
import torch

from grokfast import EMA, Experiment, RunStore, backend, train
from grokfast.losses import MSE, CrossEntropy, Hinge, StableMax
from grokfast.models import MLPConfig, PairMLPConfig, TokenMLPConfig
from grokfast.models.base import FUSED, PLAIN
from grokfast.models.dense import Dense
from grokfast.models.tiles import Tiles
from grokfast.schedules import SwapOperands
from grokfast.tasks import ModularTask, ParityTask, RecurrenceTask, Tensors
from grokfast.training import Interrupted, resume
from grokfast.training.ensemble import Ensemble
from tests.training.common import StopAt, same_result

needs_avx2 = pytest.mark.skipif(
    backend.extension() is None or not backend.load_extension().mlp_rows_are_fast(), reason="needs AVX2"
)
SIGNS = ParityTask(n=8, k=2, n_train=61, n_test=40)
X = torch.randn(41, 5, generator=torch.Generator().manual_seed(0))
CLASSES = Tensors(X, torch.arange(41) % 3, train_fraction=0.8, split_seed=0)
NUMBERS = Tensors(X, X[:, :2].sin(), train_fraction=0.8, split_seed=0)
PAIRS, TRIPLES = ModularTask(p=7, train_fraction=0.7), RecurrenceTask(p=5, coefficients=(1, 2, 1))

CASES = {
    "depth 0": (SIGNS, MLPConfig(depth=0), Hinge()),
    "parity": (SIGNS, MLPConfig(width=13), Hinge()),
    "relu": (CLASSES, MLPConfig(width=13, depth=2), CrossEntropy()),
    "square": (CLASSES, MLPConfig(width=13, depth=2, activation="square", residual=True), MSE()),
    "numbers": (NUMBERS, MLPConfig(width=13), MSE()),
    "smoothed": (CLASSES, MLPConfig(width=70, depth=2), CrossEntropy(label_smoothing=0.1, temperature=2.0)),
    "relu, mse": (CLASSES, MLPConfig(width=70, depth=2), MSE()),
    "relu, hinge": (CLASSES, MLPConfig(width=13, bias=False), Hinge()),
    "relu, stablemax": (PAIRS, PairMLPConfig(width=13, depth=2, bias=False), StableMax()),
    "pairs, square": (PAIRS, PairMLPConfig(width=13, activation="square", init="gromov", bias=False), MSE()),
    "pairs, gelu": (PAIRS, PairMLPConfig(width=130, activation="gelu", embed=6), CrossEntropy()),
    "gelu": (NUMBERS, MLPConfig(width=13, depth=3, activation="gelu", residual=True), MSE()),
    "abs": (CLASSES, MLPConfig(width=13, depth=8, activation="abs", bias=False), StableMax()),
    "abs, residual": (CLASSES, MLPConfig(width=13, depth=4, activation="abs", residual=True), Hinge()),
    "one-hot": (TRIPLES, TokenMLPConfig(width=13), CrossEntropy(label_smoothing=0.1)),
    "one-hot, summed": (TRIPLES, TokenMLPConfig(width=13, join="sum", depth=2, residual=True), MSE()),
    "embedded": (TRIPLES, TokenMLPConfig(width=13, embed=6, activation="square"), CrossEntropy()),
    "embedded, summed": (TRIPLES, TokenMLPConfig(width=13, embed=6, join="sum", bias=False), CrossEntropy()),
    "shared": (TRIPLES, TokenMLPConfig(width=13, embed=6, shared=True, activation="gelu"), CrossEntropy()),
    "shared, summed": (TRIPLES, TokenMLPConfig(width=13, embed=6, shared=True, join="sum"), CrossEntropy()),
    "pairs": (PAIRS, PairMLPConfig(width=13, depth=2), CrossEntropy()),
    "pairs, embedded": (PAIRS, PairMLPConfig(width=13, depth=3, embed=6, residual=True, activation="abs"), Hinge()),
}


def experiment(case, **changes):
    task, model, loss = CASES[case]
    made = Experiment(name="dense", task=task, model=model, loss=loss, device="cpu")
    said = {name.replace("__", "."): value for name, value in changes.items()}
    return made.override({"schedule.steps": 20, "schedule.eval_every": 5, "optimizer.lr": 0.01, **said})


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture(params=["with the extension", "without"])
def extension(request, monkeypatch):
    """In it where it takes them; without it layer by layer."""
    if request.param == "without":
        monkeypatch.setattr(backend, "built", lambda: (None, "no compiler"))


def gradients(case, chosen, **changes):
    """Losses, accuracies and gradients of two models by the Step and by autograd, each at the same weights."""
    found = []
    for engine in ("auto", "reference"):
        ensemble = Ensemble([experiment(case, seed=seed, engine=engine, **changes) for seed in (0, 3)])
        assert issubclass(ensemble.choice.step, Dense) == (engine == "auto")
        ensemble.runs._has_gaps = chosen is not None
        found.append(ensemble.gradient(chosen))
    return found


BATCHES = [None, torch.tensor([[3, 0, 7, 3, 9], [1, -1, 2, -1, -1]])]


@pytest.mark.parametrize("chosen", BATCHES, ids=["whole", "ragged"])
def test_gradients_are_as_good_as_autograds(case, chosen, judge, poisoned, extension):
    (_, accuracy, got), (_, expected, torchs) = gradients(case, chosen)
    exact = gradients(case, chosen, precision="float64")[1][2]
    torch.testing.assert_close(accuracy, expected)
    size = min(exact.shape[1], got.shape[1])  # rows are padded with zeros
    for e in range(2):
        judge(got[e, :size], torchs[e, :size], exact[e, :size])


@pytest.mark.parametrize("chosen", BATCHES, ids=["whole", "ragged"])
def test_in_fp64_they_are_autograds(case, chosen, poisoned):
    for got, expected in zip(*gradients(case, chosen, precision="float64")):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("changes", [{}, {"schedule__batch_size": 11}], ids=["whole", "batches"])
def test_runs_in_company_have_the_bits_that_they_have_alone(case, changes):
    """Of 61 and 33 rows, whose inputs no 64 bytes divide."""
    experiments = [experiment(case, seed=seed, optimizer__lr=lr, **changes) for seed, lr in ((0, 0.01), (1, 0.02))]
    for together, one in zip(train(experiments), experiments):
        same_result(together, train(one))


def test_training_sets_of_different_sizes(extension):
    for changes in ({}, {"schedule__batch_size": 11}):
        experiments = [experiment("pairs", seed=s, task__train_fraction=f, **changes) for s, f in ((0, 0.4), (1, 0.7))]
        for together, one in zip(train(experiments), experiments):
            same_result(together, train(one))


@pytest.mark.parametrize("case", ["relu", "pairs, embedded", "shared"])
def test_whole_runs_are_autograds_to_rounding(case):
    """Batches, an evaluation that is the next step's gradient, and measured splits."""
    for batch_size in (None, 9):
        one, other = (
            train(experiment(case, engine=engine, precision="float64", schedule__batch_size=batch_size))
            for engine in ("auto", "reference")
        )
        for column in ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "weight_norm"):
            torch.testing.assert_close(*(torch.tensor(r.curves[column]) for r in (one, other)), rtol=1e-9, atol=0)


def test_changed_rows_and_a_loss_that_changes_with_the_step():
    changes = [[SwapOperands()], "switch(of='label_smoothing',to=0.3,at=4)"]
    for change in changes:
        one, other, plain = (
            train(experiment("pairs", engine=engine, precision="float64", task__augment="swap", schedule__changes=own))
            for engine, own in (("auto", change), ("reference", change), ("auto", ()))
        )
        assert not torch.equal(*(torch.tensor(r.curves["train_loss"]) for r in (one, plain)))
        torch.testing.assert_close(*(torch.tensor(r.curves["test_loss"]) for r in (one, other)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", ["parity", "shared"])
def test_an_interrupted_run_goes_on_to_the_same_bits(case, tmp_path):
    of_run = experiment(case, schedule__batch_size=11, filter=EMA())
    whole = train(of_run)
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(of_run, store=store, observers=[StopAt(7)])
        same_result(resume(stopped.value.run_ids[0], store), whole)


def test_autocast_moves_nothing():
    ensemble = Ensemble([experiment("relu")])
    expected = ensemble.gradient(None)
    with torch.autocast("cpu"):
        found = ensemble.gradient(None)
    assert all(map(torch.equal, found, expected))


def test_it_is_said_what_computes_them(monkeypatch):
    in_double = Ensemble([experiment("relu", precision="float64")]).choice
    assert in_double.step is Dense
    assert in_double.name == PLAIN
    assert in_double.reason.endswith("float64; layer by layer, without autograd")
    dropped = Ensemble([experiment("relu", model__dropout=0.1)]).choice
    assert (dropped.name, dropped.reason.partition(";")[0]) != (PLAIN, "asked for")
    assert not issubclass(dropped.step, Dense)
    assert Ensemble([experiment("relu", engine="reference")]).choice.reason == "asked for"
    later = experiment("relu", schedule__changes="switch(of='dropout',to=0.5,at=5)")
    assert not issubclass(Ensemble([later]).choice.step, Dense)
    monkeypatch.setattr(backend, "built", lambda: (None, "no compiler"))
    without = Ensemble([experiment("relu")]).choice
    assert (without.step, without.name, without.reason) == (
        Dense,
        PLAIN,
        "no compiler; layer by layer, without autograd",
    )


@needs_avx2
def test_tiles_take_what_the_extension_has():
    taken = Ensemble([experiment("relu")]).choice
    assert (taken.step, taken.name, taken.reason) == (Tiles, FUSED, "C++ extension, a tile of rows at a time")
    for case, obstacle in (("depth 0", "no hidden layer"), ("square", "skip connections"), ("numbers", "the loss")):
        choice = Ensemble([experiment(case)]).choice
        assert choice.step is Dense
        assert obstacle in choice.reason
    wide = Ensemble([experiment("relu", model__width=1024)]).choice
    assert wide.reason.startswith("1,056,768 weights are more than the cache holds")
    dense = Ensemble([experiment("pairs, gelu", model__width=300, model__depth=2)]).choice
    assert "weights without a relu's zeros are torch's" in dense.reason
