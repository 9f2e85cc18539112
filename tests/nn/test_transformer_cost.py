import importlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grokfast import Experiment, backend, tasks
from grokfast.nn import GrokTransformer
from grokfast.nn.transformer_cost import cost
from grokfast.nn.transformer_step import TransformerStep
from grokfast.ops import linear_cross_entropy, pair_embed

pytest.importorskip("triton")
from grokfast.ops import kernels

OPERATIONS = (
    "batch", "gathered_attention", "layer_norm", "linear", "linear_cross_entropy", "mlp", "pair_embed", "read_rows",
)  # fmt: skip
# Without a kernel; `to` keeps type and device here.
FREE = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "mT",
    "new_empty", "new_empty_strided", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "to",
    "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts kernels, torch's own included, and runs none of Triton's."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        modules = [importlib.import_module(f"grokfast.ops.{name}.kernels") for name in OPERATIONS]
        for module in (*modules, kernels):
            monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: self.names.append(kernel.fn.__name__))
            for function in ("forward", "backward"):
                if hasattr(module, function):
                    monkeypatch.setattr(module, function, self.watched(getattr(module, function)))

    def watched(self, function):
        """Within an operation that is registered torch looks away."""

        def call(*args, **kwargs):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is self:
                return function(*args, **kwargs)
            with self:
                return function(*args, **kwargs)

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def preset_step(name, n_models, p=None, precision="tf32", **changes):
    experiment = Experiment.preset(name)
    task = experiment.task if p is None else replace(experiment.task, p=p)
    data, config = tasks.build(task), replace(experiment.model, **changes)
    sizes = {"n_tokens": data.n_tokens, "n_answers": data.n_answers, "seq_len": data.seq_len}
    model = GrokTransformer(config, **sizes, seeds=range(n_models))
    tokens, targets = (t.expand(n_models, *t.shape).contiguous() for t in (data.train_inputs, data.train_targets))
    return model, TransformerStep(model, tokens, targets, precision=precision, backend="triton")


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize(
    ("preset", "n_batch", "precision", "changes"),
    [
        ("nanda", None, "tf32", {}),
        ("nanda", None, "ieee", {}),
        ("power", 20, "bf16", {}),
        ("grokfast", 20, "tf32", {}),
        ("grokfast", None, "tf32x3", {"norm": "pre"}),
    ],
)
def test_launches_are_counted_as_they_are(preset, n_batch, precision, changes, n_models, monkeypatch):
    small = {"d_model": 16, "n_heads": 2, "d_mlp": 32}
    model, step = preset_step(preset, n_models, p=11, precision=precision, **small, **changes)
    for module in (pair_embed, linear_cross_entropy):  # on a GPU they look at no index
        monkeypatch.setitem(module.__globals__, "check_indices", lambda *_: None)
    flat = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    batch = None if n_batch is None else torch.zeros(n_models, n_batch, dtype=torch.int64)
    arguments = flat, torch.empty_like(flat), flat.new_empty(n_models), flat.new_empty(n_models), batch
    with backend.using("triton"):
        launches = Launches(monkeypatch)
        step.gradient(*arguments)  # what is made once
        launches.names.clear()
        with launches:
            step.gradient(*arguments)
    with backend.using("reference"):  # it looks at shapes only
        assert cost(step, n_batch).launches == len(launches.names), " ".join(launches.names)


def test_the_counts_of_the_recipes():
    """nanda: kernels.md's 3.75 GFLOP, and what is made anew in the backward of the MLP and of the classifier."""
    _, one = preset_step("nanda", 1)
    n, d, hidden, classes, table = 3830, 128, 512, 113, 227
    mlp, classifier, attention = 10 * n * d * hidden, 5 * n * d * classes, 3 * n * d * d + 3 * table * d * 3 * d
    got = cost(one)
    assert got.flops == pytest.approx(2 * (mlp + classifier + attention), rel=0.02)
    assert 3.75e9 < got.flops < 2 * 3.75e9
    _, four = preset_step("nanda", 4)
    together = cost(four)
    assert together.flops == 4 * got.flops
    assert together.bytes < 4.2 * got.bytes
    assert together.launches < got.launches + 3
    exact, three_passes = (cost(preset_step("nanda", 1, precision=precision)[1]) for precision in ("ieee", "tf32x3"))
    assert exact.flops == pytest.approx(got.flops - 2 * 4 * n * d * hidden, rel=0.02)
    assert three_passes.flops == 3 * exact.flops
