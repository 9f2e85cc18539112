"""The probes that one gets without choosing."""

import numpy as np
import pytest
import torch

from grokfast import Experiment, train

SMALL = Experiment.preset("quick").override(
    {"task.p": 13, "model.width": 16, "schedule.steps": 20, "schedule.eval_every": 10, "device": "cpu"}
)
SPECTRA = ["periodic_neurons", "participation", "embedding_gini"]


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({}, ["norm_w_a", "norm_w_b", "norm_b_in", "norm_out.weight", "norm_out.bias", *SPECTRA]),
        ({"task": "parity(n=8,k=2,n_train=40,n_test=20)", "model": "mlp", "loss": "hinge"}, None),
        ({"task.layout": "equals", "model": "transformer(d_model=16,n_heads=2,d_mlp=16)"}, None),
    ],
)
def test_it_is_what_its_members_measure_where_the_task_has_them(change, columns):
    run = train(SMALL.override({**change, "probes": "default"}))
    apart = train(SMALL.override({**change, "probes": "norms,local_complexity" if "task" in change else
                                  "norms,spectra,local_complexity"}))  # fmt: skip
    names = [*run.curves]
    if columns is not None:
        assert names[-len(columns) - 1 :] == [*columns, "train_local_complexity"]
    assert names == [*apart.curves]
    for name in names:
        np.testing.assert_array_equal(run.curves[name], apart.curves[name])
        assert np.isfinite(run.curves[name]).all()


def test_what_a_module_of_ones_own_does_not_tell_is_a_gap():
    class Own(torch.nn.Module):
        def __init__(self, data):
            super().__init__()
            self.table = torch.nn.Embedding(data.n_tokens, data.n_answers)

        def forward(self, tokens):
            return self.table(tokens).sum(1)

    curves = train(SMALL.override({"probes": "default"}), model=Own).curves
    assert np.isfinite(curves["norm_table.weight"]).all()
    for name in (*SPECTRA, "train_local_complexity"):
        assert np.isnan(curves[name]).all()
