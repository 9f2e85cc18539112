"""What a step takes is counted; here from its plan, and from what is really asked of torch."""

import importlib
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grokfast import Experiment, backend, tasks
from grokfast.nn import GrokTransformer
from grokfast.nn.plan import Plan
from grokfast.nn.transformer_memory import memory
from grokfast.nn.transformer_step import TransformerStep
from grokfast.ops import linear_cross_entropy, pair_embed

pytest.importorskip("triton")
from grokfast.ops import kernels

OPERATIONS = (
    "batch", "gathered_attention", "layer_norm", "linear", "linear_cross_entropy", "mlp", "pair_embed", "read_rows",
)  # fmt: skip


class Alive(TorchDispatchMode):
    """Bytes that are alive of what was made inside, and the most there were; runs no kernel of Triton's."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0
        modules = [importlib.import_module(f"grokfast.ops.{name}.kernels") for name in OPERATIONS]
        modules.append(importlib.import_module("grokfast.nn.fused.launches"))
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

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            storage = t.untyped_storage() if isinstance(t, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.alive:
                self.alive[storage._cdata] = weakref.ref(storage, partial(self.gone, storage._cdata, storage.nbytes()))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return out

    def gone(self, number, size, _):
        del self.alive[number]
        self.now -= size


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
    data = tasks.build(replace(experiment.task, p=31))
    config = replace(experiment.model, d_model=32, d_mlp=64, **changes)
    model = GrokTransformer(config, n_tokens=data.n_tokens, n_answers=data.n_answers, seq_len=data.seq_len)
    tokens, targets = (t.expand(n_models, *t.shape).contiguous() for t in (data.train_inputs, data.train_targets))
    for module in (pair_embed, linear_cross_entropy):  # on a GPU they look at no index
        monkeypatch.setitem(module.__globals__, "check_indices", lambda *_: None)
    flat = torch.zeros(n_models, model.n_parameters)
    grad, loss, correct = torch.empty_like(flat), flat.new_empty(n_models), flat.new_empty(n_models)
    batch = None if n_batch is None else torch.zeros(n_models, n_batch, dtype=torch.int64)
    counted = memory(
        config, data.train_inputs, n_batch, n_tokens=data.n_tokens, n_outputs=model.n_outputs,
        n_parameters=model.n_parameters, precision=precision,
    )  # fmt: skip
    with backend.using("triton"):
        alive = Alive(monkeypatch)
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
