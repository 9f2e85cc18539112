from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grokfast.backend import using
from grokfast.models import GrokTransformer, TransformerConfig
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops import linear_cross_entropy, pair_embed
from tests.tf32 import torch_at

pytest.importorskip("triton")
from grokfast.ops import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = TransformerConfig(d_model=12, n_heads=3, d_mlp=20)
PRESETS = {
    "nanda": {"n_layers": 1},
    "power": {"n_layers": 2, "norm": "post", "positions": "sinusoidal", "mlp_bias": False, "outputs": "tokens"},
    "grokfast": {
        "n_layers": 2, "norm": "replace", "activation": "gelu", "n_positions": 5, "attention_bias": True,
        "outputs": "tokens",
    },
}  # fmt: skip
VARIANTS = [
    *PRESETS.values(),
    {"n_layers": 3, "norm": "pre", "tied": True, "outputs": "tokens"},
    {"n_layers": 2, "causal": False, "norm": "pre", "residual": False},
    {"n_layers": 1, "causal": False, "attention_bias": True, "n_heads": 1, "d_model": 5, "d_mlp": 3},
]


def modular(p, layout, n_models, fraction=0.5):
    """Splits of a ∘ b mod p, one per model: tokens [E, N, T], targets [E, N]."""
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).unbind(1)
    op, equals = torch.full_like(a, p), torch.full_like(a, p + 1)
    columns = {
        "a b": [a, b],
        "a b =": [a, b, equals],
        "a ∘ b =": [a, op, b, equals],
        "a ∘ b = =": [a, op, b, op, equals],
    }
    tokens, targets = torch.stack(columns[layout], 1), (a + b) % p
    orders = [torch.randperm(p * p, generator=torch.Generator().manual_seed(e)) for e in range(n_models)]
    chosen = torch.stack([order[: int(fraction * p * p)] for order in orders])
    return tokens[chosen].to(DEVICE), targets[chosen].to(DEVICE)


def words(n_models, n, seq_len, below):
    """Random tokens: prefixes share now and then, some rows are equal."""
    g = torch.Generator().manual_seed(0)
    tokens, targets = (
        torch.randint(n, s, generator=g) for n, s in ((below, (n_models, n, seq_len)), (3, (n_models, n)))
    )
    return tokens.to(DEVICE), targets.to(DEVICE)


DATA = {
    "a b": modular(5, "a b", 2),
    "a b =": modular(5, "a b =", 2),
    "a ∘ b =": modular(7, "a ∘ b =", 2),
    "a ∘ b = =": modular(5, "a ∘ b = =", 2),
    "nothing shared": (
        torch.arange(42, device=DEVICE).view(2, 7, 3),
        torch.zeros(2, 7, dtype=torch.int64, device=DEVICE),
    ),
    "some equal rows": words(2, 21, 3, 2),
    "prefixes now and then": words(2, 21, 4, 3),
}


def build(config, tokens, n_models, dtype):
    sizes = {"n_tokens": int(tokens.max()) + 2, "n_answers": 7, "seq_len": tokens.shape[-1]}
    model = GrokTransformer(config, **sizes, seeds=range(n_models), dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and LayerNorms must matter
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape[1:], generator=g, dtype=torch.float64)
    return model.to(DEVICE, dtype)


def flatten(tensors, padding=0):
    flat = torch.cat([t.detach().flatten(1) for t in tensors], 1)
    return torch.nn.functional.pad(flat, (0, padding), value=7)


def by_step(step, flat, batch=None):
    """Loss, correct, gradient, whatever was in their memory before."""
    grad, loss, correct = (torch.full_like(t, torch.nan) for t in (flat, flat[:, 0], flat[:, 0]))
    step.gradient(flat, grad, loss, correct, batch)
    return loss, correct, grad[:, : step.n_parameters]


