"""What a data set must be, and what is said where it is not."""

import dataclasses

import pytest
import torch

from grokfast import Experiment, train
from grokfast.losses import CrossEntropy
from grokfast.tasks import Data, ModularTask, Split, Task
from grokfast.training.ensemble import Ensemble

X, Y = torch.tensor([[0, 1], [2, 3], [1, 1]]), torch.tensor([0, 1, 1])
GOOD = Split(X, Y)


def data(train=GOOD, test=GOOD, n_tokens=4, n_answers=2, **more):
    return Data(splits={"train": train, "test": test, **more}, n_tokens=n_tokens, n_answers=n_answers)


def test_what_it_says_of_itself():
    plain, several = data(few=GOOD), Split(X, torch.stack([Y, Y], 1))
    assert (list(plain.splits), plain.seq_len, plain.n_positions, plain.is_real) == (
        ["train", "test", "few"],
        2,
        None,
        False,
    )
    assert data(several, several).n_positions == 2
    real = Split(torch.zeros(3, 5), torch.zeros(3, 2))
    assert (data(real, real, n_tokens=0).is_real, data(real, real, n_tokens=0).n_positions) == (True, None)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Data(splits={"train": GOOD}, n_tokens=4, n_answers=2),
            ValueError,
            "splits must have 'test', got 'train'",
        ),
        (lambda: data(Split(X, Y[:2])), ValueError, r"train must have inputs .*, got \[3, 2\] and \[2\]"),
        (lambda: data(Split(X[:0], Y[:0])), ValueError, "train must have .* N at least 1"),
        (lambda: data(test=Split(X[:, :1], Y)), ValueError, r"test must have rows like those of train, got \[3, 1\]"),
        (lambda: data(test=Split(X, Y[:, None])), ValueError, "test must have rows like those of train"),
        (lambda: data(n_tokens=3), ValueError, r"train must have token ids in 0..2, got 0 to 3"),
        (lambda: data(n_answers=1), ValueError, r"train must have classes in 0..0, got 0 to 1"),
        (lambda: data(Split(X, Y - 1)), ValueError, r"train must have classes in 0..1, got -1 to 0"),
        (lambda: data(Split(X.int(), Y)), TypeError, "train must have int64 token ids, got inputs in torch.int32"),
        (lambda: data(Split(X, Y.int())), TypeError, "train must have targets in int64 or floating point"),
        (lambda: data(n_tokens=0), TypeError, "train must have floating-point features, as n_tokens is 0"),
        (lambda: data(Split(X.float(), Y)), TypeError, "train must have int64 token ids, got inputs in torch.float32"),
        (lambda: data(Split(X.float() / 0, Y), Split(X.float(), Y), n_tokens=0), ValueError, "train must have finite"),
        (
            lambda: data(Split(X, Y[:, None].float())),
            ValueError,
            r"train must have real targets \[N, 2\], got \[3, 1\]",
        ),
        (lambda: data(Split(X.tolist(), Y)), TypeError, "train must have tensors as inputs, got"),
    ],
)
def test_what_does_not_fit_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlike(ModularTask):
    """Says that its data may have any number of tokens in one ensemble."""

    varies = frozenset({"p"})


def test_runs_that_train_together_have_data_of_one_form():
    base = Experiment.preset("quick").override({"task": Unlike(p=7), "device": "cpu"})
    message = r"experiments\[1\].task gives data of .* 11 tokens .*, experiments\[0\].task of .* 7 tokens"
    with pytest.raises(ValueError, match=message):
        Ensemble([base, base.override({"task.p": 11})])


def test_data_and_model_that_do_not_fit_are_both_named():
    with pytest.raises(
        ValueError, match=r"a PairMLP takes inputs \[N, 2\] of tokens .*, the data have \[3, 2\] float32"
    ):
        train(Experiment(task=Features()))


@dataclasses.dataclass(frozen=True)
class Features(Task):
    def build(self, *, seed=0):
        split = Split(X.float(), Y)
        return data(split, split, n_tokens=0)


def test_a_loss_is_common_to_an_ensemble():
    base = Experiment.preset("quick")
    with pytest.raises(ValueError, match=r"experiments\[1\].loss.label_smoothing is 0.1"):
        train([base, base.override({"loss": CrossEntropy(label_smoothing=0.1)})])
