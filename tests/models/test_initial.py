"""`init_scales`: initial parameters multiplied by their names."""

import pytest
import torch

from grokfast import Experiment, parts
from grokfast.training.ensemble import Ensemble

SMALL = Experiment.preset("nanda").override(
    {"task.p": 7, "model.d_model": 8, "model.d_mlp": 12, "model.n_heads": 2, "device": "cpu"}
)


def parameters(init_scales):
    return Ensemble([SMALL.override({"model.init_scales": init_scales, "seed": s}) for s in (0, 1)]).runs.own


def test_named_parameters_are_scaled_and_no_others():
    factors = {"embedding": 0.5, "blocks.0.w_in": 3.0, "blocks.0.w_out": 3.0}
    for plain, scaled in zip(parameters(None), parameters("embedding=0.5, blocks.*.w_[io][nu]*=3")):
        assert plain.keys() == scaled.keys()
        for name, weights in plain.items():
            assert torch.equal(scaled[name], weights * factors.get(name, 1.0)), name


@pytest.mark.parametrize("said", ["embedding", "embedding=", "embedding=x", "embedding=inf", "embedding=nan", ","])
def test_what_is_no_factor_is_refused(said):
    with pytest.raises(ValueError, match=r"model.init_scales must be NAME=FACTOR .* got"):
        SMALL.override({"model.init_scales": said})


def test_what_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match=r"model.init_scales must be of the parameters 'embedding', .* got 'head'"):
        parameters("head=2")


def test_runs_without_it_are_known_again():
    assert "init_scales" not in parts.identity(SMALL.model)
