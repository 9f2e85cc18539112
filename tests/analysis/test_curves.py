import numpy as np
import pytest

from grokfast.analysis import curves_by

TABLE = {
    "status": ["finished", "diverged", "finished", "finished", "running"],
    "run_id": list("abcde"),
    "optimizer.lr": [1.0, 0.1, 1.0, 5.0, 0.1],
    "filter.name": ["ema", None, "ema", "ma", None],
}
CURVES = {"run": np.array([2, 2, 0, 1, 1, 1, 4]), "step": np.array([0, 10, 0, 0, 10, 20, 0]), "y": np.arange(7) / 2}


def test_curves_are_grouped_by_cell_in_the_order_of_values():
    found = curves_by(TABLE, CURVES, ["optimizer.lr"])
    assert list(found) == ["lr 0.1", "lr 1.0"]  # run d has no record, and run e has not ended
    assert [part["step"].tolist() for part in found["lr 1.0"]] == [[0], [0, 10]]
    assert found["lr 0.1"][0]["y"].tolist() == [1.5, 2.0, 2.5]
    assert set(found["lr 0.1"][0]) == {"step", "y"}


def test_several_columns_and_none():
    assert list(curves_by(TABLE, CURVES, ["filter.name", "optimizer.lr"])) == ["name ema, lr 1.0", "name none, lr 0.1"]
    assert len(curves_by(TABLE, CURVES, [])["all runs"]) == 3


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"did you mean 'optimizer.lr'\?"):
        curves_by(TABLE, CURVES, ["optimizer.rl"])
    with pytest.raises(ValueError, match="the 5 runs of the table, got rows 0 to 5"):
        curves_by(TABLE, CURVES | {"run": np.array([0, 1, 2, 3, 4, 5, 5])}, ["optimizer.lr"])
    with pytest.raises(TypeError, match="by must be a sequence of column names"):
        curves_by(TABLE, CURVES, "optimizer.lr")
