"""Linear recurrences: every window once, its answers by the definition, and what is refused."""

import itertools

import pytest
import torch

from grokfast import Experiment, train
from grokfast.models import TransformerConfig
from grokfast.tasks import ModularTask, RecurrenceTask


def following(window, coefficients, p, n_answers):
    """The elements after a window, in Python's integers."""
    x = list(window)
    for _ in range(n_answers):
        x.append(sum(c * e for c, e in zip(coefficients, x[-len(coefficients) :])) % p)
    return x


@pytest.mark.parametrize("n_answers", [1, 4])
@pytest.mark.parametrize(
    ("p", "coefficients"), [(7, (1, 1)), (6, (-1, 2)), (5, (3, 0, -4)), (11, (2,)), (3, (1, 0, 0, 1))]
)
def test_every_window_is_there_once_with_what_follows(p, coefficients, n_answers):
    n = len(coefficients)
    task = RecurrenceTask(p=p, coefficients=coefficients, n_answers=n_answers, train_fraction=0.5)
    data = task.build(seed=3)
    assert (task.n_windows, task.n_rows(), len(data.train)) == (p**n, p**n // 2, p**n // 2)
    assert (data.n_tokens, data.n_answers, data.seq_len) == (p, p, task.seq_len) == (p, p, n + n_answers - 1)
    assert data.n_positions == (None if n_answers == 1 else n_answers)
    seen = []
    for split in data.splits.values():
        for tokens, answers in zip(split.inputs.tolist(), split.targets.tolist()):
            expected = following(tokens[:n], coefficients, p, n_answers)
            assert tokens == expected[:-1]
            assert answers == (expected[n] if n_answers == 1 else expected[n:])
            seen.append(tuple(tokens[:n]))
    assert sorted(seen) == list(itertools.product(range(p), repeat=n))


def test_fibonacci_is_the_sum_of_two_and_progressions_go_on():
    fibonacci = RecurrenceTask(p=13, split_seed=5).build()
    added = ModularTask(p=13, train_fraction=0.6, split_seed=5).build()
    assert torch.equal(fibonacci.train.inputs, added.train.inputs)
    assert torch.equal(fibonacci.test.targets, added.test.targets)
    progressions = RecurrenceTask(p=13, coefficients=(-1, 2), n_answers=3).build().train
    steps = torch.cat([progressions.inputs[:, :1], progressions.inputs[:, 1:2], progressions.targets], 1).diff() % 13
    assert bool((steps == steps[:, :1]).all())


def test_the_split_follows_the_seed():
    one, same, other = (RecurrenceTask(p=11).build(seed=seed).train.inputs for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    pinned = RecurrenceTask(p=11, split_seed=1)
    assert torch.equal(pinned.build(seed=7).train.inputs, one)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"p": 1}, ValueError, "p must be between 2 and 16777216, got 1"),
        ({"p": 4097}, ValueError, r"at most 16,777,216 windows, .* 2 elements mod 4097 make 4097\^2 = 16,785,409"),
        ({"p": 2, "coefficients": (1,) * 25}, ValueError, r"25 elements mod 2 make 2\^25$"),
        ({"coefficients": ()}, TypeError, r"coefficients must be a tuple of integers, got \(\)"),
        ({"coefficients": 3}, TypeError, "coefficients must be a tuple of integers, got 3"),
        ({"coefficients": (1, 0.5)}, TypeError, r"coefficients\[1\] must be an integer, got 0.5"),
        ({"coefficients": (31, -62)}, ValueError, r"coefficients must not all be 0 mod 31, got \(31, -62\)"),
        ({"n_answers": 0}, ValueError, "n_answers must be between 1 and 32, got 0"),
        ({"train_fraction": 1.0}, ValueError, "train_fraction must be in"),
        ({"p": 2, "train_fraction": 0.1}, ValueError, "train_fraction must leave at least one training"),
    ],
)
def test_bad_recurrences_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        RecurrenceTask(**arguments)


def test_it_is_written_as_text_and_learned():
    experiment = Experiment.preset("quick").override(
        {
            "task": "recurrence(p=5,coefficients=(1,1),n_answers=2,train_fraction=0.8)", "schedule.steps": 150,
            "model": TransformerConfig(d_model=16, n_heads=2, d_mlp=32), "schedule.eval_every": 50, "device": "cpu",
        }
    )  # fmt: skip
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    run = train(experiment)
    assert run.final["train_accuracy"] == 1.0
    assert run.curves["test_accuracy_2"][-1] >= run.final["test_accuracy"]
