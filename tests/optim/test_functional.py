import gc
import io
from collections import deque

import pytest
import torch
from torch import nn

from grokfast import gradfilter_ema, gradfilter_ma

MEAN_AND_SUM = [("mean", 5.0), ("sum", 0.1)]


def original_ema(m, grads=None, alpha=0.98, lamb=2.0):
    """Lee et al.'s function: e <- alpha e + (1 - alpha) g, g <- g + lamb e; late parameters start with their own."""
    grads = {} if grads is None else grads
    for n, p in m.named_parameters():
        if p.requires_grad and p.grad is not None:
            grads[n] = grads.get(n, p.grad.clone()) * alpha + p.grad * (1 - alpha)
            p.grad = p.grad + grads[n] * lamb
    return grads


def original_ma(m, grads=None, window_size=100, lamb=5.0, filter_type="mean", warmup=True, trigger=False):
    """Lee et al.'s function: keeps every gradient of the window and adds them all at every step."""
    grads = {} if grads is None else grads
    for n, p in m.named_parameters():
        if p.requires_grad and p.grad is not None:
            window = grads.setdefault(n, deque(maxlen=window_size))
            window.append(p.grad.clone())
            if not warmup or (len(window) == window_size and not trigger):
                total = sum(window)
                p.grad = p.grad + (total / len(window) if filter_type == "mean" else total) * lamb
    return grads


class Model(nn.Module):
    """Parameters of every awkward kind: matrix, scalar, empty, frozen, late, sometimes without a gradient."""

    def __init__(self, dtype):
        super().__init__()
        for name, shape in {"matrix": (5, 7), "scalar": (), "empty": (0, 3), "late": (4,), "sometimes": (33,)}.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=dtype)))
        self.frozen = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)

    def receive(self, step, dtype, precision):
        """The gradients of `step`, rounded to `precision`, as `dtype`."""
        g = torch.Generator().manual_seed(step)
        for name, p in self.named_parameters():
            grad = (torch.randn(p.shape, generator=g) + 0.3).to(precision).to(dtype)
            present = {"late": step >= 12, "sometimes": step % 3 != 1, "frozen": False}.get(name, True)
            p.grad = grad if present else None


def run(function, dtype, precision=torch.float64, steps=45, start=0, grads=None, triggers=(), **options):
    """The filtered gradients of every step, and the last state."""
    model, filtered = Model(dtype), []
    for step in range(start, start + steps):
        model.receive(step, dtype, precision)
        if triggers:
            options["trigger"] = step in triggers
        grads = function(model, grads=grads, **options)
        filtered.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return filtered, grads


def pairs(*runs):
    for step in zip(*runs):
        assert all(step[0].keys() == other.keys() for other in step)
        yield from (tuple(gradients[name] for gradients in step) for name in step[0])


OPTIONS = [
    (gradfilter_ema, original_ema, {}),
    (gradfilter_ema, original_ema, {"alpha": 0.0, "lamb": -1.5}),
    (gradfilter_ema, original_ema, {"alpha": 1.0}),
    (gradfilter_ema, original_ema, {"alpha": 0.3, "lamb": 0.0}),
    *[
        (gradfilter_ma, original_ma, {"window_size": w, "filter_type": kind, "lamb": lamb, "warmup": warmup})
        for w in (1, 4, 100)
        for kind, lamb in MEAN_AND_SUM
        for warmup in (True, False)
    ],
    (gradfilter_ma, original_ma, {"window_size": 6, "triggers": range(20, 30)}),
    (gradfilter_ma, original_ma, {"window_size": 6, "triggers": range(20, 30), "warmup": False}),
]


@pytest.mark.parametrize(("ours", "original", "options"), OPTIONS)
def test_the_original_function_is_reproduced(ours, original, options):
    for got, expected in pairs(run(ours, torch.float64, **options)[0], run(original, torch.float64, **options)[0]):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "original", "options"), OPTIONS)
