"""Sequences: answers by definition, no row in both splits, and a transformer that has an answer at every position."""

import numpy as np
import pytest
import torch

from grokfast import Experiment, backend, train
from grokfast.models import TransformerConfig
from grokfast.models.base import OPERATIONS, PLAIN
from grokfast.tasks import SequenceTask
from grokfast.training.ensemble import Ensemble
from tests.training.common import same_result
from tests.training.conftest import how, replayed  # noqa: F401

TASK = SequenceTask(length=3, n_symbols=6, n_train=60, n_test=40)
SMALL = Experiment.preset("nanda").override(
    {
        "task": TASK, "model.d_model": 16, "model.d_mlp": 32, "model.n_heads": 2, "schedule.steps": 12,
        "schedule.eval_every": 4, "device": "cpu",
    }
)  # fmt: skip


@pytest.mark.parametrize("operation", ["sort", "reverse", "copy"])
@pytest.mark.parametrize(("length", "n_symbols", "n_train", "n_test"), [(3, 6, 60, 40), (1, 5, 3, 2), (8, 30, 50, 70)])
def test_rows_and_answers(operation, length, n_symbols, n_train, n_test):
    task = SequenceTask(operation=operation, length=length, n_symbols=n_symbols, n_train=n_train, n_test=n_test)
    data = task.build(seed=3)
    assert (len(data.train), len(data.test), data.n_tokens, data.n_answers) == (
        n_train,
        n_test,
        n_symbols + 1,
        n_symbols,
    )
    assert (data.seq_len, data.n_positions or 1) == (task.seq_len, length) == (2 * length, length)
    seen = set()
    for split in data.splits.values():
        for tokens, answers in zip(split.inputs.tolist(), split.targets.tolist()):
            x, rest = tokens[:length], tokens[length:]
            y = {"sort": sorted(x), "reverse": x[::-1], "copy": x}[operation]
            assert rest == [n_symbols, *y[:-1]]
            assert answers == y
            seen.add(tuple(x))
    assert len(seen) == n_train + n_test
    again, other = task.build(seed=3), task.build(seed=4)
    assert torch.equal(again.train.inputs, data.train.inputs)
    assert not torch.equal(other.test.inputs, data.test.inputs) or n_symbols**length < 10


@pytest.mark.parametrize(("length", "n_symbols", "n_train", "n_test"), [(3, 6, 60, 40), (8, 3, 50, 70), (1, 5, 3, 2)])
def test_how_often_the_first_symbol_occurs(length, n_symbols, n_train, n_test):
    task = SequenceTask(operation="count", length=length, n_symbols=n_symbols, n_train=n_train, n_test=n_test)
    data = task.build(seed=1)
    assert (data.n_tokens, data.n_answers, data.n_positions) == (n_symbols + 1, length + 1, None)
    assert data.seq_len == task.seq_len == length + 1
    seen = set()
    for split, rows in zip(data.splits.values(), (n_train, n_test)):
        assert len(split) == rows
        for (*x, equals), answer in zip(split.inputs.tolist(), split.targets.tolist()):
            assert (equals, answer) == (n_symbols, x.count(0))
            seen.add(tuple(x))
    assert len(seen) == n_train + n_test


@pytest.mark.parametrize(("length", "n_symbols"), [(2, 7), (5, 6)])
def test_all_progressions_and_what_comes_next(length, n_symbols):
    task = SequenceTask(operation="next", length=length, n_symbols=n_symbols, n_train=n_symbols**2 - 9, n_test=9)
    data = task.build(seed=2)
    assert (data.n_tokens, data.n_answers, data.seq_len, task.seq_len) == (
        n_symbols + 1,
        n_symbols,
        length + 1,
        length + 1,
    )
    seen = set()
    for split in data.splits.values():
        for (*x, equals), answer in zip(split.inputs.tolist(), split.targets.tolist()):
            assert equals == n_symbols
            steps = {(b - a) % n_symbols for a, b in zip(x, [*x[1:], answer])}
            assert len(steps) == 1
            seen.add((x[0], steps.pop()))
    assert len(seen) == n_symbols**2


def test_all_sequences_can_be_used():
    data = SequenceTask(length=2, n_symbols=4, n_train=10, n_test=6).build()
    rows = torch.cat([data.train.inputs, data.test.inputs])[:, :2]
    assert sorted(map(tuple, rows.tolist())) == [(a, b) for a in range(4) for b in range(4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 2, "n_symbols": 3}, "at most the 9 sequences of 2 out of 3 symbols together, got 2,000"),
        ({"length": 0}, "length must be between 1 and 32, got 0"),
        ({"length": 33}, "length must be between 1 and 32, got 33"),
        (
            {"operation": "shuffle"},
            "operation must be one of 'sort', 'reverse', 'copy', 'count', 'next', got 'shuffle'",
        ),
        ({"operation": "next", "length": 1}, "length must be at least 2 for 'next', as one element tells no step"),
        ({"operation": "next"}, "at most the 100 progressions mod 10 symbols together, got 2,000"),
        ({"n_train": 0}, "n_train must be between 1"),
    ],
)
def test_bad_sequences_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SequenceTask(**arguments)


def test_each_position_sees_what_stands_before_it():
    """The logits of every answered position are the last position's of the row cut there."""
    data = TASK.build()
    config = TransformerConfig(d_model=16, n_heads=2, d_mlp=24, n_positions=6, norm="pre")
    model = config.build(data, seeds=(0, 1), dtype=torch.float64)
    x = data.train.inputs[:7]
    out = model(x)
    assert out.shape == (2, 7, 3, 6)
    model.n_answered = None
    for i in range(3):
        torch.testing.assert_close(out[:, :, i], model(x[:, : 4 + i]))


def test_answered_positions_are_computed_once():
    choice = Ensemble([SMALL]).choice
    if backend.extension() is None:
        assert choice.name == PLAIN
    else:
        assert (choice.name, choice.reason) == (
            OPERATIONS,
            "C++ extension, each distinct prefix once, backward written out",
        )


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("batch_size", [None, 17])
def test_what_is_computed_once_is_the_model(n_layers, batch_size):
    experiment = SMALL.override({"model.n_layers": n_layers, "schedule.batch_size": batch_size, "precision": "float64"})
    fast, reference = train(experiment), train(experiment.override({"engine": "reference"}))
    for name, values in fast.curves.items():
        np.testing.assert_allclose(values, reference.curves[name], rtol=1e-9, err_msg=name)


def test_in_company_as_alone(how):  # noqa: F811
    experiments = [SMALL.override({"seed": seed}) for seed in (0, 1)]
    for together, experiment in zip(train(experiments), experiments):
        same_result(together, train(experiment))
        assert {f"test_accuracy_{i}" for i in (1, 2, 3)} <= together.curves.keys()


def test_reversing_is_learned():
    run = train(
        SMALL.override(
            {
                "task": SequenceTask(operation="reverse", length=3, n_symbols=5, n_train=90, n_test=30),
                "optimizer.lr": 5e-3, "schedule.steps": 300, "schedule.eval_every": 50, "model.d_model": 32,
            }
        )
    )  # fmt: skip
    assert run.final["train_accuracy"] > 0.95
    assert run.final["test_accuracy"] > 0.5