def by_autograd(model, tokens, targets, batch=None, loss="cross_entropy"):
    if batch is not None:
        tokens = torch.stack([t[rows] for t, rows in zip(tokens, batch)])
        targets = targets.gather(1, batch)
    logits = model(tokens)
    if loss == "mse":
        losses = (logits - torch.nn.functional.one_hot(targets, logits.shape[2])).square().mean((1, 2))
    else:
        rows = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses = rows.view(targets.shape).mean(1)
    correct = (logits.argmax(-1) == targets).sum(1).to(logits.dtype)
    return losses.detach(), correct, flatten(torch.autograd.grad(losses.sum(), list(model.parameters())))


def batches(tokens, seed=0):
    """None, a few rows of each data set, and as many as there are, some twice."""
    g, n = torch.Generator().manual_seed(seed), tokens.shape[1]
    return [None, *(torch.randint(n, (len(tokens), size), generator=g).to(DEVICE) for size in (5, n))]


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_plan_of_an_ensemble_is_the_model(variant, data, loss):
    config, (tokens, targets) = replace(SMALL, **variant), DATA[data]
    model = build(config, tokens, 2, torch.float64)
    step = TransformerStep(model, tokens, targets, loss=loss, backend="reference")
    for batch in batches(tokens):
        got = by_step(step, flatten(model.parameters(), padding=3), batch)
        for ours, theirs in zip(got, by_autograd(model, tokens, targets, batch, loss), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_rows_that_are_none_count_nothing(backend):
    """The last batch of an epoch, and data sets of other lengths."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    tokens, targets = DATA["a b"]
    model = build(SMALL, tokens, 2, dtype)
    step = TransformerStep(model, tokens, targets, n_rows=[12, 3], backend=backend)
    flat = flatten(model.parameters(), padding=3)
    for batch in (None, torch.tensor([[0, 5, 11, -1], [2, -1, -1, 1]], device=DEVICE)):
        loss, correct, grad = by_step(step, flat, batch)
        for e, rows in enumerate([range(12), range(3)] if batch is None else [[0, 5, 11], [2, 1]]):
            rows = torch.tensor(rows, device=DEVICE).expand(2, -1)
            expected = by_autograd(model, tokens, targets, rows)
            for got, right in zip((loss, correct, grad), expected):
                torch.testing.assert_close(got[e], right[e])


def test_what_pads_the_gradient_is_zero():
    tokens, targets = DATA["a b"]
    model = build(SMALL, tokens, 2, torch.float64)
    grad = flatten(model.parameters(), padding=3)
    TransformerStep(model, tokens, targets).gradient(grad.clone(), grad, grad.new_empty(2), grad.new_empty(2))
    assert grad[:, -3:].tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("variant", "data", "with_batch", "precision"),
    [
        (PRESETS["nanda"], "a b =", False, "ieee"),
        (PRESETS["power"], "a b", True, "tf32"),  # in the interpreter as exact as ieee
        (PRESETS["grokfast"], "some equal rows", False, "ieee"),
        (VARIANTS[-2], "some equal rows", True, "tf32x3"),
        (VARIANTS[-1], "prefixes now and then", True, "tf32"),
    ],
    ids=str,
)
def test_the_kernels_are_as_good_as_torch(variant, data, with_batch, precision, judge, poisoned):
    config, (tokens, targets) = replace(SMALL, **variant), DATA[data]
    single, double = (build(config, tokens, 2, dtype) for dtype in (torch.float32, torch.float64))
    step = TransformerStep(single, tokens, targets, precision=precision, backend="triton")
    batch = batches(tokens)[1] if with_batch else None
    with using("triton"):
        got = by_step(step, flatten(single.parameters(), padding=3), batch)
    with torch_at(precision):
        by_torch = by_autograd(single, tokens, targets, batch)
    for ours, theirs, exact in zip(got, by_torch, by_autograd(double, tokens, targets, batch), strict=True):
        judge(ours, theirs, exact)


def test_each_model_has_the_bits_it_has_alone(poisoned):
    """Its data set is its own; so are the bits of what is left of an ensemble."""
    config, (tokens, targets) = replace(SMALL, d_mlp=8, norm="post"), modular(3, "a b =", 3)
    model = build(config, tokens, 3, torch.float32)
    flat, batch = flatten(model.parameters()), batches(tokens)[1]
    step = TransformerStep(model, tokens, targets, backend="triton")
    together = by_step(step, flat, batch)
    kept = by_step(step.keep([2]), flat[2:], batch[2:])
    alone = by_step(TransformerStep(model, tokens[1:2], targets[1:2], backend="triton"), flat[1:2], batch[1:2])
    for all_models, of_one in zip(together, kept):
        assert torch.equal(all_models[2:], of_one)
    for all_models, of_one in zip(together, alone):
        assert torch.equal(all_models[1:2], of_one)


@pytest.mark.parametrize(
    ("precision", "variant"), [("ieee", PRESETS["nanda"]), ("tf32", PRESETS["grokfast"])], ids=["kept", "made anew"]
)
def test_sums_over_many_rows_have_one_order(precision, variant, monkeypatch, poisoned):
    """Gradients that are summed in parts, of three models together and of one alone."""
    monkeypatch.setattr(kernels, "PROGRAMS", 2)  # three models and one must not share these differently
    config, (tokens, targets) = replace(SMALL, **{**variant, "n_layers": 1}), modular(12, "a b =", 3, 0.9)
    targets = targets % 7
    model = build(replace(config, d_model=4, n_heads=1, d_mlp=5), tokens, 3, torch.float32)
    flat = flatten(model.parameters())
    together = by_step(TransformerStep(model, tokens, targets, precision=precision, backend="triton"), flat)
    step = TransformerStep(model, tokens[1:2], targets[1:2], precision=precision, backend="triton")
    for of_all, of_one in zip(together, by_step(step, flat[1:2])):
        assert torch.equal(of_all[1:2], of_one)


def train(gradient, flat, steps):
    """AdamW on a flat parameter; the losses."""
    flat = flat.clone().requires_grad_()
    optimizer, losses = torch.optim.AdamW([flat], lr=0.03, weight_decay=1.0), []
    for i in range(steps):
        loss, flat.grad = gradient(flat.detach(), i)
        losses.append(loss.clone())
        optimizer.step()
    return torch.stack(losses)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_twenty_steps_follow_the_model(backend):
    config, (tokens, targets) = replace(SMALL, d_model=4, n_heads=2, d_mlp=8), modular(3, "a b", 1, 0.8)
    dtype = torch.float64 if backend == "reference" else torch.float32
    model = build(config, tokens, 1, dtype)
    step = TransformerStep(model, tokens, targets, backend=backend)

    def ours(flat, i):
        loss, _, grad = by_step(step, flat)
        return loss, grad

    def theirs(flat, i):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(flat[0], model.parameters())
        loss, _, grad = by_autograd(model, tokens, targets)
        return loss, grad

    flat = flatten(model.parameters())
    got, expected = train(ours, flat, 20), train(theirs, flat, 20)
    assert expected[-1] < 0.8 * expected[0]
    torch.testing.assert_close(got, expected, rtol=1e-9 if dtype is torch.float64 else 1e-4, atol=0)


def test_measure_is_the_loss_of_the_whole_data_set():
    tokens, targets = DATA["a ∘ b ="]
    model = build(SMALL, tokens, 2, torch.float64)
    loss, correct = (torch.empty(2, dtype=dtype, device=DEVICE) for dtype in (torch.float64, torch.int64))
    TransformerStep(model, tokens, targets, backend="reference").measure(flatten(model.parameters()), loss, correct)
    expected = by_autograd(model, tokens, targets)
    torch.testing.assert_close(loss, expected[0], rtol=1e-12, atol=0)
    assert correct.tolist() == expected[1].tolist()


@pytest.mark.parametrize(
    ("variant", "data", "precision"),
    [
        (PRESETS["nanda"], "a b", "ieee"),
        (PRESETS["power"], "a b", "tf32"),
        (PRESETS["grokfast"], "a b", "tf32x3"),
        (VARIANTS[-3], "nothing shared", "tf32"),
        (VARIANTS[-2], "a b", "ieee"),
        (PRESETS["nanda"], "some equal rows", "tf32"),
    ],
    ids=str,
)
def test_measure_in_the_kernels_is_as_good_as_torch(variant, data, precision, judge, poisoned):
    """Data sets of different lengths, each model's loss as it is alone, and in memory that is given back."""
    config, (tokens, targets), n_rows = replace(SMALL, **variant), DATA[data], [DATA[data][0].shape[1], 5]
    single, double = (build(config, tokens, 2, dtype) for dtype in (torch.float32, torch.float64))
    step = TransformerStep(single, tokens, targets, n_rows=n_rows, precision=precision, backend="triton")
    flat = flatten(single.parameters(), padding=3)
    loss, alone = (torch.full((n,), torch.nan, device=DEVICE) for n in (2, 1))
    correct = torch.full((2,), -1, dtype=torch.int32, device=DEVICE)
    with using("triton"):
        assert ("equal" in step.why_not_fused(flat)) == (data == "some equal rows")
        step.measure(flat, loss, correct)
        step.keep([1]).measure(flat[1:], alone, correct[1:].clone())
    assert step._launches is None or not step._launches._scratch
    for e, n in enumerate(n_rows):
        of_torch, exact = (by_autograd(m, tokens[:, :n], targets[:, :n]) for m in (single, double))
        judge(loss[e], of_torch[0][e], exact[0][e])
        assert correct[e] == exact[1][e]
    assert torch.equal(alone, loss[1:])


@pytest.mark.parametrize(("preset", "launches"), [("nanda", 3), ("power", 4)])
def test_an_evaluation_is_a_launch_for_each_level_and_one_for_the_sums(preset, launches, monkeypatch):
    tokens, targets = DATA["a b"]
    model = build(replace(SMALL, **PRESETS[preset]), tokens, 2, torch.float32)
    step, flat = TransformerStep(model, tokens, targets), flatten(model.parameters())
    launched = []
    for name in ("models.transformer.fused.launches", "ops.batch.kernels"):
        monkeypatch.setattr(f"grokfast.{name}.launch", lambda kernel, *_, **__: launched.append(kernel))
    with using("triton"):
        for _ in range(2):  # at first the plan is made
            launched.clear()
            step.measure(flat, flat.new_empty(2), flat.new_empty(2))
    assert len(launched) == launches


class Waits(TorchDispatchMode):
    """Raises where a GPU would have to be waited for, or a shape depends on numbers."""

    NAMES = ("_local_scalar_dense", "nonzero", "unique", "bincount", "masked_select", "equal", "is_nonzero", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(waits) for waits in self.NAMES):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("preset", "with_batch"), [("nanda", False), ("power", True), ("grokfast", False)])
