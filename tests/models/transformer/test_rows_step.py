import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from grokfast import Experiment, backend
from grokfast.models.transformer.rows_pass import RowsPass
from grokfast.models.transformer.rows_step import RowsStep
from grokfast.models.transformer.steps import Planned
from grokfast.ops import products
from grokfast.ops.rows import RowIndex
from grokfast.training.ensemble import Ensemble
from tests.models.transformer.common import assert_within_twice_torchs_error, first_batch, gradients_of

pytestmark = pytest.mark.skipif(backend.extension() is None, reason="needs the C++ extension")


def experiment(seed=0, preset="power", **changes):
    base = {"device": "cpu", "seed": seed, "schedule.steps": 10, "schedule.batch_size": 40}
    if preset != "multihop":
        base["task.p"] = 13
    return Experiment.preset(preset).override({**base, **changes})


VARIANTS = {
    "power": {},
    "grokfast": {"preset": "grokfast"},
    "several answers": {"preset": "multihop"},
    "pre, all rows, odd sizes": {"model.norm": "pre", "schedule.batch_size": None, "model.d_model": 30,
                                 "model.n_heads": 2, "model.d_mlp": 50, "model.positions": "learned",
                                 "model.n_positions": 6},
    "replace, three layers, tied": {"preset": "grokfast", "model.n_layers": 3, "model.tied": True},
    "no norm, biases": {"model.norm": "none", "model.attention_bias": True, "model.mlp_bias": True,
                        "model.init": "nanda"},
    "no skips": {"preset": "grokfast", "model.norm": "pre", "model.residual": False},
    "one layer, every position": {"model.n_layers": 1, "model.causal": False},
    "label smoothing": {"loss.label_smoothing": 0.1},
}  # fmt: skip


gradients = partial(gradients_of, way=RowsStep)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_within_twice_the_error_of_torch(variant):
    assert_within_twice_torchs_error(RowsStep, partial(experiment, **VARIANTS[variant]))


