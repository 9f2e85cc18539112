import math
import sys

import pytest
import torch

from grokfast import backend
from grokfast.ops import RowIndex, gathered_attention

NAMES = ("x", "w_qkv", "b_qkv", "w_o", "b_o")


def inputs(rows=63, table=17, first=0, queries="index", slots=3, d=12, biases=True, dtype=torch.float32):
    """Weights, and an index that reads some rows often and the last but one never."""
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (table, d), "w_qkv": (3 * d, d), "b_qkv": (3 * d,), "w_o": (d, d), "b_o": (d,)}
    tensors = {
        name: torch.randn(shape, generator=g).div(math.sqrt(d) if "w" in name else 1) for name, shape in shapes.items()
    }
    tensors = {name: t.to(dtype).requires_grad_() for name, t in tensors.items() if biases or "b_" not in name}
    keys = torch.randint(table, (rows, slots), generator=g)
    keys[keys == table - 2] = 0
    keys[rows // 2 :, 1:] = -1
    if queries == "index":
        query = RowIndex(torch.randint(table - first, (rows,), generator=g), table - first)
    elif queries == "one":
        first, query = table - 1, RowIndex(torch.zeros(rows, dtype=torch.int64), 1)
    else:
        first, query = table - rows, None
    return tensors, {"keys": RowIndex(keys, table), "query": query, "first": first}


def call(tensors, options, n_heads=3, skip="x"):
    x, w_qkv, w_o = tensors["x"], tensors["w_qkv"], tensors["w_o"]
    skip = {"x": x, "none": None, "other": 2 * x}[skip]
    return gathered_attention(
        x, w_qkv, tensors.get("b_qkv"), w_o, tensors.get("b_o"), n_heads=n_heads, skip=skip, **options
    )


def run(tensors, options, **arguments):
    out = call(tensors, options, **arguments)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, list(tensors.values()), slope)]


CASES = {
    "padded": {},
    "from a row on": {"first": 5},
    "one query": {"queries": "one"},
    "each its own": {"rows": 17, "queries": "own"},
    "each its own, of the last rows": {"rows": 9, "queries": "own"},
    "no biases": {"biases": False},
    "heads of 16": {"d": 48},
    "heads of 32": {"d": 96, "rows": 1000, "table": 300},
    "one query, many rows": {"d": 96, "rows": 1000, "table": 300, "queries": "one"},
    "one slot": {"slots": 1},
    "nine slots": {"slots": 9, "rows": 130},
}