def test_nothing_waits_for_the_device(preset, with_batch, monkeypatch):
    for module in (pair_embed, linear_cross_entropy):  # on a GPU they look at no index
        monkeypatch.setitem(module.__globals__, "check_indices", lambda *_: None)
    tokens, targets = modular(3, "a b", 2)
    model = build(replace(SMALL, **PRESETS[preset]), tokens, 2, torch.float32)
    step, flat = TransformerStep(model, tokens, targets, backend="triton"), flatten(model.parameters())
    batch = batches(tokens)[1] if with_batch else None
    with using("triton"):
        by_step(step, flat, batch)
        step.measure(flat, flat.new_empty(2), flat.new_empty(2))
    with using("triton"), waits_refused(), Waits():
        step.gradient(flat, torch.empty_like(flat), flat.new_empty(2), flat.new_empty(2), batch)
        step.measure(flat, flat.new_empty(2), flat.new_empty(2))


@contextmanager
def waits_refused():
    """Also where no operation is dispatched: Tensor.item, tolist and cpu."""

    def refuse(*_):
        raise AssertionError("waits for the device")

    before = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "cpu")}
    try:
        for name in before:
            setattr(torch.Tensor, name, refuse)
        yield
    finally:
        for name, method in before.items():
            setattr(torch.Tensor, name, method)


