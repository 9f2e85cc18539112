"""What a step takes is counted; here from its plan, and from what is really asked of torch."""

import importlib
from dataclasses import replace

import pytest
import torch

from grokfast import Experiment, backend
from grokfast.models import GrokTransformer
from grokfast.models.transformer.memory import memory
from grokfast.models.transformer.plan import Plan
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops import linear_cross_entropy, pair_embed
from tests.memory import Alive

pytest.importorskip("triton")
from grokfast.ops import kernels

OPERATIONS = (
    "batch", "gathered_attention", "layer_norm", "linear", "linear_cross_entropy", "mlp", "pair_embed", "read_rows",
)  # fmt: skip


class AliveWithoutKernels(Alive):
    """The same where no kernel of Triton's is run."""

    def __init__(self, monkeypatch):
        super().__init__()
        modules = [importlib.import_module(f"grokfast.ops.{name}.kernels") for name in OPERATIONS]
        modules.append(importlib.import_module("grokfast.models.transformer.fused.launches"))
        for module in (*modules, kernels):
            monkeypatch.setattr(module, "launch", self.launch)
            for function in ("forward", "backward"):
                if hasattr(module, function):
                    monkeypatch.setattr(module, function, self.watched(getattr(module, function)))

    def launch(self, kernel, grid, *arguments, **constants):
        if kernel.fn.__name__ == "choose_kernel":  # row numbers that are read
            arguments[2].zero_()
            arguments[3].zero_()

    def watched(self, function):
        """Within an operation that is registered torch looks away."""

        def call(*args, **kwargs):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is self:
                return function(*args, **kwargs)
            with self:
                return function(*args, **kwargs)

        return call


def held_by(thing, seen):
    """Bytes of the tensors of an object, but for what lies in the host's memory and what is the step's data."""
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        is_new = storage._cdata not in seen
        seen.add(storage._cdata)
        return storage.nbytes() * is_new
    if isinstance(thing, dict):
        return sum(held_by(value, seen) for value in thing.values())
    if isinstance(thing, (list, tuple)):
        return sum(held_by(value, seen) for value in thing)
    if type(thing).__module__.startswith("grokfast") and hasattr(thing, "__dict__") and not isinstance(thing, Plan):
        return held_by(vars(thing), seen)
    return 0


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize(
    ("preset", "n_batch", "changes"),
    [
        ("nanda", None, {}),
        ("nanda", None, {"residual": False}),
        ("power", 200, {}),
        ("power", None, {}),
        ("grokfast", 100, {}),
        ("grokfast", None, {"norm": "pre", "n_layers": 3}),
    ],
)
def test_what_a_step_takes_is_estimated_up_to_twice_as_high(preset, n_batch, changes, precision, n_models, monkeypatch):
    experiment = Experiment.preset(preset)
    data = replace(experiment.task, p=31).build()
    config = replace(experiment.model, d_model=32, d_mlp=64, **changes)
    model = GrokTransformer(config, n_tokens=data.n_tokens, n_answers=data.n_answers, seq_len=data.seq_len)
    tokens, targets = (t.expand(n_models, *t.shape).contiguous() for t in (data.train.inputs, data.train.targets))
    for module in (pair_embed, linear_cross_entropy):  # on a GPU they look at no index
        monkeypatch.setitem(module.__globals__, "check_indices", lambda *_: None)
    flat = torch.zeros(n_models, model.n_parameters)
    grad, loss, correct = torch.empty_like(flat), flat.new_empty(n_models), flat.new_empty(n_models)
    batch = None if n_batch is None else torch.zeros(n_models, n_batch, dtype=torch.int64)
    counted = memory(
        config, data.train.inputs, n_batch, n_tokens=data.n_tokens, n_outputs=model.n_outputs,
        n_parameters=model.n_parameters, precision=precision,
    )  # fmt: skip
    with backend.using("triton"):
        alive = AliveWithoutKernels(monkeypatch)
        with alive:
            step = TransformerStep(model, tokens, targets, precision=precision, backend="triton")
            step.gradient(flat, grad, loss, correct, batch)  # what is made once
            step.measure(flat, loss, correct)
            before = alive.most = alive.now
            step.measure(flat, loss, correct)
            measure, alive.most = alive.most - before, alive.now
            assert alive.now == before
            step.gradient(flat, grad, loss, correct, batch)
            gradient = alive.most - before
    seen = {t.untyped_storage()._cdata for t in (tokens, targets, step.targets, step._unpack.start, step._unpack.size)}
    held = held_by([step.plan, step._every, step._unpack._memory, step._launches], seen)
    for ours, there in zip(counted, (held, gradient, measure), strict=True):
        assert there <= n_models * ours <= 2 * there
