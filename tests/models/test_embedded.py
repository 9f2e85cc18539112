"""Every model as a function of its embeddings, and what comes before its nonlinearities."""

import pytest
import torch
from torch import nn

from grokfast.models import MLPConfig, Module, PairMLPConfig, TokenMLPConfig, TransformerConfig
from grokfast.tasks import Data, ModularTask, Split

PAIRS = ModularTask(p=5).build()
FEATURES = Data(splits={name: Split(torch.randn(9, 3), torch.arange(9) % 4) for name in ("train", "test")},
                n_tokens=0, n_answers=4)  # fmt: skip
SMALL = {"d_model": 8, "n_heads": 2, "d_mlp": 6}
MODELS = [
    (MLPConfig(width=7, depth=3, residual=True), FEATURES, [7, 7, 7], [3]),
    (MLPConfig(depth=0), FEATURES, [], [3]),
    (PairMLPConfig(width=7, depth=2, activation="gelu"), PAIRS, [7, 7], [2, 5]),
    (PairMLPConfig(width=7, embed=3, residual=True, depth=3), PAIRS, [7, 7, 7], [2, 3]),
    (PairMLPConfig(width=7, bias=False), PAIRS, [7], [2, 5]),
    (TokenMLPConfig(width=7), PAIRS, [7], [2, 5]),
    (TokenMLPConfig(width=7, join="sum", depth=2), PAIRS, [7, 7], [2, 5]),
    (TokenMLPConfig(width=7, embed=3), PAIRS, [7], [2, 3]),
    (TokenMLPConfig(width=7, embed=3, join="sum", shared=True), PAIRS, [7], [2, 3]),
    *((TransformerConfig(norm=norm, n_layers=2, **SMALL), PAIRS, [6, 6], [2, 8])
      for norm in ("none", "pre", "post", "replace")),
]  # fmt: skip


@pytest.mark.parametrize(("config", "data", "widths", "shape"), MODELS)
def test_outputs_are_those_of_the_model(config, data, widths, shape):
    model = config.build(data, seeds=(0, 1), dtype=torch.float64)
    inputs = data.train.inputs.double() if data.n_tokens == 0 else data.train.inputs
    seen = []
    x = model.embedded(inputs)
    assert [*x.shape] == [2, len(inputs), *shape]
    torch.testing.assert_close(model.from_embedded(x, seen), model(inputs), rtol=1e-12, atol=1e-12)
    assert [t.shape[-1] for t in seen] == widths
    assert all(t.shape[:2] == x.shape[:2] for t in seen)
    torch.testing.assert_close(model.embedded(inputs.expand(2, *inputs.shape)), x)


def test_preactivations_are_the_first_layers():
    model = PairMLPConfig(width=7).build(PAIRS, seeds=(0, 1))
    seen = []
    model.from_embedded(model.embedded(PAIRS.train.inputs), seen)
    a, b = PAIRS.train.inputs.T
    torch.testing.assert_close(seen[0], model.w_a[:, a] + model.w_b[:, b] + model.b_in[:, None])


def test_a_module_of_ones_own_has_its_features_alone():
    own = Module(factory=lambda data: nn.Linear(3, 4)).build(FEATURES, seeds=(0, 1))
    x = own.embedded(FEATURES.train.inputs)
    torch.testing.assert_close(own.from_embedded(x), own(x))
    with pytest.raises(TypeError, match="tells its preactivations"):
        own.from_embedded(x, [])
    with pytest.raises(TypeError, match="must have `embedded`"):
        own.embedded(PAIRS.train.inputs)