def test_what_the_kernels_take_is_said():
    cpu = torch.device("cpu")
    assert TransformerStep.fits(replace(SMALL, dropout=0.1), seq_len=3, device=cpu).startswith("dropout")
    assert TransformerStep.fits(SMALL, seq_len=3, device=cpu) == "a CPU"
    device = torch.device(DEVICE)
    with using("triton"):
        assert TransformerStep.fits(SMALL, seq_len=3, device=device) == ""
        assert "fp32, got torch.float64" in TransformerStep.fits(SMALL, seq_len=3, device=device, dtype=torch.float64)
        assert "64 keys, got 65" in TransformerStep.fits(SMALL, seq_len=65, device=device)
        wide = replace(SMALL, d_model=516)
        assert "up to 512, got 516" in TransformerStep.fits(wide, seq_len=3, device=device)


def test_bad_arguments_are_refused():
    tokens, targets = (t.cpu() for t in DATA["a b ="])
    model = build(SMALL, tokens, 2, torch.float32).cpu()
    for arguments, error, message in [
        ((None, tokens, targets), TypeError, "model must be a GrokTransformer, got NoneType"),
        ((model, tokens[0], targets), ValueError, r"tokens must be \[E, N, T\], not empty, got \[12, 3\]"),
        ((model, tokens + 2, targets), ValueError, r"tokens must be in \[0, 8\), got 8"),
        ((model, tokens, targets[:, 1:]), ValueError, r"targets must be \[2, 12\] torch.int64, got \[2, 11\]"),
        ((model, tokens, targets + 3), ValueError, r"targets must be in \[0, 7\), got 7"),
        ((build(replace(SMALL, dropout=0.1), tokens, 2, torch.float32), tokens, targets), ValueError, "no dropout"),
    ]:
        with pytest.raises(error, match=message):
            TransformerStep(*arguments)
    with pytest.raises(ValueError, match="n_rows must be one number for each of 2 models, got 1"):
        TransformerStep(model, tokens, targets, n_rows=[12])
    with pytest.raises(ValueError, match=r"n_rows\[1\] must be between 1 and 12, got 13"):
        TransformerStep(model, tokens, targets, n_rows=[12, 13])
    with pytest.raises(ValueError, match="loss must be one of"):
        TransformerStep(model, tokens, targets, loss="hinge")
    with pytest.raises(ValueError, match="precision must be one of"):
        TransformerStep(model, tokens, targets, precision="fp8")
    step, flat = TransformerStep(model, tokens, targets, backend="reference"), flatten(model.parameters())
    one = flat[:, 0].clone()
    with pytest.raises(ValueError, match=r"flat must be \[2, \d+ or more\] on cpu, got \[1, \d+\]"):
        step.measure(flat[:1], one, one)
    with pytest.raises(ValueError, match=r"grad must be \[2, \d+ or more\] on cpu, got \[2, 5\]"):
        step.gradient(flat, flat[:, :5], one, one)
    with pytest.raises(ValueError, match=r"correct must be \[2\], contiguous, on cpu, got \[1\]"):
        step.measure(flat, one, one[:1])
    with pytest.raises(ValueError, match=r"loss must be \[2\], contiguous, on cpu, got \[2\] on cpu, with gaps"):
        step.measure(flat, flat[:, 0], one)
    with pytest.raises(ValueError, match=r"batch must be \[2, B\], not empty, on cpu, got \[1, 3\] on cpu"):
        step.gradient(flat, flat.clone(), one, one, torch.zeros(1, 3, dtype=torch.int64))