class InTorch:
    """What RowsPass asks of the extension, in plain PyTorch: its own part is then exact in any precision."""

    def active_products_fit(self, *_):
        return False

    def add_rows(self, out, table, index, bias, _):
        for term in (bias, table if index is None or table is None else table[index]):
            if term is not None:
                out += term

    def sum_rows(self, x, out, _):
        torch.sum(x, 0, out=out)

    def sum_readers(self, x, start, items, out, _):
        for k in range(len(out)):
            out[k] = x[items[start[k] : start[k + 1]]].sum(0)

    def activate_forward(self, z, bias, slope, kind, _):
        z += 0 if bias is None else bias
        if slope is not None:
            with torch.enable_grad():
                x = z.clone().requires_grad_()
                slope.copy_(torch.autograd.grad(F.gelu(x).sum(), x)[0])
        z.copy_(F.relu(z) if kind == 1 else F.gelu(z))

    def activate_backward(self, grad, kept, of_bias, kind, _):
        grad *= (kept > 0) if kind == 1 else kept
        if of_bias is not None:
            of_bias.copy_(grad.sum(0))

    def residual_norm_forward(self, y, bias, skip, index, weight, offset, out, stats, eps, _):
        self.add_rows(y, skip, index, bias, 1)
        stats.fill_(eps)
        out.copy_(F.layer_norm(y, y.shape[1:], weight, offset, eps))

    def residual_norm_backward(self, y, weight, stats, grad, along, of_y, of_weight, of_offset, of_bias, _):
        with torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_() for t in (y, weight, torch.zeros_like(weight))]
            out = F.layer_norm(leaves[0], y.shape[1:], *leaves[1:], stats[0, 0].item())
            grads = torch.autograd.grad(out, leaves, grad)
        for to, g in zip((of_y, of_weight, of_offset), grads):
            to.copy_(g)
        if along is not None:
            of_y[len(of_y) - len(along) :] += along
        if of_bias is not None:
            of_bias.copy_(of_y.sum(0))

    def _attention(self, q, kv, query, keys, heads):
        own = (q if query is None else q[query]).unflatten(1, (heads, -1))
        k, v = (t[keys.clamp(min=0)].unflatten(2, (heads, -1)) for t in kv.chunk(2, 1))
        scores = (own[:, None] * k).sum(-1) / math.sqrt(k.shape[-1])
        weights = scores.masked_fill(keys[..., None] < 0, -math.inf).softmax(1)
        return (weights[..., None] * v).sum(1).flatten(1)

    def gathered_attention_forward(self, q, kv, query, keys, heads, out, weights, _):
        out.copy_(self._attention(q, kv, query, keys, heads))

    def gathered_attention_backward(self, q, kv, query, keys, heads, *rest):
        *_, grad, of_q, of_kv, _ = rest
        with torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_() for t in (q, kv)]
            grads = torch.autograd.grad(self._attention(*leaves, query, keys, heads), leaves, grad)
        of_q.copy_(grads[0])
        of_kv.copy_(grads[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_model_in_fp64(variant, monkeypatch):
    ensemble = Ensemble([experiment(precision="float64", **VARIANTS[variant])])
    batch = first_batch(ensemble)
    step, plain, runs = RowsStep(ensemble.runs), Planned(ensemble.runs), ensemble.runs
    true, found = torch.full_like(ensemble.flat, torch.nan), torch.full_like(ensemble.flat, torch.nan)
    plain.gradient(ensemble.flat, true, true.new_empty(1), batch)
    own = torch.arange(len(runs.rows["train"].targets[0])) if batch is None else batch[0]
    rows = step.plans["train"][0].rows(own)
    sizes = runs.spec.data.n_tokens, runs.spec.data.seq_len
    tokens, positions = (RowIndex(rows.pairs[:, i], n) for i, n in enumerate(sizes))
    for index in (tokens, positions, *(i for r in rows.layers for i in (r.keys, r.query) if i is not None)):
        assert len(index.readers) == 2  # made by the extension
    monkeypatch.setattr(backend, "load_extension", InTorch)
    monkeypatch.setattr(products, "_onednn", lambda: None)  # it takes no fp64
    with torch.no_grad():
        computed = RowsPass(step.config, step.weights[0], rows, tokens, positions)
        logits = computed.logits(trains=True)
        targets = runs.rows["train"].targets[0][own]
        answers = targets[targets >= 0] if targets.ndim == 2 else targets
        _, _, of_logits = ensemble.runs.spec.loss.gradient(logits[None], answers[None])
        computed.backward(of_logits[0], step._named(found[0]))
    n = ensemble.runs.layout.size
    assert (found[0, :n] - true[0, :n]).abs().max() < 1e-10


@pytest.mark.parametrize("preset", ["power", "grokfast", "multihop"])
def test_bits_are_the_same_twice_alone_and_on_any_number_of_threads(preset):
    experiments = [experiment(seed, preset, **{"schedule.batch_size": 100}) for seed in (0, 1, 2)]
    together = Ensemble(experiments)
    found = gradients(together, batch=first_batch(together))
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for a, b in zip(found, gradients(together, batch=first_batch(together))):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
    for i, own in enumerate(experiments):
        alone = Ensemble([own])
        for a, b in zip(found, gradients(alone, batch=first_batch(alone))):
            assert torch.equal(a[i], b[0])


def test_the_extension_refuses_what_does_not_fit():
    extension, t = backend.load_extension(), torch.zeros
    good = [t(4, 3), t(3), t(5, 3), t(4, dtype=torch.int64), t(3), t(3), t(4, 3), t(4, 2), 1e-5, 1]
    extension.residual_norm_forward(*good)
    for at, wrong, name in ((1, t(2), "bias"), (3, torch.full((4,), 5), "index"), (6, t(4, 2), "out")):
        with pytest.raises((ValueError, IndexError), match=name):
            extension.residual_norm_forward(*good[:at], wrong, *good[at + 1 :])
    with pytest.raises(ValueError, match="along"):
        extension.residual_norm_backward(
            t(4, 3), t(3), t(4, 2), t(4, 3), t(5, 3), t(4, 3), t(3), t(3), None, 1
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model.dropout": 0.1}, "neither drops anything"),
        ({"model.attention_rate": 0.5}, "attention rate"),
        ({"precision": "float64"}, "takes no float64"),
    ],
)
def test_what_is_not_written_out(changes, why):
    ensemble = Ensemble([experiment(**changes)])
    assert not isinstance(ensemble.compute, RowsStep)
    assert why in RowsStep.why_not(ensemble.runs.spec)
    assert isinstance(Ensemble([experiment()]).compute, RowsStep)
