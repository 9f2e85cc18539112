import struct

import numpy as np
import pytest

from grokfast.plots import plot_comparison


def run(n, delay=1):
    step = np.arange(n) * 10
    rising = np.clip(step / (100 * delay), 0, 1)
    loss = np.linspace(2, 0.1, n)
    return {
        "step": step, "train_accuracy": rising, "test_accuracy": rising**3, "train_loss": loss, "test_loss": loss,
    }  # fmt: skip


def picture(tmp_path, arms):
    path = plot_comparison(arms, tmp_path / "arms.png", title="arms $ of _ several", threshold=0.95)
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (1200, 600)
    return path.read_bytes()


def test_arms_of_one_and_of_several_runs(tmp_path):
    one, several = {"a": [run(100)]}, {"a": [run(100)], "b": [run(30, 2), run(60, 3)]}
    assert picture(tmp_path, one) != picture(tmp_path, several)
    assert picture(tmp_path, several) == picture(tmp_path, several)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({}, "arms must be 1 to 7, got 0"),
        ({str(i): [run(3)] for i in range(8)}, "arms must be 1 to 7, got 8"),
        ({"a": [run(3)], "b": []}, "without one: b"),
        ({"a": [{"step": np.arange(3)}]}, "curves must have the columns"),
    ],
)
def test_bad_arms_are_refused(tmp_path, arms, message):
    with pytest.raises(ValueError, match=message):
        plot_comparison(arms, tmp_path / "arms.png", title="")