def test_rounding_is_no_worse_than_twice_the_originals(ours, original, options, dtype, judge):
    kinds = ((ours, dtype), (original, dtype), (original, torch.float64))
    runs = [run(function, kind, dtype, **options)[0] for function, kind in kinds]
    for name in runs[0][-1]:
        judge(*(torch.cat([step[name].flatten() for step in r if name in step]) for r in runs))
    assert all(got.dtype == dtype for got, *_ in pairs(*runs))


def test_the_filter_is_off_until_the_window_is_full_and_while_triggered():
    raw = run(lambda m, grads: grads, torch.float64)[0]
    filtered = run(gradfilter_ma, torch.float64, window_size=6, triggers=range(20, 30))[0]
    off = [torch.equal(r["scalar"], f["scalar"]) for r, f in zip(raw, filtered)]
    assert off == [step < 5 or 20 <= step < 30 for step in range(45)]


@pytest.mark.parametrize("function", [gradfilter_ema, gradfilter_ma])
def test_state_of_half_precision_gradients_is_fp32(function):
    _, grads = run(function, torch.bfloat16, steps=3)
    states = [t for s in grads.values() for t in ([s] if isinstance(s, torch.Tensor) else s.values())]
    assert {t.dtype for t in states} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("function", [gradfilter_ema, gradfilter_ma])
def test_going_on_from_saved_state_gives_the_same_bits(function):
    options = {"window_size": 10} if function is gradfilter_ma else {}
    whole, _ = run(function, torch.float32, steps=40, **options)
    for stop in (7, 25):  # before and after the window is full
        _, grads = run(function, torch.float32, steps=stop, **options)
        file = io.BytesIO()
        torch.save(grads, file)
        file.seek(0)
        grads = torch.load(file, weights_only=True)
        rest, _ = run(function, torch.float32, start=stop, steps=40 - stop, grads=grads, **options)
        assert all(torch.equal(*both) for both in pairs(whole[stop:], rest))


@pytest.mark.parametrize("function", [gradfilter_ema, gradfilter_ma])
def test_zeroing_gradients_in_place_leaves_the_history_alone(function):
    results = []
    for set_to_none in (True, False):
        model, grads, filtered = Model(torch.float32), None, []
        for step in range(8):
            model.zero_grad(set_to_none=set_to_none)
            (model.matrix * (step + 1)).sum().backward()
            grads = function(model, grads=grads)
            filtered.append({"matrix": model.matrix.grad.clone()})
        results.append(filtered)
    assert all(torch.equal(*both) for both in pairs(*results))


def test_memory_does_not_grow_with_the_steps():
    def held(grads):
        return sum(t.untyped_storage().nbytes() for s in grads.values() for t in s.values())

    model, grads, sizes, living = Model(torch.float32), None, [], []
    for step in range(30):
        model.receive(20, torch.float32, torch.float32)
        grads = gradfilter_ma(model, grads=grads, window_size=5)
        if step in (10, 29):
            sizes.append(held(grads))
            living.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert sizes[0] == sizes[1] == sum(p.numel() * 4 * (5 + 1) + 8 for p in model.parameters() if p.requires_grad)
    assert living[0] == living[1]


@pytest.mark.parametrize("function", [gradfilter_ema, gradfilter_ma])
def test_strided_gradients_are_filtered_in_place(function):
    model, plain = nn.Linear(4, 6), nn.Linear(4, 6)
    grads = plain_grads = None
    for step in range(4):
        buffer = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        model.weight.grad, plain.weight.grad = buffer.T, buffer.T.contiguous()
        options = {"window_size": 2} if function is gradfilter_ma else {}
        grads, plain_grads = function(model, grads, **options), function(plain, plain_grads, **options)
        # A window's sum is made anew in the order of memory: the same to rounding.
        torch.testing.assert_close(model.weight.grad, plain.weight.grad)
        assert model.weight.grad.data_ptr() == buffer.data_ptr()  # a view of somebody's bucket stays one


def test_after_a_nan_the_moving_average_is_finite_again_within_five_windows():
    model, grads, window = nn.Linear(300, 1), None, 3
    for step in range(1 + 5 * window):
        model.weight.grad = torch.full((1, 300), torch.nan if step == 0 else 1.0)
        model.bias.grad = torch.ones(1)
        grads = gradfilter_ma(model, grads, window_size=window)
    assert torch.equal(model.weight.grad, torch.full((1, 300), 6.0))


