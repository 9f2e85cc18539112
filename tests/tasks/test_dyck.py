"""Strings of parentheses: each answer by trying all completions, sizes by Catalan's numbers, and what is refused."""

import itertools

import pytest
import torch

from grokfast import Experiment, train
from grokfast.models import TransformerConfig
from grokfast.tasks import DyckTask
from grokfast.tasks.dyck import completions, numbered

CATALAN = [1, 1, 2, 5, 14, 42, 132, 429, 1430]


def is_balanced(string):
    """By crossing out pairs."""
    while "()" in string:
        string = string.replace("()", "")
    return string == ""


def strings(tokens):
    return ["".join("()"[token] for token in row) for row in tokens.tolist()]


@pytest.mark.parametrize("length", [2, 4, 8])
def test_every_string_has_its_number(length):
    balanced = completions(length)
    others = 2 ** torch.arange(length + 1)[:, None] - balanced
    assert int(balanced[-1, 0]) == CATALAN[length // 2]
    everything = ["".join(s) for s in itertools.product("()", repeat=length)]
    for ways, kind in ((balanced, True), (others, False)):
        found = strings(numbered(torch.arange(int(ways[-1, 0])), ways))
        assert found == [s for s in everything if is_balanced(s) == kind]


def test_the_number_of_long_strings():
    assert int(completions(32)[-1, 0]) == 35_357_670
    assert [int(completions(n)[-1, 0]) for n in range(0, 17, 2)] == CATALAN


@pytest.mark.parametrize(("length", "n_train", "n_test"), [(8, 15, 12), (6, 5, 4), (2, 1, 2)])
def test_answers_by_all_completions(length, n_train, n_test):
    data = DyckTask(length=length, n_train=n_train, n_test=n_test).build(seed=1)
    assert (data.n_tokens, data.n_answers, data.seq_len, data.n_positions) == (2, 2, length, length)
    seen = set()
    for split, rows in zip(data.splits.values(), (n_train, n_test)):
        assert (len(split), int(split.targets[:, -1].sum())) == (rows, rows // 2)
        for string, answers in zip(strings(split.inputs), split.targets.tolist()):
            for i, answer in enumerate(answers, 1):
                ends = itertools.product("()", repeat=length - i)
                assert answer == any(is_balanced(string[:i] + "".join(end)) for end in ends)
            seen.add(string)
    assert len(seen) == n_train + n_test


@pytest.mark.parametrize("length", [8, 32])
def test_a_string_alone_and_other_seeds(length):
    task = DyckTask(length=length, n_train=9, n_test=8, split_seed=4)
    prefixes, string = (DyckTask(length=length, n_train=9, n_test=8, split_seed=4, answers=a).build()
                        for a in ("prefixes", "string"))  # fmt: skip
    assert torch.equal(prefixes.test.inputs, string.test.inputs)
    assert torch.equal(prefixes.test.targets[:, -1], string.test.targets)
    assert (string.n_positions, task.seq_len, task.n_rows()) == (None, length, 9)
    assert string.test.targets.tolist() == [is_balanced(s) for s in strings(string.test.inputs)]
    assert torch.equal(task.build(seed=1).train.inputs, task.build(seed=2).train.inputs)
    other = DyckTask(length=length, n_train=9, n_test=8)
    assert not torch.equal(other.build(seed=1).train.inputs, other.build(seed=2).train.inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 7}, "length must be even, got 7"),
        ({"length": 34}, "length must be between 2 and 32, got 34"),
        (
            {"length": 6, "n_train": 8, "n_test": 4},
            "at most 5 together, the balanced strings of 6 parentheses, got 6",
        ),
        ({"length": 2, "n_train": 3, "n_test": 3}, "at most 1 together, .* got 2"),
        ({"answers": "all"}, "answers must be one of 'prefixes', 'string', got 'all'"),
        ({"n_train": 0}, "n_train must be between 1"),
    ],
)
def test_bad_strings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DyckTask(**arguments)


def test_prefixes_are_learned():
    run = train(
        Experiment.preset("nanda").override(
            {
                "task": DyckTask(length=8, n_train=20, n_test=8), "schedule.steps": 200, "schedule.eval_every": 100,
                "model": TransformerConfig(d_model=16, n_heads=2, d_mlp=32), "optimizer.lr": 5e-3, "device": "cpu",
            }
        )
    )  # fmt: skip
    assert run.final["train_accuracy"] == 1.0
    assert {f"test_accuracy_{i}" for i in range(1, 9)} <= run.curves.keys()
