import sys

import numpy as np
import pytest
import torch

from grokfast import RunStore
from grokfast.cli import main
from grokfast.tasks import DigitsTask, ParityTask


@pytest.mark.parametrize(("n", "k"), [(40, 3), (5, 5), (7, 1), (1, 1)])
def test_the_target_is_the_product_of_the_same_k_signs(n, k):
    data = ParityTask(n=n, k=k, n_train=300, n_test=200).build(seed=2)
    x = torch.cat([data.train.inputs, data.test.inputs])
    y = torch.cat([data.train.targets, data.test.targets])
    assert (len(data.train), len(data.test), data.seq_len, data.n_answers, data.is_real) == (300, 200, n, 1, True)
    assert set(x.unique().tolist()) == {-1.0, 1.0}
    assert set(y.unique().tolist()) <= {-1.0, 1.0}
    # The signs that count, found by linear algebra over GF(2): bits · s = parity has one solution with that many ones.
    bits, parity = (x < 0).numpy(), (y[:, 0] < 0).numpy()
    if n == 7:
        assert sum((bits[:, i] == parity).all() for i in range(n)) == 1
    if k == n:
        np.testing.assert_array_equal(bits.sum(1) % 2 == 1, parity)
    assert x.shape == (500, n)


def test_which_signs_count_follows_the_seed():
    def counting(seed):
        data = ParityTask(n=12, k=1, n_train=200).build(seed=seed)
        return [i for i in range(12) if torch.equal(data.train.inputs[:, i], data.train.targets[:, 0])]

    assert counting(0) == counting(0)
    assert len({tuple(counting(seed)) for seed in range(8)}) > 1
    pinned = ParityTask(n=12, k=1, n_train=200, split_seed=5)
    assert torch.equal(pinned.build(seed=1).train.inputs, pinned.build(seed=2).train.inputs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 41}, ValueError, "k must be at most n, 40, got 41"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"n": 2**15}, ValueError, "n must be between 1 and 16384"),
        ({"n_train": 0}, ValueError, "n_train must be between 1"),
        ({"n": "40"}, TypeError, "n must be an integer"),
    ],
)
def test_bad_parities_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ParityTask(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 1001}, "n_train and n_test must be at most 1,797 together, got 1,798"),
        ({"n_train": 0}, "n_train must be between 1 and 1797"),
        ({"label_noise": 2}, "label_noise must be in"),
    ],
)
def test_bad_digits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsTask(**arguments)


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'grokfast[data]'")
    found = datasets.load_digits()
    known = {image.tobytes(): digit for image, digit in zip((found.data / 16).astype(np.float32), found.target)}
    data = DigitsTask(n_train=300, n_test=700, label_noise=0.1).build(seed=1)
    assert (len(data.train), len(data.test), data.seq_len, data.n_answers) == (300, 700, 64, 10)
    assert int(data.corrupted.sum()) == 30
    rows = [image.tobytes() for split in data.splits.values() for image in split.inputs.numpy()]
    assert len(set(rows)) == 1000
    right = [known[row] for row in rows]
    targets = torch.cat([data.train.targets, data.test.targets]).tolist()
    wrong = [i for i, (one, other) in enumerate(zip(targets, right)) if one != other]
    assert wrong == data.corrupted.nonzero()[:, 0].tolist()


def test_without_scikit_learn_it_is_said_and_nothing_is_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["run", "digits", "--steps", "1", "--out", str(tmp_path)]) == 2
    assert "the task digits needs scikit-learn: pip install 'grokfast[data]'" in capsys.readouterr().err
    with RunStore(tmp_path) as store:
        assert store.list() == []