@pytest.mark.parametrize("case", CASES)
def test_the_definition(case, each_backend):
    """Row by row, head by head."""
    tensors, options = inputs(**CASES[case] | {"rows": min(CASES[case].get("rows", 20), 20)})
    tensors = {name: t.detach().double() for name, t in tensors.items()}
    out = call(tensors, options)
    x, d = tensors["x"], tensors["x"].shape[1]
    q, k, v = (x @ tensors["w_qkv"].T + tensors.get("b_qkv", 0)).split(d, 1)
    for r in range(len(out)):
        own = options["first"] + (r if options["query"] is None else int(options["query"].index[r]))
        keys = [int(key) for key in options["keys"].index[r] if key >= 0]
        heads = []
        for head in range(3):
            part = slice(head * d // 3, (head + 1) * d // 3)
            weights = torch.tensor([q[own, part] @ k[key, part] / math.sqrt(d / 3) for key in keys]).double().softmax(0)
            heads.append(sum(weight * v[key, part] for weight, key in zip(weights, keys)))
        expected = x[own] + tensors["w_o"] @ torch.cat(heads) + tensors.get("b_o", 0)
        torch.testing.assert_close(out[r], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("skip", ["x", "none", "other"])
@pytest.mark.parametrize("case", CASES)
def test_as_good_as_torch(case, skip, compiled, poisoned, judge):
    fast = run(*inputs(**CASES[case]), skip=skip)
    with backend.using("reference"):
        by_torch = run(*inputs(**CASES[case]), skip=skip)
    exact = run(*inputs(**CASES[case], dtype=torch.float64), skip=skip)
    judge(fast[0], by_torch[0], exact[0])
    for got, theirs, right in zip(fast[1:], by_torch[1:], exact[1:]):
        judge(got, theirs, right, factor=3)


@pytest.mark.parametrize("queries", ["index", "one", "own"])
@pytest.mark.parametrize("skip", ["x", "none", "other"])
def test_gradcheck(queries, skip, each_backend):
    rows = 4 if queries == "own" else 7
    tensors, options = inputs(rows=rows, table=6, d=4, queries=queries, dtype=torch.float64)

    def f(*values):
        return call(dict(zip(tensors, values)), options, n_heads=2, skip=skip)

    assert torch.autograd.gradcheck(f, list(tensors.values()))


@pytest.mark.parametrize("case", ["heads of 32", "one query, many rows"])
def test_the_same_bits_twice_and_on_any_number_of_threads(case, compiled, set_threads, monkeypatch):
    """Products aside, which are torch's: here they always run on one thread."""
    results = []
    for threads in (1, 2, 3, 2):
        set_threads(1)
        for module in ("grokfast.ops.gathered_attention", "grokfast.ops.rows"):
            monkeypatch.setattr(sys.modules[module], "threads_for", lambda _, cost=1, n=threads: n)
        results.append(run(*inputs(**CASES[case])))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_the_same_bits_twice(each_backend):
    for one, other in zip(run(*inputs(rows=1000, table=300, d=96)), run(*inputs(rows=1000, table=300, d=96))):
        assert torch.equal(one, other)


def test_only_wanted_gradients_come(each_backend):
    tensors, options = inputs()
    frozen = {name: t.detach() for name, t in tensors.items()}
    assert not call(frozen, options).requires_grad
    frozen["w_o"].requires_grad_()
    call(frozen, options).sum().backward()
    assert frozen["w_o"].grad is not None
    assert frozen["x"].grad is None
    with torch.no_grad():
        assert not call(tensors, options).requires_grad


def test_nan_comes_through(each_backend):
    tensors, options = inputs()
    with torch.no_grad():
        tensors["x"][3] = torch.nan
    out = call(tensors, options, skip="none")
    reads = (options["keys"].index == 3).any(1) | (options["query"].index == 3)
    assert torch.equal(out.isnan().all(1), reads)
    assert torch.equal(out.isnan().any(1), reads)


def test_large_scores_do_not_overflow(each_backend):
    tensors, options = inputs()
    out = call({name: 100 * t.detach() for name, t in tensors.items()}, options)
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_kept(dtype, each_backend):
    assert all(t.dtype == dtype for t in run(*inputs(dtype=dtype)))


def test_odd_strides_are_read_right(each_backend):
    tensors, options = inputs()
    expected = call(tensors, options)
    apart = {name: t.repeat_interleave(2, -1)[..., ::2] for name, t in tensors.items()}
    assert not apart["x"].is_contiguous()
    torch.testing.assert_close(call(apart, options), expected, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_refused_on_the_fast_path(compiled):
    tensors, options = inputs()
    (grad,) = torch.autograd.grad(call(tensors, options).square().sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 17, 12)}, ValueError, r"x must be \[K, d\] of a float dtype, d a multiple of 3"),
        ({"x": torch.zeros(17, 13)}, ValueError, "d a multiple of 3, got .17, 13."),
        ({"x": torch.zeros(17, 12, dtype=torch.int64)}, ValueError, "x must be .* torch.int64"),
        ({"x": torch.zeros(0, 12)}, ValueError, "x must be"),
        ({"w_qkv": torch.zeros(12, 12)}, ValueError, r"w_qkv must be \[36, 12\] torch.float32 on cpu, got \[12, 12\]"),
        ({"b_qkv": torch.zeros(12)}, ValueError, r"b_qkv must be \[36\]"),
        ({"w_o": torch.zeros(12, 12).double()}, ValueError, r"w_o must be .* got \[12, 12\] torch.float64"),
        ({"b_o": torch.zeros(12, device="meta")}, ValueError, "b_o must be .* on cpu, got .* on meta"),
        ({"skip": torch.zeros(16, 12)}, ValueError, r"skip must be \[17, 12\]"),
        ({"n_heads": 0}, ValueError, "n_heads must be at least 1"),
        ({"first": 17}, ValueError, "first must be between 0 and 16"),
        ({"first": 1}, ValueError, r"query must be \[R\] into 16 rows on cpu, got \[63\] into 17 rows"),
        ({"keys": torch.zeros(63, 3, dtype=torch.int64)}, TypeError, "keys must be a RowIndex, got Tensor"),
        ({"keys": RowIndex(torch.zeros(63, dtype=torch.int64), 17)}, ValueError, r"keys must be \[R, S\] into 17 rows"),
        ({"keys": RowIndex(torch.zeros(63, 3, dtype=torch.int64), 9)}, ValueError, "keys must be .* into 9 rows"),
        ({"keys": RowIndex(torch.zeros(62, 3, dtype=torch.int64), 17)}, ValueError, "for each of 63 queries, got 62"),
        ({"query": None}, ValueError, "keys must have a row for each of 17 queries, got 63"),
    ],
)
def test_bad_input_is_named(change, error, message, each_backend):
    tensors, options = inputs()
    arguments = {name: t.detach() for name, t in tensors.items()} | options | {"n_heads": 3} | change
    with pytest.raises(error, match=message):
        gathered_attention(**arguments)