def small(step=0):
    model = nn.Linear(3, 2)
    for p in model.parameters():
        p.grad = torch.full_like(p, step + 1.0)
    return model


def shallow(grads):
    return None if grads is None else {n: s if isinstance(s, torch.Tensor) else dict(s) for n, s in grads.items()}


MA_STATE = gradfilter_ma(small(), window_size=3)
EMA_STATE = gradfilter_ema(small())


def changed(state, name="weight", **entries):
    return {**state, name: {**state[name], **{f"grokfast_{key}": value for key, value in entries.items()}}}


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (gradfilter_ema, {"alpha": 1.5}, ValueError, r"alpha must be in \[0.0, 1.0\], got 1.5"),
        (gradfilter_ema, {"lamb": "2"}, TypeError, "lamb must be a number, got '2'"),
        (gradfilter_ema, {"grads": [1]}, TypeError, "grads must be .*, got list"),
        (
            gradfilter_ema,
            {"grads": MA_STATE},
            TypeError,
            r"grads\['weight'\]\['grokfast_ema'\] must be a tensor, got dict",
        ),
        (gradfilter_ema, {"grads": {"bias": torch.zeros(3)}}, ValueError, r"has shape \(3,\), accepted is \(2,\)"),
        (
            gradfilter_ma,
            {"filter_type": "median"},
            ValueError,
            "filter_type must be one of 'mean', 'sum', got 'median'",
        ),
        (gradfilter_ma, {"window_size": 0}, ValueError, "window_size must be at least 1, got 0"),
        (gradfilter_ma, {"warmup": 1}, TypeError, "warmup must be True or False, got 1"),
        (gradfilter_ma, {"trigger": "yes"}, TypeError, "trigger must be True or False, got 'yes'"),
        (gradfilter_ma, {"grads": EMA_STATE}, TypeError, r"grads\['weight'\] must be a dict of .*, got Tensor"),
        (gradfilter_ma, {"grads": {"bias": deque()}}, TypeError, r"grads\['bias'\] must be a dict of .*, got deque"),
        (gradfilter_ma, {"grads": {"bias": {}}}, ValueError, r"grads\['bias'\] holds \[\], but the filter is MA"),
        (gradfilter_ma, {"grads": MA_STATE, "window_size": 4}, ValueError, r"\(3, 2, 3\), accepted is \(4, 2, 3\)"),
        (
            gradfilter_ma,
            {"grads": changed(MA_STATE, count=torch.tensor(1.0)), "window_size": 3},
            ValueError,
            "must be a torch.int64 count",
        ),
        (
            gradfilter_ma,
            {"grads": changed(MA_STATE, "bias", count=torch.tensor(-1)), "window_size": 3},
            ValueError,
            r"grads\['bias'\]\['grokfast_count'\] must be",
        ),
    ],
)
def test_bad_arguments_are_refused_with_nothing_changed(function, options, error, message):
    model, before = small(), shallow(options.get("grads") if isinstance(options.get("grads"), dict) else None)
    with pytest.raises(error, match=message):
        function(model, **options)
    assert all((p.grad == 1).all() for p in model.parameters())
    if before is not None:
        assert shallow(options["grads"]) == before


@pytest.mark.parametrize("function", [gradfilter_ema, gradfilter_ma])
def test_a_sparse_gradient_is_refused_before_anything_changes(function):
    model, grads = small(), {}
    model.bias.grad = model.bias.grad.to_sparse()  # the second parameter
    with pytest.raises(TypeError, match=r"grad must be a dense tensor, got layout torch.sparse_coo with shape \(2,\)"):
        function(model, grads=grads)
    assert grads == {}
    assert (model.weight.grad == 1).all()


@pytest.mark.parametrize("function", [gradfilter_ema, gradfilter_ma])
def test_only_a_module_is_accepted(function):
    with pytest.raises(TypeError, match=r"m must be a torch.nn.Module, got list"):
        function([nn.Parameter(torch.zeros(1))])
